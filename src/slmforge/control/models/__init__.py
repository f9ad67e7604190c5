"""Models: the catalogue's, others by hub id or folder, and those that experiments made."""
