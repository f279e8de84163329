"""Settings, each written once: its bounds, flag, form field and words come from its field."""
