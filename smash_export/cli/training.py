"""What commands that train have in common: what comes before the training, folds, what is told after it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smash_base import files
from smash_base.json_values import JsonObject
from smash_base.progress import Position
from smash_export.cli.console import Output
from smash_export.cli.teaching import larger_teacher, taught, taught_by_finalists, tell_pick
from smash_export.cli.training_options import seconds_of, share_of_training
from smash_export.cli.training_progress import announced, followed, shown_by

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from smash_base.progress import Advance
    from smash_export.bundle.bundle import Bundle
    from smash_export.export.adopt import Adopted
    from smash_search.data import Dataset, DatasetSummary
    from smash_search.space.architecture import Architecture
    from smash_search.space.best import SearchRecord
    from smash_search.train.loop import TrainingProgress
    from smash_search.train.recipes import Recipe


@dataclass(frozen=True)
class Prepared:
    """What is settled before a training.

    Attributes:
        recipe: Recipe that fits the time.
        teacher: logits of the training images, float32 [N, K], or None.
        facts: what is known already for the bundle's provenance.
        knows: what the recipe measures of the teacher on the validation images, 0 to 1; None where nothing
            tells.
    """

    recipe: Recipe
    teacher: np.ndarray | None
    facts: JsonObject
    knows: float | None = None


def check_early(destination: Path, values: dict[str, Any]) -> None:
    """What can be told before images are read, which takes minutes of a large folder.

    Raises:
        UsageError: the bundle exists, or there is no such device or teacher.
    """
    from smash_export.export import teacher
    from smash_export.export.freeze import check_free
    from smash_search.train.compute import pick_device

    check_free(destination, values["force"])
    pick_device(values["device"])
    if values["teacher"] not in (None, teacher.AUTO):
        teacher.check_there(values["teacher"])


def tell_interrupted(
    checkpoint: Path,
    make: Callable[[], nn.Module],
    dataset: Dataset,
    recipe: Recipe,
    values: dict[str, Any],
    output: Output,
) -> None:
    """Say that a training is there which goes on, before its teacher and folds are looked for.

    Raises:
        UsageError: the training that was interrupted is another one, or it is running.
    """
    from smash_export.export.teacher import AUTO
    from smash_search.train.network import check_resumable

    if not checkpoint.exists():
        return
    if values["qat"] and recipe.seconds:
        recipe = replace(recipe, seconds=recipe.seconds * share_of_training(values))
    with contextlib.ExitStack() as stack:
        if not output.dry_run:
            stack.enter_context(files.exclusive(checkpoint.parent, purpose="bundle"))
        held = check_resumable(
            checkpoint,
            make(),
            dataset,
            recipe,
            limits=_limits(values),
            taught=None if values["teacher"] == AUTO else bool(values["teacher"]),
        )
    if held is not None:
        output.note(f"a training that was interrupted is there, of {held.epochs} epochs")


def _limits(values: dict[str, Any]) -> tuple[float, ...]:
    """Seconds that ``--time`` may leave to the training: with an automatic teacher, or without, where that is
    not worth the time. None without ``--time``.
    """
    from smash_export.export.teacher import AUTO, TIME_SHARE

    shares = (1.0, 1 - TIME_SHARE) if values["teacher"] == AUTO else (1.0,)
    seconds = seconds_of(values) / (1 + (values["folds"] or 0)) * share_of_training(values)
    return tuple(share * seconds for share in shares) if seconds else ()


def prepared(
    make: Callable[[], nn.Module],
    architecture: Architecture | None,
    dataset: Dataset,
    recipe: Recipe,
    destination: Path,
    values: dict[str, Any],
    output: Output,
    run: Path | None = None,
    search: SearchRecord | None = None,
) -> Prepared:
    """Ask the teacher, fit the recipe to the time that is left, measure on folds; each where it is wanted.

    No other command may do the same for this bundle meanwhile.

    Args:
        make: a new network.
        architecture: what it is made from, if from an architecture.
        destination: Folder of the bundle; work is kept beside it.
        values: The command's options.
        run: folder of the search, whose finalists may be the teacher.
        search: how it came to the architecture.
    """
    from smash_export.export.freeze import held_work, work_of

    teacher, knows, seconds = None, None, seconds_of(values)
    facts: JsonObject = {}
    is_long = bool(values["teacher"] or values["folds"])
    with held_work(destination) if is_long else contextlib.nullcontext():
        if values["teacher"]:
            place = work_of(destination) / "teacher"
            found, seconds = taught(architecture, dataset, recipe, seconds, place, values, output, run)
            if found is not None:
                teacher, knows = found.logits, found.validation
                facts["teacher"] = {**found.who, "validation": knows}
                tell_pick(found, search, dataset, recipe, output)
        seconds /= 1 + (values["folds"] or 0)
        recipe = announced(make(), dataset, recipe, seconds, values, output)
        tell_folds(values, output)
        if values["folds"]:
            facts["folds"] = measured_on_folds(make, dataset, recipe, destination, values, output)
    return Prepared(recipe, teacher, facts, knows)


def planned(
    make: Callable[[], nn.Module],
    architecture: Architecture | None,
    dataset: Dataset,
    recipe: Recipe,
    values: dict[str, Any],
    output: Output,
    run: Path | None = None,
) -> JsonObject:
    """The values of a training for ``--dry-run``, which says how long it takes here, too; raises what
    :func:`prepared`, whose arguments these are, would before it trains.
    """
    from smash_export.export import teacher
    from smash_search.train.network import settled

    facts: JsonObject = {}
    network, seconds = make(), seconds_of(values)
    if values["teacher"] == teacher.AUTO:
        assert architecture is not None  # ``train module:function`` refuses auto before anything is trained
        if (found := taught_by_finalists(run, dataset, recipe, output)) is not None:
            facts["teacher"] = found.who
        elif larger := larger_teacher(architecture, dataset, recipe, seconds, None, values, output):
            facts["teacher"] = {"architecture": larger[0].key, "epochs": larger[1].epochs}
            seconds *= 1 - teacher.TIME_SHARE
    elif values["teacher"]:
        facts["teacher"] = teacher.identity(values["teacher"])
    recipe = announced(network, dataset, recipe, seconds / (1 + (values["folds"] or 0)), values, output)
    tell_folds(values, output)
    if values["folds"]:
        facts["folds"] = values["folds"]
    return {"recipe": settled(recipe, network, dataset).to_json(), **facts}


def tell_folds(values: dict[str, Any], output: Output) -> None:
    """How long the folds take, if there are any."""
    if values["folds"]:
        output.note(
            f"each of the {values['folds']} folds before it takes about as long"
            + (", and is trained without the teacher" if values["teacher"] else "")
        )


def tell_student(before: Prepared, validation: float, output: Output) -> None:
    """Warn of a teacher that its student has caught up with.

    Args:
        before: What was settled before the training.
        validation: what the recipe measures of the student on the validation images, 0 to 1.
    """
    if before.knows is not None and validation >= before.knows:
        output.warn(
            f"the network has {validation:.1%} on the validation images and its teacher {before.knows:.1%}: "
            "it probably held the network back; a training without a teacher is worth trying"
        )


def measured_on_folds(
    make: Callable[[], nn.Module],
    dataset: Dataset,
    recipe: Recipe,
    destination: Path,
    values: dict[str, Any],
    output: Output,
) -> JsonObject:
    """Accuracy with its interval on all images but those for testing, told and for the manifest."""
    from smash_export.export.freeze import work_of
    from smash_export.measure.evaluate import wilson_interval
    from smash_search.train.compute import pick_device
    from smash_search.train.folds import cross_validated

    count = values["folds"]
    with output.progress(f"{count} folds", count * recipe.epochs) as advance:
        found = cross_validated(
            make,
            dataset,
            recipe,
            count,
            device=pick_device(values["device"]),
            work=work_of(destination),
            on_step=_shown_by_folds(advance, recipe),
        )
    low, high = wilson_interval(found.right, found.images)
    accuracy = found.right / found.images
    output.text(
        f"{count} folds: accuracy {accuracy:.2%} ({low:.2%} to {high:.2%}) on {found.images} images, "
        "each judged by a network that was not trained on it"
    )
    facts: JsonObject = {
        "folds": count,
        "images": found.images,
        "top1": accuracy,
        "interval": [low, high],
        "of_each": list(found.accuracies),
    }
    if found.precisions:
        from smash_export.bundle.bundle import RIGHT

        output.text(f"{RIGHT}; mean average precision {_over_folds(found.precisions)}.")
        facts["mean_average_precision"] = list(found.precisions)
    if found.recalls:
        output.text(f"Mean recall of the classes {_over_folds(found.recalls)}.")
        facts["mean_recall"] = list(found.recalls)
    return facts


def _over_folds(values: Sequence[float]) -> str:
    """Mean, least and most of a figure of each fold."""
    return f"{sum(values) / len(values):.2%}, {min(values):.2%} to {max(values):.2%} of each fold"


def _shown_by_folds(advance: Advance, recipe: Recipe) -> Callable[[int, TrainingProgress], None]:
    """What a training of folds calls after a step, to move a bar of the epochs of all folds."""
    bar = Position(advance)

    def on_step(fold: int, progress: TrainingProgress) -> None:
        step = recipe.epochs / progress.steps
        bar.move(fold * recipe.epochs + progress.step * step, step)

    return on_step


def bake_too(bundle: Bundle, output: Output) -> None:
    """The file for other programs, where ``--bake`` asks for it."""
    from smash_export.deploy.bake import bake

    with output.progress("baking", None):
        baked = bake(bundle)
    output.text(f"{baked.main}: uint8 images in, probabilities out; verified")


def train_module(
    make: Callable[[], nn.Module],
    name: str,
    architecture: Architecture | None,
    dataset: Dataset,
    images: DatasetSummary,
    destination: Path,
    recipe: Recipe,
    values: dict[str, Any],
    output: Output,
    search: SearchRecord | None = None,
) -> None:
    """Train a network that is adopted in the end (:mod:`smash_export.export.own_network`), and tell of it.

    Args:
        make: a new network.
        name: Name of the network, for people and the manifest.
        architecture: what it is made from, if from an architecture.
        images: what is known of the data set.
        values: The command's options.
        search: how a search came to the architecture.
    """
    from smash_export.export.own_network import train_own

    before = prepared(make, architecture, dataset, recipe, destination, values, output, search=search)
    recipe = before.recipe
    with followed(f"training {name}", recipe.epochs, destination, recipe, values, output) as advance:
        on_epoch, on_step = shown_by(advance, recipe, several=dataset.several)
        adopted = train_own(
            make(),
            dataset,
            destination,
            name=name,
            recipe=recipe,
            device=values["device"],
            force=values["force"],
            on_epoch=on_epoch,
            on_step=on_step,
            teacher=before.teacher,
            facts=before.facts,
            false_alarm=values["false_alarm"],
        )
    tell_adopted(adopted, destination, name, images, output)
    validation = adopted.bundle.manifest.provenance["validation"]
    if isinstance(validation, float):
        tell_student(before, validation, output)
    if values["bake"]:
        bake_too(adopted.bundle, output)


def tell_adopted(
    adopted: Adopted, destination: Path, name: str, images: DatasetSummary, output: Output
) -> None:
    """How good the network has become."""
    for warning in adopted.warnings:
        output.warn(warning)
    facts = adopted.bundle.manifest.provenance["accuracy"]
    assert isinstance(facts, dict)
    output.text(
        f"{destination}: verified. Test accuracy {facts['top1']:.2%} on {facts['images']} images, "
        f"mean recall of the classes {facts['balanced']:.2%}, mean F1 {facts['macro_f1']:.2%}."
    )
    average = facts.get("mean_average_precision")
    if isinstance(average, float):
        output.text(f"Each class by itself: mean average precision {average:.2%}.")
    output.result(
        {
            "bundle": str(destination),
            "network": name,
            "images": images.to_json(),
            "test_accuracy": facts["top1"],
            "test_images": facts["images"],
            "mean_recall": facts["balanced"],
            "macro_f1": facts["macro_f1"],
            "mean_average_precision": average,
            "recipe": adopted.bundle.manifest.provenance["recipe"],
            "folds": adopted.bundle.manifest.provenance.get("folds"),
            "warnings": list(adopted.warnings),
        }
    )
