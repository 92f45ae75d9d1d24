"""A few real digits: what the tests of training, scoring and search run on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from smash_search.data import Dataset, Split, load_dataset
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.space import space_for


def small_digits(train: int = 96, validation: int = 48) -> Dataset:
    """scikit-learn's digits, cut to a few images per split."""
    whole = load_dataset("digits")

    def cut(split: Split, count: int) -> Split:
        return Split(split.images[:count], split.labels[:count])

    return replace(
        whole,
        train=cut(whole.train, train),
        validation=cut(whole.validation, validation),
        test=cut(whole.test, 48),
        fingerprint=f"{whole.fingerprint[:8]}-{train}-{validation}",
    )


def small_volumes() -> Dataset:
    """64 volumes of noise in three classes, 8 pixels along each axis."""
    return load_dataset(f"{__name__}:volumes", validation=0.25)


def volumes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Arrays of :func:`small_volumes`."""
    random = np.random.default_rng(0)
    return {"train": (random.integers(0, 256, (64, 8, 8, 8, 1), np.uint8), np.arange(64) % 3)}


def small_architecture() -> Architecture:
    """A network of the tiny space with few ops, so that a step takes milliseconds."""
    space = space_for(InputSpec(1, (8, 8)), "tiny")
    return min((space.draw(0, slot) for slot in range(30)), key=lambda drawn: drawn.op_count)


def with_bad_images(dataset: Dataset) -> Dataset:
    """The same images under a normalisation that makes infinities of them."""
    preprocessing = replace(dataset.preprocessing, std=(1e-38,), mean=(0.0,))
    return replace(dataset, preprocessing=preprocessing)


def same_state(first: dict, second: dict) -> bool:
    """Whether two state dictionaries hold the same bits."""
    return first.keys() == second.keys() and all(
        np.array_equal(first[name].numpy(), second[name].numpy()) for name in first
    )
