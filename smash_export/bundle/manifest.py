"""``manifest.json`` of a bundle, schema 1: what stands in it and which values are refused.

The manifest may come from anywhere, so every field is typed, bounded and closed to unknown keys, and
every path in it is checked before it touches the file system. Reading the files it names is the task
of :mod:`smash_export.bundle.bundle`.

Its last member is ``digest``, the SHA-256 of all others in the order and spelling in which they stand,
without the white space between them: any other byte that changes is noticed. Manifests without one are older.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    model_validator,
)

from smash_base import files
from smash_base.errors import InvalidInputError, SmashError
from smash_base.preprocess import Preprocessing, is_label
from smash_targets.base import ModelSignature

SCHEMA = 1
NAME = "manifest.json"

ONNX = "model.onnx"
TORCHSCRIPT = "model.torchscript.pt"
ARCHITECTURE = "architecture.json"
WEIGHTS = "weights.safetensors"
SAMPLES = "samples.npz"
CALIBRATION = "calibration.npz"
CARD = "README.md"
RECORDED = frozenset({"records", "recommendation", "digest"})  # members that change where a command records
REQUIRED = (ONNX, SAMPLES, CARD)
OPTIONAL = (TORCHSCRIPT, ARCHITECTURE, WEIGHTS, CALIBRATION)

MAX_CLASSES = 100_000
MAX_FILES = 10_000
MAX_FILE_BYTES = 2**36


def safe_path(text: str) -> str:
    """A relative path of plain components: no way out of the folder it is joined to.

    Raises:
        ValueError: absolute, empty, with "..", a hidden component, a backslash or a control character.
    """
    components = text.split("/")
    for part in components:
        if not part or part.startswith(".") or len(part) > 200:
            raise ValueError("not a plain relative path")
        if any(character in '\\:*?"<>|' or not character.isprintable() for character in part):
            raise ValueError("not a plain relative path")
    if len(components) > 8:
        raise ValueError("nested too deeply")
    return text


def _label(text: str) -> str:
    if not is_label(text):
        raise ValueError("a label is 1 to 200 printable characters")
    return text


SafePath = Annotated[str, Field(max_length=1000), AfterValidator(safe_path)]
SafeName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
Label = Annotated[str, AfterValidator(_label)]
Dimension = Annotated[int, Field(ge=1, le=2**20)]
TensorName = Annotated[str, Field(min_length=1, max_length=200)]
Section = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]


def _preprocessing(value: Any) -> Preprocessing:
    if isinstance(value, Preprocessing):
        return value
    try:
        return Preprocessing.from_json(value)
    except SmashError as error:
        raise ValueError(str(error)) from None


PreprocessingBlock = Annotated[
    Preprocessing, PlainValidator(_preprocessing), PlainSerializer(lambda value: value.to_json())
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class FileEntry(_Strict):
    """Size in bytes and SHA-256 of one file."""

    size: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


FileTable = Annotated[dict[SafePath, FileEntry], Field(max_length=MAX_FILES)]


class Signature(_Strict):
    """Names and shapes of input and output; see :class:`smash_targets.base.ModelSignature`."""

    input_name: TensorName
    output_name: TensorName
    input_shape: Annotated[tuple[Dimension, ...], Field(min_length=1, max_length=4)]
    classes: Annotated[int, Field(ge=1, le=MAX_CLASSES)]
    batch: tuple[Dimension, Dimension, Dimension]
    outputs: Literal["logits", "probabilities", "sigmoid"] = "logits"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise ValueError("batch must be smallest <= usual <= largest")
        return self


class CompiledEntry(_Strict):
    """One runtime file: a folder ``targets/<target>/<precision>/`` and what is known about it."""

    target: SafeName
    precision: Literal["fp32", "tf32", "bf16", "fp16", "int8"]
    main: SafePath
    files: FileTable
    notes: dict[str, JsonValue]
    evidence: dict[str, JsonValue]

    @property
    def folder(self) -> str:
        """Path of the folder in the bundle."""
        return f"targets/{self.target}/{self.precision}"

    @model_validator(mode="after")
    def _main_is_listed(self) -> Self:
        # Some runtimes store a folder (OpenVINO's blob cache, a .mlpackage): main may be one.
        if not any(name == self.main or name.startswith(self.main + "/") for name in self.files):
            raise ValueError("main is not among the files")
        _no_file_is_a_folder(self.files)
        return self


class Recommendation(_Strict):
    """Which compiled file to use when the user names none, written after measuring."""

    target: SafeName
    precision: Literal["fp32", "tf32", "bf16", "fp16", "int8"]
    reason: Annotated[str, Field(max_length=1000)]


class Manifest(_Strict):
    """The whole document.

    Attributes:
        schema_version: 1, the key is ``schema``.
        created: the only date in a bundle, ISO 8601 in UTC.
        labels: class names in the order of the logits.
        preprocessing: see :class:`smash_base.preprocess.Preprocessing`.
        signature: input and output.
        architecture: key (hash) of the architecture; None for adopted networks.
        provenance: versions, seeds, data fingerprint, accuracy: what the maker of the bundle knew.
        files: the source files.
        compiled: the runtime files.
        pending: the entry that is about to replace or join ``compiled``; see
        :mod:`smash_export.bundle.bundle`.
        recommendation: which compiled file to use.
        records: results by section, for example ``latency``, each with the machine it comes from.
        digest: see the head of this module; None in manifests of before 2026-12.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    schema_version: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)]
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    labels: Annotated[tuple[Label, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    preprocessing: PreprocessingBlock
    signature: Signature
    architecture: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    provenance: dict[str, JsonValue]
    files: FileTable
    compiled: Annotated[tuple[CompiledEntry, ...], Field(max_length=200)] = ()
    pending: CompiledEntry | None = None
    recommendation: Recommendation | None = None
    records: dict[Section, JsonValue] = Field(default_factory=dict)
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(self.labels) != self.signature.classes:
            raise ValueError(
                f"{len(self.labels)} labels for {self.signature.classes} classes: "
                "labels of the wrong count name the wrong things"
            )
        if self.preprocessing.input_shape != self.signature.input_shape:
            raise ValueError(
                f"preprocessing gives {self.preprocessing.input_shape}, "
                f"the signature takes {self.signature.input_shape}"
            )
        unknown = set(self.files) - set(REQUIRED) - set(OPTIONAL)
        missing = set(REQUIRED) - set(self.files)
        if unknown or missing:
            raise ValueError(f"files: unknown {sorted(unknown)}, missing {sorted(missing)}")
        if (self.architecture is None) != (ARCHITECTURE not in self.files):
            raise ValueError(f"architecture and {ARCHITECTURE} must both be there or both not")
        names = [entry.folder for entry in self.compiled]
        if len(set(names)) != len(names):
            raise ValueError("compiled holds one target and precision twice")
        if sum(len(entry.files) for entry in self.compiled) > MAX_FILES:
            raise ValueError(f"more than {MAX_FILES} compiled files")
        return self

    def model_signature(self) -> ModelSignature:
        """The signature as the targets take it."""
        block = self.signature
        return ModelSignature(
            block.input_name, block.output_name, block.input_shape, block.classes, block.batch, block.outputs
        )


def read_manifest(path: Path) -> Manifest:
    """Read and check ``manifest.json``.

    Raises:
        InvalidInputError: not JSON within the limits, another schema, an unknown, missing or wrong
            field (which is named), or another content than its digest says.
    """
    text = files.read_text(path, what="manifest")
    manifest = parse_manifest(files.parse_json(text, what=f"manifest {path}"), str(path))
    if manifest.digest is not None and manifest.digest != _digest(text):
        raise InvalidInputError(
            f"{path} was changed since it was written",
            expected=f"content with the SHA-256 {manifest.digest}",
            received=_digest(text),
            hint="Copy the bundle again, or make it again; a manifest is not meant to be edited.",
        )
    return manifest


def parse_manifest(value: Any, where: str = NAME) -> Manifest:
    """Check a document that was read as JSON already; see :func:`read_manifest`."""
    if not isinstance(value, dict):
        raise InvalidInputError(f"{where} is not an object", received=type(value).__name__)
    schema = value.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise InvalidInputError(
            f"{where} is from a newer version of smash-export",
            expected=f"schema {SCHEMA}",
            received=f"schema {schema}",
            hint="Update it: pip install --upgrade smash-export",
        )
    try:
        # Strict reading of Python values would refuse lists for tuples; of JSON text it does not.
        return Manifest.model_validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the document"
        raise InvalidInputError(
            f"{where}: {field[:200]}",
            expected=first["msg"].removeprefix("Value error, "),
            received=None if first["loc"] == () else repr(first["input"]),
            hint="A manifest is written by smash-export freeze and is not meant to be edited.",
        ) from None


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest atomically, with the digest of its content."""
    document = manifest.model_dump(mode="json", by_alias=True, exclude={"digest"})
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    digest = _digest(text)
    files.write_text(path, f'{text.removesuffix("}").rstrip()},\n  "digest": "{digest}"\n}}\n')


_TOKEN_OR_SPACE = re.compile(r'("(?:[^"\\]|\\.)*")|[ \t\r\n]+')
_LAST_MEMBER = re.compile(r',"digest":"[0-9a-f]{64}"\}$')


def _digest(text: str) -> str:
    """SHA-256 of a JSON text without white space between tokens and without its last member, the digest."""
    dense = _TOKEN_OR_SPACE.sub(lambda match: match[1] or "", text)
    return hashlib.sha256(_LAST_MEMBER.sub("}", dense).encode()).hexdigest()


def plain(value: Any) -> Any:
    """Turn numpy scalars, tuples and paths in a JSON value into what JSON has.

    Raises:
        InvalidInputError: something that JSON cannot hold, NaN and infinity included.
    """

    def convert(item: Any) -> Any:
        if hasattr(item, "tolist"):
            return item.tolist()
        if isinstance(item, Path):
            return str(item)
        raise TypeError(f"{type(item).__name__} is not JSON")

    try:
        return json.loads(json.dumps(value, default=convert, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidInputError("a value for the manifest", expected="JSON", received=error) from None


def _no_file_is_a_folder(table: dict[str, FileEntry]) -> None:
    names = set(table)
    for name in names:
        parts = name.split("/")
        if any("/".join(parts[:count]) in names for count in range(1, len(parts))):
            raise ValueError(f"{name[:100]} lies in a file")
