"""Tabs of the page, one module each, with one `build`."""
