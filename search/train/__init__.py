"""Training: of the HyperNet, of one network, in one process or in several."""
