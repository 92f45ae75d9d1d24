"""Targets in processes of their own, in this environment or in another."""
