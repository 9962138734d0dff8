"""How good a detector is: null streams, scores, cross-validation."""
