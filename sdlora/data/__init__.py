"""Picture folders: what is in them, what is wrong with them, and pictures as tensors."""
