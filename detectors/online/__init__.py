"""The detectors that take one point after another."""
