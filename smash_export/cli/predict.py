"""``smash-export predict``: labels for images, folders and patterns.

Answers are printed as they come, in bounded memory: a folder of a million images is no special case.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from smash_base.errors import InvalidInputError, UsageError
from smash_base.json_values import JsonObject
from smash_export.cli.console import Output, common_options
from smash_export.cli.shared_options import file_options
from smash_export.prediction.answers import NONE

if TYPE_CHECKING:
    from smash_base.images import LeftOut, Omission
    from smash_export.prediction.classifier import Classifier, ClassScore, Failure, Prediction

UNCERTAIN = "uncertain"
DOUBTFUL = "perhaps none of the classes"
MAX_SHOWN_LABELS = 5


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--top-k", "-k", type=click.IntRange(1), default=5, show_default=True, help="Classes to name.")
@click.option("--csv", "as_csv", is_flag=True, help="One line per image on stdout, with a header.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help=f"Answer {UNCERTAIN!r} when the best probability is lower.",
)
@click.option(
    "--save-annotated",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write a PNG of each image with its labels.",
)
@click.option("--skip-bad", is_flag=True, help="Images that cannot be read do not change the exit code.")
@file_options
@common_options(writes=True)
def command(
    bundle: Path,
    paths: tuple[str, ...],
    top_k: int,
    as_csv: bool,
    threshold: float | None,
    save_annotated: Path | None,
    skip_bad: bool,
    target: str | None,
    precision: str | None,
    threads: int | None,
    device: str | None,
    output: Output,
) -> None:
    """Classify images with BUNDLE. A PATH is an image, a folder, or a quoted pattern like 'photos/*.png'.

    An image that cannot be read gets an error line of its own, the others are answered, and the exit
    code is 6. What is no image file in a folder is counted and named at the end.
    """
    from smash_base.images import LeftOut
    from smash_export.prediction.classifier import Failure
    from smash_export.prediction.predict import predict

    if as_csv and output.json:
        raise UsageError("--csv and --json contradict each other", hint="Choose one.")
    annotate = _annotator(save_annotated, paths, threshold, output)
    writers: list[_Writer] = []

    def on_open(classifier: Classifier) -> None:
        output.note(f"using {classifier.choice}")
        writers.append(_writer(classifier, output, as_csv, top_k, threshold, single=len(paths) == 1))
        writers[0].start()

    failures = count = 0
    left_out = LeftOut()
    for result in predict(
        bundle,
        _without(save_annotated, paths, left_out),
        top_k,
        target=target,
        precision=precision,
        threads=threads,
        device=device,
        on_error="yield",
        on_open=on_open,
        left_out=left_out,
    ):
        if isinstance(result, Failure):
            failures += 1
            click.echo(f"smash-export: {result.error}", err=True)
        else:
            count += 1
        writers[0].show(result)
        annotate(result)
    omissions = left_out.omissions()
    writers[0].end(count, failures, omissions)
    for omission in omissions:
        output.note(f"left out: {omission}")
    if failures and not skip_bad:
        raise InvalidInputError(
            f"{failures} of {failures + count} images could not be read"
            + ("; the others were answered" if count else ""),
            hint="To accept that, with exit code 0: --skip-bad." if count else None,
        )


class _Writer(NamedTuple):
    start: Callable[[], None]
    show: Callable[[Prediction | Failure], None]
    end: Callable[[int, int, tuple[Omission, ...]], None]


def _writer(
    classifier: Classifier,
    output: Output,
    as_csv: bool,
    top_k: int,
    threshold: float | None,
    *,
    single: bool,
) -> _Writer:
    """What to print first, for each answer, and last."""
    if output.json:
        return _json_writer(classifier, threshold)
    if as_csv:
        several = classifier.bundle.signature.outputs == "sigmoid"
        return _csv_writer(min(top_k, len(classifier.labels)), threshold, several=several)
    return _text_writer(output, threshold, single=single)


def _label(result: Prediction, threshold: float | None) -> str | None:
    """The class that is answered; None where it is not sure enough, or where several may be and none is."""
    if result.present is not None:
        return next(iter(_there(result, threshold)), None)
    return None if threshold is not None and result.probability < threshold else result.label


def _with_probability(item: ClassScore) -> str:
    return f"{item.label} {item.probability:.1%}"


def _shown(result: Prediction, threshold: float | None, *, probabilities: bool = False) -> str | None:
    """The label as text, with its probability if asked: every class that is there, where several may be."""
    if result.present is None:
        label = _label(result, threshold)
        return _with_probability(result.top[0]) if label is not None and probabilities else label
    there = _present(result, threshold)
    labels = [_with_probability(item) if probabilities else item.label for item in there]
    if len(labels) > MAX_SHOWN_LABELS:
        labels = [*labels[:MAX_SHOWN_LABELS], f"... ({len(labels)} in all)"]
    return ", ".join(labels) or None


def _unsaid(result: Prediction) -> str:
    """What is said in place of a label: nothing is there, where several may be, or it is not sure enough."""
    return UNCERTAIN if result.present is None else NONE


def _there(result: Prediction, threshold: float | None) -> list[str]:
    """Every class that is there, where several may be."""
    return [item.label for item in _present(result, threshold)]


def _present(result: Prediction, threshold: float | None) -> list[ClassScore]:
    return [item for item in result.present or () if item.probability >= (threshold or 0)]


def _json_writer(classifier: Classifier, threshold: float | None) -> _Writer:
    from smash_export.prediction.classifier import Failure

    first = True

    def start() -> None:
        head = {
            "bundle": str(classifier.bundle.path),
            "target": classifier.choice.target,
            "precision": classifier.choice.precision,
            "reason": classifier.choice.reason,
        }
        click.echo(json.dumps(head, ensure_ascii=False)[:-1] + ', "predictions": [')

    def show(result: Prediction | Failure) -> None:
        nonlocal first
        if isinstance(result, Failure):
            item: JsonObject = {"source": result.source, "error": str(result.error)}
        else:
            item = {**result.to_json(), "label": _label(result, threshold)}
            if result.present is not None:
                item["present"] = [asdict(score) for score in _present(result, threshold)]
        click.echo(("" if first else ",\n") + json.dumps(item, ensure_ascii=False), nl=False)
        first = False

    def end(count: int, failures: int, omissions: tuple[Omission, ...]) -> None:
        tail = {
            "answered": count,
            "failed": failures,
            "left_out": [omission.to_json() for omission in omissions],
        }
        click.echo("\n], " + json.dumps(tail, ensure_ascii=False)[1:])

    return _Writer(start, show, end)


def _csv_writer(top_k: int, threshold: float | None, *, several: bool) -> _Writer:
    """A row for each image. ``doubtful`` is true, false or, where the bundle does not say, empty; ``present``
    names every class that is there, where several may be."""
    from smash_export.prediction.classifier import Failure

    last = ["doubtful", *(["present"] if several else []), "error"]

    def line(values: list[Any]) -> None:
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerow(values)
        click.echo(stream.getvalue(), nl=False)

    def start() -> None:
        names = [name for rank in range(2, top_k + 1) for name in (f"label_{rank}", f"probability_{rank}")]
        line(["source", "label", "probability", "milliseconds", *names, *last])

    def show(result: Prediction | Failure) -> None:
        if isinstance(result, Failure):
            line([result.source, *[""] * (3 + 2 * (top_k - 1) + len(last) - 1), str(result.error)])
            return
        others = [value for item in result.top[1:] for value in (item.label, f"{item.probability:.6f}")]
        label = _label(result, threshold) or _unsaid(result)
        line(
            [
                result.source,
                label,
                f"{result.probability:.6f}",
                f"{result.milliseconds:.4f}",
                *others,
                "" if result.doubtful is None else str(result.doubtful).lower(),
                *([";".join(_there(result, threshold))] if several else []),
                "",
            ]
        )

    return _Writer(start, show, lambda count, failures, omissions: None)


def _text_writer(output: Output, threshold: float | None, *, single: bool) -> _Writer:
    """One image: its classes as a table. Many: a line each."""
    from smash_export.prediction.classifier import Failure

    held: list[Prediction] = []  # the first answer, until it is known whether it is the only one

    def line(result: Prediction) -> None:
        there = set(_there(result, threshold)) or {result.label}  # each with its own probability
        others = ", ".join([_with_probability(item) for item in result.top if item.label not in there][:2])
        label = _shown(result, threshold, probabilities=True)
        label = label or f"{_unsaid(result)} ({_with_probability(result.top[0])})"
        output.text(
            f"{result.source}: {label}"
            + (f", {DOUBTFUL}" if result.doubtful else "")
            + (f"  ({others})" if others else "")
        )

    seen = 0

    def show(result: Prediction | Failure) -> None:
        nonlocal seen
        if isinstance(result, Failure):
            return
        seen += 1
        if single and seen == 1:
            held.append(result)
            return
        while held:
            line(held.pop())
        line(result)

    def end(count: int, failures: int, omissions: tuple[Omission, ...]) -> None:
        for result in held:
            label = _shown(result, threshold)
            doubt = f", {DOUBTFUL}" if result.doubtful else ""
            output.text(f"{result.source}: {label or _unsaid(result)}{doubt} ({result.milliseconds:.2f} ms)")
            output.table(
                "",
                ["class", "probability"],
                [[item.label, f"{item.probability:.2%}"] for item in result.top],
            )

    return _Writer(lambda: None, show, end)


def _without(folder: Path | None, paths: tuple[str, ...], left_out: LeftOut) -> Iterable[str]:
    """The paths, without the pictures with labels that lie in a folder among those of a folder."""
    from smash_base.images import image_files

    if folder is None or not any(Path(path).is_dir() for path in paths):
        return paths
    place = folder.resolve()

    def files() -> Iterator[str]:
        for path in paths:
            if not Path(path).is_dir() or not place.is_relative_to(Path(path).resolve()):
                yield path
            elif place == Path(path).resolve():
                yield path  # refused where a picture would be written over
            else:
                for file in image_files(path, left_out):
                    if Path(file).resolve().is_relative_to(place):
                        left_out.add(f"pictures with labels in {folder}", file)
                    else:
                        yield file

    return files()


def _annotator(
    folder: Path | None, paths: tuple[str, ...], threshold: float | None, output: Output
) -> Callable[[Prediction | Failure], None]:
    """Writes pictures with labels; does nothing without a folder. In a folder of images that are classified
    it writes over nothing: what stands there may be one of them."""
    from smash_export.prediction.classifier import Failure

    taken: set[str] = set()
    sources = {place.resolve() for path in paths for place in (Path(path), Path(path).parent)}

    def annotate(result: Prediction | Failure) -> None:
        if folder is None or isinstance(result, Failure):
            return
        from smash_base.images import open_image, upright
        from smash_export.prediction.pictures import captioned, enlarged, save_png
        from smash_export.prediction.sources import Source, file_name

        path = folder / file_name(Source(result.source, result.source), taken)
        sources.add(Path(result.source).parent.resolve())
        if path.exists() and folder.resolve() in sources:
            raise UsageError(
                f"{path} is there already, and may be one of the images",
                hint="Choose another folder for the copies with labels: --save-annotated DIR.",
            )
        if output.dry_run:
            output.note(f"would write {path}")
            return
        picture = enlarged(upright(open_image(result.source)).convert("RGB"), 192)
        lines = [_with_probability(item) for item in result.top[:3]]
        if result.present is not None:
            lines = [_with_probability(item) for item in _present(result, threshold)[:MAX_SHOWN_LABELS]]
        if _label(result, threshold) is None:
            lines = [_unsaid(result), *(lines if result.present is None else [])]
        if result.doubtful:
            lines = [DOUBTFUL, *lines]
        save_png(path, captioned(picture, lines))

    return annotate
