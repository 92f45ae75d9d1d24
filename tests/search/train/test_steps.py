"""What a step of a training shows to its network, and how that computes and learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from smash_search.data import Dataset, Split, load_dataset
from smash_search.train.compute import learns_wrongly
from smash_search.train.network import Recipe, fit
from tests.search.small_data import small_digits


class Witness(nn.Module):
    """A small network that keeps what it was shown in training, and how it was computed."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 10)
        self.shown: list[torch.Tensor] = []
        self.computed: set[torch.dtype] = set()
        self.formats: set[bool] = set()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        filtered = self.convolution(images)
        if self.training:
            self.shown.append(images)
            self.computed.add(filtered.dtype)
            self.formats.update(
                value.is_contiguous(memory_format=torch.channels_last)
                for value in (images, self.convolution.weight)
            )
        logits: torch.Tensor = self.head(self.norm(filtered).relu().mean((2, 3)))
        return logits


def coloured(train: int = 32) -> Dataset:
    """Digits in three channels, 16 pixels wide."""
    data = small_digits(train=train)

    def grown(split: Split) -> Split:
        return Split(np.repeat(split.images.repeat(2, 1).repeat(2, 2), 3, axis=3), split.labels)

    preprocessing = replace(
        data.preprocessing, height=16, width=16, channels=3, mean=(0.3,) * 3, std=(0.4,) * 3
    )
    splits = {name: grown(getattr(data, name)) for name in ("train", "validation", "test")}
    return replace(data, preprocessing=preprocessing, **splits)


