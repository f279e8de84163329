"""The embedded starter model: its drawn world, its recipe and its weights."""
