"""The search for a device: latency of its runtime, its limits, runs on the disk, the paper's experiments."""
