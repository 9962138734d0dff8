"""Observables of attention heads."""
