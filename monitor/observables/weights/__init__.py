"""Observables of weights: norms, spectra, distances."""
