"""``smash-export verify``: do the files of a bundle do what the network does, on real images?"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smash_base.errors import MissingRuntimeError, UsageError, VerificationError
from smash_export.cli.console import Output, common_options
from smash_export.cli.device import NAMES, ask, device_of, device_options, given_words
from smash_export.cli.groups import Grouped
from smash_export.cli.shared_options import check_part, split_option

if TYPE_CHECKING:
    from smash_export.bundle.bundle import Bundle
    from smash_export.measure.verify import FileReport, Parity, Verification
    from smash_export.remote.device import Device

MAX_SHOWN_STRANGERS = 20


GROUPS = {
    "Files": ("target", "precision", "signer", "strict"),
    "Images": ("data", "split", "save_worst"),
    "This machine": ("threads", "in_process"),
    "Device": NAMES,
}


@click.command(cls=Grouped, groups=GROUPS)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", "-t", metavar="NAME", help="Only this runtime.")
@click.option(
    "--precision",
    "-p",
    type=click.Choice(["fp32", "tf32", "bf16", "fp16", "int8"]),
    help="Only this precision.",
)
@click.option(
    "--data", metavar="SPEC", help="A whole data set (NAME or NAME:PATH) instead of the bundled images."
)
@split_option
@click.option("--strict", is_flag=True, help="A file that cannot be checked here fails too (exit code 3).")
@click.option(
    "--signature",
    "signer",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="KEY",
    help="Also check manifest.json.sig; KEY is the signer's OpenSSH public key.",
)
@click.option(
    "--save-worst",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Save the image with the largest difference, and each image whose label changed, as PNG.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads of one inference.")
@click.option(
    "--in-process",
    is_flag=True,
    help="Run the runtimes in this process: faster, but a crash of one ends the command.",
)
@device_options
@common_options(writes=True)
def command(
    bundle: Path,
    target: str | None,
    precision: str | None,
    data: str | None,
    split: str,
    strict: bool,
    signer: Path | None,
    save_worst: Path | None,
    threads: int | None,
    in_process: bool,
    output: Output,
    **values: Any,
) -> None:
    """Compare every file of BUNDLE, or one of them, with the network on real images.

    Exit code 4 when a file fails. Runtimes that are not installed are skipped, unless named or --strict.
    """
    from smash_export.bundle.bundle import Bundle
    from smash_export.measure.verify import verify

    check_part(data, split)
    opened, device = Bundle.open(bundle), device_of(values)
    fingerprint, unlisted = _trust(opened, signer, output)
    if device is not None:
        verification = _on_device(device, opened, output, data)
    else:
        with output.progress("verifying", None) as advance:
            verification = verify(
                opened,
                target=target,
                precision=precision,
                data=data,
                split=split,
                threads=threads,
                isolated=not in_process,
                on_report=lambda report: advance(file=f"{report.target} {report.precision}"),
            )
    _show(output, verification)
    failed, skipped = verification.having("failed"), verification.having("skipped")
    passed = not failed and not (strict and skipped)
    trust = {"signed_by": fingerprint, "unlisted": unlisted}
    output.result({"bundle": str(bundle), "passed": passed, **trust, **verification.to_json()})
    if save_worst is not None:
        _save_worst(save_worst, verification, opened.labels, output)
    _end(bundle, verification, strict)


def _show(output: Output, verification: Verification) -> None:
    reports = verification.files
    output.table(
        f"Against {verification.reference} on {len(verification.samples)} real images",
        [
            "target",
            "precision",
            "verdict",
            "max diff",
            "error",
            "same label",
            "accuracy",
            "reference",
            "points lost",
        ],
        [_row(report) for report in reports],
    )
    for report in reports:
        for problem in report.problems:
            output.warn(f"{report.target} {report.precision} {report.status}: {problem}")
    for file in verification.rejected:
        output.text(f"{file.target} {file.precision} was rejected by compile: {'; '.join(file.problems)}")


def _end(bundle: Path, verification: Verification, strict: bool) -> None:
    """Raise what the exit code shall say."""
    reports = verification.files
    failed, skipped = verification.having("failed"), verification.having("skipped")
    if failed:
        names = ", ".join(f"{report.target} {report.precision}" for report in failed)
        raise VerificationError(
            f"{len(failed)} of {len(reports)} files do not do what the network does: {names}",
            hint=f"Compile them again: smash-export compile {shlex.quote(str(bundle))} "
            f"--target {failed[0].target} --precision {failed[0].precision}",
        )
    if skipped and (strict or len(skipped) == len(reports)):
        raise MissingRuntimeError(
            f"{len(skipped)} files could not be checked here",
            received=", ".join(f"{report.target}: {report.problems[0]}" for report in skipped),
            hint="See: smash-export doctor",
        )


def _on_device(device: Device, bundle: Bundle, output: Output, data: str | None) -> Verification:
    """The same on the device, with the images of the bundle; recorded in it."""
    from smash_base.records import read_record
    from smash_export.bundle.rejected import RejectedFile
    from smash_export.measure.verify import FileReport, Verification

    if data is not None:
        raise UsageError("--data on a device", expected="the images of the bundle, which are copied there")
    without = {*NAMES, "save_worst", "split", "dry_run", "signer"}
    words = ["verify", "{bundle}", *given_words(click.get_current_context(), without=without)]
    seconds = 20.0 * (2 + len(bundle.compiled))
    result = ask(device, words, output, inputs={"bundle": bundle.path}, seconds=seconds)
    reports = tuple(FileReport.from_json(item) for item in result["files"])
    reason = bundle.try_record("verify_elsewhere", {"device": device.name, "files": result["files"]})
    if reason:
        output.warn(f"the results were not recorded in {bundle.path}: {reason}")
    rejected = tuple(read_record(RejectedFile, item, "rejected file") for item in result["rejected"])
    return Verification(f"{result['reference']}, on {device.name},", bundle.samples(), reports, rejected)


def _trust(bundle: Bundle, signer: Path | None, output: Output) -> tuple[str | None, list[str]]:
    """The key that signed, and the files that nothing vouches for; says both."""
    fingerprint = None
    if signer is not None:
        from smash_export.bundle.signature import check_signature

        fingerprint = check_signature(bundle.path, signer)
        output.note(f"signed by {fingerprint}")
    unlisted = bundle.unlisted()
    for name in unlisted[:MAX_SHOWN_STRANGERS]:
        output.warn(f"the manifest does not list {name}; nothing reads it")
    if len(unlisted) > MAX_SHOWN_STRANGERS:
        output.warn(f"and {len(unlisted) - MAX_SHOWN_STRANGERS} more files that the manifest does not list")
    if bundle.manifest.digest is None:
        output.note("the manifest is of an older version, without a digest of its own content")
    return fingerprint, unlisted


def _row(report: FileReport) -> list[Any]:
    names = [report.target, report.precision + (" (source)" if report.source else ""), report.status]
    parity = report.parity
    if parity is None:
        return [*names, None, None, None, None, None, None]
    return [
        *names,
        parity.max_difference,
        f"{parity.relative_error:.2%}",
        f"{parity.agreement:.2%}",
        f"{parity.accuracy:.2%}",
        f"{parity.accuracy_reference:.2%}",
        _lost(parity),
    ]


def _lost(parity: Parity) -> str:
    loss, presence = parity.loss, parity.presence
    lost = f"{parity.drop:.2f}" if loss is None else f"{loss.points:.2f} ({loss.low:.2f} to {loss.high:.2f})"
    if presence is None:
        return lost
    return f"{lost}; of F1 {presence.points:.2f} ({presence.low:.2f} to {presence.high:.2f})"


def _save_worst(folder: Path, verification: Verification, labels: tuple[str, ...], output: Output) -> None:
    from smash_base.preprocess import NO_CLASS
    from smash_export.prediction.pictures import BAD, INK, captioned, save_png, to_picture

    samples, labels = verification.samples, (*labels, NO_CLASS)
    for report in verification.files:
        if report.parity is None:
            continue
        name = f"{report.target}-{report.precision}"
        worst = report.parity.worst_image
        pictures = {
            f"{name}-worst.png": (
                worst,
                [
                    f"image {worst}: {labels[samples.labels[worst]]}",
                    f"largest difference {report.parity.max_difference:.3g}",
                ],
                INK,
            )
        }
        for flip in report.parity.flips:
            pictures[f"{name}-flip-{flip.image}.png"] = (
                flip.image,
                [
                    f"image {flip.image}: {labels[flip.label]}",
                    f"{labels[flip.expected]} became {labels[flip.received]} (margin {flip.margin:.3g})",
                ],
                BAD,
            )
        for file, (index, lines, colour) in pictures.items():
            if output.dry_run:
                output.note(f"would write {folder / file}")
                continue
            save_png(folder / file, captioned(to_picture(samples.images[index], 192), lines, colour))
