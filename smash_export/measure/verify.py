"""Does a file do what the network does? Measured on real images, through the session that predicts.

The reference is eager PyTorch, or the file that was adopted; its logits travel in the bundle. With another
data set it is the TorchScript file (or model.onnx where torch is missing). Every image is compared; batch 1,
the usual and the largest batch are all run, as some runtimes choose other code for each.

What a file must reach stands in :mod:`smash_export.measure.gates`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smash_base.errors import MissingRuntimeError, SmashError, VerificationError
from smash_base.json_values import JsonObject
from smash_base.preprocess import Preprocessing, first_answers, with_none
from smash_base.records import read_record
from smash_export.bundle.bundle import Bundle, Samples, opened
from smash_export.bundle.rejected import RejectedFile, rejected_files
from smash_export.bundle.runnable import RunnableFile, runnable_files
from smash_export.measure.gates import (
    GATES,
    Gate,
    Loss,
    PresenceLoss,
    accuracy_loss,
    presence_loss,
    relative_error,
    too_many,
)
from smash_export.measure.labelled import Labelled, from_data
from smash_export.prediction.batches import run_images
from smash_search.data.several import likeliest
from smash_targets.base import ModelSignature, Session, SessionInfo, SessionOptions, get_target

MAX_SHOWN_FLIPS = 20
Status = Literal["passed", "failed", "skipped"]
_MAY_BE_NONE = ("max_difference", "mean_difference", "cosine", "relative_error")
SMALL_BATCH_IMAGES = 512  # images run at batch 1 and at the usual batch; the largest batch runs all


@dataclass(frozen=True)
class Flip:
    """An image whose first label changed.

    Attributes:
        image: its index.
        label: the true class.
        expected, received: first class of the reference and of the file.
        margin: how far the reference's logit of ``expected`` is above that of ``received``; a small
            margin means that the network itself was undecided.
    """

    image: int
    label: int
    expected: int
    received: int
    margin: float


@dataclass(frozen=True)
class OtherBatch:
    """What a file answers in batches of another size than the largest, on the first images.

    Attributes:
        images: how many.
        finite: whether every logit is a number.
        relative_error: Error of the logits, as in :class:`Parity`; NaN where they are not finite.
        changed: images whose first label is another one than in the largest batch.
    """

    images: int
    finite: bool
    relative_error: float
    changed: int

    def problems(self, size: int, gate: Gate) -> list[str]:
        """What is not as it should be in batches of that size.

        The accuracy that an int8 file loses is judged in the largest batch; in another one its labels must
        be those, but for what rounding elsewhere explains.
        """
        if not self.finite:
            return [f"expected finite logits in batches of {size}, received NaN or infinity"]
        found = []
        if gate.relative_error is not None and self.relative_error > gate.relative_error:
            found.append(
                f"expected an error of the logits of at most {gate.relative_error:.1%} of their spread in "
                f"batches of {size}, received {self.relative_error:.2%}"
            )
        if gate.max_difference is None and too_many(self.changed, self.images, 1 - gate.agreement):
            found.append(
                f"expected the same labels in batches of {size} as in the largest, received others for "
                f"{self.changed} of {self.images} images"
            )
        return found


@dataclass(frozen=True)
class Parity:
    """What was measured between a file and its reference on N images with K classes.

    Attributes:
        reference: what it was compared with.
        images: N.
        max_difference, mean_difference: Largest and mean difference of the logits, absolute.
        cosine: smallest cosine between two images' logits.
        agreement: share of images with the same first label.
        flips: images whose first label changed, largest margin first, at most 20 of them.
        flip_count: how many there are.
        accuracy_reference, accuracy: Accuracy of both, on the true labels.
        worst_image: index of the image with the largest difference.
        finite: whether every logit is a number.
        by_batch: largest difference by batch size run.
        other_batches: what batches of other sizes than the largest answer; empty in evidence of versions
            that did not keep it.
        relative_error: Error of the logits: error over spread around their mean, root mean squares.
        loss: accuracy lost with its interval; None in evidence of versions that did not measure it.
        presence: Loss of mean F1 with its interval; None where an image has one class.
    """

    reference: str
    images: int
    max_difference: float
    mean_difference: float
    cosine: float
    agreement: float
    flips: tuple[Flip, ...]
    flip_count: int
    accuracy_reference: float
    accuracy: float
    worst_image: int
    finite: bool
    by_batch: dict[int, float] = field(default_factory=dict)
    relative_error: float = math.nan
    loss: Loss | None = None
    other_batches: dict[int, OtherBatch] = field(default_factory=dict)
    presence: PresenceLoss | None = None

    @property
    def drop(self) -> float:
        """Accuracy lost, in percentage points; negative when the file is better."""
        return 100 * (self.accuracy_reference - self.accuracy)

    def problems(self, precision: str, max_drop: float | None = None) -> list[str]:
        """Each gate of that precision which is not met: its question, the number and the limit.

        Args:
            max_drop: points of accuracy that an int8 file may lose; None for the usual ones.

        Returns:
            nothing when the file passed.
        """
        gate = GATES[precision]
        if not self.finite:
            return ["expected finite logits, received NaN or infinity"]
        others = [line for size, other in self.other_batches.items() for line in other.problems(size, gate)]
        if gate.max_difference is not None:
            return self._differing(gate.max_difference) + others
        if gate.relative_error is not None:
            return self._inexact(gate, gate.relative_error) + others
        return self._losing(gate.drop if max_drop is None else max_drop) + others

    def _differing(self, limit: float) -> list[str]:
        largest = max([self.max_difference, *self.by_batch.values()])
        found = []
        if largest > limit:
            found.append(f"expected a difference of at most {limit:g}, received {largest:.3g}")
        if any(flip.margin > 2 * limit for flip in self.flips):  # else ties within rounding
            found.append(
                f"expected the same label for all images, received {self.agreement:.2%} "
                f"({self.flip_count} of {self.images} changed)"
            )
        return found

    def _inexact(self, gate: Gate, limit: float) -> list[str]:
        found = []
        if self.relative_error > limit:
            found.append(
                f"is it exact to rounding? expected an error of the logits of at most {limit:.1%} of their "
                f"spread, received {self.relative_error:.2%}"
            )
        if too_many(self.flip_count, self.images, 1 - gate.agreement):
            found.append(
                f"does it keep the labels? expected the same label for {gate.agreement:.1%} of the images, "
                f"received {self.agreement:.2%} ({self.flip_count} of {self.images} changed), which chance "
                "does not explain"
            )
        return found

    def _losing(self, limit: float) -> list[str]:
        if self.loss is None:
            lost = f"expected to lose at most {limit:g} points of accuracy, received {self.drop:.2f}"
            return [lost] if self.drop > limit + 1e-9 else []
        found = []
        if not self.loss.keeps(limit):
            answer = "No" if self.loss.low > limit else "Not shown"
            measured = self.loss.text(self.images, self.flip_count)
            found.append(f"does it lose at most {limit:g} points of accuracy? {answer}: {measured}")
        if self.presence is not None and not self.presence.keeps(limit):
            measured = self.presence.text(self.images)
            found.append(
                f"does it lose at most {limit:g} points of the mean F1 of the classes? No: {measured}"
            )
        return found

    def to_json(self) -> JsonObject:
        """JSON values for manifests, reports and ``--json``; a number that is none becomes null."""
        document = asdict(self)
        document["flips"] = [asdict(flip) for flip in self.flips]
        document["by_batch"] = {str(size): _number(value) for size, value in self.by_batch.items()}
        document["other_batches"] = {
            str(size): {**asdict(other), "relative_error": _number(other.relative_error)}
            for size, other in self.other_batches.items()
        }
        document["drop"] = self.drop
        for name in _MAY_BE_NONE:
            document[name] = _number(document[name])
        return document

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Parity:
        """Read :meth:`to_json` back; null becomes NaN."""
        known = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
        for name in _MAY_BE_NONE:
            known[name] = _float(known.get(name))
        known["loss"] = Loss(**known["loss"]) if known.get("loss") else None
        known["presence"] = PresenceLoss(**known["presence"]) if known.get("presence") else None
        known["flips"] = tuple(Flip(**flip) for flip in known["flips"])
        known["by_batch"] = {
            int(size): math.inf if difference is None else difference
            for size, difference in known["by_batch"].items()
        }
        known["other_batches"] = {
            int(size): OtherBatch(**{**entry, "relative_error": _float(entry["relative_error"])})
            for size, entry in known.get("other_batches", {}).items()
        }
        return cls(**known)


def compare_logits(
    expected: np.ndarray,
    received: np.ndarray,
    labels: np.ndarray,
    *,
    targets: np.ndarray | None = None,
    reference: str = "eager PyTorch",
) -> Parity:
    """Compare two arrays of logits, float [N, K], with the true labels int [N].

    With targets [N, K] of images that may be of several classes, answers that are probabilities are judged by
    all of them.

    Where some image is of no class (label K), the answers are probabilities of each class by itself, and no
    class is a first answer too (:func:`smash_base.preprocess.with_none`).

    Raises:
        VerificationError: ``received`` has another shape.
    """
    if received.shape != expected.shape:
        raise VerificationError(
            "the file answers with another shape", expected=expected.shape, received=received.shape
        )
    a, b = expected.astype(np.float64), received.astype(np.float64)
    finite = bool(np.isfinite(b).all())
    difference = np.abs(np.where(np.isfinite(b), b, np.inf) - a)  # NaN would hide behind every comparison
    per_image = difference.max(axis=1)
    one, other = (with_none(values, np.asarray(labels)) for values in (a, b))
    first, second = one.argmax(axis=1), np.where(np.isnan(other), -np.inf, other).argmax(axis=1)
    flips = _flips(one, first, second, labels)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        cosine = np.where(norms > 0, (a * b).sum(axis=1) / norms, 1.0)
    return Parity(
        reference=reference,
        images=len(a),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        cosine=float(cosine.min()),
        agreement=1 - len(flips) / len(a),
        flips=tuple(flips[:MAX_SHOWN_FLIPS]),
        flip_count=len(flips),
        accuracy_reference=float((first == labels).mean()),
        accuracy=float((second == labels).mean()),
        worst_image=int(per_image.argmax()),
        finite=finite,
        relative_error=relative_error(a, b) if finite else math.nan,
        loss=accuracy_loss(one, other, np.asarray(labels)) if finite else None,
        presence=presence_loss(a, b, targets) if finite and targets is not None and _are_shares(a) else None,
    )


def _flips(expected: np.ndarray, first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> list[Flip]:
    """Images whose first label changed, largest margin first."""
    changed = np.flatnonzero(first != second)
    margins = expected[changed, first[changed]] - expected[changed, second[changed]]
    return [
        Flip(int(i), int(labels[i]), int(first[i]), int(second[i]), float(margin))
        for i, margin in sorted(zip(changed, margins, strict=True), key=lambda pair: -pair[1])
    ]


def _are_shares(answers: np.ndarray) -> bool:
    return bool((answers >= 0).all() and (answers <= 1).all())


def compare_batches(
    expected: np.ndarray,
    received: Mapping[int, np.ndarray],
    labels: np.ndarray,
    *,
    targets: np.ndarray | None = None,
    reference: str = "eager PyTorch",
) -> Parity:
    """Compare what a file answers in batches of several sizes.

    Args:
        expected: logits float [N, K].
        received: Logits by batch size: [N, K] of the largest, [n, K] of the first n images of the others.
        labels: true labels int [N].
        targets: as for :func:`compare_logits`.

    Raises:
        VerificationError: an answer has another shape.
    """
    most = max(received)
    largest = received[most]
    whole = compare_logits(expected, largest, labels, targets=targets, reference=reference)
    differences, others = {}, {}
    for size, logits in received.items():
        if size == most:
            differences[size] = whole.max_difference
            continue
        few = len(logits)
        part = compare_logits(expected[:few], logits, labels[:few])
        changed = int((first_answers(logits, labels) != first_answers(largest[:few], labels)).sum())
        differences[size] = part.max_difference
        others[size] = OtherBatch(few, part.finite, part.relative_error, changed)
    return replace(whole, by_batch=differences, other_batches=others)


def measure_parity(
    session: Session,
    samples: Samples,
    preprocessing: Preprocessing,
    batch: tuple[int, int, int] = (1, 1, 32),
    *,
    reference: str = "eager PyTorch",
) -> Parity:
    """Run real images through a session and compare with the logits in ``samples``.

    Args:
        batch: smallest, usual and largest batch of the file; each is run, the largest on all images.

    Raises:
        VerificationError: the session answers with another shape.
    """
    few = min(len(samples), SMALL_BATCH_IMAGES)
    answers = {
        size: run_images(session, samples.images[:few], preprocessing, batch, size)
        for size in sorted(set(batch) - {batch[2]})
    }
    answers[batch[2]] = run_images(session, samples.images, preprocessing, batch)
    return compare_batches(
        np.asarray(samples.logits), answers, samples.labels, targets=samples.targets, reference=reference
    )


@dataclass(frozen=True)
class FileReport:
    """What verification found for one file of a bundle.

    Attributes:
        target, precision: which file.
        source: whether it is model.onnx or model.torchscript.pt itself.
        status: "passed", "failed", or "skipped" when its runtime is not here.
        problems: Reasons why it failed or was skipped.
        parity: what was measured; None when skipped or when the file could not be run.
        runtime: name, version, provider and threads in use.
    """

    target: str
    precision: str
    source: bool
    status: Status
    problems: tuple[str, ...] = ()
    parity: Parity | None = None
    runtime: SessionInfo | None = None

    def to_json(self) -> JsonObject:
        """JSON values."""
        parity = None if self.parity is None else self.parity.to_json()
        runtime = {} if self.runtime is None else asdict(self.runtime)
        return {**asdict(self), "problems": list(self.problems), "parity": parity, "runtime": runtime}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FileReport:
        """Read :meth:`to_json` back."""
        known = {name: value[name] for name in cls.__dataclass_fields__}
        known["problems"] = tuple(value["problems"])
        known["parity"] = None if value["parity"] is None else Parity.from_json(value["parity"])
        known["runtime"] = read_record(SessionInfo, value["runtime"], "runtime") if value["runtime"] else None
        return cls(**known)


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    Attributes:
        reference: where the logits come from that every file is held against.
        samples: the images, their classes and those logits.
        files: one report per file.
        rejected: files that failed when they were compiled, with the reason; they are not run again.
    """

    reference: str
    samples: Samples
    files: tuple[FileReport, ...]
    rejected: tuple[RejectedFile, ...] = ()

    def having(self, status: Status) -> tuple[FileReport, ...]:
        """The reports with that status."""
        return tuple(report for report in self.files if report.status == status)

    def to_json(self) -> JsonObject:
        """JSON values."""
        files = [report.to_json() for report in self.files]
        rejected = [asdict(file) for file in self.rejected]
        return {
            "reference": self.reference,
            "images": len(self.samples),
            "files": files,
            "rejected": rejected,
        }


