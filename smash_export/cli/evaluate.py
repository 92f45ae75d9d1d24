"""``smash-export evaluate``: how good a bundle is on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from smash_base.errors import GateError
from smash_export.cli.console import Output, common_options
from smash_export.cli.shared_options import check_part, file_options, split_option

if TYPE_CHECKING:
    from smash_export.measure.evaluate import Evaluation


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data", metavar="SPEC", help="Data set (NAME or NAME:PATH); the bundled test images if left out."
)
@split_option
@click.option("--seed", type=int, help="Seed of the splits, for data that come unsplit.")
@file_options
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write evaluation.json, confusion.png and errors.png there.",
)
@click.option(
    "--min-accuracy", type=click.FloatRange(0, 1), help="Exit code 5 when the accuracy (0 to 1) is lower."
)
@common_options(writes=True)
def command(
    bundle: Path,
    data: str | None,
    split: str,
    seed: int | None,
    target: str | None,
    precision: str | None,
    threads: int | None,
    device: str | None,
    out: Path | None,
    min_accuracy: float | None,
    output: Output,
) -> None:
    """Accuracy with its interval, a table per class, the confusion matrix, calibration, the worst errors."""
    from smash_export.measure.evaluate import evaluate, write_report
    from smash_export.measure.labelled import bundled, from_data
    from smash_export.prediction.classifier import load

    check_part(data, split, seed)
    with load(bundle, target, threads=threads, device=device, precision=precision) as classifier:
        with output.progress("reading images", None):
            images = (
                bundled(classifier.bundle)
                if data is None
                else from_data(classifier.bundle, data, split, seed)
            )
        choice = classifier.choice
        output.note(f"using {choice}")
        with output.progress(f"classifying {len(images)} images", None) as advance:
            result = evaluate(classifier, images)
            advance()
    _show(output, result)
    written: list[Path] = []
    unwritten: OSError | None = None
    if out is not None and output.dry_run:
        output.note(f"would write evaluation.json, confusion.png and errors.png to {out}")
    elif out is not None:
        try:
            written = write_report(out, result, images)
        except OSError as error:  # raised once what was measured has been told
            unwritten = error
        for path in written:
            output.note(f"wrote {path}")
    output.result(
        {
            "bundle": str(bundle),
            "target": choice.target,
            "precision": choice.precision,
            "reason": choice.reason,
            **result.to_json(),
            "written": [str(path) for path in written],
        }
    )
    if unwritten is not None:
        raise unwritten
    if min_accuracy is not None:
        _check(result, min_accuracy)


def _check(result: Evaluation, least: float) -> None:
    if result.accuracy < least:
        raise GateError(
            f"the accuracy on {result.data} is too low",
            expected=f"at least {least:.2%}",
            received=f"{result.accuracy:.2%}",
            hint="See the worst errors: --out FOLDER.",
        )


def _show(output: Output, result: Evaluation) -> None:
    for warning in result.warnings:
        output.warn(warning)
    output.table(
        f"{result.images} images: {result.data}",
        ["figure", "value"],
        [
            ["accuracy", f"{result.accuracy:.2%}"],
            ["95 % interval", f"{result.low:.2%} to {result.high:.2%}"],
            ["mean recall of the classes", f"{result.balanced_accuracy:.2%}"],
            ["mean F1 of the classes", f"{result.macro_f1:.2%}"],
            *([] if result.top5 is None else [["among the first five", f"{result.top5:.2%}"]]),
            ["mean probability of the answer", f"{result.confidence:.2%}"],
            ["expected calibration error", f"{result.calibration_error:.4f}"],
            ["errors", result.mistake_count],
            ["images per second", f"{result.images_per_second:,.0f}"],
        ],
    )
    if result.mean_average_precision is not None:
        output.table(
            f"Several classes of an image: mean average precision {result.mean_average_precision:.2%}",
            ["class", "images", "average precision", "precision", "recall"],
            [
                *(
                    [row.label, row.images, row.average_precision, row.precision, row.recall]
                    for row in result.presence
                ),
                *([row.label, row.images, None, row.precision, row.recall] for row in result.none),
            ],
        )
        return
    output.table(
        "Classes",
        ["class", "images", "recall", "precision", "F1", "most confused with"],
        [
            [row.label, row.images, row.recall, row.precision, row.f1, row.confused_with]
            for row in result.classes
        ],
    )
