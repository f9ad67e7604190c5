"""Datasets: upload, list, read, download, delete."""
