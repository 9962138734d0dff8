"""Alerts: their text, the channels, and the process that sends them."""
