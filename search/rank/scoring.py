"""The SMASH score: validation error of an architecture with generated weights, and the race for it.

BatchNorm statistics are recomputed for every architecture: with statistics shared by all, most of the
spread of scores was their mismatch. They come from the same training images for all, or, in one pass and
half the time, from each batch that is scored. A race looks at few images for all
architectures and at more for the better part. It reproduces the ranking by all images cheaply; it cannot
make that ranking better than generated weights are.

Where classes do not exclude each other the error is 1 - mean average precision, as that of trained networks.
It belongs to all images together; shares of the images in it, whose mean it is, stand in for wrong and right
ones where the race asks how much of a ranking is chance.

Everything here is deterministic: the same supernet, data and configuration give the same records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from smash_base.errors import InvalidInputError
from smash_base.json_values import JsonObject
from smash_base.records import read_record
from smash_search.data.several import mean_average_precision, shares_of_error
from smash_search.model.interpreter import forward
from smash_search.model.supernet import Statistics, Supernet
from smash_search.rank import statistics
from smash_search.rank.statistics import NORMAL_95, wilson
from smash_search.space.architecture import Architecture
from smash_search.space.encoding import Layout
from smash_search.train.compute import (
    Feed,
    autocast,
    class_loss,
    keep_freed_memory,
    memory_format,
    memory_guard,
    seed_of,
)

if TYPE_CHECKING:
    from smash_search.data import Dataset

RESAMPLES = 1000
MOST_SHARE = 65_000.0  # of an image in the error: what 16 bits hold
_TOO_LARGE = "Repeat the command with --device cpu; it goes on from there."

Corruption = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class ScoringConfig:
    """How architectures are scored.

    Attributes:
        statistics: BatchNorm statistics of a score are those of "training" images, or those of each "batch"
            of validation images.
        statistics_images: training images that BatchNorm statistics are computed from.
        images: validation images of each stage of the race, ascending; 0 stands for all of them.
        keep: share of the architectures that goes on to the next stage.
        batch: images at once.
        seed: Random seed of the choice of images.
    """

    statistics: Literal["training", "batch"] = "training"
    statistics_images: int = 500
    images: tuple[int, ...] = (500, 2000)
    keep: float = 0.5
    batch: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", tuple(self.images))
        rising = [count or math.inf for count in self.images]
        if not self.images or min(self.images) < 0 or rising != sorted(set(rising)):
            raise InvalidInputError(
                "scoring images", expected="ascending counts, or 0 for all, last", received=self.images
            )
        if self.statistics not in ("training", "batch"):
            raise InvalidInputError(
                "scoring statistics", expected='"training" or "batch"', received=self.statistics
            )
        if not 0 < self.keep <= 1 or self.statistics_images < 2 or self.batch < 2:
            raise InvalidInputError(
                "scoring", expected="keep in (0, 1], two or more images", received=asdict(self)
            )

    def to_json(self) -> JsonObject:
        """Plain lists and numbers, as config.json holds them."""
        return {**asdict(self), "images": list(self.images)}

    def stages(self, have: int) -> list[int]:
        """Validation images of each stage when there are ``have``."""
        return sorted({min(count or have, have) for count in self.images})


@dataclass(frozen=True)
class Score:
    """Result of one architecture on the first ``images`` validation images.

    Attributes:
        key: Key of the architecture.
        images: how many.
        error: share put into the wrong class, or 1 - mean average precision where an image may be of several
            classes: the SMASH score.
        low, high: 95 % interval of the error over images (Wilson; of several classes by the jackknife).
        loss: mean cross entropy.
        wrong: which images were wrong, as hexadecimal digits of packed bits; empty with ``shares``.
        shares: the share of each image in the error (:func:`smash_search.data.several.shares_of_error`), as
            hexadecimal digits of float16; empty where each image has one class.
    """

    key: str
    images: int
    error: float
    low: float
    high: float
    loss: float
    wrong: str
    shares: str = ""

    def errors(self) -> np.ndarray:
        """The error of each image, [images]: wrong or right, or its share."""
        if self.shares:
            return np.frombuffer(bytes.fromhex(self.shares), "<f2").astype(np.float64)
        return self.mask()

    def mask(self) -> np.ndarray:
        """Which images were wrong: bool [images]."""
        bits = np.frombuffer(bytes.fromhex(self.wrong), np.uint8)
        return np.unpackbits(bits, count=self.images).astype(bool)

    def to_json(self) -> JsonObject:
        """A line of scores.jsonl."""
        return {name: value for name, value in asdict(self).items() if value or name != "shares"}

    @classmethod
    def from_json(cls, record: object) -> Score:
        """Read a line back; other fields of the record are ignored."""
        return read_record(cls, record, "a line of scores.jsonl")


class Scorer:
    """Scores architectures with the weights of one supernet; holds its images on the device.

    Args:
        supernet: trained.
        dataset: training images for the statistics, validation images for the error.
        config: how many, which.
        device: where.
    """

    def __init__(
        self,
        supernet: Supernet,
        dataset: Dataset,
        config: ScoringConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        keep_freed_memory()
        self.supernet = supernet.to(device).eval()
        self._config, self._device = config, torch.device(device)
        self._format = memory_format(supernet.space.dims, self._device)
        training = Feed(dataset.train, dataset.preprocessing, self._device)
        chosen = _sample(len(training), config.statistics_images, seed_of(config.seed, 1))
        self._statistics_images = [
            training(part)[0].contiguous(memory_format=self._format)
            for part in np.array_split(chosen, max(1, round(len(chosen) / config.batch)))
        ]
        self._validation = Feed(dataset.validation, dataset.preprocessing, self._device)
        self._order = _sample(len(self._validation), len(self._validation), seed_of(config.seed, 2))

    @property
    def stages(self) -> list[int]:
        """Validation images of each stage, cut to what there is."""
        return self._config.stages(len(self._order))

    def statistics(self, architecture: Architecture) -> Statistics:
        """BatchNorm statistics of one architecture from this scorer's training images."""
        with self._mode():
            return self.supernet.statistics(architecture, self._statistics_images)

    @torch.no_grad()
    def score(
        self,
        architecture: Architecture,
        images: int,
        known: Score | None = None,
        corrupt: Corruption | None = None,
        zeroed: bool = False,
    ) -> Score:
        """Score one architecture on the first ``images`` validation images.

        Args:
            known: its score on fewer images; only the others are looked at, unless an image may be of several
                classes: where it is among all images depends on the answers for each of them.
            corrupt: applied to its encoding c before weights are generated, to test the HyperNet.
            zeroed: set every generated filter to zero, to see what they contribute.
        """
        several = self._validation.targets is not None
        known = None if several else known
        start = 0 if known is None else known.images
        tally = Tally(several=several, known=known)
        with memory_guard(self._device, self._config.batch, hint=_TOO_LARGE), self._mode():
            c = None
            if corrupt is not None:
                seed = int(architecture.key, 16)
                layout = self.supernet.hypernet.layout
                c = corrupt(torch.from_numpy(layout.encode(architecture, seed)), seed)
            source = self.supernet.source(architecture, c=c, zeroed=zeroed)
            if self._config.statistics == "training":
                source.fixed = self.supernet.statistics(architecture, self._statistics_images, source)
            for chosen in _equal_parts(self._order[start:images], self._config.batch):
                batch, targets = self._validation(chosen)
                logits = forward(architecture, source, batch.contiguous(memory_format=self._format)).float()
                tally.add(logits, targets)
        return tally.score(architecture.key)

    def encoding_gradient(self, architecture: Architecture, images: int) -> tuple[Layout, np.ndarray]:
        """dE/dc: gradient of the loss over the first ``images`` validation images with respect to c.

        BatchNorm statistics are held fixed. Returns c's layout and the gradient [channels, H, W]; W is 0
        where nothing is generated.
        """
        layout = self.supernet.hypernet.layout
        encoded = torch.from_numpy(layout.encode(architecture, int(architecture.key, 16)))
        if not encoded.numel():
            return layout, np.zeros_like(encoded.numpy())
        c = encoded.to(self._device).requires_grad_()
        chosen = self._order[:images]
        with memory_guard(self._device, self._config.batch, hint=_TOO_LARGE), self._mode():
            source = self.supernet.source(architecture, c=c)
            source.fixed = self.supernet.statistics(architecture, self._statistics_images, source)
            loss = torch.zeros((), device=self._device)
            for part in _equal_parts(chosen, self._config.batch):
                batch, targets = self._validation(part)
                logits = forward(architecture, source, batch.contiguous(memory_format=self._format)).float()
                several = self._validation.targets is not None
                loss = loss + class_loss(logits, targets, several=several, reduction="sum") / len(chosen)
        (gradient,) = torch.autograd.grad(loss, c)
        return layout, gradient.float().cpu().numpy()

    def _mode(self) -> Any:
        return autocast(self._device, on_cpu=True)


