"""Runtimes: compile a frozen network into the file of one runtime, and run that file.

Numpy and one optional runtime per file. Knows no torch model and no search.
"""
