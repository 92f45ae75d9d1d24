"""Benchmarks: each module measures one thing and writes ``results/NAME.json`` through ``record``."""
