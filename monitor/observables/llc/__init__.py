"""The LLC as an observable: of the whole net, of parts, of data."""
