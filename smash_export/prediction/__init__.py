"""Classification with a bundle: images in, labels out."""
