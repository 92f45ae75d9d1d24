"""``smash-export adopt``: a bundle from a classifier that somebody else trained."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smash_base import files
from smash_base.errors import UsageError
from smash_base.json_values import JsonObject
from smash_export.cli.console import Output, common_options
from smash_export.cli.groups import Grouped

if TYPE_CHECKING:
    from smash_base.preprocess import Outputs


GROUPS = {
    "Model": ("labels", "outputs", "destination", "force"),
    "Preprocessing": (
        "preprocess",
        "size",
        "channels",
        "mean",
        "std",
        "resize",
        "short_side",
        "crop_pct",
        "order",
    ),
    "Images": ("data", "seed", "samples", "calibration"),
}


@click.command(cls=Grouped, groups=GROUPS)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--labels",
    required=True,
    type=click.Path(path_type=Path),
    help="One name per line, numbered lines, or JSON.",
)
@click.option(
    "--output",
    "-o",
    "destination",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the bundle.",
)
@click.option(
    "--preprocess", type=click.Path(path_type=Path), help="JSON: height, width, channels, mean, std."
)
@click.option("--size", metavar="H[xW]", help="Pixels that the network takes.")
@click.option("--channels", type=click.IntRange(1, 4096), help="Channels of the images: 1 grey, 3 RGB.")
@click.option("--mean", metavar="M,M,M", help="Mean of each channel, of values from 0 to 1.")
@click.option("--std", metavar="S,S,S", help="Deviation of each channel, of values from 0 to 1.")
@click.option(
    "--resize", type=click.Choice(["bilinear", "bicubic", "nearest", "box"]), help="Filter of resizing."
)
@click.option(
    "--short-side",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Resize the shorter side to N and cut the centre out; otherwise the whole image is resized.",
)
@click.option(
    "--crop-pct",
    type=float,
    metavar="P",
    help="Share of the crop as timm gives it: --short-side is size / P.",
)
@click.option("--order", type=click.Choice(["RGB", "BGR"]), help="Order of the network's channels.")
@click.option(
    "--outputs",
    type=click.Choice(["logits", "probabilities", "sigmoid"]),
    help="Kind of the answers; found out by default.",
)
@click.option("--data", metavar="SPEC", help="Data set with test and training images; see: datasets")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed of the splits of --data.")
@click.option("--samples", type=click.Path(path_type=Path), help="npz: images uint8, labels int64.")
@click.option("--calibration", type=click.Path(path_type=Path), help="npz: images uint8, no test images.")
@click.option("--force", is_flag=True, help="Replace the bundle.")
@common_options(writes=True)
def command(
    model: Path,
    labels: Path,
    destination: Path,
    preprocess: Path | None,
    size: str | None,
    channels: int | None,
    mean: str | None,
    std: str | None,
    resize: str | None,
    short_side: int | None,
    crop_pct: float | None,
    order: str | None,
    outputs: Outputs | None,
    data: str | None,
    seed: int,
    samples: Path | None,
    calibration: Path | None,
    force: bool,
    output: Output,
) -> None:
    """Make a bundle of MODEL: an ONNX, TorchScript or torch.export classifier, or a network of timm.

    Real images with known classes are needed, from --data or --samples: every later file is checked on
    them. TorchScript and .pt2 files are code; load only those whose maker you trust. A network of timm is
    'timm:NAME?weights=FILE.safetensors'; its preprocessing comes with it.
    """
    from smash_export.bundle.manifest import NAME
    from smash_export.export.adopt import (
        adopt,
        images_from_arrays,
        images_from_data,
        read_preprocessing,
    )
    from smash_export.export.label_files import read_labels
    from smash_export.export.timm_networks import PREFIX, timm_program, weights_file
    from smash_search.data.spec import parse_spec

    if (data is None) == (samples is None):
        raise UsageError(
            "labelled images are needed, to check every file on",
            expected="either --data or --samples",
            received="both" if data is not None else "neither",
        )
    if calibration is not None and samples is None:
        raise UsageError("--calibration goes with --samples", hint="--data takes those of its own.")
    # Before images are read, which takes minutes.
    files.refuse_existing(destination, replace=force, mark=NAME)
    names = read_labels(labels)
    wishes = _overrides(size, mean, std)
    given = {"channels": channels, "resize": resize, "crop_pct": crop_pct, "order": order}
    given["short_side"] = short_side
    wishes |= {name: value for name, value in given.items() if value is not None}
    origin: JsonObject = {}
    if str(model).startswith(PREFIX):
        spec = parse_spec(str(model))
        name, weights = str(spec.path), weights_file(spec)
        model = click.get_current_context().with_resource(_program_file(name))
        with output.progress(f"tracing {name}", None):
            known = timm_program(name, weights, len(names), model)
        if "short_side" in wishes:
            known.pop("crop_pct", None)
        wishes = {**(known if preprocess is None else {}), **wishes}
        origin["timm"] = {"network": name, "weights": weights.name, "sha256": files.sha256(weights)}
    preprocessing = read_preprocessing(preprocess, wishes, model)
    if samples is not None:
        images = images_from_arrays(samples, calibration, preprocessing, len(names))
    else:
        assert data is not None
        with output.progress("reading images", None):
            images = images_from_data(data, names, preprocessing, seed=seed)
    images = replace(images, provenance={**images.provenance, **origin})
    if output.dry_run:
        plan = {
            "model": str(model),
            "writes": str(destination),
            "classes": len(names),
            "preprocessing": preprocessing.to_json(),
            "test images": len(images.test),
            "calibration images": 0 if images.calibration is None else len(images.calibration),
        }
        output.plan(plan, "Would adopt")
        output.result({"dry_run": True, **plan})
        return
    with output.progress("adopting", None):
        result = adopt(
            model,
            destination,
            labels=names,
            preprocessing=preprocessing,
            images=images,
            outputs=outputs,
            force=force,
        )
    answers = result.bundle.signature.outputs
    for warning in result.warnings:
        output.warn(warning)
    output.text(
        f"{destination}: {len(names)} classes, accuracy {result.accuracy:.2%} on {len(images.test)} images"
    )
    if answers != "logits":
        output.note(f"Outputs: {answers}; predictions use them as they are (--outputs says otherwise)")
    output.note(f"Next: smash-export compile {shlex.quote(str(destination))} --target onnxruntime")
    output.result(
        {
            "bundle": str(destination),
            "classes": list(names),
            "accuracy": result.accuracy,
            "images": len(images.test),
            "outputs": answers,
            "warnings": list(result.warnings),
        }
    )


@contextlib.contextmanager
def _program_file(name: str) -> Iterator[Path]:
    """Where the program of a timm network is while it is adopted."""
    with files.temporary_folder() as folder:
        yield folder / f"{name}.pt2"


def _overrides(size: str | None, mean: str | None, std: str | None) -> JsonObject:
    found: JsonObject = {}
    try:
        if size is not None:
            height, _, width = size.partition("x")
            found |= {"height": int(height), "width": int(width or height)}
        for name, text in (("mean", mean), ("std", std)):
            if text is not None:
                found[name] = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            "a value is no number", expected="28 or 28x32, and 0.5,0.5,0.5", received=error
        ) from None
    return found
