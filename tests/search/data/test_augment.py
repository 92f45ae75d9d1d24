"""Augmentation: what it does to pixels, and that one generator decides everything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smash_base.errors import InvalidInputError
from smash_search.data.augment import Augmentation, change_one_way, erase, mirror, shift


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("size", "augmentation"),
    [
        ((8, 8), Augmentation(pad_crop=2, flip=True, cutout=3, mixup=0.4, classes=16)),
        ((8, 8), Augmentation(flip=True, cutmix=1.0, classes=16)),
        ((6, 6, 6), Augmentation(jitter=2, cutout=2, mixup=0.4, classes=16)),
    ],
)
def test_same_generator_same_batch_and_the_input_stays(size, augmentation):
    batch, labels = torch.randn(16, 2, *size), torch.arange(16)
    before = batch.clone()
    first = augmentation(batch, labels, generator())
    again = augmentation(batch, labels, generator())
    other = augmentation(batch, labels, generator(1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(batch, before)
    assert first[0].shape == batch.shape


def test_the_default_does_nothing():
    batch, labels = torch.randn(4, 1, 5, 5), torch.arange(4)
    result, targets = Augmentation()(batch, labels, generator())
    assert result is batch
    assert targets is labels


@settings(max_examples=30, deadline=None)
@given(st.integers(-4, 4), st.integers(-4, 4))
def test_shift_moves_pixels_and_brings_in_zeros(down, right):
    image = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    moved = shift(image, torch.tensor([[down, right]]))[0, 0]
    for y in range(4):
        for x in range(4):
            inside = 0 <= y - down < 4 and 0 <= x - right < 4
            assert moved[y, x] == (image[0, 0, y - down, x - right] if inside else 0)


def test_every_image_has_its_own_shift_flip_and_hole():
    batch = torch.arange(1.0, 17.0).view(1, 1, 4, 4).repeat(64, 1, 1, 1)
    for augmentation in (Augmentation(pad_crop=2), Augmentation(flip=True), Augmentation(cutout=2)):
        result, _ = augmentation(batch, torch.zeros(64, dtype=torch.int64), generator())
        assert len({tuple(image.flatten().tolist()) for image in result}) >= 2


def test_mirror_touches_the_chosen_images_only():
    batch = torch.randn(2, 1, 3, 3)
    result = mirror(batch, -1, torch.tensor([True, False]))
    assert torch.equal(result[0], batch[0].flip(-1))
    assert torch.equal(result[1], batch[1])


def test_erase_takes_a_square_around_the_middle_cut_at_the_border():
    holes = erase(torch.ones(2, 3, 6, 6), torch.tensor([[3, 3], [0, 0]]), 4)
    assert (holes[0] == 0).sum() == 3 * 16
    assert (holes[1] == 0).sum() == 3 * 4


def test_mixup_is_the_weighted_sum_and_says_with_what():
    batch = torch.eye(8).view(8, 1, 1, 8).repeat(1, 1, 2, 1)
    labels = torch.arange(8)
    mixed, targets = Augmentation(mixup=1.0, classes=8)(batch, labels, generator())
    assert targets.shape == (8, 8)
    assert torch.allclose(targets.sum(1), torch.ones(8))
    assert torch.allclose(mixed[:, 0, 0], targets)  # image i is the unit vector of label i


def test_mixing_ratios_follow_the_beta_distribution():
    draw = generator()
    mix = Augmentation(mixup=0.4, classes=2)
    batch, labels = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0, 1])
    shares = torch.stack([mix(batch, labels, draw)[1][0] for _ in range(3000)])
    mixed = shares[:, 0][shares[:, 0] < 1]  # about half of the draws mix an image with itself
    assert abs(mixed.mean() - 0.5) < 0.04
    assert abs(mixed.var() - 0.25 / (2 * 0.4 + 1)) < 0.01  # variance of Beta(a, a)


def test_cutmix_puts_a_box_of_another_image_in_and_says_how_much_of_it():
    labels = torch.arange(8)
    batch = labels.float().view(8, 1, 1, 1).expand(8, 1, 10, 10).contiguous()
    cut = Augmentation(cutmix=1.0, classes=8)
    seen = set()
    for seed in range(20):
        patched, targets = cut(batch, labels, generator(seed))
        for image, target in zip(patched, targets, strict=True):
            values, counts = image.unique(return_counts=True)
            shares = torch.zeros(8)
            shares[values.long()] = counts / 100
            assert torch.allclose(target, shares, atol=1e-6)
            seen.add(len(values))
    assert seen == {1, 2}
    with pytest.raises(InvalidInputError, match="mixup or cutmix"):
        Augmentation(mixup=0.2, cutmix=1.0, classes=8)


def test_mixup_needs_the_number_of_classes():
    with pytest.raises(InvalidInputError, match="number of classes"):
        Augmentation(mixup=0.2)


def test_jitter_is_for_volumes():
    with pytest.raises(InvalidInputError, match="volumes"):
        Augmentation(jitter=1)(torch.zeros(1, 1, 4, 4), torch.zeros(1), generator())


@pytest.mark.parametrize("field", ["pad_crop", "cutout", "jitter", "mixup", "cutmix"])
def test_negative_values_are_refused(field):
    with pytest.raises(InvalidInputError, match=field):
        Augmentation(**{field: -1})


def test_each_image_is_changed_in_the_one_way_that_was_drawn_for_it():
    image = torch.randn(3, 8, 8, generator=generator(3))
    count, draw = 600, generator()
    way, strength = torch.randint(0, 12, (count,), generator=draw), 2 * torch.rand(count, generator=draw) - 1
    changed = change_one_way(image.repeat(count, 1, 1, 1), generator())
    assert torch.equal(changed, change_one_way(image.repeat(count, 1, 1, 1), generator()))
    around = torch.nn.functional.pad(image[None], (1, 1, 1, 1), "replicate")
    smooth = torch.nn.functional.avg_pool2d(around, 3, 1)[0]

    def wanted(number, size):
        reach, levels = 2 * abs(size), 1 + 4 * abs(size)
        return {
            5: lambda: image + size,
            6: lambda: image + 0.9 * size * (image - image.mean()),
            7: lambda: image + 0.9 * size * (image - image.mean(0)),
            8: lambda: image + 0.9 * size * (image - smooth),
            9: lambda: torch.where(image > reach, 2 * reach - image, image),
            10: lambda: torch.round(image * levels) / levels,
            11: lambda: image,
        }[number]()

    for result, number, size in zip(changed, way.tolist(), strength.tolist(), strict=True):
        if number >= 5:
            assert torch.allclose(result, wanted(number, size), atol=1e-4), number
        else:
            assert abs(size) < 0.05 or not torch.allclose(result, image, atol=0.05), number
            gone = (result == 0).all(0)  # zeros come in where a move leaves an edge
            edges = [gone[:, 0], gone[:, -1]] if number == 2 else [gone[0], gone[-1]]
            if number in (2, 3) and abs(size) > 0.6:
                assert any(edge.all() for edge in edges), number
    assert set(way.tolist()) == set(range(12))


def test_the_augmentation_trivial_is_that_change():
    batch, labels = torch.randn(16, 3, 8, 8, generator=generator(3)), torch.arange(16)
    changed, targets = Augmentation(trivial=True)(batch, labels, generator())
    assert torch.equal(changed, change_one_way(batch, generator()))
    assert targets is labels
    with pytest.raises(InvalidInputError, match="trivial"):
        Augmentation(trivial=True)(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1), generator())


def test_alternating_flips_show_the_other_side_in_every_second_epoch():
    batch, labels = torch.randn(64, 1, 4, 4, generator=generator(3)), torch.arange(64)
    alternate = Augmentation(flip="alternate")
    first, second, third = (
        alternate(batch, labels, generator(epoch), epoch=epoch, indices=labels)[0] for epoch in range(3)
    )
    assert torch.equal(second, first.flip(-1))
    assert torch.equal(third, first)
    shown = [torch.equal(one, other) for one, other in zip(first, batch, strict=True)]
    assert 16 <= sum(shown) <= 48, "about half of them begin as they are"
    with pytest.raises(InvalidInputError, match="numbers of the images"):
        alternate(batch, labels, generator())