@pytest.mark.parametrize(("precision", "computed"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_steps_multiply_in_bfloat16_where_the_processor_has_it(
    precision: str, computed: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smash_search.train.compute.multiplies_bfloat16", lambda: True)
    witness = Witness()
    result = fit(witness, small_digits(), Recipe(epochs=1, batch=32, precision=precision))  # type: ignore[arg-type]
    assert witness.computed == {computed}
    assert {value.dtype for value in witness.parameters()} == {torch.float32}
    assert np.isfinite(result.history[0].loss)


def test_steps_multiply_in_float32_where_bfloat16_would_be_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smash_search.train.compute.multiplies_bfloat16", lambda: False)
    witness = Witness()
    fit(witness, small_digits(), Recipe(epochs=1, batch=32), evaluate=False)
    assert witness.computed == {torch.float32}


def test_dilated_groups_learn_in_float32_since_their_gradients_are_wrong_in_bfloat16() -> None:
    """A user's own network: without it every second of its steps is NaN on a CPU with AVX512-BF16."""

    def network(groups: int, dilation: int) -> nn.Module:
        torch.manual_seed(0)
        middle = nn.Conv2d(16, 16, 3, padding=dilation, dilation=dilation, groups=groups, bias=False)
        ends = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 10)
        norms = nn.BatchNorm2d(16), nn.ReLU(), nn.BatchNorm2d(16), nn.ReLU()
        pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(ends[0], *norms[:2], middle, *norms[2:], *pool, ends[1])

    images = torch.zeros(2, 3, 32, 32)
    assert learns_wrongly(network(2, 2), images)
    assert learns_wrongly(network(16, 2), images)
    assert not learns_wrongly(network(2, 2), images[..., :28])
    assert not any(learns_wrongly(network(*right), images) for right in ((1, 2), (2, 1)))
    data = coloured(train=64)

    def larger(split: Split) -> Split:
        return Split(split.images.repeat(2, 1).repeat(2, 2), split.labels)

    preprocessing = replace(data.preprocessing, height=32, width=32)
    splits = {name: larger(getattr(data, name)) for name in ("train", "validation", "test")}
    data = replace(data, preprocessing=preprocessing, **splits)
    fitted = fit(network(2, 2), data, Recipe(4, batch=16), evaluate=False)
    assert (fitted.steps, fitted.skipped) == (16, 0)


def test_volumes_smaller_than_a_kernel_learn_in_float32_since_their_gradients_are_wrong_in_bfloat16() -> None:
    """A user's own network: on a CPU with AVX512-BF16 some of its trainings were NaN or ended the process."""
    torch.manual_seed(0)
    small = nn.Sequential(
        nn.Conv3d(1, 16, 3, 2, 1), nn.BatchNorm3d(16), nn.ReLU(), nn.Conv3d(16, 16, 3, 2, 1),
        nn.BatchNorm3d(16), nn.ReLU(), nn.Conv3d(16, 16, 3, padding=1), nn.AdaptiveAvgPool3d(1),
        nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    small[1].eval()
    assert learns_wrongly(small, torch.zeros(2, 1, 8, 8, 8))
    assert not learns_wrongly(small, torch.zeros(2, 1, 12, 12, 12))
    assert [layer.training for layer in small[:3]] == [True, False, True], "as before"
    assert not learns_wrongly(nn.Linear(1, 1), torch.zeros(2, 1))
    data = load_dataset("tests.search.small_data:volumes")
    fitted = fit(small, data, Recipe(6, batch=8), evaluate=False)
    assert (fitted.skipped, len(fitted.history)) == (0, 6)


def test_a_network_may_name_the_input_of_its_convolution() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv3d(1, 4, 3, padding=1)

        def forward(self, volumes: torch.Tensor) -> torch.Tensor:
            filtered: torch.Tensor = self.convolution(input=volumes)
            return filtered.mean((2, 3, 4))

    assert learns_wrongly(Named(), torch.zeros(2, 1, 2, 2, 2))
    assert not learns_wrongly(Named(), torch.zeros(2, 1, 4, 4, 4))


def test_images_and_filters_are_channels_last() -> None:
    witness = Witness(channels=3)
    fit(witness, coloured(), Recipe(epochs=1, batch=16), evaluate=False)
    assert witness.formats == {True}


def test_images_grow_to_their_whole_size() -> None:
    witness = Witness(channels=3)
    fit(witness, coloured(), Recipe(epochs=10, batch=16, first_size=0.5), evaluate=False)
    sizes = [images.shape[2] for images in witness.shown]
    assert sizes == sorted(sizes)
    assert set(sizes) == {8, 12, 16}
    assert 0.5 <= sizes.index(16) / len(sizes) <= 0.7
    assert all(images.shape[2] == images.shape[3] for images in witness.shown)


def test_every_image_is_seen_from_both_sides_in_two_epochs_of_alternating_flips() -> None:
    data, witness = small_digits(train=32), Witness()
    recipe = Recipe(epochs=2, batch=16, augmentation={"flip": "alternate"})
    fit(witness, data, recipe, evaluate=False)
    seen = {image.numpy().tobytes() for images in witness.shown for image in images.contiguous()}
    for image in data.preprocessing.normalise(torch.from_numpy(data.train.images)):
        assert image.contiguous().numpy().tobytes() in seen
        assert image.flip(-1).contiguous().numpy().tobytes() in seen


def test_biases_learn_at_their_own_rate() -> None:
    moved = []
    for rate in (0.0, 1.0, 4.0):
        torch.manual_seed(0)
        witness = Witness()
        before = {name: value.clone() for name, value in witness.state_dict().items()}
        recipe = Recipe(epochs=1, batch=96, momentum=0.0, warmup=0.0, bias_rate=rate, precision="float32")
        fit(witness, small_digits(), recipe, evaluate=False)  # a single step
        moved.append({name: value - before[name] for name, value in witness.state_dict().items()})
    for name in ("norm.bias", "head.bias"):
        assert not moved[0][name].any()
        assert torch.allclose(moved[2][name], 4 * moved[1][name], rtol=1e-3, atol=1e-7)
        assert moved[1][name].any()
    for name in ("norm.weight", "head.weight", "convolution.weight"):
        assert torch.equal(moved[0][name], moved[2][name])
        assert moved[0][name].any()
