"""Search along dE/dc: the gradient of the loss with respect to an architecture's own description.

The HyperNet makes the loss a differentiable function of c (:mod:`smash_search.space.encoding`). Its
gradient at the present architecture says which marks would lower the loss if they moved, but c moves in
jumps: the neighbours that exist are mutations. They are ranked by the change that the gradient predicts to
first order, <dE/dc, c' - c>, and the most promising ones are scored. Where a mutation changes how many
columns an op has, places of c and c' do not correspond and nothing is predicted; such mutations come after
those that promise an improvement and before those that promise a loss.

The prediction leaves out what does not pass through generated weights (another kernel in the shared
filters changes the loss by itself); scoring decides, the gradient only proposes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smash_base.errors import UsageError
from smash_search.space.architecture import Architecture
from smash_search.space.encoding import BACKGROUND, Layout
from smash_search.strategies import Candidate, Context, Scored
from smash_search.strategies.common import MOST, Proposals, best_of, check, error_of, options_of

CHUNK = 32  # random candidates per ask


@dataclass(frozen=True)
class GradientOptions:
    """Options of ``gradient``.

    Attributes:
        random: architectures drawn before the first step; 0 for half of the candidates.
        mutants: mutations that are ranked in each step.
        batch: Number of mutations that are scored.
        rate: probability with which a mutation changes each choice.
        images: validation images that the gradient is taken over.
    """

    random: int = 0
    mutants: int = 64
    batch: int = 4
    rate: float = 0.05
    images: int = 128


class Gradient:
    """Steps from the best architecture so far to the mutations that dE/dc speaks for.

    Args:
        context: options as :class:`GradientOptions`; ``context.gradient`` must be there.
    """

    def __init__(self, context: Context) -> None:
        options = options_of(GradientOptions, context, "gradient")
        check("random", options.random, 0, MOST)
        check("mutants", options.mutants, 1, 100_000)
        check("batch", options.batch, 1, options.mutants)
        check("rate", options.rate, 1e-6, 1)
        check("images", options.images, 1, MOST)
        if context.gradient is None:
            raise UsageError("strategy gradient needs a HyperNet, whose loss it follows")
        self._context, self._options, self._gradient_of = context, options, context.gradient
        self._first = min(context.budget, options.random or max(1, context.budget // 2))
        self._proposals = Proposals(context)
        self._best: Scored | None = None
        self._known: tuple[str, Encoded] | None = None  # of the present architecture

    def ask(self) -> Sequence[Candidate]:
        """Random draws first; then the best few of many mutations."""
        missing = self._first - len(self._proposals.seen)
        if missing > 0:
            return self._proposals.random(min(CHUNK, missing))
        count = min(self._options.batch, self._proposals.left)
        return self._step(count) if count > 0 else []

    def tell(self, results: Sequence[Scored]) -> None:
        """The best so far is where the next step starts."""
        found = best_of(results)
        if self._best is None or error_of(found) < error_of(self._best):
            self._best = found

    def _step(self, count: int) -> list[Candidate]:
        assert self._best is not None  # random draws came first
        centre = self._best.candidate.architecture
        here = self._encoded(centre)
        mutants: dict[str, Architecture] = {}
        for tries, (seed, slot) in enumerate(self._proposals.slots()):
            if len(mutants) == self._options.mutants or tries == 10 * self._options.mutants:
                break
            mutant = self._context.space.mutate(centre, seed, slot, self._options.rate)
            if self._proposals.fits(mutant):
                mutants[mutant.key] = mutant
        predictions = {key: predicted_change(here, mutant) or 0.0 for key, mutant in mutants.items()}
        chosen = sorted(mutants, key=lambda key: (predictions[key], key))[:count]
        if not chosen:
            return [self._proposals.neighbour(centre, self._options.rate, "mutation")]
        return [self._proposals.add(mutants[key], "gradient") for key in chosen]

    def _encoded(self, architecture: Architecture) -> Encoded:
        if self._known is None or self._known[0] != architecture.key:
            layout, gradient = self._gradient_of(architecture, self._options.images)
            self._known = (architecture.key, Encoded(layout, architecture, gradient))
        return self._known[1]


@dataclass(frozen=True)
class Encoded:
    """An architecture and dE/dc at it, float [channels, H, W]."""

    layout: Layout
    architecture: Architecture
    gradient: np.ndarray


def predicted_change(here: Encoded, other: Architecture) -> float | None:
    """<dE/dc, c' - c>, or None when the columns of c and c' do not correspond, or neither has any.

    Rows that only one of the two has count as background in the other; c' beyond the height of c has no
    gradient and is left out. The noise channel of both is 0.
    """
    layout = here.layout
    mine, theirs = (
        [(tile.name, tile.left, tile.columns) for tile in layout.tiles(architecture)]
        for architecture in (here.architecture, other)
    )
    if not mine or mine != theirs:
        return None
    height = here.gradient.shape[1]
    c, wanted = layout.encode(here.architecture), layout.encode(other)[:, :height]
    if wanted.shape[1] < height:
        missing = ((0, 0), (0, height - wanted.shape[1]), (0, 0))
        wanted = np.pad(wanted, missing, constant_values=BACKGROUND)
        wanted[layout.sections["noise"]] = 0.0
    return float((here.gradient.astype(np.float64) * (wanted - c)).sum())
