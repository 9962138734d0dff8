"""Observables of losses by token, position and component."""
