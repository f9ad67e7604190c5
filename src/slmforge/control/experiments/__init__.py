"""Experiments: resolve a request into a spec, follow its run."""
