"""What the options of a training mean: a recipe, checked before anything is trained; threads, time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smash_base.errors import UsageError
from smash_base.json_values import JsonObject

if TYPE_CHECKING:
    from smash_search.data import Dataset
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


def share_of_training(values: dict[str, Any]) -> float:
    """Share of a limit of time that the training has; the rest is for one with rounding, if that follows."""
    from smash_export.export.freeze import ROUNDING_TIME

    return 1 - ROUNDING_TIME if values.get("qat") and values.get("weights") != "generated" else 1.0
