"""``smash-export freeze``: an architecture file becomes a verified bundle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from smash_base.errors import UsageError
from smash_export.cli.console import Output, common_options
from smash_export.cli.groups import Grouped
from smash_export.cli.images import data_words, skip_bad_option, tell_images

GROUPS = {
    "Network and images": ("arch", "weights", "run", "data", "skip_bad", "out", "force"),
    "Training": (
        "epochs",
        "batch",
        "learning_rate",
        "label_smoothing",
        "ema",
        "augment",
        "qat",
        "seed",
        "track",
    ),
    "Files": ("exporter", "bake"),
    "This machine": ("device", "threads"),
}  # fmt: skip


@click.command(cls=Grouped, groups=GROUPS)
@click.option(
    "--arch",
    required=True,
    type=click.Path(path_type=Path),
    help="Architecture file: best.json of a search, or written by hand.",
)
@click.option(
    "--weights",
    default="retrain",
    show_default=True,
    type=click.Choice(["retrain", "finetune", "generated"]),
    help="Train from scratch, train on from the generated weights, or keep them.",
)
@click.option("--data", metavar="NAME[:PATH]", help="Images; those of the search when the file names them.")
@skip_bad_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the bundle.  [default: ARCH-bundle]")
@click.option("--run", type=click.Path(path_type=Path), help="Run folder of the search.  [default: ARCH's]")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training images.")
@click.option("--batch", type=click.IntRange(1), help="Images per step.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Highest learning rate.")
@click.option("--label-smoothing", type=click.FloatRange(0, 0.99), help="Share spread over all classes.")
@click.option("--ema", type=click.FloatRange(0, 0.999999), help="Decay of a moving average of the weights.")
@click.option(
    "--augment",
    metavar="NAME=VALUE,...",
    help="Augmentation of the training images, for example pad_crop=2,flip=true,cutout=8",
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
@click.option("--qat", is_flag=True, help="Train on with int8 rounding in the loop, for an int8 file.")
@click.option("--track", metavar="NAME[:FOLDER]", help="Curves for tensorboard or mlflow, on this machine.")
@click.option("--bake", is_flag=True, help="Also write what smash-export bake writes.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@common_options(writes=True)
def command(arch: Path, output: Output, **values: Any) -> None:
    """Train or materialise the network of an architecture file and write a verified bundle.

    An interrupted training goes on when the same command is given again.
    """
    from smash_export.export.freeze import check_fit, default_recipe, freeze, recipe_with
    from smash_export.tracking import following, tracked
    from smash_search.data import load_dataset
    from smash_search.space.architecture import read_best

    best = read_best(arch)
    spec = values["data"] or best.search.get("data")
    if not isinstance(spec, str):
        raise UsageError(f"{arch} does not say which images it is for", expected="--data NAME[:PATH]")
    destination = values["out"] or arch.with_name(f"{arch.stem}-bundle")
    if values["threads"]:
        import torch

        torch.set_num_threads(values["threads"])
    # A file must not choose which code is imported; a person may.
    spec = data_words(spec, values["skip_bad"])
    dataset = load_dataset(spec, seed=_data_seed(best.search), allow_code=values["data"] is not None)
    summary = tell_images(output, dataset)
    check_fit(best, dataset)
    searched = best.search.get("fingerprint")
    if searched not in (None, dataset.fingerprint):
        output.warn(
            f"these are not the images of the search, or divided otherwise: fingerprint "
            f"{dataset.fingerprint[:16]}, the search's was {str(searched)[:16]}"
        )
    recipe = recipe_with(
        default_recipe(dataset, values["weights"], values["seed"]),
        {
            "epochs": values["epochs"],
            "batch": values["batch"],
            "learning_rate": values["learning_rate"],
            "label_smoothing": values["label_smoothing"],
            "average": values["ema"],
            "augmentation": _augmentation(values["augment"]),
        },
    )
    if output.dry_run:
        steps = {
            "architecture": best.architecture.key,
            "weights": values["weights"],
            "data": spec,
            "writes": str(destination),
            "recipe": recipe.to_json(),
        }
        output.table("Would do", ["what", "value"], [[name, str(value)] for name, value in steps.items()])
        output.result({"dry_run": True, "images": summary.to_json(), **steps})
        return
    supernet = None
    if values["weights"] != "retrain":
        from smash_search.run import load_supernet

        supernet = load_supernet(values["run"] or arch.parent)
    epochs = 1 if values["weights"] == "generated" else recipe.epochs
    label = f"{values['weights']} {best.architecture.key}"
    place = destination.with_name(f"{destination.name}-curves")
    with (
        tracked(values["track"], place, recipe.to_json()) as tracker,
        following(output.progress, tracker)(label, epochs) as advance,
    ):

        def on_epoch(entry: dict[str, Any]) -> None:
            advance(1, loss=round(entry["loss"], 4))

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
        )
    output.table(
        f"{destination}: verified on {report.parity['onnx'].images} real images",
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
    if values["bake"]:
        from smash_export.deploy.bake import bake

        output.text(f"{bake(report.bundle).main}: uint8 images in, probabilities out; verified")
    output.text(
        f"Test accuracy {report.test_accuracy:.2%} on {report.test_images} images, "
        f"{report.cost.parameters:,} parameters, {report.cost.macs:,} MACs."
    )
    output.result(
        {
            "bundle": str(destination),
            "architecture": best.architecture.key,
            "weights": report.weights,
            "images": summary.to_json(),
            "test_accuracy": report.test_accuracy,
            "test_images": report.test_images,
            "cost": asdict(report.cost),
            "parity": {name: parity.to_json() for name, parity in report.parity.items()},
            "recipe": None if report.fit is None else recipe.to_json(),
        }
    )


def _data_seed(search: Any) -> int:
    seed = search.get("data_seed", 0)
    return seed if isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 else 0


def _augmentation(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    from smash_export.cli.compile import read_options

    return read_options(tuple(text.split(",")))
