"""Evaluations: base against tuned, on the same held-out rows."""
