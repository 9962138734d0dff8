"""Curves of other programs: csv, jsonl, TensorBoard."""
