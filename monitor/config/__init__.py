"""Every setting and its default."""