class Tally:
    """The answers of one network, batch by batch, and the score that they come to.

    Args:
        several: whether an image may be of several classes.
        known: Score on images before those that are added; not of several classes.
    """

    def __init__(self, *, several: bool, known: Score | None = None) -> None:
        self._several = several
        self._wrong = [] if known is None else [known.mask()]
        self._loss = 0.0 if known is None else known.loss * known.images
        self._answers: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Logits float32 [B, K] of a batch, and the labels [B] or targets [B, K] of its images."""
        self._loss += float(class_loss(logits, targets, several=self._several, reduction="sum"))
        if self._several:
            self._answers.append((logits.cpu().numpy(), targets.cpu().numpy()))
        else:
            is_right = (logits.argmax(1) == targets) & ~logits.isnan().any(1)  # argmax takes NaN for largest
            self._wrong.append((~is_right).cpu().numpy())

    def score(self, key: str) -> Score:
        """The score of a network of that key on all images so far."""
        if not self._several:
            wrong = np.concatenate(self._wrong)
            return make_score(key, wrong, self._loss / len(wrong))
        answers, targets = map(np.concatenate, zip(*self._answers, strict=True))
        return score_of_several(key, answers, targets, self._loss / len(answers))


def make_score(key: str, wrong: np.ndarray, loss: float) -> Score:
    """A score from the images that were wrong, bool [images], and the mean loss."""
    error = float(wrong.mean())
    low, high = wilson(error, len(wrong))
    return Score(key, len(wrong), error, low, high, _finite(loss), np.packbits(wrong).tobytes().hex())


def score_of_several(key: str, answers: np.ndarray, targets: np.ndarray, loss: float) -> Score:
    """A score from answers [images, K] for classes that do not exclude each other, and the mean loss."""
    error, shares = 1 - mean_average_precision(answers, targets), shares_of_error(answers, targets)
    half = NORMAL_95 * float(shares.std()) / math.sqrt(len(shares))
    low, high = max(0.0, error - half), min(1.0, error + half)
    packed = shares.clip(-MOST_SHARE, MOST_SHARE).astype("<f2").tobytes().hex()
    return Score(key, len(shares), error, low, high, _finite(loss), "", packed)


def _finite(loss: float) -> float:
    """JSON has no infinity, and such a network ranks last all the same."""
    return loss if math.isfinite(loss) else 1e30


def survivors(scores: Sequence[Score], keep: float) -> list[Score]:
    """The better part of the scores, best first; at least one. Ties in error go by loss, then by key."""
    ranked = sorted(scores, key=lambda score: (score.error, score.loss, score.key))
    return ranked[: max(1, math.ceil(keep * len(ranked)))]


def kept_best(scores: Sequence[Score], keep: float, seed: int = 0) -> float:
    """How surely a stage of the race kept the best one by score.

    Share of bootstrap resamples of the stage's images in which the architecture with the lowest error is
    among those that the stage kept. It speaks of the score, not of the error after training.
    """
    wrong = np.stack([score.errors() for score in scores]).astype(np.float64)  # [architectures, images]
    kept = {score.key for score in survivors(scores, keep)}
    inside = np.asarray([score.key in kept for score in scores])
    images = wrong.shape[1]
    random = np.random.default_rng((seed, images, len(scores)))
    sure = 0.0
    for _ in range(RESAMPLES // 50):
        weights = random.multinomial(images, np.full(images, 1 / images), size=50)  # [50, images]
        errors = wrong @ weights.T  # [architectures, 50]
        best = errors == errors.min(0)
        sure += float(((best & inside[:, None]).sum(0) / best.sum(0)).sum())
    return sure / (RESAMPLES // 50 * 50)


def split_half(scores: Sequence[Score]) -> float | None:
    """Reliability of a ranking by score (:func:`smash_search.rank.statistics.split_half`)."""
    return statistics.split_half(np.stack([score.errors() for score in scores])) if scores else None


def _equal_parts(chosen: np.ndarray, most: int) -> list[np.ndarray]:
    """Batches of at most ``most`` images, none much smaller than another."""
    return np.array_split(chosen, max(1, -(-len(chosen) // most)))


def _sample(count: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)[:size]


def corrupted(c: Tensor, seed: int) -> Tensor:
    """c [channels, H, W] with its columns in another order: a description of some other network.

    The paper's third experiment: weights generated from it must be worse, or the HyperNet ignores c.
    """
    order = np.random.default_rng(seed).permutation(c.shape[2])
    return c[:, :, torch.from_numpy(order)]