def verify(
    bundle: Bundle | Path | str,
    *,
    target: str | None = None,
    precision: str | None = None,
    data: str | None = None,
    split: str = "test",
    threads: int | None = None,
    isolated: bool = True,
    on_report: Callable[[FileReport], None] = lambda report: None,
) -> Verification:
    """Compare every file of a bundle, or some of them, with the network on real images.

    Args:
        bundle: an opened bundle or its path.
        target, precision: only files of these.
        data: a whole data set (NAME or NAME:PATH) instead of the bundled images.
        split: "train", "validation", "test" or "all"; part of ``data``.
        threads: Number of threads of one inference.
        isolated: run each file in a process of its own, where a crash or a hang costs that file only.
        on_report: called with each report as soon as it is known.

    Raises:
        UsageError, MissingRuntimeError: see :func:`verify_bundle`.
    """
    bundle = opened(bundle)
    samples, reference = bundle.samples(), reference_of(bundle)
    if data is not None:
        labelled = from_data(bundle, data, split)
        samples, reference = reference_samples(bundle, labelled, threads)
    reports = []
    for report in verify_bundle(
        bundle,
        target=target,
        precision=precision,
        samples=samples,
        reference=reference,
        threads=threads,
        isolated=isolated,
    ):
        reports.append(report)
        on_report(report)
    return Verification(reference, samples, tuple(reports), tuple(rejected_files(bundle, target, precision)))


