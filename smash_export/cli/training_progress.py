"""What is said before a training, how long it will take here, and while it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smash_base.progress import Position
from smash_export.cli.console import Output
from smash_export.cli.training_options import share_of_training

if TYPE_CHECKING:
    from torch import nn

    from smash_base.progress import Advance
    from smash_search.data import Dataset
    from smash_search.train.loop import TrainingProgress
    from smash_search.train.network import Epoch
    from smash_search.train.recipes import Recipe

FEW_TO_DECIDE = 200  # validation images below which their figures are said to be uncertain


def announced(
    network: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    seconds: float,
    values: dict[str, Any],
    output: Output,
) -> Recipe:
    """Fit the recipe to the time, say what will be trained and how long it takes here.

    What the network decides stays open in it: a training that goes on has the epochs of its begin, by which
    that is decided.
    """
    from smash_export.device_search.plan import duration_words
    from smash_export.export.freeze import rounded
    from smash_search.train.network import MOST_EPOCHS, settled

    per_epoch, per_rounding = _seconds_per_epoch(network, dataset, recipe, values, output)
    used = recipe
    if not per_epoch:
        recipe = replace(recipe, seconds=seconds or recipe.seconds)
        used = rounded(recipe)
    elif seconds:
        share = share_of_training(values)
        recipe, per_epoch = _filling(network, dataset, recipe, share * seconds, per_epoch, values, output)
        used = recipe = replace(recipe, seconds=seconds)
        if asked := _asked_epochs(values):
            output.note(f"--time decides about the epochs: {recipe.epochs} in place of {asked}")
        if share * seconds < per_epoch:
            output.warn("--time is over before the training has seen every image once")
        if recipe.epochs == MOST_EPOCHS and share * seconds > 1.1 * MOST_EPOCHS * per_epoch:
            output.note(
                f"--time is enough for more than {MOST_EPOCHS} epochs, the most that it is filled with"
            )
    expected = recipe.epochs * per_epoch + rounded(recipe).epochs * per_rounding
    seconds = seconds or recipe.seconds
    output.note(f"recipe {values['recipe_name']}: {settled(used, network, dataset).words()}")
    output.note(
        f"training takes about {duration_words(min(expected, seconds or expected))} here"
        + (f", {rounded(recipe).epochs} epochs with rounding to int8 included" if per_rounding else "")
    )
    if len(dataset.validation) < FEW_TO_DECIDE and not recipe.include_validation:
        output.warn(
            f"{len(dataset.validation)} validation images decide about epochs and probabilities; "
            "differences below some points mean nothing" + _advice_on_folds(dataset, values)
        )
    return recipe


def _filling(
    network: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    seconds: float,
    per_epoch: float,
    values: dict[str, Any],
    output: Output,
) -> tuple[Recipe, float]:
    """The recipe with the epochs that fill a time, and the seconds of one of them: so many may have another
    optimiser than the recipe's own number, which was timed, and its steps take longer or shorter.
    """
    from smash_search.train.network import settled, within

    filled = within(recipe, seconds, per_epoch)
    timed, used = (settled(one, network, dataset).optimiser for one in (recipe, filled))
    if used != timed:
        chosen = replace(recipe, optimiser=used)
        per_epoch, _ = _seconds_per_epoch(network, dataset, chosen, {**values, "qat": False}, output)
        filled = within(recipe, seconds, per_epoch)
    return filled, per_epoch


def _seconds_per_epoch(
    network: nn.Module, dataset: Dataset, recipe: Recipe, values: dict[str, Any], output: Output
) -> tuple[float, float]:
    """Seconds of an epoch here, and of one with rounding to int8; 0 for what is not trained."""
    from smash_export.export.freeze import rounded
    from smash_search.model.fake_quantisation import FakeQuantisedNetwork
    from smash_search.model.interpreter import Network, fold
    from smash_search.train.compute import pick_device
    from smash_search.train.network import seconds_per_epoch

    device, usual, rounding = pick_device(values["device"]), 0.0, 0.0
    with output.progress("timing a few steps", None):
        if values.get("weights") != "generated":
            usual = seconds_per_epoch(network, dataset, recipe, device)
        if values.get("qat"):
            assert isinstance(network, Network)  # ``train module:function`` refuses --qat
            rounds = FakeQuantisedNetwork(network.architecture, fold(network))
            rounding = seconds_per_epoch(rounds, dataset, rounded(recipe), device)
    return usual, rounding


def _advice_on_folds(dataset: Dataset, values: dict[str, Any]) -> str:
    """That folds measure more, where they are possible and nobody asked for them."""
    from smash_search.data.dataset import COPY_LIMIT
    from smash_search.train.folds import most_folds

    if values.get("folds") or dataset.train.images.nbytes > COPY_LIMIT or (most := most_folds(dataset)) < 2:
        return ""
    return f"; with run, freeze and train, --folds {min(5, most)} measures accuracy on all images"


def _asked_epochs(values: dict[str, Any]) -> object:
    """The epochs that ``--epochs`` or ``--set`` names; None without."""
    from smash_export.cli.compile import read_options

    return values.get("epochs") or read_options(tuple(values.get("settings", ()))).get("epochs")


@contextlib.contextmanager
def followed(
    label: str, epochs: float, destination: Path, recipe: Recipe, values: dict[str, Any], output: Output
) -> Iterator[Advance]:
    """A bar over the epochs, and curves where ``--track`` asks for them."""
    from smash_export.tracking import following, tracked

    place = destination.with_name(f"{destination.name}-curves")
    with (
        tracked(values["track"], place, recipe.to_json()) as tracker,
        following(output.progress, tracker)(label, epochs) as advance,
    ):
        yield advance


def shown_by(
    advance: Advance, recipe: Recipe, *, more: bool = False, several: bool = False
) -> tuple[Callable[[Epoch], None], Callable[[TrainingProgress], None]]:
    """What a training calls after an epoch and after a step, to move a bar of the recipe's epochs.

    A training that goes on where it was interrupted begins at a later step than the first; one with a limit
    of time may end before its last. Where more work follows on the same bar, its pace says what is left.
    What an epoch measured has the name of what it is, mean average precision for images of several classes.
    """
    bar = Position(advance)
    measured = "accuracy" if recipe.balance == "none" else "mean_recall"
    measured = "mean_average_precision" if several else measured

    def on_step(progress: TrainingProgress) -> None:
        step = recipe.epochs / progress.steps
        bar.move(progress.step * step, step, left=None if more else progress.seconds_left)

    def on_epoch(entry: Epoch) -> None:
        shown = {"loss": round(entry.loss, 4)}
        if entry.accuracy is not None:
            shown[measured] = round(entry.accuracy, 4)
        advance(0, **shown)

    return on_epoch, on_step
