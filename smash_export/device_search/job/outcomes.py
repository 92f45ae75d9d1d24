"""What the page and the lines of ``run`` read from the JSON of each command. Other keys are not looked at."""

from __future__ import annotations

from dataclasses import dataclass

from smash_export.measure.compare import Verdict


@dataclass(frozen=True)
class PickLatency:
    """Latency of the pick of a search."""

    milliseconds: float


@dataclass(frozen=True)
class PickCost:
    """Size of the pick of a search."""

    parameters: int


@dataclass(frozen=True)
class Searched:
    """What ``search`` gave."""

    architecture: str
    origin: str
    error: float
    cost: PickCost
    latency: PickLatency | None = None


@dataclass(frozen=True)
class Folded:
    """Accuracy of the folds, with its interval."""

    folds: int
    images: int
    top1: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Frozen:
    """What ``freeze`` gave."""

    test_accuracy: float
    test_images: int
    folds: Folded | None = None


@dataclass(frozen=True)
class Parity:
    """How a file answers, against the reference."""

    agreement: float
    accuracy: float


@dataclass(frozen=True)
class Proof:
    """What verification measured of a compiled file."""

    parity: Parity


@dataclass(frozen=True)
class Compiled:
    """What ``compile`` gave."""

    bytes: int
    evidence: Proof


@dataclass(frozen=True)
class Rejected:
    """Why a file of ``compile``, or one that ``verify`` looked at, does not do what the network does."""

    rejected: str


@dataclass(frozen=True)
class Verified:
    """What ``verify`` gave."""

    files: tuple[object, ...]


@dataclass(frozen=True)
class Median:
    """Time of a file at one batch size."""

    p50_ms: float


@dataclass(frozen=True)
class Measured:
    """One file of ``bench`` or ``compare``; the keys of ``latency`` are batch sizes."""

    target: str
    precision: str
    size_bytes: int
    latency: dict[str, Median]


@dataclass(frozen=True)
class Benched:
    """What ``bench`` gave."""

    files: tuple[Measured, ...]


@dataclass(frozen=True)
class Advice:
    """Which file to use."""

    target: str
    precision: str
    reason: str


@dataclass(frozen=True)
class ComparedFile:
    """One file of ``compare``."""

    name: str
    verdict: Verdict
    reason: str
    parity: Parity | None
    measurement: Measured


@dataclass(frozen=True)
class Compared:
    """What ``compare`` gave."""

    rows: tuple[ComparedFile, ...]
    recommendation: Advice | None
