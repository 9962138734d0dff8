"""Detection over stored numbers."""
