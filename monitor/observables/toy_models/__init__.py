"""Observables of models whose solution is known."""
