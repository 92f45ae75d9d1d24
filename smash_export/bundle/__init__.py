"""The bundle: its folder, its manifest, what it is made of, and whether its files are intact."""
