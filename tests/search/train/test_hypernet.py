"""Training of the HyperNet: it learns, repeats and resumes bit for bit, and counts what it trained."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smash_base.errors import InvalidInputError, UsageError
from smash_search.data import Dataset
from smash_search.model.hypernet import HyperNetConfig
from smash_search.model.supernet import Supernet
from smash_search.rank.scoring import Scorer, ScoringConfig
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.prior import PAPER
from smash_search.space.space import space_for
from smash_search.train.compute import DivergedError, load_checkpoint
from smash_search.train.hypernet import TrainingConfig, choices_of, cosine, new_supernet, train
from smash_search.train.initial import whiten_stems
from tests.search.several_data import several_digits
from tests.search.small_data import same_state, small_architecture, small_digits, with_bad_images

SPEC = InputSpec(1, (8, 8))
SMALL = replace(space_for(SPEC), reference_reads=(6, 8), max_ops=2, kernels=(3,), dilations=((3, 1),))
CONFIG = TrainingConfig(steps=4, batch=32, architectures=2, average=0.9, learning_rate=0.01)


def _supernet(seed: int = 0) -> Supernet:
    return new_supernet(SMALL, SPEC, 10, HyperNetConfig(depths=(2, 2)), seed=seed)


class Stop(Exception):
    pass


def test_the_loss_of_a_hypernet_falls() -> None:
    config = TrainingConfig(steps=60, batch=32, architectures=1, learning_rate=0.02)
    result = train(_supernet(), small_digits(train=192), config)
    losses = [entry.loss for entry in result.history]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


def test_a_hypernet_of_several_classes_learns_each_by_itself() -> None:
    """A 9 is odd and large: a loss of one class against all would set them against each other."""
    data = several_digits(train=192)
    supernet, untrained = (
        new_supernet(SMALL, SPEC, 3, HyperNetConfig(depths=(2, 2)), seed=0) for _ in range(2)
    )
    config = TrainingConfig(steps=60, batch=32, architectures=1, learning_rate=0.02)
    result = train(supernet, data, config)
    assert result.history[0].loss == pytest.approx(math.log(2), rel=0.3)
    assert result.history[-1].loss < 0.95 * result.history[0].loss
    scored = ScoringConfig(statistics_images=64, images=(0,), batch=32)
    before, after = (
        [Scorer(entry, data, scored).score(SMALL.draw(1, slot), 48).error for slot in range(4)]
        for entry in (untrained, supernet)
    )
    assert sum(after) / 4 < sum(before) / 4 - 0.1
    assert max(after) < 1 - data.validation.targets.mean() - 0.1, "better than by chance"


def test_images_of_several_classes_are_not_mixed() -> None:
    supernet = new_supernet(SMALL, SPEC, 3, HyperNetConfig(depths=(2, 2)), seed=0)
    mixing = replace(CONFIG, augmentation={"mixup": 0.2, "classes": 3})
    with pytest.raises(UsageError, match="do not exclude each other"):
        train(supernet, several_digits(), mixing)


def test_the_rate_of_the_hypernet_is_its_own() -> None:
    data = small_digits()
    start, still, slow = _supernet(), _supernet(), _supernet()
    for supernet, rate in ((still, 0.0), (slow, 0.1)):
        train(supernet, data, replace(CONFIG, steps=1, average=0.0, hypernet_rate=rate))
    assert same_state(still.hypernet.state_dict(), start.hypernet.state_dict())
    assert not same_state(slow.hypernet.state_dict(), start.hypernet.state_dict())
    assert same_state(slow.filters.state_dict(), still.filters.state_dict())
    assert not same_state(still.filters.state_dict(), start.filters.state_dict())


@pytest.mark.parametrize("data", [small_digits(), several_digits()], ids=["one class", "several"])
def test_a_resumed_training_ends_with_the_same_bits(data: Dataset, tmp_path: Path) -> None:
    classes = len(data.classes)

    def supernet(seed: int = 0) -> Supernet:
        return new_supernet(SMALL, SPEC, classes, HyperNetConfig(depths=(2, 2)), seed=seed)

    whole = supernet()
    expected = train(whole, data, CONFIG)

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise Stop

    path = tmp_path / "hypernet.pt"
    with pytest.raises(Stop):
        train(supernet(), data, CONFIG, checkpoint=path, checkpoint_seconds=0, on_step=stop)
    resumed = supernet(seed=5)
    result = train(resumed, data, CONFIG, checkpoint=path)
    assert same_state(whole.state_dict(), resumed.state_dict())
    assert (result.history, result.counts) == (expected.history, expected.counts)
    again = supernet(seed=5)
    assert train(again, data, CONFIG, checkpoint=path).steps == CONFIG.steps
    assert same_state(whole.state_dict(), again.state_dict())


def test_what_is_left_of_a_training_has_no_moments_of_its_optimiser(tmp_path: Path) -> None:
    """They are twice the weights: 250 of 390 MB in ``edge``."""
    path, config = tmp_path / "hypernet.pt", replace(CONFIG, average=0.0)
    sizes = []

    def looked_at(step: int, loss: float) -> None:
        sizes.append(path.stat().st_size)

    train(_supernet(), small_digits(), config, checkpoint=path, checkpoint_seconds=0, on_step=looked_at)
    assert len(sizes) == config.steps
    assert sizes[-1] < 0.5 * min(sizes[:-1])


def test_stems_are_left_as_they_are_where_the_images_are_smaller_than_their_filters() -> None:
    data = small_digits()
    low = replace(data, train=replace(data.train, images=data.train.images[:, :2]))
    supernet = new_supernet(SMALL, SPEC, 10, HyperNetConfig(depths=(2, 2)), seed=0)
    before = supernet.filters["stem"].detach().clone()
    whiten_stems(supernet, low)
    assert torch.equal(supernet.filters["stem"], before)
    assert supernet.filters["stem"].requires_grad


def test_a_shared_stem_that_whitens_stays_so_and_any_two_of_its_channels_carry_different_things() -> None:
    data = small_digits(train=192)
    config = HyperNetConfig(depths=(2, 2), whiten=True)
    supernet = new_supernet(SMALL, SPEC, 10, config, seed=0)
    train(supernet, data, replace(CONFIG, average=0.9))
    stem = supernet.filters["stem"].detach()
    again = new_supernet(SMALL, SPEC, 10, config, seed=1)
    whiten_stems(again, data)
    assert torch.equal(stem, again.filters["stem"])
    images = data.preprocessing.normalise(torch.from_numpy(data.train.images))
    patches = torch.nn.functional.unfold(images, stem.shape[2:], stride=stem.shape[2:]).movedim(1, 2)
    first = patches.flatten(0, 1) @ stem[:8].flatten(1).T  # four filters, both signs of each
    torch.testing.assert_close(first[:, 0::2], -first[:, 1::2])
    covariance = first[:, 0::2].T @ first[:, 0::2] / len(first)
    torch.testing.assert_close(covariance, torch.eye(4), atol=0.02, rtol=0)


def test_a_resumed_training_with_a_whitened_stem_ends_with_the_same_bits(tmp_path: Path) -> None:
    data, path = small_digits(), tmp_path / "hypernet.pt"

    def fresh(seed: int) -> Supernet:
        return new_supernet(SMALL, SPEC, 10, HyperNetConfig(depths=(2, 2), whiten=True), seed=seed)

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise Stop

    whole, resumed = fresh(0), fresh(5)
    train(whole, data, CONFIG)
    with pytest.raises(Stop):
        train(fresh(0), data, CONFIG, checkpoint=path, checkpoint_seconds=0, on_step=stop)
    train(resumed, data, CONFIG, checkpoint=path)
    assert same_state(whole.state_dict(), resumed.state_dict())


def test_where_draws_are_refused_the_first_acceptable_ones_come_again_and_a_resumed_training_has_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smash_search.train.hypernet.LEAST_KEPT", 3)
    asked: list[str] = []
    data, path = small_digits(), tmp_path / "hypernet.pt"

    def accept(architecture: Architecture) -> bool:
        asked.append(architecture.key)
        return len(architecture.blocks[0].ops) == 2

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise Stop

    whole, resumed = _supernet(), _supernet(seed=5)
    expected = train(whole, data, CONFIG, accept=accept)
    assert expected.counts["block 0 ops 2"] == CONFIG.steps * CONFIG.architectures
    assert len(asked) == len(set(asked))  # three are looked for, once
    with pytest.raises(Stop):
        train(_supernet(), data, CONFIG, checkpoint=path, checkpoint_seconds=0, on_step=stop, accept=accept)
    result = train(resumed, data, CONFIG, checkpoint=path, accept=accept)
    assert result.counts == expected.counts
    assert same_state(whole.state_dict(), resumed.state_dict())


def test_a_slot_whose_draws_are_all_refused_has_the_network_of_the_last_one_that_has_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One training at a tight limit went on with the last of 200 refused draws, whatever it was."""
    monkeypatch.setattr("smash_search.train.hypernet.ATTEMPTS", 2)
    monkeypatch.setattr("smash_search.train.hypernet.LEAST_KEPT", 12)
    first, second = SMALL.draw(CONFIG.seed, 1, 0.0), SMALL.draw(CONFIG.seed, 2, 1 / 12)
    accepted = second.key
    assert accepted not in {SMALL.draw(CONFIG.seed, draw, 0.0).key for draw in (0, 1)}
    config = replace(CONFIG, steps=6)
    result = train(_supernet(), small_digits(), config, accept=lambda entry: entry.key == accepted)
    assert result.counts == Counter(choices_of(first)) + Counter([*choices_of(second)] * 11)


