"""Training of one network: it learns, repeats and resumes bit for bit, and survives bad steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from smash_base.errors import InvalidInputError, MissingRuntimeError, UsageError
from smash_search.data import Split
from smash_search.space.architecture import InputSpec
from smash_search.train import loop
from smash_search.train.compute import Batches, DivergedError, Feed, batches, load_checkpoint, pick_device
from smash_search.train.loop import TrainingProgress
from smash_search.train.network import (
    Epoch,
    FitResult,
    Recipe,
    accuracy,
    check_resumable,
    distance,
    distance_of_each,
    fit,
    mixing_filters,
    new_network,
    recipe_with,
    schedule,
)
from smash_search.train.recipes import recipe_for
from tests.search.hand_clock import HandClock
from tests.search.small_data import same_state, small_architecture, small_digits, with_bad_images

SPEC = InputSpec(1, (8, 8))


class _Stop(Exception):
    """What interrupts a training."""


def _network(seed: int = 0) -> nn.Module:
    return new_network(small_architecture(), SPEC, 10, seed)


def test_a_network_learns_digits_and_its_accuracy_is_counted() -> None:
    data = small_digits(train=192)
    network = _network()
    result = fit(network, data, Recipe(epochs=10, batch=16), evaluate=False)
    assert result.history[-1].loss < 0.6 * result.history[0].loss
    assert result.accuracy > 0.6
    assert result.accuracy == accuracy(network, data.validation, data.preprocessing)
    assert [entry.accuracy for entry in result.history[:-1]] == [None] * 9
    assert not network.training


def test_large_images_are_judged_a_few_at_a_time() -> None:
    seen: list[int] = []

    class Counting(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(len(images))
            return images.mean((1, 2, 3))[:, None] * torch.tensor([1.0, -1.0])

    form = replace(small_digits().preprocessing, height=1024, width=512)
    large = Split(np.zeros((30, 1024, 512, 1), np.uint8), np.zeros(30, np.int64))
    assert accuracy(Counting(), large, form) in (0, 1)
    assert max(seen) * 1024 * 512 <= 512 * 96 * 96
    assert sum(seen) == 30


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = _network().state_dict()
    torch.manual_seed(2)
    assert same_state(first, _network().state_dict())
    assert not same_state(first, _network(1).state_dict())


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(batches(seed, epoch, 10, 4)).tolist()

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)
    assert len(order(0, 3)) == 8, "the smaller last batch is left out"
    assert len(np.concatenate(batches(0, 0, 3, 4))) == 3, "but not when it is the only one"


def test_batches_without_end_are_whole_passes_one_after_another() -> None:
    endless = Batches(3, 35, 4)
    assert endless.per_pass == 8
    for number in (0, 7, 8, 20, 3):  # in any order
        expected = batches(3, number // 8, 35, 4)[number % 8]
        assert np.array_equal(endless[number], expected)


def test_short_epochs_go_through_all_images_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = small_digits(), list[int]()
    take = Feed.__call__

    def noted(feed: Feed, indices: np.ndarray) -> Any:
        if len(feed) == len(data.train):
            seen.extend(indices.tolist())
        return take(feed, indices)

    monkeypatch.setattr(Feed, "__call__", noted)
    count = len(data.train) // 2 // 16 * 16  # half of the images, in whole batches
    result = fit(_network(), data, Recipe(epochs=2, batch=16, epoch_images=count + 3), evaluate=False)
    assert result.steps == 2 * count // 16
    assert len(seen) == len(set(seen)) == 2 * count
    seen.clear()
    fit(_network(), data, Recipe(epochs=1, batch=16, epoch_images=10**9), evaluate=False)
    assert len(seen) == len(data.train) // 16 * 16, "never more than all"


def _dropping(seed: int = 0) -> nn.Module:
    """A network of one's own whose training draws random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.Dropout2d(0.2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(288, 10),
        )


