"""Runs: submit a spec, see to its process, fold what it says. Knows nothing of datasets or experiments."""
