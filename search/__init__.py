"""The method: the space, the HyperNet, ranking, and training of networks. Needs torch, knows no export."""
