"""Upscalers: networks that enlarge finished pictures."""
