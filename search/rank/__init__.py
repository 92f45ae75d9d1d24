"""Ranking: scores, finalists, picks, and how far to believe them."""
