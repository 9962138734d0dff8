"""The words all rooms share: estimates, transitions, metrics, errors. No I/O."""