def test_checkpoints_that_take_long_are_written_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of a large HyperNet takes seconds: written every ten, it took a tenth of a training."""
    written: list[int] = []

    def slow(path: Path, identity: object, content: dict[str, Any]) -> None:
        written.append(content["state"]["counters"][0])
        time.sleep(0.2)

    monkeypatch.setattr("smash_search.train.loop.save_checkpoint", slow)
    config = replace(CONFIG, steps=24)
    train(_supernet(), small_digits(), config, checkpoint=tmp_path / "h.pt", checkpoint_seconds=1e-6)
    assert written[0] == 1
    assert written[-1] == 24, "the last step is kept in any case"
    assert len(written) < 12


def test_draws_that_are_kept_for_later_slots_hold_the_kernels_that_enter_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kernel of 7 enters after three eighths of a training, of which a quarter of the draws is kept."""
    monkeypatch.setattr("smash_search.train.hypernet.LEAST_KEPT", 3)
    slots = iter(range(24))
    space = replace(SMALL, kernels=(3, 7), dilations=((3, 1), (7, 1)), prior=PAPER)
    supernet = new_supernet(space, SPEC, 10, HyperNetConfig(depths=(2, 2)), seed=0)
    result = train(supernet, small_digits(), replace(CONFIG, steps=24), accept=lambda _: next(slots, 24) < 12)
    assert result.counts["kernel 7"] > 0


