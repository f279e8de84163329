"""LoRA files: checks, formats and metadata, the library of files on the disk, and tools."""
