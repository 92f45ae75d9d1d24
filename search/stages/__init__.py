"""Stages of a search (:mod:`smash_search.run`): what is asked, what is allowed, scores, race, picks."""
