"""Batches that show images of low loss less often than others.

InfoBatch (Qin et al. 2023, arXiv 2303.04947): a pass leaves out, by lot, a share of the images whose loss was
below the mean when they were last seen, and those of them that it shows count for the absent ones. So steps
go to the images that teach most, and the expected gradient stays that of all images. The last passes of a
training are whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

WHOLE_FROM = 0.875  # of a training: passes that begin later leave nothing out; earlier in short trainings
_ARRAYS = ("losses", "is_low", "left", "indices")


class Drawn(NamedTuple):
    """The images of a step."""

    indices: np.ndarray
    """int64 [B]."""
    weights: np.ndarray | None
    """float32 [B], of their losses, with a mean of 1 over the pass; None where all are 1."""
    which: int
    """Number of the pass that they are of, from 0."""


class PrunedBatches:
    """Batches of one training, in turn; what they are depends on the losses that were told before.

    Args:
        seed: Random seed of order and choice.
        count: Number of images, at least one batch.
        size: Number of images in a batch.
        share: Share of the images of low loss that a pass leaves out, 0 to below 1.
        progress: share of the training that is over, 0 to 1; asked when a pass begins.
        whole_from: Share of the training after which passes leave nothing out.
    """

    def __init__(
        self,
        seed: int,
        count: int,
        size: int,
        share: float,
        progress: Callable[[], float],
        whole_from: float = WHOLE_FROM,
    ) -> None:
        self._seed, self._size, self._share = seed, size, share
        self._progress, self._whole_from = progress, whole_from
        self._losses = np.full(count, np.inf, np.float32)
        self._is_low = np.zeros(count, np.bool_)  # of the present pass
        self._low = 0.0  # share of them
        self._left = np.empty(0, np.int64)
        self._pass = self._number = -1
        self._indices = self._left

    def __getitem__(self, number: int) -> Drawn:
        """The batch of a step: the last one again, or the next one."""
        if number != self._number:
            if number != self._number + 1:
                raise IndexError(f"batch {number} after {self._number}")
            if len(self._left) < self._size:  # a smaller batch would weigh as much as a whole one
                self._begin_pass()
            self._number, self._indices = number, self._left[: self._size]
            self._left = self._left[self._size :]
        return Drawn(self._indices, self._weights(), self._pass)

    def tell(self, indices: np.ndarray, losses: np.ndarray) -> None:
        """Losses of images that were shown, float32 [B]; those that are no numbers tell nothing."""
        known = np.isfinite(losses)
        self._losses[indices[known]] = losses[known]

    def _begin_pass(self) -> None:
        self._pass += 1
        random = np.random.default_rng((self._seed, self._pass))
        order, lots = random.permutation(len(self._losses)), random.random(len(self._losses))
        self._is_low[:] = False
        seen = self._losses[np.isfinite(self._losses)]
        if len(seen) and self._progress() < self._whole_from:
            self._is_low = self._losses < seen.mean()
        self._left = order[~(self._is_low & (lots < self._share))[order]]
        if len(self._left) < self._size:
            self._is_low[:], self._left = False, order
        self._low = float(self._is_low.mean())

    def _weights(self) -> np.ndarray | None:
        if not self._low:
            return None
        weights = np.where(self._is_low[self._indices], 1 / (1 - self._share), 1.0)
        return (weights * (1 - self._share * self._low)).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """All that later batches depend on."""
        arrays = {name: torch.from_numpy(getattr(self, f"_{name}").copy()) for name in _ARRAYS}
        return {**arrays, "drawn": [self._pass, self._number]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Read :meth:`state_dict` back."""
        for name in _ARRAYS:
            setattr(self, f"_{name}", state[name].numpy().copy())
        self._low = float(self._is_low.mean())
        self._pass, self._number = state["drawn"]
