"""SLM Forge: from a file of your own data to a small language model that is measurably better on it."""

__version__ = "0.1.0"