@pytest.mark.parametrize("optimiser", ["sgd", "muon"])
@pytest.mark.parametrize(
    ("make", "epoch_images"), [(_network, 0), (_network, 50), (_dropping, 0), (_dropping, 50)]
)
def test_a_resumed_training_ends_with_the_same_bits(
    tmp_path: Path, make: Callable[..., nn.Module], epoch_images: int, optimiser: Any
) -> None:
    data = small_digits()
    recipe = Recipe(epochs=3, batch=32, average=0.9, label_smoothing=0.1, epoch_images=epoch_images)
    recipe = replace(recipe, optimiser=optimiser)
    whole = make()
    expected = fit(whole, data, recipe)

    def stop(entry: Epoch) -> None:
        if entry.epoch == 2:
            raise _Stop

    path = tmp_path / "checkpoint.pt"
    with pytest.raises(_Stop):
        fit(make(), data, recipe, checkpoint=path, on_epoch=stop)
    resumed = make(seed=9)  # its weights come from the checkpoint
    result = fit(resumed, data, recipe, checkpoint=path)
    assert same_state(whole.state_dict(), resumed.state_dict())
    assert result.history == expected.history
    assert result.steps == expected.steps
    again = make(seed=9)  # a finished job is not repeated
    assert fit(again, data, recipe, checkpoint=path).accuracy == expected.accuracy
    assert same_state(whole.state_dict(), again.state_dict())


_EVERYTHING = {
    "batch": 32,
    "augmentation": {"pad_crop": 1, "flip": "alternate", "trivial": True},
    "balance": "sampling",
    "first_size": 0.5,
    "average": 0.9,
}
"""What a recipe can have that depends on the step, the epoch or the part of the training."""


