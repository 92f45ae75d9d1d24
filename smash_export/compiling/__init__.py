"""From a bundle to the file of one runtime, at one precision."""
