"""What the three packages share and nothing else: error types, file handling, preprocessing.

Imports numpy and Pillow only, and nothing of this project, so that an edge device can load it.
"""
