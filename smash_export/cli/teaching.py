"""The teacher of a training: a named one, finalists of a search, or a larger network trained first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smash_base import files
from smash_base.json_values import JsonObject
from smash_export.cli.console import Output
from smash_export.cli.training_options import chosen_recipe
from smash_export.cli.training_progress import announced, shown_by

if TYPE_CHECKING:
    import numpy as np

    from smash_export.export.teacher import Knowledge
    from smash_search.data import Dataset
    from smash_search.space.architecture import Architecture
    from smash_search.space.best import SearchRecord
    from smash_search.train.answers import Answers
    from smash_search.train.recipes import Recipe


@dataclass(frozen=True)
class Taught:
    """What a student learns from.

    Attributes:
        logits: Answers for the images that it is trained on, float32 [N, K].
        validation: what the recipe measures of the teacher on the validation images, 0 to 1; None where the
            student is trained on them, or no answers are there.
        who: The teacher, for the bundle's provenance.
    """

    logits: np.ndarray
    validation: float | None
    who: JsonObject


def taught(
    architecture: Architecture | None,
    dataset: Dataset,
    recipe: Recipe,
    seconds: float,
    place: Path,
    values: dict[str, Any],
    output: Output,
    run: Path | None = None,
) -> tuple[Taught | None, float]:
    """A teacher's answers, and the seconds that are left for its student (0: as many as it takes).

    No answers where there is no time to train a teacher that knows more than its student would: students of
    a teacher that is worse than they become alone lose by it.
    """
    from smash_export.export import teacher
    from smash_search.train.answers import read_answers

    if values["teacher"] != teacher.AUTO:
        with output.progress("asking the teacher", None):
            kept = teacher.answers_file(values["teacher"], dataset, place, warn=output.warn)
        found = read_answers(kept, dataset)
        known = teacher.knowledge(found, dataset, recipe)
        tell_knowledge(known, output)
        return _taught(found, known, recipe, teacher.identity(values["teacher"])), seconds
    finalists = taught_by_finalists(run, dataset, recipe, output)
    if finalists is not None:  # they cost nothing any more
        return finalists, seconds
    assert architecture is not None  # ``train module:function`` refuses auto before anything is trained
    return _trained_first(architecture, dataset, recipe, seconds, place, values, output)


def _taught(answers: Answers, known: Knowledge, recipe: Recipe, who: JsonObject) -> Taught:
    """What the student learns, those of validation images too where it is trained on them."""
    return Taught(answers.of_training(include_validation=recipe.include_validation), known.validation, who)


def taught_by_finalists(run: Path | None, dataset: Dataset, recipe: Recipe, output: Output) -> Taught | None:
    """Answers of a search's best finalists; None without any, if they know too little, or where the student
    is trained on the validation images, by which they were chosen.
    """
    from smash_export.export import teacher

    if run is None or recipe.include_validation:
        return None
    answers = teacher.ensemble_of(run, dataset)
    if answers is None:
        return None
    known = teacher.knowledge(answers, dataset, recipe)
    who = f"the best finalists of the search in {run}, {known.words}"
    if known.little:
        output.note(f"no teacher: {who}; their answers would hold the network back")
        return None
    output.note(f"teacher: {who}")
    return _taught(answers, known, recipe, {"name": "the best finalists of the search"})


def tell_knowledge(known: Knowledge, output: Output) -> None:
    """Say how good a teacher is, and warn of one that knows little."""
    told = f"the teacher: {known.words}"
    if not known.little:
        output.note(told)
        return
    output.warn(f"{told}; it may hold the network back: --set distillation_left=0 lets its weight fall")


def tell_pick(
    teacher: Taught, search: SearchRecord | None, dataset: Dataset, recipe: Recipe, output: Output
) -> None:
    """What the search measured of the student, where it is comparable with what is known of the teacher."""
    if teacher.validation is None or search is None or search.error is None or search.recipe is None:
        return
    if search.fingerprint != dataset.fingerprint or search.recipe.get("balance") != recipe.balance:
        return
    told = f"the network had {1 - search.error:.1%} after the {search.epochs} epochs of the search"
    if 1 - search.error < teacher.validation:
        output.note(told)
        return
    output.warn(f"{told}, no less than its teacher has; the teacher may hold it back")


def _trained_first(
    architecture: Architecture,
    dataset: Dataset,
    recipe: Recipe,
    seconds: float,
    place: Path,
    values: dict[str, Any],
    output: Output,
) -> tuple[Taught | None, float]:
    """:func:`taught` by a larger network, which is trained for half of the time."""
    from smash_export.export import teacher
    from smash_search.train.compute import pick_device

    found = larger_teacher(architecture, dataset, recipe, seconds, place, values, output)
    if found is None:
        return None, seconds
    larger, recipe = found
    with output.progress(f"teacher {larger.key}", recipe.epochs) as advance:
        on_epoch, on_step = shown_by(advance, recipe)
        answers = teacher.trained_teacher(
            larger,
            dataset,
            recipe,
            device=pick_device(values["device"]),
            cache=place,
            on_epoch=on_epoch,
            on_step=on_step,
        )
    known = teacher.knowledge(answers, dataset, recipe)
    tell_knowledge(known, output)
    who: JsonObject = {"name": "a larger network, trained first", "architecture": larger.key}
    return _taught(answers, known, recipe, who), (1 - teacher.TIME_SHARE) * seconds


def larger_teacher(
    architecture: Architecture,
    dataset: Dataset,
    recipe: Recipe,
    seconds: float,
    place: Path | None,
    values: dict[str, Any],
    output: Output,
) -> tuple[Architecture, Recipe] | None:
    """A larger network and how it is trained from scratch for half of the time; None, and why, where none is
    worth it.

    Args:
        place: where its answers will be kept, and decisions are; None for none.
    """
    from smash_export.export import teacher
    from smash_export.export.freeze import input_of
    from smash_search.train.network import new_network

    larger = teacher.larger_network(architecture, dataset)
    if larger is None:  # nobody knew the pick of a search before it
        output.warn("no teacher is trained: no known network of the space is half as large again as this one")
        return None
    output.note(f"teacher: {larger.key}, a larger network of the same space")
    alone = {**values, "weights": "retrain", "qat": False}
    if values.get("weights") == "finetune":  # the student is trained on gently
        recipe = chosen_recipe(dataset, alone)
    network, wanted = new_network(larger, input_of(dataset), len(dataset.classes), recipe.seed), recipe.epochs
    recipe = announced(network, dataset, recipe, teacher.TIME_SHARE * seconds, alone, output)
    kept = teacher.kept_answers(larger, dataset, recipe, place) if place else None
    return None if _too_short(recipe.epochs, wanted, kept, output) else (larger, recipe)


def _too_short(epochs: int, wanted: int, kept: Path | None, output: Output) -> bool:
    """Whether a teacher would be trained for less than its recipe has; what was decided once for this one,
    whose answers are kept in that file, holds.
    """
    none = kept.with_suffix(".none") if kept else None
    begun = kept is not None and any(kept.with_suffix(suffix).exists() for suffix in (".npy", ".pt"))
    if not (none and none.exists()) and (begun or epochs >= wanted):
        return False
    if none:
        files.write_text(none, "")
    output.warn(
        f"no teacher is trained: half of --time is {epochs} epochs of it, and after fewer than {wanted} it "
        "teaches less than the time is worth; name one that is there"
    )
    return True
