"""What a file does, on real images and on this machine: differences, accuracy, latency."""
