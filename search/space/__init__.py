"""Architectures and the spaces that they are drawn from. No torch."""
