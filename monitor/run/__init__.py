"""A run: `Watch`, what it measures and when, where the numbers go."""
