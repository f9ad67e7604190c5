"""The training plane: one process per run, whose whole world is its spec. No web, no database, no settings."""
