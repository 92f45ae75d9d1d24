"""A bundle: the directory that holds a classifier and everything needed to trust and use it.

    manifest.json         what is here: sizes and SHA-256, labels, preprocessing, signature, results
    model.onnx            the network, one file          model.torchscript.pt   the traced network
    architecture.json     what was searched              weights.safetensors    its folded weights
    samples.npz           test images, labels and the logits of eager PyTorch for them
    calibration.npz       validation images for int8     README.md              the model card
    targets/<target>/<precision>/...                     files of one runtime

Every open checks every file that the manifest names (:mod:`smash_export.bundle.integrity`); its fields are
described in :mod:`smash_export.bundle.manifest`.

A compiled folder joins in three steps: its entry is written to the manifest as ``pending``, the folder
takes its name, the entry moves to ``compiled``. A kill between them leaves a bundle that opens: while
an entry is pending, its folder may be absent, the old one, or the new one.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smash_base import files
from smash_base.errors import InvalidInputError, UsageError
from smash_base.json_values import in_words
from smash_base.preprocess import Preprocessing
from smash_export.bundle import integrity
from smash_export.bundle import manifest as layout
from smash_export.bundle.manifest import CompiledEntry, Manifest, Recommendation, plain
from smash_export.bundle.samples import Samples as Samples
from smash_export.bundle.samples import array_bytes, check_images, check_samples, read_arrays
from smash_targets.base import ModelSignature

if TYPE_CHECKING:
    from smash_search.space.architecture import Architecture


LISTED_CLASSES = 100  # in the table of the model card
RIGHT = "Right is an answer that is one of the image's classes, or none for an image of none"


@dataclass(frozen=True)
class CompiledFile:
    """One runtime file of a bundle.

    Attributes:
        target, precision: what it is for.
        folder: where it lies.
        main: the path that the target opens.
        size: bytes of all its files.
        notes: what the target said while compiling.
        evidence: what verification measured.
    """

    target: str
    precision: str
    folder: Path
    main: Path
    size: int
    notes: Mapping[str, Any]
    evidence: Mapping[str, Any]


class Bundle:
    """An opened bundle. Reading is safe from any thread; a writer waits for another one.

    Attributes:
        path: the directory.
        manifest: the checked manifest.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Open a bundle and check every file.

        Raises:
            InvalidInputError: not a bundle, a newer schema, an invalid manifest, or a file of it that is
                missing, changed or a link.
        """
        path = Path(path)
        if not path.is_dir():
            hint = "A bundle is made with: smash-export freeze --arch best.json"
            if path.suffix.lower() == ".onnx":
                hint = f"Make a bundle of it: smash-export adopt {shlex.quote(str(path))} --output BUNDLE"
            raise InvalidInputError(
                f"{path} is not a bundle",
                expected="a directory with a manifest.json",
                received="a file" if path.exists() else "nothing of that name",
                hint=hint,
            )
        return cls(path, integrity.read_checked(path))

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.manifest.labels

    @property
    def preprocessing(self) -> Preprocessing:
        """From image to input tensor."""
        return self.manifest.preprocessing

    @property
    def signature(self) -> ModelSignature:
        """Names and shapes of input and output."""
        return self.manifest.model_signature()

    @property
    def onnx(self) -> Path:
        """``model.onnx``, fp32."""
        return self.path / layout.ONNX

    @property
    def torchscript(self) -> Path | None:
        """``model.torchscript.pt``, if the bundle has one."""
        return self._optional(layout.TORCHSCRIPT)

    @functools.cached_property
    def architecture(self) -> Architecture | None:
        """What was searched; None for an adopted network."""
        path = self._optional(layout.ARCHITECTURE)
        if path is None:
            return None
        from smash_search.space.best import read_best

        return read_best(path).architecture

    def weights(self) -> dict[str, np.ndarray] | None:
        """The folded weights by name, if the bundle has them."""
        path = self._optional(layout.WEIGHTS)
        if path is None:
            return None
        from safetensors.numpy import load_file

        return load_file(path)

    def samples(self) -> Samples:
        """The bundled test images; see :class:`Samples`."""
        kinds = {"images": "u1", "labels": "i8", "logits": "f4"}
        arrays = read_arrays(self.path / layout.SAMPLES, kinds, {"targets": "u1"})
        samples = Samples(arrays["images"], arrays["labels"], arrays["logits"], arrays.get("targets"))
        check_samples(samples, self.preprocessing, self.signature.classes)
        return samples

    @property
    def doubt_below(self) -> float | None:
        """The top probability that all but a share of validation images reached; None where nobody measured.

        An image below it is perhaps of none of the classes (:mod:`smash_export.export.calibration`).
        """
        facts = self.manifest.provenance.get("calibration")
        threshold = facts.get("threshold") if isinstance(facts, Mapping) else None
        return threshold if isinstance(threshold, float) and 0 <= threshold <= 1 else None

    def calibration(self) -> np.ndarray:
        """Images for calibration, none of them a test image, uint8 [M, *sample_shape].

        Raises:
            UsageError: the bundle has none.
        """
        path = self._optional(layout.CALIBRATION)
        if path is None:
            raise UsageError(
                f"{self.path} holds no calibration images",
                hint="Make the bundle again with training data to calibrate int8 on.",
            )
        images = read_arrays(path, {"images": "u1"})["images"]
        check_images("calibration images", images, self.preprocessing)
        return images

    @property
    def compiled(self) -> list[CompiledFile]:
        """Every runtime file, in the order in which they were added."""
        return [self._compiled(entry) for entry in self.manifest.compiled]

    @property
    def recommendation(self) -> Recommendation | None:
        """Which compiled file to use when the user names none."""
        return self.manifest.recommendation

    def find_compiled(self, target: str, precision: str = "fp32") -> CompiledFile | None:
        """The file of that target and precision, or None."""
        for file in self.compiled:
            if (file.target, file.precision) == (target, precision):
                return file
        return None

    def staging(self, target: str, precision: str) -> Path:
        """A new empty folder in the bundle, on the same file system, which no reader looks into.

        What a process that was killed left of such folders is removed.
        """
        parent = self.path / "targets" / layout.safe_path(target)
        parent.mkdir(parents=True, exist_ok=True)
        files.remove_left(parent)
        folder = tempfile.mkdtemp(prefix=f"{files.TEMPORARY_PREFIX}{precision}-", dir=parent)
        files.set_mode(folder, 0o755)
        return Path(folder)

    def rejected_folder(self, target: str, precision: str) -> Path:
        """Where a file that failed verification is kept with its report."""
        return self.path / "targets" / target / f"{precision}{integrity.REJECTED}"

    def add_compiled(
        self,
        target: str,
        precision: str,
        folder: Path,
        main: str,
        notes: Mapping[str, Any],
        evidence: Mapping[str, Any],
    ) -> CompiledFile:
        """Move a verified folder to ``targets/<target>/<precision>/`` and list it.

        Replaces an earlier file of the same target and precision. The folder must lie on the file
        system of the bundle; :meth:`staging` gives one.

        Raises:
            InvalidInputError: the folder holds links or names that a bundle may not have.
            UsageError: another writer holds the bundle for longer than a minute.
        """
        entry = _entry(
            CompiledEntry,
            target=target,
            precision=precision,
            main=main,
            files=integrity.file_table(folder),
            notes=plain(dict(notes)),
            evidence=plain(dict(evidence)),
        )
        final = self.path / entry.folder
        with self._writing() as current:
            self._write(current.model_copy(update={"pending": entry}))
            final.parent.mkdir(parents=True, exist_ok=True)
            old = None
            if final.exists():
                old = Path(tempfile.mkdtemp(prefix=files.TEMPORARY_PREFIX, dir=final.parent)) / "old"
                os.rename(final, old)
            os.rename(folder, final)
            others = tuple(item for item in current.compiled if item.folder != entry.folder)
            self._write(current.model_copy(update={"pending": None, "compiled": (*others, entry)}))
            if old is not None:
                shutil.rmtree(old.parent, ignore_errors=True)
        return self._compiled(entry)

    def record(self, section: str, value: Any) -> None:
        """Write a result into the manifest: ``recommendation`` (target, precision, reason), or any
        other section, which lands in ``records`` and replaces what stood there.

        Raises:
            InvalidInputError: not a section name, or not JSON.
        """
        value = plain(value)
        with self._writing() as current:
            document = current.model_dump(mode="json", by_alias=True)
            if section == "recommendation":
                document["recommendation"] = value
            else:
                document["records"][section] = value
            self._write(layout.parse_manifest(document))

    def try_record(self, section: str, value: Any) -> str:
        """:meth:`record`, where the bundle may be written; else "", or why it was not recorded."""
        try:
            self.record(section, value)
        except (OSError, UsageError) as error:
            return f"{error.strerror if isinstance(error, OSError) else error}"
        return ""

    @property
    def unwritable(self) -> str:
        """Why nothing can be recorded here, "" if it can, as far as can be told without writing."""
        return "" if os.access(self.path, os.W_OK) else "the bundle may not be written"

    def unlisted(self) -> list[str]:
        """Files in the folder that the manifest does not name; see :mod:`smash_export.bundle.integrity`."""
        return integrity.unlisted(self.path, self.manifest)

    def _optional(self, name: str) -> Path | None:
        return self.path / name if name in self.manifest.files else None

    def _compiled(self, entry: CompiledEntry) -> CompiledFile:
        folder = self.path / entry.folder
        return CompiledFile(
            entry.target,
            entry.precision,
            folder,
            folder / entry.main,
            sum(item.size for item in entry.files.values()),
            entry.notes,
            entry.evidence,
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Manifest]:
        """Hold the lock and start from the manifest on the disk, not from the one read earlier."""
        deadline = time.monotonic() + integrity.LOCK_PATIENCE_S
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(files.exclusive(self.path, purpose="bundle"))
                    break
                except UsageError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
            current = layout.read_manifest(self.path / layout.NAME)
            if current.pending is not None:  # left by a kill: keep it if its folder got its name
                current = integrity.settled(self.path, current)
            yield current

    def _write(self, manifest: Manifest) -> None:
        layout.write_manifest(self.path / layout.NAME, manifest)
        self.manifest = manifest


def opened(bundle: Bundle | Path | str) -> Bundle:
    """The bundle itself, or the one at that path; see :meth:`Bundle.open`."""
    return bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)


def write_bundle(
    destination: Path | str,
    *,
    onnx: bytes,
    torchscript: bytes | None,
    architecture: Architecture | None,
    weights: Mapping[str, np.ndarray] | None,
    labels: tuple[str, ...] | list[str],
    preprocessing: Preprocessing,
    signature: ModelSignature,
    samples: Samples,
    calibration: np.ndarray | None,
    provenance: Mapping[str, Any],
    force: bool = False,
) -> Bundle:
    """Write a bundle; it appears whole or not at all.

    The same arguments give the same bytes, except for ``created`` in the manifest.

    Args:
        destination: the directory; must not exist unless ``force``.
        onnx, torchscript: content of the model files.
        architecture, weights: what was searched and its folded weights; None for adopted networks.
        samples: test images with the logits of eager PyTorch, which every later file is held against.
        calibration: uint8 images that are no test images, at least 300 if int8 files shall be made; best
            those that the network was not trained on.
        provenance: versions, seeds, data fingerprint, accuracy; JSON.
        force: replace what is there.

    Raises:
        UsageError: the destination exists.
        InvalidInputError: the parts do not fit each other.
    """
    destination = Path(destination)
    check_samples(samples, preprocessing, signature.classes)
    key = None if architecture is None else architecture.key
    parts: dict[str, bytes] = {layout.ONNX: onnx}
    if torchscript is not None:
        parts[layout.TORCHSCRIPT] = torchscript
    if architecture is not None:
        parts[layout.ARCHITECTURE] = _architecture_bytes(architecture, preprocessing, tuple(labels))
    if weights is not None:
        from safetensors.numpy import save

        parts[layout.WEIGHTS] = save({name: np.ascontiguousarray(weights[name]) for name in sorted(weights)})
    parts |= _image_parts(samples, calibration, preprocessing)
    parts[layout.CARD] = _card(labels, preprocessing, signature, key, plain(dict(provenance))).encode()

    with files.new_folder(destination, replace=force, mark=layout.NAME) as folder:
        for name, data in parts.items():
            files.write_bytes(folder / name, data)
        document = {
            "schema": layout.SCHEMA,
            "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "labels": list(labels),
            "preprocessing": preprocessing.to_json(),
            "signature": asdict(signature),
            "architecture": key,
            "provenance": plain(dict(provenance)),
            "files": {name: integrity.file_entry(folder / name).model_dump() for name in parts},
        }
        layout.write_manifest(folder / layout.NAME, layout.parse_manifest(document))
    return Bundle.open(destination)


def _image_parts(
    samples: Samples, calibration: np.ndarray | None, preprocessing: Preprocessing
) -> dict[str, bytes]:
    parts = {
        layout.SAMPLES: array_bytes(
            images=samples.images,
            labels=samples.labels.astype(np.int64),
            logits=samples.logits.astype(np.float32),
            **({} if samples.targets is None else {"targets": samples.targets.astype(np.uint8)}),
        )
    }
    if calibration is not None:
        check_images("calibration images", calibration, preprocessing)
        parts[layout.CALIBRATION] = array_bytes(images=calibration)
    return parts


def _entry(kind: type[CompiledEntry], **values: Any) -> CompiledEntry:
    from pydantic import ValidationError

    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise InvalidInputError(
            f"compiled file: {'.'.join(map(str, first['loc']))}",
            expected=first["msg"],
            received=first["input"],
        ) from None


def _architecture_bytes(
    architecture: Architecture, preprocessing: Preprocessing, labels: tuple[str, ...]
) -> bytes:
    """``architecture.json`` is a ``best.json``, so that it can be frozen again."""
    from smash_search.space.architecture import InputSpec
    from smash_search.space.best import BestFile

    spec = InputSpec(preprocessing.channels, tuple(preprocessing.sample_shape[:-1]))
    document = BestFile(architecture, spec, labels).to_json()
    return files.json_text(document).encode()


def _card(
    labels: tuple[str, ...] | list[str],
    preprocessing: Preprocessing,
    signature: ModelSignature,
    key: str | None,
    provenance: Mapping[str, Any],
) -> str:
    """The model card. Results that come later stand in the manifest, not here."""
    shape = " x ".join(map(str, preprocessing.sample_shape))
    shown = ", ".join(labels[:20]) + (f", ... ({len(labels)} in all)" if len(labels) > 20 else "")
    lines = [
        f"# Image classifier with {len(labels)} classes",
        "",
        f"- Classes, in the order of the logits: {shown}",
        f"- Takes: {shape} values 0 to 255 (height, width, channels last); {_resizing(preprocessing)}",
        f"- Then: value / 255, minus mean {list(preprocessing.mean)}, "
        f"divided by std {list(preprocessing.std)}"
        + (", channels in the order BGR" if preprocessing.order == "BGR" else ""),
        f"- Tensors: `{signature.input_name}` float32 [batch, {', '.join(map(str, signature.input_shape))}] "
        f"-> `{signature.output_name}` float32 [batch, {signature.classes}], {_ANSWERS[signature.outputs]}",
        f"- Architecture: {key or provenance.get('network') or 'adopted from outside'}",
        "",
        *_accuracy(provenance.get("accuracy")),
        "## Where it comes from",
        "",
        *(
            [f"- {name}: {_one_line(value)}" for name, value in sorted(provenance.items())]
            or ["- not recorded"]
        ),
        "",
        "## Use",
        "",
        "    smash-export predict . image.png      # labels",
        "    smash-export verify .                 # does every compiled file do what the network does?",
        "    smash-export inspect .                # what is here, with every measured result",
        "",
        "    from smash_export import load",
        '    print(load(".").predict("image.png"))',
        "",
        "The network knows its classes only: for any other picture it answers with these all the same, "
        "sometimes with a high probability. `manifest.json` holds the SHA-256 of every file and all "
        "measurements with the machine they come from. TorchScript files are executable code: open bundles "
        "from people you trust.",
        "",
    ]
    return "\n".join(lines)


def _accuracy(facts: Any) -> list[str]:
    """How good it was on test images, each class included (:meth:`Evaluation.facts`); nothing without."""
    if not isinstance(facts, Mapping) or not isinstance(facts.get("classes"), Mapping):
        return []
    low, high = facts["interval"]
    rows = [
        f"| {_cell(name)} | {row['images']} | {_percent(row['recall'])} | {_percent(row['precision'])} |"
        for name, row in itertools.islice(facts["classes"].items(), LISTED_CLASSES)
    ]
    more = len(facts["classes"]) - len(rows)
    return [
        "## Accuracy",
        "",
        f"{facts['top1']:.2%} of {facts['images']} {facts['split']} images (95 % interval {low:.2%} to "
        f"{high:.2%}); mean recall of the classes {facts['balanced']:.2%}, mean F1 {facts['macro_f1']:.2%}; "
        f"expected calibration error {facts['calibration_error']:.2%}."
        + (
            f" {RIGHT}; mean average precision {several:.2%}."
            if isinstance(several := facts.get("mean_average_precision"), float)
            else ""
        ),
        "",
        "| class | images | recall | precision |",
        "|---|---|---|---|",
        *rows,
        *([f"| {more} more | | | |"] if more > 0 else []),
        "",
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


_ANSWERS = {
    "logits": "before softmax",
    "probabilities": "probabilities, after softmax",
    "sigmoid": "each the probability of one class, whatever the others are",
}


def _resizing(preprocessing: Preprocessing) -> str:
    if preprocessing.short_side is None:
        return f"other image sizes are resized ({preprocessing.resize}, antialiased)"
    return (
        f"the shorter side of other images is resized to {preprocessing.short_side} "
        f"({preprocessing.resize}, antialiased) and the centre cut out"
    )


def _one_line(value: Any) -> str:
    text = " ".join(in_words(value).split())
    return text if len(text) <= 300 else text[:299] + "…"