@pytest.mark.parametrize(
    ("changes", "best"), [({"prune": 0.5}, 1), ({"prune": 0.5}, 2), ({"prune": 0.5}, 3), (_EVERYTHING, 1)]
)
def test_the_default_recipe_goes_on_from_the_middle_of_an_epoch_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], best: int
) -> None:
    monkeypatch.setattr(loop, "BETWEEN", 0.0)  # a checkpoint after every step, however long it takes
    data = small_digits()
    recipe = replace(recipe_for("auto", data, 3), epochs=3, whiten=True, optimiser="muon")
    recipe = recipe_with(recipe, changes, len(data.classes))
    assert recipe.keep_best
    teacher = np.random.default_rng(0).normal(size=(len(data.train), 10)).astype(np.float32)

    def trained(network: nn.Module, **options: Any) -> FitResult:
        looks = iter(range(1, 4))

        def measure(*_: Any) -> float:
            return 0.9 if next(looks) + begun == best else 0.5

        begun = options.pop("begun", 0)
        return fit(network, data, recipe, teacher=teacher, measure=measure, **options)

    whole, path = _network(), tmp_path / "checkpoint.pt"
    expected = trained(whole)
    per_epoch = expected.steps // 3
    stopped_at = 2 * per_epoch + max(1, per_epoch // 2)

    def stop(progress: TrainingProgress) -> None:
        if progress.step == stopped_at:
            raise _Stop

    with pytest.raises(_Stop):
        trained(_network(), checkpoint=path, checkpoint_seconds=1e-9, on_step=stop)
    loaded = load_checkpoint(path, None)
    assert loaded is not None
    assert 2 * per_epoch < loaded["state"]["counters"][0] <= stopped_at, "within the last epoch"
    resumed = _network(seed=9)
    result = trained(resumed, checkpoint=path, begun=2)
    assert same_state(whole.state_dict(), resumed.state_dict())
    assert result.history == expected.history
    assert result.accuracy == expected.accuracy == 0.9


def test_a_training_goes_on_though_the_version_that_began_it_knew_fewer_values(tmp_path: Path) -> None:
    data, recipe = small_digits(), Recipe(epochs=2, batch=32)
    whole, path = _network(), tmp_path / "checkpoint.pt"
    fit(whole, data, recipe)

    def stop(_: Epoch) -> None:
        raise _Stop

    for wanted in (recipe, replace(recipe, prune=0.5)):
        with pytest.raises(_Stop):
            fit(_network(), data, recipe, checkpoint=path, on_epoch=stop, checkpoint_seconds=1e-9)
        loaded = torch.load(path)
        del loaded["identity"]["recipe"]["prune"]
        torch.save(loaded, path)
        resumed = _network(seed=9)
        if wanted.prune:
            with pytest.raises(UsageError, match=r"recipe\.prune differs"):
                fit(resumed, data, wanted, checkpoint=path)
        else:
            fit(resumed, data, wanted, checkpoint=path)
            assert same_state(whole.state_dict(), resumed.state_dict())
            path.unlink()


def test_dropout_repeats_by_the_seed_of_the_recipe_and_draws_anew_in_every_step() -> None:
    data, masks = small_digits(), list[torch.Tensor]()

    def trained(seed: int, before: int) -> dict:
        torch.manual_seed(before)
        network = _dropping()
        network[4].register_forward_hook(lambda _, __, given: masks.append(given.detach() == 0))
        held = torch.get_rng_state()
        fit(network, data, Recipe(epochs=1, batch=32, seed=seed), evaluate=False)
        assert torch.equal(held, torch.get_rng_state()), "the caller's numbers go on as they would have"
        return network.state_dict()

    first = trained(seed=0, before=1)
    assert not torch.equal(masks[0], masks[1])
    assert same_state(first, trained(seed=0, before=2))
    assert not same_state(first, trained(seed=1, before=1))


def test_the_time_left_is_that_of_this_process_with_its_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, left = HandClock(monkeypatch), list[float]()

    def measured(*_: object) -> float:
        clock.spend(5)
        return 0.5

    def on_step(progress: TrainingProgress) -> None:
        left.append(progress.seconds_left)
        clock.spend(1)
        if progress.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("smash_search.train.network.accuracy", measured)
    recipe, path = Recipe(epochs=2, batch=32), tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(_network(), small_digits(), recipe, checkpoint=path, on_step=on_step)
    assert left == pytest.approx([0, 2, 7]), "three steps are left, and one validation"
    left.clear()
    fit(_network(), small_digits(), recipe, checkpoint=path, on_step=on_step)
    assert left == pytest.approx([0, 0.5, 0]), "of the fifth step: half of two steps' second"


def test_a_limit_of_time_bounds_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, left = HandClock(monkeypatch), list[float]()

    def on_step(progress: TrainingProgress) -> None:
        left.append(progress.seconds_left)
        clock.spend(2)

    fit(_network(), small_digits(), Recipe(epochs=99, batch=32, seconds=7), on_step=on_step, evaluate=False)
    assert left == pytest.approx([0, 5, 3, 1, 0])


def test_a_checkpoint_of_another_job_is_refused_by_the_field_that_differs(tmp_path: Path) -> None:
    data, path = small_digits(), tmp_path / "checkpoint.pt"
    fit(_network(), data, Recipe(epochs=1, batch=48), checkpoint=path)
    with pytest.raises(UsageError, match=r"recipe\.epochs differs"):
        fit(_network(), data, Recipe(epochs=2, batch=48), checkpoint=path)
    other = replace(data, fingerprint="other")
    with pytest.raises(UsageError, match="data"):
        fit(_network(), other, Recipe(epochs=1, batch=48), checkpoint=path)


def test_a_teacher_is_heard_by_the_weights_of_the_classes() -> None:
    """Else a teacher that knows the frequent classes alone undoes ``balance``."""
    soft, weights = torch.tensor([[4.0, -4.0], [-4.0, 4.0]]), torch.tensor([0.5, 10.0])
    logits = torch.zeros(2, 2, requires_grad=True)
    distance(logits, soft, 2.0, weights).backward()
    assert logits.grad is not None
    frequent, rare = logits.grad[0].abs().max(), logits.grad[1].abs().max()
    assert rare / frequent > 4
    several = torch.zeros(2, 2, requires_grad=True)
    distance_of_each(several, soft, 2.0, weights).backward()
    assert several.grad is not None
    assert several.grad[1, 1].abs() / several.grad[0, 0].abs() > 10


def test_whether_a_training_can_go_on_is_known_before_what_comes_before_it(tmp_path: Path) -> None:
    data, path, recipe = small_digits(), tmp_path / "checkpoint.pt", Recipe(epochs=1, batch=48)
    assert check_resumable(path, _network(), data, recipe) is None
    fit(_network(), data, recipe, checkpoint=path, teacher=np.zeros((len(data.train), 10), np.float32))
    held = check_resumable(path, _network(), data, recipe)
    assert held is not None
    assert held.epochs == 1
    with pytest.raises(UsageError, match=r"recipe\.learning_rate differs"):
        check_resumable(path, _network(), data, replace(recipe, learning_rate=0.3))
    with pytest.raises(UsageError, match=r"recipe\.epochs differs"):
        check_resumable(path, _network(), data, replace(recipe, epochs=3))
    with pytest.raises(UsageError, match=r"recipe\.seconds differs"):
        check_resumable(path, _network(), data, recipe, limits=(9.0,))
    with pytest.raises(UsageError, match=r"teacher differs.*expected one.*received none"):
        check_resumable(path, _network(), data, recipe, taught=False)
    assert check_resumable(path, _network(), data, recipe, taught=True) == held
    with pytest.raises(UsageError, match="job differs"):
        check_resumable(path, nn.Linear(2, 3), data, recipe)


def test_a_limit_of_time_goes_on_with_the_epochs_that_were_measured_when_it_began(tmp_path: Path) -> None:
    data, path, recipe = small_digits(), tmp_path / "checkpoint.pt", Recipe(epochs=1, batch=48)
    fit(_network(), data, replace(recipe, seconds=60.0), checkpoint=path)
    held = check_resumable(path, _network(), data, replace(recipe, epochs=3), limits=(120.0, 60.0))
    assert held is not None
    assert held.epochs == 1
    with pytest.raises(UsageError, match=r"recipe\.seconds differs.*expected 60.*received 90"):
        check_resumable(path, _network(), data, recipe, limits=(90.0,))
    with pytest.raises(UsageError, match=r"recipe\.seconds differs"):
        check_resumable(path, _network(), data, recipe)
    with pytest.raises(UsageError, match=r"recipe\.epochs differs"):
        check_resumable(path, _network(), data, replace(recipe, epochs=3, seconds=60.0))  # both are asked for


@pytest.mark.parametrize("pooling", [nn.MaxPool2d(2), nn.Sequential(nn.AvgPool2d(2))])
def test_a_checkpoint_of_a_network_of_ones_own_that_was_changed_is_refused(
    tmp_path: Path, pooling: nn.Module
) -> None:
    def network(pooling: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), pooling, nn.Flatten(), nn.Linear(128, 10))

    data, path, recipe = small_digits(), tmp_path / "checkpoint.pt", Recipe(epochs=1, batch=48)
    for _ in range(2):  # the same one goes on
        fit(network(nn.AvgPool2d(2)), data, recipe, checkpoint=path)
    with pytest.raises(UsageError, match="job differs"):
        fit(network(pooling), data, recipe, checkpoint=path)