def reference_of(bundle: Bundle) -> str:
    """Whose logits travel in the bundle: those of eager PyTorch, or of the file that was adopted."""
    adopted = bundle.manifest.provenance.get("adopted")
    engine = adopted.get("reference") if isinstance(adopted, dict) else None
    return f"the adopted file in {engine}" if isinstance(engine, str) else "eager PyTorch"


def held_to(bundle: Bundle, precision: str) -> str:
    """The precision whose gate holds for a file: an adopted network that computes in fp16, bf16 or int8
    rounds as those do in its fp32 files, too, since each runtime rounds elsewhere."""
    adopted = bundle.manifest.provenance.get("adopted")
    inside = adopted.get("computes_in") if isinstance(adopted, dict) else None
    return inside if precision == "fp32" and isinstance(inside, str) and inside in GATES else precision


def verify_bundle(
    bundle: Bundle,
    *,
    target: str | None = None,
    precision: str | None = None,
    samples: Samples | None = None,
    reference: str = "eager PyTorch",
    threads: int | None = None,
    isolated: bool = True,
) -> Iterator[FileReport]:
    """Verify the source files and every compiled file, or those of one target or precision.

    Args:
        samples: other images than the bundled ones; see :func:`reference_samples`.
        reference: what their logits come from.
        isolated: run each file in a process of its own, where a crash or a hang costs that file only.

    Yields:
        one report per file, as soon as it is known. A runtime that is missing is "skipped", unless
        ``target`` names it.

    Raises:
        UsageError: no such file in the bundle.
        MissingRuntimeError: the runtime that ``target`` names is not here.
    """
    chosen = runnable_files(bundle, target, precision)
    samples = bundle.samples() if samples is None else samples
    for file in chosen:
        runtime = get_target(file.target)
        state = runtime.availability()
        if not state.available:
            if target is not None:
                runtime.require()
            yield _report(file, "skipped", f"{state.reason}. {state.install}".strip())
            continue
        yield _verify_file(bundle, file, samples, reference, threads, isolated)


