"""``smash-export freeze``: an architecture file becomes a verified bundle."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smash_base.errors import InvalidInputError, UsageError
from smash_base.json_values import JsonObject
from smash_export.cli.console import Output, common_options
from smash_export.cli.groups import Grouped
from smash_export.cli.images import data_words, skip_bad_option, tell_images
from smash_export.cli.shared_options import F, balance_option, recipe_option
from smash_export.cli.training import (
    Prepared,
    bake_too,
    check_early,
    planned,
    prepared,
    tell_interrupted,
    tell_student,
    train_module,
)
from smash_export.cli.training_options import chosen_recipe, use_threads
from smash_export.cli.training_progress import followed, shown_by

GROUPS = {
    "Network and images": ("arch", "weights", "run", "data", "skip_bad", "out", "force"),
    "Training": (
        "recipe_name",
        "duration",
        "balance",
        "teacher",
        "folds",
        "settings",
        "epochs",
        "batch",
        "learning_rate",
        "label_smoothing",
        "ema",
        "augment",
        "qat",
        "false_alarm",
        "seed",
        "track",
    ),
    "Files": ("exporter", "bake"),
    "This machine": ("device", "threads"),
}  # fmt: skip

if TYPE_CHECKING:
    from torch import nn

    from smash_export.export.freeze import FreezeReport
    from smash_search.data import Dataset, DatasetSummary
    from smash_search.model.interpreter import Norm
    from smash_search.model.supernet import Supernet
    from smash_search.space.best import BestFile
    from smash_search.train.recipes import Recipe

AUGMENT_HELP = "Changes to the recipe's augmentation, such as flip=false,cutout=8; or none."
TEACHER_HELP = "Network to distil from: a bundle, an ONNX or TorchScript file, timm:NAME?weights=FILE"
SET_HELP = "Any other value of the recipe; may be repeated."
TRACK_HELP = "Log training curves to tensorboard or mlflow, on this machine."


def taught_and_measured(before: str) -> Callable[[F], F]:
    """--teacher, --folds and --set of a command, whose folds are trained before something."""
    options = (
        click.option(
            "--teacher", metavar="NETWORK", help=TEACHER_HELP + "; auto trains a larger network first."
        ),
        click.option(
            "--folds",
            type=click.IntRange(2, 100),
            help=f"Folds of a cross-validation before the {before}, for an accuracy on all images.",
        ),
        click.option("--set", "settings", metavar="NAME=VALUE", multiple=True, help=SET_HELP),
    )

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.command(cls=Grouped, groups=GROUPS)
@click.option(
    "--arch",
    required=True,
    type=click.Path(path_type=Path),
    help="Architecture file, best.json of a search or written by hand; or a preset, such as resnet.",
)
@click.option(
    "--weights",
    default="retrain",
    show_default=True,
    type=click.Choice(["retrain", "finetune", "generated"]),
    help="Train from scratch, train on from the generated weights, or keep them.",
)
@click.option(
    "--data",
    metavar="NAME[:PATH]",
    help="Images; see: smash-export datasets.  [default: those of the search]",
)
@skip_bad_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the bundle.  [default: NAME-bundle]")
@click.option("--run", type=click.Path(path_type=Path), help="Run folder of the search.  [default: ARCH's]")
@recipe_option(
    "Recipe of training: 6 epochs (quick), 25 (standard), 200 (long), or as the images ask for (auto).",
    "recipe_name",
)
@click.option("--time", "duration", metavar="TIME", help="Time budget of the training, such as 20m.")
@balance_option
@taught_and_measured("training")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training images.")
@click.option("--batch", type=click.IntRange(1), help="Images per step.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Highest learning rate.")
@click.option(
    "--label-smoothing", type=click.FloatRange(0, 0.99), help="Share of each label spread over all classes."
)
@click.option("--ema", type=click.FloatRange(0, 0.999999), help="Decay of a moving average of the weights.")
@click.option("--augment", metavar="NAME=VALUE,...", help=AUGMENT_HELP)
@click.option(
    "--false-alarm",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="RATE",
    default=0.05,
    show_default=True,
    help="Share of images of the classes that may be called doubtful, as pictures of something else are.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Random seed of the weights and of the order of the images.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda: where to train.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option(
    "--exporter",
    default="graph",
    show_default=True,
    type=click.Choice(["graph", "torch"]),
    help="ONNX written from the architecture, or traced by PyTorch.",
)
@click.option("--qat", is_flag=True, help="Quantisation-aware training at the end, for an int8 file.")
@click.option("--track", metavar="NAME[:FOLDER]", help=TRACK_HELP)
@click.option("--bake", is_flag=True, help="Also write what smash-export bake writes.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@common_options(writes=True, trains=True)
def command(arch: Path, output: Output, **values: Any) -> None:
    """Train or materialise the network of an architecture file and write a verified bundle.

    An interrupted training goes on when the same command is given again. Images that changed since the
    search are refused, unless --data names them.
    """
    run_freeze(arch, output, values)


def run_freeze(arch: Path, output: Output, values: dict[str, Any]) -> None:
    """What the command does, with the values of its options."""
    destination = values["out"] or arch.parent / f"{arch.stem}-bundle"  # "." has no name to replace
    check_early(destination, values)
    best, dataset, summary = _read(arch, values, output)
    recipe = chosen_recipe(dataset, values)
    if dataset.several:
        _check_several(dataset, values)
    supernet = _supernet(values["run"] or arch.parent, values["weights"])
    make = _maker(best, recipe, supernet)
    if _trains(values):
        tell_interrupted(
            _checkpoint(best, dataset, destination, recipe, values), make, dataset, recipe, values, output
        )
    if output.dry_run:
        steps: JsonObject = {
            "architecture": best.architecture.key,
            "weights": values["weights"],
            "data": dataset.spec,
            "writes": str(destination),
        }
        if _trains(values):
            run = values["run"] or arch.parent
            steps |= planned(make, best.architecture, dataset, recipe, values, output, run)
        output.plan(steps)
        output.result({"dry_run": True, "images": summary.to_json(), **steps})
        return
    if dataset.several:
        # The network answers with the probability of each class.
        key, network = best.architecture.key, best.architecture
        train_module(make, key, network, dataset, summary, destination, recipe, values, output, best.search)
        return
    report = _frozen(arch, best, supernet, make, dataset, destination, recipe, values, output)
    _show(output, report)
    if values["bake"]:
        bake_too(report.bundle, output)
    facts = {"bundle": str(destination), "architecture": best.architecture.key, "images": summary.to_json()}
    output.result({**facts, **_facts(report)})


def _facts(report: FreezeReport) -> JsonObject:
    """What was frozen, as JSON."""
    return {
        "weights": report.weights,
        "test_accuracy": report.test_accuracy,
        "test_images": report.test_images,
        "mean_recall": report.test.balanced_accuracy,
        "macro_f1": report.test.macro_f1,
        "cost": asdict(report.cost),
        "parity": {name: parity.to_json() for name, parity in report.parity.items()},
        "recipe": None if report.fit is None else report.fit.recipe.to_json(),
        "folds": report.bundle.manifest.provenance.get("folds"),
    }


def _read(arch: Path, values: dict[str, Any], output: Output) -> tuple[BestFile, Dataset, DatasetSummary]:
    """The architecture, and the images that it is trained and verified on.

    Raises:
        UsageError: nothing says which images.
        InvalidInputError: the architecture is for other images.
    """
    from smash_export.export.freeze import check_fit, input_of
    from smash_search.data import load_dataset
    from smash_search.space.best import BestFile, read_best
    from smash_search.space.known import preset

    best = read_best(arch) if _is_file(arch) else None
    spec = values["data"] or (best.search.data if best else None)
    if not spec:
        raise UsageError(f"{arch} does not say which images it is for", expected="--data NAME[:PATH]")
    use_threads(values["threads"])
    # A file must not choose which code is imported; a person may.
    spec = data_words(spec, values["skip_bad"])
    seed = max(0, best.search.data_seed or 0) if best else 0
    with output.progress("reading images", None):
        dataset = load_dataset(spec, seed=seed, allow_code=values["data"] is not None)
    summary = tell_images(output, dataset)
    if best is None:
        shape = input_of(dataset)
        best = BestFile(preset(str(arch), shape), shape, dataset.classes)
    check_fit(best, dataset)
    _check_images(arch, best, dataset, named=values["data"] is not None, output=output)
    return best, dataset, summary


def _checkpoint(
    best: BestFile, dataset: Dataset, destination: Path, recipe: Recipe, values: dict[str, Any]
) -> Path:
    """Where an interrupted training of the network would be found."""
    from smash_export.export.freeze import checkpoint_of, work_of
    from smash_export.export.own_network import CHECKPOINT

    work = work_of(destination)
    if dataset.several:
        return work / CHECKPOINT
    return checkpoint_of(work, values["weights"], best.architecture, recipe.seed)


def _frozen(
    arch: Path,
    best: BestFile,
    supernet: Supernet | None,
    make: Callable[[], nn.Module],
    dataset: Dataset,
    destination: Path,
    recipe: Recipe,
    values: dict[str, Any],
    output: Output,
) -> FreezeReport:
    """Train or materialise, with a bar and curves."""
    from smash_export.export.freeze import freeze, rounded

    before, network = Prepared(recipe, None, {}), best.architecture
    if _trains(values):
        run = values["run"] or arch.parent
        before = prepared(make, network, dataset, recipe, destination, values, output, run, best.search)
    recipe, short = before.recipe, rounded(before.recipe)
    label = f"{values['weights']} {best.architecture.key}"
    epochs = (values["weights"] != "generated") * recipe.epochs + values["qat"] * short.epochs
    with followed(label, max(1, epochs), destination, recipe, values, output) as advance:
        on_epoch, on_step = shown_by(advance, recipe, more=values["qat"])
        _, on_rounding_step = shown_by(advance, short)
        report = freeze(
            best,
            dataset,
            destination,
            weights=values["weights"],
            recipe=recipe,
            supernet=supernet,
            device=values["device"],
            exporter=values["exporter"],
            quantisation_aware=values["qat"],
            force=values["force"],
            on_epoch=on_epoch,
            on_step=on_step,
            on_rounding_step=on_rounding_step,
            teacher=before.teacher,
            facts=before.facts,
            false_alarm=values["false_alarm"],
        )
    if report.fit is not None:
        tell_student(before, report.fit.accuracy, output)
    return report


def _trains(values: dict[str, Any]) -> bool:
    """Whether anything is trained: generated weights are with rounding only."""
    return values["weights"] != "generated" or bool(values["qat"])


def _maker(best: BestFile, recipe: Recipe, supernet: Supernet | None) -> Callable[[], nn.Module]:
    """Makes networks of the architecture with the recipe's initial weights, and the norms of a HyperNet whose
    weights they get.
    """
    from smash_search.train.network import new_network

    norm: Norm = supernet.config.norm if supernet else "sandwich"
    return lambda: new_network(best.architecture, best.input, len(best.classes), recipe.seed, norm)


def _supernet(run: Path, weights: str) -> Supernet | None:
    """The HyperNet of a search, where weights come from it."""
    from smash_search.run import load_supernet

    if weights == "retrain":
        return None
    if not (run / "config.json").exists():
        raise UsageError(
            f"--weights {weights} needs the HyperNet of a search",
            expected="the run folder of a search",
            received=run,
            hint="Pass --run DIR, or use --weights retrain.",
        )
    return load_supernet(run)


def _show(output: Output, report: FreezeReport) -> None:
    """What was verified, and what the network is worth."""
    output.table(
        f"{report.bundle.path}: verified on {report.parity['onnx'].images} real images",
        ["file", "bytes", "max difference", "same label", "accuracy"],
        [
            [
                path.name,
                path.stat().st_size,
                parity.max_difference,
                f"{parity.agreement:.2%}",
                f"{parity.accuracy:.2%}",
            ]
            for path, parity in (
                (report.bundle.onnx, report.parity["onnx"]),
                (report.bundle.path / "model.torchscript.pt", report.parity["torchscript"]),
            )
        ],
    )
    output.text(
        f"Test accuracy {report.test_accuracy:.2%} on {report.test_images} images, mean recall of the "
        f"classes {report.test.balanced_accuracy:.2%}, mean F1 {report.test.macro_f1:.2%}; "
        f"{report.cost.parameters:,} parameters, {report.cost.macs:,} MACs."
    )


def _check_several(dataset: Dataset, values: dict[str, Any]) -> None:
    """Raise UsageError for what networks of classes that do not exclude each other cannot have."""
    given = {"--weights": values["weights"], "--exporter": values["exporter"], "--qat": values["qat"]}
    usual = {"--weights": "retrain", "--exporter": "graph", "--qat": False}
    if refused := [name for name in given if given[name] != usual[name]]:
        raise UsageError(
            f"images of {dataset.spec} may be of several classes",
            expected="--weights retrain, without --qat and --exporter",
            received=", ".join(refused),
        )


def _check_images(arch: Path, best: BestFile, dataset: Dataset, named: bool, output: Output) -> None:
    """The images that the file names are taken only while they are those of the search; others have to be
    named. Dividing them otherwise is no difference.

    Raises:
        InvalidInputError: images or labels have changed since the search.
    """
    searched, held = best.search.fingerprint, best.search.images_sha256
    if searched in (None, dataset.fingerprint) or held == dataset.images_sha256:
        return
    if named or held is None:  # of an earlier version, which knew them by their division only
        output.warn(f"these are not the images of the search {best.search.run!r}, or are divided otherwise")
        return
    raise InvalidInputError(
        f"the images that {arch} names have changed since the search",
        expected=f"images and labels of SHA-256 {held[:16]}",
        received=dataset.images_sha256[:16],
        hint=f"To train on them as they are now: --data {shlex.quote(dataset.spec)}",
    )


def _is_file(arch: Path) -> bool:
    """Whether a file is meant rather than a preset; raises UsageError for a name that is neither."""
    from smash_search.space.known import PRESETS

    if arch.exists():
        return True
    if str(arch) in PRESETS:
        return False
    if arch.suffix:  # named as a file, whose absence its reader tells
        return True
    near = difflib.get_close_matches(str(arch), PRESETS, n=1)
    raise UsageError(
        f"there is no network {str(arch)!r}",
        expected=f"an architecture file, or a preset: {', '.join(PRESETS)}",
        hint=f"Did you mean {near[0]}?" if near else "smash-export train also takes package.module:function.",
    )
