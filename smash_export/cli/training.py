"""What commands that train have in common: the recipe and what is said of it, teacher, folds, progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smash_base import files
from smash_base.errors import UsageError
from smash_base.json_values import JsonObject
from smash_base.progress import Position
from smash_export.cli.console import Output

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from smash_base.progress import Advance
    from smash_export.bundle.bundle import Bundle
    from smash_export.export.adopt import Adopted
    from smash_export.export.teacher import Knowledge
    from smash_search.data import Dataset, DatasetSummary
    from smash_search.space.architecture import Architecture
    from smash_search.space.best import SearchRecord
    from smash_search.train.answers import Answers
    from smash_search.train.loop import TrainingProgress
    from smash_search.train.network import Epoch
    from smash_search.train.recipes import Recipe

# Options of a training that are None where nobody gave them.
OF_TRAINING = (
    *("epochs", "batch", "learning_rate", "label_smoothing", "ema", "balance", "augment"),
    *("teacher", "folds"),
)
# Fields of a recipe that have options of their own.
OPTION_OF_FIELD = {
    "epochs": "epochs",
    "batch": "batch",
    "learning_rate": "learning_rate",
    "label_smoothing": "label_smoothing",
    "average": "ema",
    "balance": "balance",
}
FEW_TO_DECIDE = 200  # validation images below which their figures are said to be uncertain


def use_threads(count: int | None) -> None:
    """Give PyTorch so many threads of the CPU; its own number without."""
    if count:
        import torch

        torch.set_num_threads(count)


def chosen_recipe(dataset: Dataset, values: dict[str, Any]) -> Recipe:
    """The recipe asked for, with every value that was given beside it."""
    from smash_export.export.freeze import continued, default_recipe, gently
    from smash_search.train.folds import check_folds, most_folds
    from smash_search.train.network import recipe_with
    from smash_search.train.recipes import AUTO, recipe_for

    finetuned = values["weights"] == "finetune"
    if values["recipe_name"] == AUTO:
        recipe = default_recipe(dataset, values["weights"], values["seed"])
    else:
        recipe = recipe_for(values["recipe_name"], dataset, values["seed"])
        recipe = gently(recipe) if finetuned else recipe
    recipe = recipe_with(recipe, _said(values), len(dataset.classes))
    recipe = continued(recipe) if finetuned else recipe
    if not recipe.epochs:
        raise UsageError("--set epochs", expected="at least 1", received=recipe.epochs)
    _check_augmentation(dataset, recipe, values)
    _check_false_alarm(dataset, recipe, values)
    _check_options(values)
    if values["folds"]:
        check_folds(values["folds"], most_folds(dataset))
    return recipe


def _said(values: dict[str, Any]) -> dict[str, Any]:
    """Fields of the recipe that options give, None for those that nobody gave.

    Raises:
        UsageError: two options give the same one.
    """
    from smash_export.cli.compile import read_options

    said = {field: values[option] for field, option in OPTION_OF_FIELD.items()}
    settings = read_options(values["settings"], "--set")
    for field, value in settings.items():
        if said.get(field) not in (None, value):
            option = f"--{OPTION_OF_FIELD[field].replace('_', '-')}"
            raise UsageError(
                f"the recipe's {field} is given twice",
                expected="one of the two options",
                received=f"{option} and --set {field}",
            )
    if values["duration"] and "seconds" in settings:
        raise UsageError("the time of the training is given twice", received="--time and --set seconds")
    return {**said, "augmentation": augmentation(values["augment"]), **settings}


def _check_augmentation(dataset: Dataset, recipe: Recipe, values: dict[str, Any]) -> None:
    """Raise UsageError for changes of the images that these cannot have, before anything is trained."""
    from smash_search.train.compute import check_mixing
    from smash_search.train.network import augmentation_for

    check_mixing(recipe.augmentation, taught=bool(values["teacher"]), several=dataset.several)
    chosen = augmentation_for(recipe, len(dataset.classes))
    if chosen is None:
        return
    *sides, _ = dataset.train.images.shape[1:]
    if chosen.jitter and len(sides) == 2:
        raise UsageError("jitter is for volumes", expected="pad_crop for images")
    if max(chosen.pad_crop, chosen.jitter) >= min(sides):
        raise UsageError(
            "images would be moved out of sight",
            expected=f"at most {min(sides) - 1} pixels",
            received=max(chosen.pad_crop, chosen.jitter),
        )
    if chosen.cutout >= min(sides):
        raise UsageError(
            "nothing would be left of some images",
            expected=f"cutout of at most {min(sides) - 1} pixels",
            received=chosen.cutout,
        )


def _check_options(values: dict[str, Any]) -> None:
    """Raise UsageError for options that exclude each other or cannot be read, before anything is trained."""
    from smash_export.tracking import check_tracker

    seconds_of(values)
    if values["track"]:
        check_tracker(values["track"])
    if values["folds"] and (values["weights"] != "retrain" or values["qat"]):
        raise UsageError(
            "folds are trained from scratch, without rounding: they would measure another network",
            expected="--folds with neither --weights nor --qat",
        )
    given = [f"--{name.replace('_', '-')}" for name in OF_TRAINING if values[name] is not None]
    given += ["--recipe"] * (values["recipe_name"] != "auto") + ["--time"] * bool(values["duration"])
    given += ["--set"] * bool(values["settings"])
    if values["weights"] == "generated" and given and not values["qat"]:
        raise UsageError(
            "--weights generated trains nothing",
            expected="no option of a training",
            received=", ".join(given),
            hint="--weights finetune trains on from the generated weights.",
        )


def _check_false_alarm(dataset: Dataset, recipe: Recipe, values: dict[str, Any]) -> None:
    """Raise UsageError for a rate of false alarms where no validation image tells a threshold."""
    from smash_export.export.calibration import FALSE_ALARM

    reasons = {
        "images of several classes": dataset.several,
        "--weights generated": values["weights"] == "generated" and not values["qat"],
        "--set include_validation=true": recipe.include_validation,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found and values["false_alarm"] != FALSE_ALARM:
        raise UsageError(
            "nothing is called doubtful, so there is no rate of false alarms to choose",
            expected="no --false-alarm",
            received=", ".join(["--false-alarm", *found]),
        )


def augmentation(text: str | None) -> JsonObject | None:
    """``"pad_crop=2,flip=true"`` as arguments, "none" as no changes; None where nothing is given."""
    if text is None:
        return None
    if text == "none":
        return {}
    from smash_export.cli.compile import read_options

    return read_options(tuple(text.split(",")), "--augment")


def seconds_of(values: dict[str, Any]) -> float:
    """Seconds of ``--time``; 0 without."""
    from smash_export.device_search.plan import parse_duration

    return parse_duration(values["duration"]) if values["duration"] else 0.0


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
    network: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    values: dict[str, Any],
    output: Output,
) -> None:
    """Say that a training goes on, before its teacher and folds are looked for.

    Raises:
        UsageError: the training that was interrupted is another one.
    """
    from smash_search.train.network import check_resumable

    held = check_resumable(checkpoint, network, dataset, recipe, seconds=seconds_of(values))
    if held is not None:
        output.note(f"the training that was interrupted goes on; its epochs: {held.epochs}")


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
    from smash_export.export.freeze import work_of

    teacher, knows, seconds = None, None, seconds_of(values)
    facts: JsonObject = {}
    is_long = bool(values["teacher"] or values["folds"])
    with files.exclusive(work_of(destination), purpose="bundle") if is_long else contextlib.nullcontext():
        if values["teacher"]:
            place = work_of(destination) / "teacher"
            found, seconds = taught(architecture, dataset, recipe, seconds, place, values, output, run)
            if found is not None:
                teacher, knows = found.logits, found.validation
                facts["teacher"] = {**found.who, "validation": knows}
                _tell_pick(found, search, dataset, recipe, output)
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
        if (found := _finalists(run, dataset, recipe, output)) is not None:
            facts["teacher"] = found.who
        elif larger := _larger(architecture, dataset, recipe, seconds, None, values, output):
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
    from smash_export.export.freeze import ROUNDING_TIME, rounded
    from smash_search.train.network import MOST_EPOCHS, settled

    per_epoch, per_rounding = _seconds_per_epoch(network, dataset, recipe, values, output)
    used = recipe
    if not per_epoch:
        recipe = replace(recipe, seconds=seconds or recipe.seconds)
        used = rounded(recipe)
    elif seconds:
        share = 1 - ROUNDING_TIME if per_rounding else 1.0
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
    if len(dataset.validation) < FEW_TO_DECIDE:
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
    finalists = _finalists(run, dataset, recipe, output)
    if finalists is not None:  # they cost nothing any more
        return finalists, seconds
    assert architecture is not None  # ``train module:function`` refuses auto before anything is trained
    return _trained_first(architecture, dataset, recipe, seconds, place, values, output)


def _taught(answers: Answers, known: Knowledge, recipe: Recipe, who: JsonObject) -> Taught:
    """What the student learns, those of validation images too where it is trained on them."""
    return Taught(answers.of_training(include_validation=recipe.include_validation), known.validation, who)


def _finalists(run: Path | None, dataset: Dataset, recipe: Recipe, output: Output) -> Taught | None:
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


def _tell_pick(
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

    found = _larger(architecture, dataset, recipe, seconds, place, values, output)
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


def _larger(
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
    from smash_export.export.freeze import work_of
    from smash_export.export.own_network import CHECKPOINT, train_own

    tell_interrupted(work_of(destination) / CHECKPOINT, make(), dataset, recipe, values, output)
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
