"""LoRA files: the gate they pass, their formats and metadata, and an index of those on the disk."""
