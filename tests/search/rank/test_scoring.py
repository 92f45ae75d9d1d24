"""Scores: own statistics, intervals, the race and what it can say about itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smash_base.errors import InvalidInputError
from smash_search.model.interpreter import FrozenNetwork, forward
from smash_search.rank.scoring import (
    Score,
    Scorer,
    ScoringConfig,
    Tally,
    corrupted,
    kept_best,
    make_score,
    score_of_several,
    split_half,
    survivors,
    wilson,
)
from smash_search.space.architecture import InputSpec
from smash_search.space.space import space_for
from smash_search.train.compute import OutOfMemoryError, seed_of
from smash_search.train.hypernet import new_supernet
from smash_search.train.network import accuracy, answers_of, new_network
from tests.search.several_data import several_digits
from tests.search.small_data import small_architecture, small_digits

SPEC = InputSpec(1, (8, 8))
SPACE = space_for(SPEC)


def _scorer(**options: object) -> Scorer:
    config = ScoringConfig(statistics_images=64, images=(16, 0), batch=32, **options)
    return Scorer(new_supernet(SPACE, SPEC, 10, seed=0), small_digits(), config)


def test_a_score_is_the_error_of_the_frozen_network_with_generated_weights() -> None:
    """The score is what a bundle of the generated network would get on the same images."""
    scorer, data = _scorer(), small_digits()
    architecture = small_architecture()
    score = scorer.score(architecture, 48)
    statistics = scorer.statistics(architecture)
    frozen = FrozenNetwork(architecture, scorer.supernet.materialise(architecture, statistics))
    images = torch.from_numpy(data.preprocessing.normalise(data.validation.images))
    wrong = (frozen(images).argmax(1).numpy() != data.validation.labels).mean()
    assert score.error == pytest.approx(wrong)
    assert score.mask().mean() == score.error
    assert score.low <= score.error <= score.high


def test_a_score_that_a_gpu_has_no_memory_for_says_how_the_search_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_large(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("smash_search.rank.scoring.forward", too_large)
    with pytest.raises(OutOfMemoryError, match=r"batch of 32 images.*--device cpu"):
        _scorer().score(small_architecture(), 48)


def test_batches_normalised_by_their_own_statistics_need_no_other_images() -> None:
    scorer, data, architecture = _scorer(statistics="batch"), small_digits(), small_architecture()
    score = scorer.score(architecture, 48)
    order = np.random.default_rng(seed_of(0, 2)).permutation(48)
    images = torch.from_numpy(data.preprocessing.normalise(data.validation.images))
    source = scorer.supernet.source(architecture)
    with torch.no_grad():
        logits = torch.cat([forward(architecture, source, images[part]) for part in (order[:24], order[24:])])
    wrong = logits.argmax(1).numpy() != data.validation.labels[order]
    assert score.mask().tolist() == wrong.tolist(), "two equal batches of at most 32"
    assert scorer.score(architecture, 48, scorer.score(architecture, 24)) == score
    with pytest.raises(InvalidInputError, match="training"):
        ScoringConfig(statistics="running")  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_score_and_another_looks_at_other_images() -> None:
    architecture = small_architecture()
    first = _scorer().score(architecture, 16)
    assert first == _scorer().score(architecture, 16)
    assert first.wrong != _scorer(seed=1).score(architecture, 16).wrong


def test_more_images_continue_from_fewer() -> None:
    scorer, architecture = _scorer(), small_architecture()
    few = scorer.score(architecture, 16)
    more = scorer.score(architecture, 48, few)
    whole = scorer.score(architecture, 48)
    assert (more.error, more.wrong) == (whole.error, whole.wrong)
    assert more.loss == pytest.approx(whole.loss, rel=1e-5)
    assert scorer.stages == [16, 48]


def test_a_corrupted_description_gives_other_weights() -> None:
    scorer, architecture = _scorer(), small_architecture()
    right = scorer.score(architecture, 48)
    assert scorer.score(architecture, 48, corrupt=corrupted).loss != right.loss
    c = torch.arange(24.0).view(2, 3, 4)
    assert sorted(corrupted(c, 1).flatten().tolist()) == c.flatten().tolist()


def test_a_network_starts_from_the_generated_weights_that_were_scored() -> None:
    scorer, architecture = _scorer(), small_architecture()
    network = new_network(architecture, SPEC, 10, 0, "none")
    scorer.supernet.copy_to(network, scorer.statistics(architecture))
    data = small_digits()
    measured = accuracy(network, data.validation, data.preprocessing)
    assert measured == pytest.approx(1 - scorer.score(architecture, 48).error)


def _scorer_of_several() -> Scorer:
    config = ScoringConfig(statistics_images=64, images=(16, 0), batch=32)
    return Scorer(new_supernet(SPACE, SPEC, 3, seed=0), several_digits(), config)


def test_a_score_of_several_classes_is_what_trained_networks_are_judged_by() -> None:
    scorer, architecture, data = _scorer_of_several(), small_architecture(), several_digits()
    network = new_network(architecture, SPEC, 3, 0, "none")
    scorer.supernet.copy_to(network, scorer.statistics(architecture))
    score = scorer.score(architecture, 48)
    measured = accuracy(network, data.validation, data.preprocessing)
    assert score.error == pytest.approx(1 - measured, abs=0.01), "but for bfloat16"
    logits = torch.from_numpy(answers_of(network, data.validation, data.preprocessing))
    assert data.validation.targets is not None
    targets = torch.from_numpy(data.validation.targets.astype(np.float32))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    assert score.loss == pytest.approx(float(loss), rel=0.01)
    tally = Tally(several=True)
    for part in (slice(20), slice(20, None)):
        tally.add(logits[part], targets[part])
    same = tally.score(architecture.key)
    assert same.error == 1 - measured
    assert same.loss == pytest.approx(float(loss))
    assert score.low < score.error < score.high
    assert score.errors().mean() == pytest.approx(score.error, abs=1e-3)


def test_a_network_whose_answers_are_no_numbers_is_wrong_about_every_class() -> None:
    tally = Tally(several=False)
    logits = torch.tensor([[1.0, 0.0], [torch.nan, torch.nan], [torch.nan, 0.0], [torch.inf, 0.0]])
    tally.add(logits, torch.zeros(4, dtype=torch.int64))
    assert tally.score("key").mask().tolist() == [False, True, True, False]


def test_a_score_of_several_classes_on_more_images_is_that_of_all_of_them() -> None:
    """Average precision of an image depends on the answers for all others."""
    scorer, architecture = _scorer_of_several(), small_architecture()
    few = scorer.score(architecture, 16)
    assert few.images == 16
    assert scorer.score(architecture, 48, few) == scorer.score(architecture, 48)
    assert Score.from_json(few.to_json()) == few
    assert "shares" not in _scorer().score(architecture, 16).to_json(), "lines of one class stay as they were"


def test_filters_and_descriptions_of_several_classes_are_checked_by_the_same_error() -> None:
    scorer = _scorer_of_several()
    drawn = (SPACE.draw(0, slot) for slot in range(20))
    architecture = next(entry for entry in drawn if scorer.supernet.hypernet.layout.tiles(entry))
    right = scorer.score(architecture, 48)
    for other in (
        scorer.score(architecture, 48, corrupt=corrupted),
        scorer.score(architecture, 48, zeroed=True),
    ):
        assert other.loss != right.loss
        assert other.errors().mean() == pytest.approx(other.error, abs=1e-3)
    layout, gradient = scorer.encoding_gradient(architecture, 48)
    assert gradient.shape == layout.encode(architecture).shape
    assert np.abs(gradient).max() > 0


def test_the_race_of_several_classes_can_say_how_much_is_chance() -> None:
    """More images tell networks apart more surely, the first of which answers best."""
    random = np.random.default_rng(0)

    def scores(images: int) -> list[Score]:
        targets = (random.random((images, 3)) < 0.4).astype(np.float32)
        answers = [targets + random.normal(0, noise, targets.shape) for noise in np.linspace(1, 3, 20)]
        return [score_of_several(f"{n:016x}", found, targets, 0.0) for n, found in enumerate(answers)]

    few, many = scores(60), scores(4000)
    assert (split_half(many) or 0) > 0.95 > (split_half(few) or 0)
    assert kept_best(many, 0.5) > 0.999 > kept_best(few, 0.1)


def _scores(errors: list[float], images: int, seed: int = 0) -> list[Score]:
    random = np.random.default_rng(seed)
    return [
        make_score(f"{index:016x}", random.random(images) < error, error)
        for index, error in enumerate(errors)
    ]


def test_survivors_are_the_better_part_and_at_least_one() -> None:
    scores = _scores([0.5, 0.1, 0.3, 0.9], 4000)
    assert [score.key[-1] for score in survivors(scores, 0.5)] == ["1", "2"]
    assert len(survivors(scores, 0.01)) == 1


def test_confidence_of_the_race_grows_with_the_images_and_with_what_is_kept() -> None:
    errors = list(np.linspace(0.2, 0.3, 20))
    few, many = _scores(errors, 50), _scores(errors, 5000)
    assert kept_best(many, 0.5) > 0.999
    assert kept_best(few, 0.1) < kept_best(few, 0.9) <= 1.0
    assert kept_best(few, 0.1) == kept_best(few, 0.1), "a function of its arguments"


def test_split_half_reliability_tells_signal_from_noise() -> None:
    assert split_half(_scores(list(np.linspace(0.1, 0.9, 30)), 500)) > 0.95  # type: ignore[operator]
    assert abs(split_half(_scores([0.3] * 30, 500)) or 0) < 0.5
    assert split_half(_scores([0.5, 0.5], 10)) is None
    assert split_half([make_score(str(n), np.zeros(10, bool), 0.0) for n in range(5)]) is None


def test_intervals_hold_the_error_and_shrink() -> None:
    for count in (10, 100, 1000):
        low, high = wilson(0.0, count)
        assert low == pytest.approx(0, abs=1e-12)
        assert 0 < high < 4 / count + 0.1
    assert np.subtract(*wilson(0.3, 100)[::-1]) > np.subtract(*wilson(0.3, 1000)[::-1])


def test_scores_round_trip_through_json_and_stay_finite() -> None:
    score = make_score("0" * 16, np.asarray([True, False, True]), float("nan"))
    assert Score.from_json({**score.to_json(), "origin": "random"}) == score
    assert score.loss == 1e30
    assert score.mask().tolist() == [True, False, True]


@pytest.mark.parametrize("images", [(), (100, 50), (0, 100), (-1,), (50, 50)])
def test_stages_must_grow(images: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="scoring images"):
        ScoringConfig(images=images)
