"""dE/dc of a real HyperNet against finite differences, and a search that follows it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smash_base import files
from smash_search.model.hypernet import HyperNetConfig
from smash_search.model.interpreter import forward
from smash_search.rank.scoring import Scorer, ScoringConfig
from smash_search.space.architecture import InputSpec
from smash_search.space.space import space_for
from smash_search.strategies.gradient import Encoded, predicted_change
from smash_search.train.hypernet import new_supernet
from tests.search.run_small_search import search
from tests.search.small_data import small_architecture, small_digits

SPEC = InputSpec(1, (8, 8))


def test_the_gradient_is_that_of_the_loss_with_fixed_statistics() -> None:
    supernet = new_supernet(space_for(SPEC), SPEC, 10, HyperNetConfig(depths=(2, 2)), seed=0)
    scoring = ScoringConfig(statistics_images=32, images=(0,), batch=32)
    scorer = Scorer(supernet, small_digits(train=64, validation=48), scoring)
    architecture = small_architecture()
    layout, gradient = scorer.encoding_gradient(architecture, 48)
    c = torch.from_numpy(layout.encode(architecture, int(architecture.key, 16)))
    assert gradient.shape == c.shape
    statistics = scorer.statistics(architecture)
    images, labels = scorer._validation(scorer._order[:48])

    @torch.no_grad()
    def loss(at: torch.Tensor) -> float:
        source = supernet.source(architecture, statistics, c=at)
        return float(F.cross_entropy(forward(architecture, source, images).double(), labels))

    direction = torch.from_numpy(gradient / np.linalg.norm(gradient))
    step = 0.02
    measured = (loss(c + step * direction) - loss(c - step * direction)) / (2 * step)
    assert measured == pytest.approx(float(np.linalg.norm(gradient)), rel=0.1)


def test_without_generated_filters_nothing_depends_on_the_encoding_and_nothing_is_predicted() -> None:
    supernet = new_supernet(space_for(SPEC, "edge-tiny"), SPEC, 10, HyperNetConfig(depths=(1,)), seed=0)
    space, layout = supernet.space, supernet.hypernet.layout
    drawn = (space.draw(5, slot) for slot in itertools.count())
    first, second = itertools.islice((entry for entry in drawn if not layout.tiles(entry)), 2)
    scoring = ScoringConfig(statistics_images=16, images=(0,), batch=32)
    scorer = Scorer(supernet, small_digits(train=16, validation=16), scoring)
    found, gradient = scorer.encoding_gradient(first, 16)
    assert gradient.shape == layout.encode(first).shape == (layout.channels, 1, 0)
    assert predicted_change(Encoded(found, first, gradient), second) is None


def test_a_search_by_gradient_follows_the_hypernet_that_it_trained(tmp_path: Path) -> None:
    options = {"random": 4, "mutants": 6, "batch": 1, "images": 24}
    search(tmp_path / "run", strategy="gradient", strategy_options=options)
    scores = files.read_jsonl(tmp_path / "run" / "scores.jsonl")
    origins = [record["origin"] for record in scores if "origin" in record]
    assert origins == ["random"] * 4 + ["gradient"] * 2