def reference_samples(bundle: Bundle, labelled: Labelled, threads: int | None = None) -> tuple[Samples, str]:
    """A whole data set with reference logits, and the name of the reference.

    The TorchScript file gives them where torch is installed, else model.onnx through ONNX Runtime. The true
    class of an image of several is the likeliest of them.

    Raises:
        MissingRuntimeError: neither runtime is here.
    """
    options = SessionOptions(threads=threads)
    candidates: list[tuple[str, Path, str]] = []
    if bundle.torchscript is not None:
        candidates.append(("torchscript", bundle.torchscript, "TorchScript"))
    candidates.append(("onnxruntime", bundle.onnx, "model.onnx in ONNX Runtime"))
    for name, path, title in candidates:
        runtime = get_target(name)
        if runtime.availability().available:
            with runtime.open(path, bundle.signature, options) as session:
                images, targets = labelled.images, labelled.targets
                logits = run_images(session, images, bundle.preprocessing, bundle.signature.batch)
            labels = labelled.labels if targets is None else likeliest(targets, logits)
            return Samples(images, labels, logits, targets), title
    raise MissingRuntimeError(
        "no runtime is here that can give reference logits",
        expected="torch or onnxruntime",
        hint="Install one: pip install 'smash-export[cpu]'",
    )


