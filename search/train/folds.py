"""Accuracy of few images: every one of them is judged by a network that was not trained on it.

The labelled images but those for testing are divided into folds of equal size and equal shares of the
classes, views of one object and equal images into the same fold; as many networks are trained, each without
one fold, and judged on it. No epoch is chosen by the images that judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from smash_base.errors import InvalidInputError
from smash_base.preprocess import first_answers
from smash_search.data import Split
from smash_search.data.several import likeliest, moved_by, thresholds_of
from smash_search.train.loop import TrainingProgress
from smash_search.train.network import FitResult, accuracy, answers_of, fit, settled
from smash_search.train.recipes import Recipe

if TYPE_CHECKING:
    from smash_search.data import Dataset


@dataclass(frozen=True)
class Folds:
    """What the networks of all folds answered.

    Attributes:
        right: images that were answered right by the network that had not seen them. Where an image may be
            of several classes, the likeliest answer is right if it is one of them; where some are of no
            class, that is an answer too, of images with no class from its threshold on, which the images of
            the other folds tell.
        images: in all folds.
        accuracies: share of right answers in each fold.
        precisions: mean average precision of each fold, where an image may be of several classes.
        recalls: mean recall of the classes of each fold, where the recipe balances them.
    """

    right: int
    images: int
    accuracies: tuple[float, ...]
    precisions: tuple[float, ...] = ()
    recalls: tuple[float, ...] = ()


def cross_validated(
    make: Callable[[], nn.Module],
    dataset: Dataset,
    recipe: Recipe,
    folds: int,
    *,
    device: torch.device | str = "cpu",
    work: Path | None = None,
    on_step: Callable[[int, TrainingProgress], None] | None = None,
) -> Folds:
    """Train a network for each fold of training and validation images.

    Args:
        make: a new network, images [B, C, *S] -> logits [B, K].
        dataset: its test images are left alone.
        recipe: Recipe of each training; what it leaves open is decided as for a network of all images.
        folds: number of them.
        device: where to train.
        work: folder for what is done already; a repeated call goes on there.
        on_step: called after every step with the number of the fold, from 0.

    Raises:
        InvalidInputError: a class has fewer images than there are folds.
    """
    check_folds(folds, most_folds(dataset))
    images = Split.joined(dataset.train, dataset.validation)
    judged: list[_Judged] = []
    objects = fold_of(images.labels[:: dataset.views], folds, recipe.seed, dataset.first_equal)
    places = np.repeat(objects, dataset.views)
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    for fold in range(folds):
        rest, held_out = _part(images, places != fold), _part(images, places == fold)
        name = f"fold-{fold}-of-{folds}"
        fingerprint = f"{dataset.fingerprint[:32]}-{name}"
        data = replace(dataset, train=rest, validation=held_out, fingerprint=fingerprint)
        network = make()
        whole = settled(recipe, network, dataset)
        result = fit(
            network,
            data,
            replace(whole, keep_best=False, include_validation=False),
            device=device,
            checkpoint=None if work is None else work / f"{name}.pt",
            checkpoint_seconds=2.0,
            evaluate=False,
            on_step=None if on_step is None else partial(on_step, fold),
        )
        judged.append(_judged(network, data, result, device))
    return _together([_by_the_others(judged, place, images.labels) for place in range(folds)])


class _Judged(NamedTuple):
    """What the network of one fold answered for it."""

    right: int
    images: int
    precision: float | None = None
    """Mean average precision, where an image may be of several classes."""
    recall: float | None = None
    """Mean recall of the classes, where the recipe balances them."""
    answers: np.ndarray | None = None
    """Logits float32 [N, K], where an image may be of several classes."""
    targets: np.ndarray | None = None
    """Presence of its classes uint8 [N, K], likewise."""


def _judged(network: nn.Module, data: Dataset, result: FitResult, device: torch.device | str) -> _Judged:
    """Judge a network on the validation images, of which its training has measured something."""
    held_out, preprocessing = data.validation, data.preprocessing
    if held_out.targets is not None:
        logits = answers_of(network, held_out, preprocessing, device)
        return _Judged(0, len(held_out), result.accuracy, answers=logits, targets=held_out.targets)
    share, recall = result.accuracy, None
    if result.recipe.balance != "none":  # which is a mean over the classes
        share, recall = accuracy(network, held_out, preprocessing, device), share
    return _Judged(round(share * len(held_out)), len(held_out), recall=recall)


def _by_the_others(judged: Sequence[_Judged], place: int, labels: np.ndarray) -> _Judged:
    """A fold whose classes are there from thresholds on that the images of the other folds tell, where an
    image may be of several, as validation images tell those of a bundle; any other fold as it is.

    Args:
        judged: every fold.
        place: which of them.
        labels: Labels of all images, int64 [N].
    """
    fold = judged[place]
    others = [it for number, it in enumerate(judged) if number != place]
    if fold.answers is None or fold.targets is None:
        return fold
    told = np.concatenate([it.answers for it in others if it.answers is not None])
    there = np.concatenate([it.targets for it in others if it.targets is not None])
    probabilities = _sigmoid(fold.answers - moved_by(thresholds_of(_sigmoid(told), there)))
    right = first_answers(probabilities, labels) == likeliest(fold.targets, probabilities)
    return fold._replace(right=int(right.sum()))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    found: np.ndarray = torch.from_numpy(logits).sigmoid().numpy()
    return found


def _together(judged: Sequence[_Judged]) -> Folds:
    return Folds(
        sum(fold.right for fold in judged),
        sum(fold.images for fold in judged),
        tuple(fold.right / fold.images for fold in judged),
        tuple(fold.precision for fold in judged if fold.precision is not None),
        tuple(fold.recall for fold in judged if fold.recall is not None),
    )


def most_folds(dataset: Dataset) -> int:
    """Number of different objects of the smallest class, each of whose folds has one.

    Where an image may be of several classes it counts for each of them: one may be the rarest of no image.
    """
    parts, different = (dataset.train, dataset.validation), np.unique(dataset.first_equal) * dataset.views
    if targets := [part.targets for part in parts if part.targets is not None]:
        return int(np.concatenate(targets)[different].sum(0).min())
    labels = np.concatenate([part.labels for part in parts])
    return int(np.unique(labels[different], return_counts=True)[1].min())


def check_folds(folds: int, most: int) -> None:
    """Raise InvalidInputError where a class has fewer different images than there are folds."""
    if not 2 <= folds <= most:
        if most < 2:
            raise InvalidInputError(
                "folds",
                expected="2 different images of each class and more",
                received=f"{most} of the smallest",
                hint="Leave --folds out, or add images of the smallest class.",
            )
        raise InvalidInputError(
            "folds", expected=f"2 to {most}, the different images of the smallest class", received=folds
        )


def fold_of(labels: np.ndarray, folds: int, seed: int, first: np.ndarray | None = None) -> np.ndarray:
    """The fold of each image, int64 [N]: every class spread evenly, folds of equal size to within one.

    Args:
        labels: int64 [N].
        folds: number of them.
        seed: Random seed.
        first: number of the first image that equals each, which share a fold and count once.
    """
    if first is not None:
        different, group = np.unique(first, return_inverse=True)
        return fold_of(labels[different], folds, seed)[group]
    random = np.random.default_rng((seed, 0xF01D))
    order = np.argsort(labels[shuffled := random.permutation(len(labels))], kind="stable")
    places = np.empty(len(labels), np.int64)
    places[shuffled[order]] = np.arange(len(labels)) % folds
    return places


def _part(split: Split, chosen: np.ndarray) -> Split:
    return split.take(np.flatnonzero(chosen))
