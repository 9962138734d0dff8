"""From streams to alarms, transitions and verdicts."""