def open_session(
    target: str, path: Path, signature: ModelSignature, options: SessionOptions, isolated: bool
) -> Session:
    """Open a file in this process, or in one of its own (:mod:`smash_targets.isolation.parent`)."""
    if not isolated:
        return get_target(target).open(path, signature, options)
    from smash_targets.isolation.parent import open_isolated

    return open_isolated(target, path, signature, options)


def check_parity(parity: Parity, precision: str, what: str, hint: str | None = None) -> None:
    """Raise :class:`VerificationError` unless every gate of the precision is met."""
    problems = parity.problems(precision)
    if problems:
        raise VerificationError(f"{what} does not do what the network does: {'; '.join(problems)}", hint=hint)


def _verify_file(
    bundle: Bundle,
    file: RunnableFile,
    samples: Samples,
    reference: str,
    threads: int | None,
    isolated: bool,
) -> FileReport:
    signature, options = bundle.signature, SessionOptions(threads=threads)
    try:
        with open_session(file.target, file.path, signature, options, isolated) as session:
            runtime = session.info
            parity = measure_parity(
                session, samples, bundle.preprocessing, signature.batch, reference=reference
            )
    except MissingRuntimeError as error:  # the runtime is here, the device of this file is not
        return _report(file, "skipped", str(error))
    except SmashError as error:
        return _report(file, "failed", str(error))
    problems = parity.problems(held_to(bundle, file.precision), file.max_drop)
    return _report(file, "failed" if problems else "passed", *problems, parity=parity, runtime=runtime)


def _report(file: RunnableFile, status: Status, *problems: str, **measured: Any) -> FileReport:
    return FileReport(file.target, file.precision, file.source, status, problems, **measured)


def _float(value: float | None) -> float:
    return math.nan if value is None else value


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