def test_a_first_draw_that_is_accepted_is_trained_on_rather_than_one_of_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smash_search.train.hypernet.LEAST_KEPT", 3)
    asked: set[str] = set()

    def accept(architecture: Architecture) -> bool:
        asked.add(architecture.key)
        return True

    train(_supernet(), small_digits(), replace(CONFIG, steps=12), accept=accept)
    assert len(asked) > 12, "six of the 24 slots keep theirs for later ones"


def test_another_configuration_space_or_data_set_is_refused(tmp_path: Path) -> None:
    data, path = small_digits(), tmp_path / "hypernet.pt"
    short = replace(CONFIG, steps=1)
    train(_supernet(), data, short, checkpoint=path)
    with pytest.raises(UsageError, match=r"training\.steps differs"):
        train(_supernet(), data, CONFIG, checkpoint=path)
    with pytest.raises(UsageError, match="data differs"):
        train(_supernet(), replace(data, fingerprint="other"), short, checkpoint=path)


def test_every_choice_that_was_trained_is_counted() -> None:
    result = train(_supernet(), small_digits(), CONFIG)
    drawn = [SMALL.draw(0, slot, slot // 2 / CONFIG.steps) for slot in range(2 * CONFIG.steps)]
    assert sum(result.counts.values()) == sum(len(list(choices_of(drawn_))) for drawn_ in drawn)
    assert result.counts["kernel 3"] > 0
    assert result.steps == CONFIG.steps


def test_choices_name_every_decision_of_an_op() -> None:
    names = {choice.rpartition(" ")[0] for choice in choices_of(small_architecture())}
    assert {"pattern", "reads", "writes", "units", "bottleneck", "groups", "kernel", "dilation"} <= names


def test_a_step_moves_along_the_mean_gradient_of_its_architectures() -> None:
    """Two architectures in one step: the gradient is half the sum of what each alone gives."""
    from smash_search.train.hypernet import _Loop

    data = small_digits()
    supernet = _supernet()
    loop = _Loop(supernet, data, replace(CONFIG, average=0.0), torch.device("cpu"))
    drawn = loop._draw()
    assert len(drawn) == 2
    loop._gradients(drawn, 2)
    both = {name: value.grad.clone() for name, value in supernet.named_parameters() if value.grad is not None}
    alone = []
    for entry in drawn:
        loop._gradients([entry], 1)
        alone.append({name: value.grad for name, value in supernet.named_parameters()})
        alone[-1] = {name: None if grad is None else grad.clone() for name, grad in alone[-1].items()}
    for name, gradient in both.items():
        parts = [part[name] for part in alone if part[name] is not None]
        assert torch.allclose(gradient, sum(parts) / 2, atol=1e-6), name


def test_weight_decay_is_on_shared_filters_alone() -> None:
    from smash_search.train.hypernet import _Loop

    supernet = _supernet()
    loop = _Loop(supernet, small_digits(), replace(CONFIG, weight_decay=0.5), torch.device("cpu"))
    decayed = {id(value) for group in loop._optimiser.param_groups if group["weight_decay"]
               for value in group["params"]}  # fmt: skip
    assert decayed == {id(value) for value in supernet.filters.parameters()}


def test_images_that_overflow_stop_the_training_and_keep_no_bad_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "hypernet.pt"
    config = replace(CONFIG, steps=20, most_bad_steps=3)
    data = with_bad_images(small_digits())
    with pytest.raises(DivergedError, match="in 4 steps in a row"):
        train(_supernet(), data, config, checkpoint=path, checkpoint_seconds=0)
    assert load_checkpoint(path, None) is None


def test_the_learning_rate_ends_at_zero_and_configurations_are_checked() -> None:
    assert cosine(0, 1000) < 0.1
    assert cosine(999, 1000) < 1e-4
    assert cosine(100, 1000) > 0.9
    for wrong in ({"steps": 0}, {"batch": 1}, {"architectures": 0}, {"average": 1.0}):
        with pytest.raises(InvalidInputError, match=next(iter(wrong))):
            TrainingConfig(**wrong)
    assert TrainingConfig(**asdict(CONFIG)) == CONFIG
