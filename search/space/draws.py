"""Named random choices that are a pure function of a seed and a slot."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Draws:
    """Named random choices that are a pure function of (seed, slot)."""

    def __init__(self, seed: int, slot: int, balanced: bool, stage: str = "") -> None:
        self._seed, self._slot, self._balanced = seed, slot, balanced
        self._random = np.random.default_rng((seed, slot, zlib.crc32(stage.encode())))
        self.surprise = 0.0  # -log of the probability of all choices so far

    def within(self, stage: str) -> Draws:
        """An independent stream for a part that may be drawn more than once."""
        return Draws(self._seed, self._slot, self._balanced, stage)

    def uniform(self, name: str, low: float, high: float) -> float:
        """A number between two."""
        return low + (high - low) * float(self._random.random())

    def chance(self, name: str, probability: float) -> bool:
        """Whether something of this probability happens."""
        return float(self._random.random()) < probability

    def weighted(self, name: str, shares: Sequence[tuple[T, float]]) -> T:
        """One of the options, by its share; those without one are never picked."""
        possible = [(option, share) for option, share in shares if share > 0]
        return self.pick(name, [option for option, _ in possible], [share for _, share in possible])

    def pick(self, name: str, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of the options; with ``balanced``, unweighted choices are dealt from shuffled decks."""
        if len(options) == 1:
            return options[0]
        if weights is not None:
            shares = np.cumsum(weights)
            index = int(np.searchsorted(shares / shares[-1], self._random.random(), side="right"))
            self.surprise -= math.log(weights[index] / float(shares[-1]))
            return options[index]
        self.surprise += math.log(len(options))
        if self._balanced:
            deck, position = divmod(self._slot, len(options))
            shuffled = np.random.default_rng(
                (self._seed, zlib.crc32(name.encode()), deck, len(options))
            ).permutation(len(options))
            return options[int(shuffled[position])]
        return options[int(self._random.integers(len(options)))]

    def subset(self, name: str, among: int, count: int) -> tuple[int, ...]:
        """``count`` different numbers below ``among``, ascending."""
        self.surprise += math.log(math.comb(among, count))
        return tuple(sorted(self._random.permutation(among)[:count].tolist()))
