"""The adapter to Lightning: hooks in, `Watch` calls out."""
