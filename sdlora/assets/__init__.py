"""Models of all kinds on this computer: listed, described, downloaded when asked."""