def test_a_damaged_checkpoint_is_a_clear_error_and_nothing_in_it_is_executed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_checkpoint(path, None)
    torch.save({"schema": 1, "identity": {}, "evil": print}, path)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_checkpoint(path, None)
    assert load_checkpoint(tmp_path / "none.pt", None) is None


class _SometimesNaN(nn.Module):
    """A network with BatchNorm whose output is NaN in some of its steps."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.norm, self.linear, self.bad, self.calls = nn.BatchNorm2d(1), nn.Linear(64, 10), bad, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
            if self.calls in self.bad:
                images = images * torch.nan
        return self.linear(self.norm(images).flatten(1))


def test_steps_with_nan_are_skipped_and_counted_and_leave_no_trace() -> None:
    network = _SometimesNaN({2})
    result = fit(network, small_digits(), Recipe(epochs=2, batch=32))
    assert result.skipped == 1
    assert all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())


def test_too_many_bad_steps_stop_and_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    recipe = Recipe(epochs=3, batch=32, most_bad_steps=2)
    with pytest.raises(DivergedError, match="learning rate"):
        fit(_SometimesNaN(set(range(5, 99))), small_digits(), recipe, checkpoint=path)
    content = load_checkpoint(path, None)
    assert content is not None
    assert content["state"]["counters"][0] % 3 == 0, "of an epoch that was finished"
    assert bool(torch.isfinite(content["state"]["network"]["linear.weight"]).all())


@pytest.mark.parametrize(
    ("epochs", "most_bad_steps", "told"), [(9, 3, "in 4 steps in a row"), (1, 10, "in each of its 2 steps")]
)
def test_images_that_overflow_do_not_pass_as_training(epochs: int, most_bad_steps: int, told: str) -> None:
    recipe = Recipe(epochs=epochs, batch=48, most_bad_steps=most_bad_steps)
    with pytest.raises(DivergedError, match=told):
        fit(_network(), with_bad_images(small_digits()), recipe)


def test_a_batch_of_one_image_that_cannot_be_normalised_is_said() -> None:
    layers = [nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 10)]
    with pytest.raises(UsageError, match=r"1x1.*--batch 2 and more"):
        fit(nn.Sequential(*layers), small_digits(), Recipe(epochs=1, batch=1))


def test_no_weight_decay_on_biases_and_norms() -> None:
    network = _network()
    recipe = Recipe(epochs=1, batch=96, learning_rate=1e-6, weight_decay=10.0, momentum=0, clip=1e-9)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fit(network, small_digits(), recipe)
    after = network.state_dict()
    assert float(after["weights.stem"].norm()) < float(before["weights.stem"].norm())
    scale = next(name for name in after if name.startswith("norms.") and name.endswith(".weight"))
    assert torch.allclose(after[scale], before[scale], rtol=0, atol=1e-7)


def test_muon_trains_filters_that_mix_channels_and_sgd_the_rest() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 16, 1),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    before = {name: value.clone() for name, value in network.named_parameters()}
    recipe = Recipe(epochs=1, batch=96, optimiser="muon", learning_rate=0.01, warmup=0.0, schedule="linear")
    fit(network, small_digits(train=96), replace(recipe, weight_decay=0.0, momentum=0.0))
    moved = {name: (value - before[name]).detach() for name, value in network.named_parameters()}
    assert all(move.abs().max() > 0 for move in moved.values())
    values = torch.linalg.svdvals(moved["3.weight"].flatten(1))
    assert float(values.min() / values.max()) > 0.5, "all directions learn at one rate"
    for name in ("0.weight", "1.weight", "5.weight"):
        values = torch.linalg.svdvals(moved[name].flatten(1))
        assert float(values.min() / values.max()) < 0.3, name


class _Scaled(nn.Module):
    """Convolutions, and parameters of several axes that are none: places and a scale of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.mixing, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 10)
        self.places = nn.Parameter(torch.full((1, 8, 8, 8), 1e-3))
        self.scale = nn.Parameter(torch.full((1, 8, 1, 1), 1e-4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 1, 8, 8] -> [B, 10]."""
        x = self.norm(self.convolution(images)) + self.places
        return self.head((x + self.scale * self.mixing(x)).relu().mean((2, 3)))


def test_muon_leaves_the_size_of_what_is_no_filter_to_sgd() -> None:
    """It would keep the norm of a layer's scale, which then never grows."""
    network = _Scaled()
    assert mixing_filters(network) == [network.mixing.weight]
    assert mixing_filters(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3))) == [], "no norms"
    before = {name: value.detach().norm().item() for name, value in network.named_parameters()}
    fit(network, small_digits(), Recipe(epochs=4, batch=16, optimiser="muon"))
    after = {name: value.detach().norm().item() for name, value in network.named_parameters()}
    assert after["scale"] > 1.3 * before["scale"]
    assert after["places"] > 1.3 * before["places"]
    assert after["mixing.weight"] == pytest.approx(before["mixing.weight"], rel=0.02)


