"""Copies of images across splits: equal ones, and those that were encoded again or resized on the way."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from smash_search.data import Dataset, Split, load_dataset, summarise
from smash_search.data.duplicates import Pictures


def scenes(count: int, seed: int, side: int = 32) -> np.ndarray:
    """Coloured blobs with some grain, as different from each other as photographs are: uint8 [N, S, S, 3]."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 7, 7, 3), np.uint8)
    smooth = [
        np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for image in coarse
    ]
    grain = random.integers(-8, 9, (count, side, side, 3))
    return (np.stack(smooth) + grain).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=75)
    return Image.open(stream).convert("RGB")


def resized(image: Image.Image) -> Image.Image:
    side = image.width
    return image.resize((side - 1, side - 1), Image.Resampling.BICUBIC).resize((side, side))


def brightened(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.1)


@pytest.mark.parametrize("change", [encoded, resized, brightened])
def test_copies_that_were_changed_on_the_way_are_found(change: Callable[[Image.Image], Image.Image]) -> None:
    known = scenes(300, seed=0)
    copies = np.stack([np.asarray(change(Image.fromarray(image))) for image in known[:100]])
    assert (copies != known[:100]).any((1, 2, 3)).all(), "none is equal pixel by pixel"
    assert Pictures(known).holds(copies).mean() >= 0.98


def test_other_images_are_no_copies() -> None:
    assert not Pictures(scenes(2500, seed=0)).holds(scenes(300, seed=1)).any()


def test_colours_alone_make_another_picture() -> None:
    known = scenes(50, seed=0)
    assert not Pictures(known).holds(known[..., [1, 2, 0]]).any()


def test_plain_images_are_like_nothing() -> None:
    plain = np.full((3, 32, 32, 3), 200, np.uint8)
    plain[:, :4, :4] += np.arange(3, dtype=np.uint8)[:, None, None, None]
    assert not Pictures(plain[:1]).holds(plain[1:]).any()


def test_where_all_images_are_alike_a_copy_has_to_be_more_so() -> None:
    digits = load_dataset("digits")
    known, others = (part.images.repeat(2, 1).repeat(2, 2) for part in (digits.train, digits.test))
    assert Pictures(known).holds(others).mean() < 0.01, "digits of a kind are no copies of each other"
    others[:30] = np.clip(known[:30].astype(int) + 6, 0, 255)
    assert Pictures(known).holds(others)[:30].all()


@pytest.mark.parametrize("shape", [(20, 30, 1), (17, 16, 3)])
def test_images_of_any_form_find_themselves(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, *shape), np.uint8)
    assert Pictures(images).holds(images).all(), "though every one of them is a copy"
    assert not Pictures(images[:20]).holds(images[20:]).any()


def with_copies(count: int) -> Dataset:
    """300 training images, 50 for validation, 100 for testing, of which some are encoded training images."""
    known, others = scenes(300, seed=0), scenes(150, seed=1)
    for index in range(count):
        others[50 + index] = np.asarray(encoded(Image.fromarray(known[index])))
    labels = np.arange(300) % 10
    return replace(
        load_dataset("digits"),
        train=Split(known, labels),
        validation=Split(others[:50], labels[:50]),
        test=Split(others[50:], labels[:100]),
    )


def test_near_copies_are_counted_apart_from_equal_ones_and_many_are_worth_a_note() -> None:
    data = with_copies(20)
    data.test.images[30] = data.train.images[30]
    summary = summarise(data)
    assert summary.duplicates is not None
    assert summary.duplicates.across_splits == 1
    assert summary.duplicates.near == 20
    assert "near copies across splits: 20" in summary.facts()["duplicates"]
    assert any("20 of 150 validation and test images look like a training image" in n for n in summary.notes)


def test_a_near_copy_among_hundreds_is_counted_without_a_note() -> None:
    summary = summarise(with_copies(1))
    assert summary.duplicates is not None
    assert summary.duplicates.near == 1
    assert not any("look like" in note for note in summary.notes)
