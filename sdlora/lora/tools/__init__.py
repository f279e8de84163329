"""Tools on LoRA files: merge, convert, resize, compare."""
