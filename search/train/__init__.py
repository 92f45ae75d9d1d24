"""Training of the HyperNet and of single networks, in one process or in several."""
