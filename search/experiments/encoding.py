"""The paper's third experiment: weights generated from the right c against those from corrupted ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smash_base.json_values import JsonObject
from smash_search.experiments.workbench import Workbench
from smash_search.rank import statistics
from smash_search.rank.scoring import Corruption
from smash_search.space.architecture import Architecture
from smash_search.space.encoding import BACKGROUND, Layout
from smash_search.space.space import Space

OTHERS = 0xA70  # seed of the architectures whose c is borrowed


def encoding(bench: Workbench) -> JsonObject:
    """Scores of random architectures with each kind of c and without generated filters, and paired tests
    against the right one. Architectures without any generated filter are left out.
    """
    layout = bench.supernet().hypernet.layout
    kinds = corruptions(layout, lambda seed: another(bench.space, layout, seed))
    count = bench.config.corrupted
    errors: dict[str, list[float]] = {name: [] for name in ("right", *kinds)}
    zeroed: list[float] = []
    with bench.progress("architectures", count) as advance:
        for architecture in itertools.islice(generated(bench), count):
            errors["right"].append(bench.score(architecture).error)
            zeroed.append(bench.score(architecture, "zeroed", zeroed=True).error)
            for name, corrupt in kinds.items():
                errors[name].append(bench.score(architecture, name, corrupt).error)
            advance(1)
    rows: list[JsonObject] = [
        {
            "c": name,
            "mean": float(np.mean(values)),
            "cost": statistics.paired(errors["right"], values).to_json(),
        }
        for name, values in errors.items()
        if name != "right"
    ]
    return {
        "architectures": count,
        "right_mean": float(np.mean(errors["right"])),
        "kinds": rows,
        "zeroed_mean": float(np.mean(zeroed)),
        "op_contribution": statistics.paired(errors["right"], zeroed).to_json(),
        "errors": errors,
    }


def generated(bench: Workbench) -> Iterator[Architecture]:
    """The judged architectures that have generated filters."""
    layout = bench.supernet().hypernet.layout
    return filter(layout.tiles, map(bench.architecture, itertools.count()))


def another(space: Space, layout: Layout, seed: int) -> Architecture:
    """A draw with generated filters: the others have no description."""
    draws = (space.draw(OTHERS, seed % 100_000 + attempt * 100_000) for attempt in itertools.count())
    return next(filter(layout.tiles, draws))


def corruptions(layout: Layout, draw: Callable[[int], Any]) -> dict[str, Corruption]:
    """Ways to describe a network wrongly: name -> function of (c [channels, H, W], seed).

    Args:
        layout: Layout of c.
        draw: gives another architecture for a seed.
    """

    def shuffled_dilation(c: Tensor, seed: int) -> Tensor:
        """Every dilation says another one: its one-hot channels are rotated."""
        changed = c.clone()
        for name, part in layout.sections.items():
            if name.startswith("dilation"):
                changed[part] = c[part].roll(1, 0)
        return changed

    def shuffled_channels(c: Tensor, seed: int) -> Tensor:
        """All channels in another order."""
        order = np.random.default_rng(seed).permutation(c.shape[0])
        return c[torch.from_numpy(order)]

    def other_architecture(c: Tensor, seed: int) -> Tensor:
        """c of another architecture."""
        return described_as(draw(seed), layout)(c, seed)

    def nothing(c: Tensor, seed: int) -> Tensor:
        """Background everywhere."""
        return torch.full_like(c, BACKGROUND)

    return {
        "shuffled dilation": shuffled_dilation,
        "shuffled channels": shuffled_channels,
        "another architecture's": other_architecture,
        "none": nothing,
    }


def described_as(other: Architecture, layout: Layout) -> Corruption:
    """The description of another architecture, repeated or cut to the size of c [channels, H, W]."""

    def of_the_other(c: Tensor, seed: int) -> Tensor:
        described = torch.from_numpy(layout.encode(other, seed))
        rows = torch.arange(c.shape[1]) % described.shape[1]
        columns = torch.arange(c.shape[2]) % described.shape[2]
        return described[:, rows][:, :, columns]

    return of_the_other
