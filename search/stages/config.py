"""What a search is asked to do, and the run that does it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from smash_base.errors import InvalidInputError
from smash_base.json_values import JsonObject
from smash_base.progress import Advance, ShowProgress
from smash_search.model.hypernet import HyperNetConfig
from smash_search.rank.finalists import FinalistsConfig, input_spec_of
from smash_search.rank.measurement import Measurement
from smash_search.rank.pareto import Limit
from smash_search.rank.scoring import ScoringConfig
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import Cost, cost_of
from smash_search.space.limits import CostLimits
from smash_search.space.space import Space, space_for
from smash_search.train.hypernet import TrainingConfig

if TYPE_CHECKING:
    from smash_search.data import Dataset


@dataclass(frozen=True)
class SearchConfig:
    """What a search does; everything that its results depend on, but the data.

    Attributes:
        space: a name of :data:`smash_search.space.space.SPACES`, or None to choose by the size of the images.
        seed: Random seed of everything that is drawn.
        strategy: a name of :data:`smash_search.strategies.STRATEGIES`.
        strategy_options: checked by the strategy.
        candidates: architectures to score.
        known: how many of them are known networks (:func:`smash_search.space.known.known_networks`), at
        most half.
        limits: on cost, checked before anything is trained.
        hypernet, training, scoring, finalists: Settings of the stages; their seeds are set from ``seed``.
        measured: how candidates are measured, in the caller's words, or empty; a resumed search must
            measure in the same way.
        latency_limits: on the measure "latency_ms", ascending; there is one pick within each. The largest
            is that of best.json.
        last_training: seconds that the pick will be trained for; 0 where nothing limits them. Networks that
            train slowly, and small ones, are picked more rarely (:mod:`smash_search.stages.hurry`).
        exact_space: The space itself where it is not just that of the name: with another prior, or without
            what a device cannot do.
    """

    space: str | None = None
    seed: int = 0
    strategy: str = "random"
    strategy_options: JsonObject = field(default_factory=dict)
    candidates: int = 500
    known: int = 0
    limits: CostLimits = field(default_factory=CostLimits)
    hypernet: HyperNetConfig = field(default_factory=HyperNetConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    finalists: FinalistsConfig = field(default_factory=FinalistsConfig)
    measured: JsonObject = field(default_factory=dict)
    latency_limits: tuple[Limit, ...] = ()
    exact_space: Space | None = None
    last_training: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.candidates, bool) or not 1 <= self.candidates <= 10_000_000:
            raise InvalidInputError("candidates", expected="1 to 10000000", received=self.candidates)
        if isinstance(self.known, bool) or not 0 <= self.known <= self.candidates // 2:
            raise InvalidInputError("known", expected=f"0 to {self.candidates // 2}", received=self.known)
        if isinstance(self.seed, bool) or not 0 <= self.seed < 2**63:
            raise InvalidInputError("seed", expected="0 and more", received=self.seed)
        if not 0 <= self.last_training < math.inf:
            raise InvalidInputError("last_training", expected="0 and more", received=self.last_training)
        for name in ("training", "scoring", "finalists"):
            object.__setattr__(self, name, replace(getattr(self, name), seed=self.seed))

    def to_json(self) -> JsonObject:
        """What config.json holds of it."""
        return {
            "space": self.space,
            "seed": self.seed,
            "strategy": self.strategy,
            "strategy_options": self.strategy_options,
            "candidates": self.candidates,
            "known": self.known,
            "limits": self.limits.to_json(),
            "hypernet": {**asdict(self.hypernet), "depths": list(self.hypernet.depths)},
            "training": self.training.to_json(),
            "scoring": self.scoring.to_json(),
            "finalists": self.finalists.to_json(),
            "measured": self.measured,
            "latency_limits": [asdict(limit) for limit in self.latency_limits],
            **({"last_training": self.last_training} if self.last_training else {}),
        }

    def space_for(self, spec: InputSpec) -> Space:
        """The space for these images."""
        return self.exact_space or space_for(spec, self.space)


@contextmanager
def silent(label: str, total: float | None) -> Iterator[Advance]:
    """Progress that nobody is shown."""
    yield lambda n=1, **fields: None


@dataclass(frozen=True)
class Run:
    """One search in its folder: what every stage of it works on.

    Attributes:
        config: What to do.
        dataset: Training and validation images; test images are not looked at.
        folder: What the stages write.
        device: Where PyTorch computes.
        progress: Shows what is being done.
        measurement: Measurement of candidates on a device, or None.
    """

    config: SearchConfig
    dataset: Dataset
    folder: Path
    device: torch.device
    progress: ShowProgress = silent
    measurement: Measurement | None = None

    @cached_property
    def spec(self) -> InputSpec:
        """Size of the images."""
        return input_spec_of(self.dataset)

    @cached_property
    def space(self) -> Space:
        """The space for these images."""
        return self.config.space_for(self.spec)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.dataset.classes)

    @property
    def images(self) -> int:
        """Validation images of a first score."""
        return self.config.scoring.stages(len(self.dataset.validation.labels))[0]

    def cost(self, architecture: Architecture) -> Cost:
        """Exact cost of an architecture."""
        return cost_of(architecture, self.spec, self.classes)
