"""``best.json``: an architecture, what it is for, and how a search came to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from smash_base import files
from smash_base.errors import InvalidInputError
from smash_base.json_values import JsonObject
from smash_base.records import read_record
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.checks import check_list, check_object
from smash_search.space.cost import Cost

SCHEMA = 1
MAX_CLASSES = 100_000


@dataclass(frozen=True)
class SearchRecord:
    """How a search came to its pick; what is None is not in the file, as in one written by hand.

    Attributes:
        score: SMASH score (error with generated weights); networks of the random search beside have none.
        score_images: Validation images of the score.
        rank: Place among all scores, from 1.
        candidates: Number of networks that the search proposed.
        origin: Way in which the network was proposed.
        reason: Why the network was trained.
        error: Validation error after training.
        epochs: Epochs of that training.
        recipe: Values of the recipe that the finalists were trained by.
        cost: Exact cost of the network.
        strategy, space, seed: What was searched, and how.
        run: Name of the run's folder.
        data: Specification of the images, as ``smash-export datasets`` lists them.
        data_seed: Seed of their division into training and validation.
        fingerprint: SHA-256 of the images and their division.
        images_sha256: SHA-256 of the images and labels however they are divided.
        versions: Versions that the result may depend on, by name.
        measures: Measurements on the device, by name.
        limit_ms: Latency limit that the pick was held to.
        limit_used: Share of the limit that the pick uses.
        unused: Sentence that says why the pick leaves much of the limit unused.
        hurried: Sentence that says why a network that was ahead after equal epochs is not the pick, where the
            last training has a limit of time.
        limit: Label of the limit, where a search has several.
        random_search_error: Validation error of the random search beside.
    """

    score: float | None = None
    score_images: int | None = None
    rank: int | None = None
    candidates: int | None = None
    origin: str | None = None
    reason: str | None = None
    error: float | None = None
    epochs: int | None = None
    recipe: Mapping[str, object] | None = None
    cost: Cost | None = None
    strategy: str | None = None
    space: str | None = None
    seed: int | None = None
    run: str | None = None
    data: str | None = None
    data_seed: int | None = None
    fingerprint: str | None = None
    images_sha256: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)
    limit_ms: float | None = None
    limit_used: float | None = None
    unused: str | None = None
    hurried: str | None = None
    limit: str | None = None
    random_search_error: float | None = None

    def to_json(self) -> JsonObject:
        """The ``search`` block of best.json: what is known of it."""
        return {name: value for name, value in asdict(self).items() if value not in (None, {})}

    @classmethod
    def from_json(cls, value: object) -> SearchRecord:
        """Read a block; keys of other versions are ignored.

        Raises:
            InvalidInputError: a field of another type.
        """
        return read_record(cls, value, "best.json search")


@dataclass(frozen=True)
class BestFile:
    """Content of ``best.json``: an architecture, what it is for, and where it came from.

    Attributes:
        architecture: the network.
        input: channels and size of the images.
        classes: labels in the order of the logits.
        search: How a search came to it; empty in a file written by hand.
    """

    architecture: Architecture
    input: InputSpec
    classes: tuple[str, ...]
    search: SearchRecord = field(default_factory=SearchRecord)

    def __post_init__(self) -> None:
        if self.architecture.dims != self.input.dims:
            raise InvalidInputError(
                "architecture and input have different numbers of axes",
                expected=f"{self.architecture.dims}",
                received=self.input.dims,
            )
        if not 2 <= len(self.classes) <= MAX_CLASSES:
            raise InvalidInputError(
                "classes", expected=f"2 to {MAX_CLASSES} labels", received=len(self.classes)
            )
        for label in self.classes:
            if not isinstance(label, str) or not label or len(label) > 200:
                raise InvalidInputError("classes", expected="labels of 1 to 200 characters", received=label)
        if len(set(self.classes)) != len(self.classes):
            raise InvalidInputError("classes", expected="different labels", received=self.classes)

    def to_json(self) -> JsonObject:
        """The document as :func:`read_best` takes it."""
        document: JsonObject = {
            "schema": SCHEMA,
            "architecture": self.architecture.to_json(),
            "input": self.input.to_json(),
            "classes": list(self.classes),
        }
        if search := self.search.to_json():
            document["search"] = search
        return document

    @classmethod
    def from_json(cls, value: object) -> BestFile:
        """Check and read a document; raises InvalidInputError naming the field."""
        if isinstance(value, Mapping) and value.get("schema") != SCHEMA:
            raise InvalidInputError(
                "best.json schema",
                expected=SCHEMA,
                received=value.get("schema", "none"),
                hint="A newer schema needs a newer smash-export.",
            )
        top = check_object("best.json", value, {"schema", "architecture", "input", "classes"}, {"search"})
        if isinstance(top["schema"], bool) or not isinstance(top["schema"], int):
            raise InvalidInputError("best.json schema", expected=SCHEMA, received=top["schema"])
        return cls(
            Architecture.from_json(top["architecture"]),
            InputSpec.from_json(top["input"]),
            tuple(check_list("classes", top["classes"], MAX_CLASSES)),
            SearchRecord.from_json(top.get("search", {})),
        )


_ADOPT = "To make a bundle of an ONNX or TorchScript file: smash-export adopt."
OTHERS = {
    ".onnx": _ADOPT,
    ".pt": _ADOPT,
    ".pt2": _ADOPT,
    ".py": "Name a function of it: module:function.",
    **dict.fromkeys((".png", ".npz", ".safetensors"), "smash-export inspect says what a file holds."),
}
"""What to do with a file that is often given in place of an architecture, by its ending."""


def read_best(path: Path | str) -> BestFile:
    """Read ``best.json``; raises InvalidInputError naming the file and the field."""
    path = Path(path)
    if path.is_dir() or path.suffix in OTHERS:
        inside = [path / name for name in ("best.json", "architecture.json") if (path / name).is_file()]
        raise InvalidInputError(
            f"{path} is {'a folder' if path.is_dir() else 'no architecture file'}",
            expected="an architecture file: best.json of a search, or architecture.json of a bundle",
            hint=f"Pass {inside[0]}." if inside else OTHERS.get(path.suffix),
        )
    value = files.read_json(path, what="architecture file")
    try:
        return BestFile.from_json(value)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"{path}: {error.what}",
            expected=error.expected,
            received=error.received,
            hint=error.hint,
        ) from None


def write_best(path: Path | str, best: BestFile) -> None:
    """Write ``best.json`` atomically."""
    files.write_json(path, best.to_json())
