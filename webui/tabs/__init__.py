"""One module per tab, each with one `build`."""
