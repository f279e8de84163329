"""Base models: a file per family behind one contract."""
