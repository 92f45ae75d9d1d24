"""What a classifier answers: classes with probabilities, one line each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from smash_base.errors import SmashError
from smash_base.json_values import JsonObject

NONE = "none of the classes"  # said where several may be and nothing is there


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class and its probability."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Prediction:
    """The answer for one image. Two are equal when they name the same classes in the same order: times differ
    from run to run, and last digits of probabilities from runtime to runtime.

    Attributes:
        source: path of the image, or "image 7" for one without a name.
        label, index, probability: the most probable class, which need not be there where several may be:
            ``present`` says which are.
        top: the ``top_k`` most probable classes, best first.
        milliseconds: time in the runtime, of this image's share of its batch.
        present: for networks whose classes do not exclude each other (``outputs: sigmoid``) every class with
            a probability of at least one half, best first, possibly none; None for all others.
        doubtful: whether the image is perhaps of none of the classes: its probability is below what nearly
            all validation images reached; None where the bundle does not say how much that is.
    """

    source: str
    label: str
    index: int
    probability: float
    top: tuple[ClassScore, ...]
    milliseconds: float
    present: tuple[ClassScore, ...] | None = None
    doubtful: bool | None = None

    def to_json(self) -> JsonObject:
        """JSON values; ``present`` and ``doubtful`` only where they are known."""
        document: JsonObject = {
            "source": self.source,
            "label": self.label,
            "index": self.index,
            "probability": self.probability,
            "top": [asdict(score) for score in self.top],
            "milliseconds": self.milliseconds,
        }
        if self.present is not None:
            document["present"] = [asdict(score) for score in self.present]
        if self.doubtful is not None:
            document["doubtful"] = self.doubtful
        return document

    def __str__(self) -> str:
        named = self.top if self.present is None else self.present
        classes = ", ".join(f"{score.label} {score.probability:.1%}" for score in named) or NONE
        return f"{self.source}: {classes}" + (" (doubtful)" if self.doubtful else "")

    def __repr__(self) -> str:
        return f"<Prediction {self}>"

    def __eq__(self, other: object) -> bool:
        return self._labels() == other._labels() if isinstance(other, Prediction) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._labels())

    def _labels(self) -> tuple[Any, ...]:
        present = None if self.present is None else tuple(score.label for score in self.present)
        return (tuple(score.label for score in self.top), present)


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that could not be read; only :meth:`Classifier.stream` with ``on_error="yield"`` gives it."""

    source: str
    error: SmashError
