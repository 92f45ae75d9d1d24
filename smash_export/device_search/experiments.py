"""What pictures and paragraphs read of the results of experiments (:mod:`smash_search.experiments`).

Results of earlier versions lack some fields, which have defaults; what is only kept is not listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from smash_search.rank.statistics import Estimate, Paired


@dataclass(frozen=True)
class Head:
    """What the result of every experiment says."""

    experiment: str
    size: str
    data: str
    stopped_by_time: bool = False


@dataclass(frozen=True)
class RankAgreement:
    """RankAgreement of a signal with the error after training."""

    kendall: Estimate
    spearman: Estimate


@dataclass(frozen=True)
class Signal:
    """One predictor of the error after training: over all networks, and over the best of them."""

    signal: str
    everything: Annotated[RankAgreement, Field(alias="all")]
    top_half: Annotated[RankAgreement, Field(alias="top half")]
    top_fifth: Annotated[RankAgreement, Field(alias="top fifth")]
    regret: dict[str, float]


@dataclass(frozen=True)
class ScoredAndTrained:
    """One network: its score, the same with running BatchNorm statistics, and its error after training.

    The score with every generated filter set to zero is None in results of early versions.
    """

    score: float
    running: float
    error: float
    zeroed: float | None = None


@dataclass(frozen=True)
class Band:
    """Agreement among networks of like cost: of the score, and of that with every generated filter zero."""

    macs: tuple[int, int]
    kendall: Estimate
    zeroed: Estimate


@dataclass(frozen=True)
class Correlation:
    """Result of ``correlation``. Without signals there were too few networks, and nothing follows them."""

    data: str
    networks: int
    signals: tuple[Signal, ...]
    points: tuple[ScoredAndTrained, ...]
    score_images: int = 0
    epochs: int = 0
    train_images: int = 0
    error_range: tuple[float, float] = (0.0, 0.0)
    error_sd: float = 0.0
    seed_noise: float | None = None
    op_contribution: float = 0.0
    band: Band | None = None
    ceiling: Estimate | None = None
    score_mean: float = 0.0
    running_mean: float = 0.0
    split_half: float | None = None


@dataclass(frozen=True)
class SizedHyperNet:
    """A HyperNet of one size, and what its score is worth."""

    hypernet: str
    parameters: int
    loss: float
    score_mean: float
    kendall: Estimate
    kendall_zeroed: Estimate | None = None
    op_contribution: float | None = None


@dataclass(frozen=True)
class Capacity:
    """Result of ``capacity``."""

    networks: int
    hypernets: tuple[SizedHyperNet, ...]


@dataclass(frozen=True)
class CorruptedEncoding:
    """One wrong description of the networks, and what it costs."""

    c: str
    mean: float
    cost: Paired


@dataclass(frozen=True)
class Encoding:
    """Result of ``encoding``."""

    architectures: int
    right_mean: float
    kinds: tuple[CorruptedEncoding, ...]
    errors: dict[str, tuple[float, ...]]
    zeroed_mean: float | None = None
    op_contribution: Paired | None = None


@dataclass(frozen=True)
class Gradient:
    """Result of ``gradient``; a path is the best score after each step."""

    starts: int
    steps: int
    scored_per_step: int
    start_errors: tuple[float, ...]
    guided: tuple[tuple[float, ...], ...]
    random: tuple[tuple[float, ...], ...]
    guided_against_random: Paired
    predictions: int
    prediction_kendall: Estimate | None


@dataclass(frozen=True)
class Transferred:
    """One network: its error on the first data set, and its errors on another one."""

    error: float
    errors: tuple[float, ...]


@dataclass(frozen=True)
class TargetData:
    """Another data set, with the networks of each group."""

    data: str
    groups: dict[str, tuple[Transferred, ...]]
    means: dict[str, float | None]
    kendall: Estimate | None


@dataclass(frozen=True)
class Transfer:
    """Result of ``transfer``. Earlier versions chose by test errors, and did not say so."""

    networks: int
    picks: int
    source: str
    targets: tuple[TargetData, ...]
    chosen_by: str = "test error"


@dataclass(frozen=True)
class Pattern:
    """A network with a published pattern, among the random ones."""

    name: str
    macs: int
    error: float
    beats_by_error: float
    beats_by_score: float
    alike: int
    beats_alike: float | None


@dataclass(frozen=True)
class Presets:
    """Result of ``presets``."""

    networks: int
    random_errors: tuple[float, ...]
    random_macs: tuple[int, ...]
    patterns: tuple[Pattern, ...]
