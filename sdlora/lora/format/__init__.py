"""LoRA files: key formats, adapter types, metadata, hashes."""
