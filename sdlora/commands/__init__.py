"""The verbs of `sdlora.cli`, a page each, and what they share: flags, and events as lines."""
