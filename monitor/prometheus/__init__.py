"""Prometheus: exposition, server, push, target files, backfill."""
