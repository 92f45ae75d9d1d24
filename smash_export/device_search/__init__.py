"""Search for a device: latency of its runtime, limits, runs on the disk, jobs, experiments of the paper."""
