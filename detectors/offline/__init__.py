"""Change points of a whole history."""
