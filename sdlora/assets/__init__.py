"""Models as assets: the library of base models, and what is done with their files."""
