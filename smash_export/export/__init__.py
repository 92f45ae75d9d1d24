"""From an architecture, or from somebody else's file, to a bundle."""
