"""Grafana: its client, dashboards pushed, annotations."""
