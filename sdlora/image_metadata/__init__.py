"""Settings written beside a picture: our infotext, and those of other programs read."""
