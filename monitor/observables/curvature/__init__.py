"""Observables of curvature and gradient noise."""
