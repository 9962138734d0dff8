"""Change-point detection on streams of numbers."""