def test_validation_images_are_trained_on_when_asked() -> None:
    data = small_digits(train=64, validation=32)
    result = fit(_network(), data, Recipe(epochs=1, batch=32, include_validation=True))
    assert result.steps == 3


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_a_recipe_says_whether_bfloat16_is_multiplied(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On any device: rounding in the loop would round twice on a GPU that was given bfloat16 anyway."""
    used: list[bool] = []

    def noted(device: torch.device, *, on_cpu: bool = False) -> contextlib.AbstractContextManager[None]:
        used.append(on_cpu)
        return contextlib.nullcontext()

    monkeypatch.setattr("smash_search.train.network.autocast", noted)
    recipe = Recipe.from_json({**Recipe(epochs=1, batch=64).to_json(), "precision": precision})
    fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), small_digits(), recipe, evaluate=False)
    assert bool(used) == (precision == "auto")


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    rates = [schedule((step + 0.5) / 100, 0.1) for step in range(100)]
    assert rates.index(max(rates)) == 10
    assert rates[0] < 0.2
    assert rates[-1] < 1e-3


@pytest.mark.parametrize("field", [{"epochs": -1}, {"batch": 0}, {"average": 1.0}, {"label_smoothing": 1.0}])
def test_recipes_are_checked(field: dict) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(field))):
        Recipe(**field)


def test_recipe_json_round_trip() -> None:
    recipe = Recipe(epochs=3, augmentation={"flip": True})
    assert Recipe.from_json(recipe.to_json()) == recipe
    with pytest.raises(InvalidInputError):
        Recipe.from_json({"epoch": 3})


def test_devices_by_name() -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(UsageError):
        pick_device("tpu")
    if not torch.cuda.is_available():
        assert pick_device("auto").type == "cpu"
        with pytest.raises(MissingRuntimeError, match="PyTorch"):
            pick_device("cuda")
