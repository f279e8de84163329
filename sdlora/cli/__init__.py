"""The verbs of `sdlora.cli.main`, a page each, and what they share: flags, and events as lines."""
