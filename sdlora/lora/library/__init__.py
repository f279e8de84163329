"""Library of LoRA files: folders scanned, described and searched by name."""
