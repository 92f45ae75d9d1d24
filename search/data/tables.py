"""Parquet and Arrow files in the layout of Hugging Face's ``datasets``: from the Hub, or of ``save_to_disk``.

An image is a struct of its file's bytes and its path; a label is a whole number, whose names stand in the
metadata of the file or in ``dataset_info.json``, or a text; a list of either where classes do not exclude
each other. Only local files are read; batches of rows at a
time.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smash_base import files as base_files
from smash_base.errors import InvalidInputError
from smash_base.images import LeftOut, shown
from smash_search.data import files, parts, several
from smash_search.data.dataset import Parts
from smash_search.data.shards import are_labelled, column, find_shards, numbered
from smash_search.data.spec import Spec, with_option

if TYPE_CHECKING:
    import pyarrow

BATCH = 64  # rows of images in memory
SUFFIXES = {"parquet": (".parquet",), "arrow": (".arrow",)}
IMAGES = ("image", "img", "images", "picture", "photo", "jpg", "png", "jpeg", "pixel_values")
SPLITS = ("split",)
LABELS = ("label", "labels", "fine_label", "class", "target", "category", "cls", "y")


def read(spec: Spec) -> Parts:
    """Read ``parquet:PATH`` or ``arrow:PATH``, a file or a folder of files.

    Options: ``image``, ``label`` and ``split``, columns, of which the last names the part of each row where
        all rows are in files of one; ``several``, what stands between the classes of a text
        (:mod:`smash_search.data.several`; a list needs no option), and ``none``, the word for no class;
        ``train``, ``validation`` and ``test``, beginnings of file names or folders; and those of
        :mod:`smash_search.data.files`.
    """
    spec.options_known("image", "label", "split", *several.OPTIONS, *parts.OPTIONS, *files.OPTIONS)
    path = spec.folder(hint="Give a file, or the folder that holds them.")
    left_out = LeftOut()
    found = find_shards(spec, path, SUFFIXES[spec.name], left_out)
    columns = _columns(spec, found["train"][0])
    tables = {part: _Table(tuple(shards), columns) for part, shards in found.items()}
    rows = _rows_of_parts(spec, path, tables)
    if rows:
        tables = {part: _Table(tables["train"].sources, columns) for part in rows}
    values: dict[str, list[object]] = {}
    mark = several.mark_of(spec)
    for part, table in tables.items():
        every = [several.parted(value, mark) for batch in table.batches(columns.label) for value in batch]
        chosen = rows.get(part, np.ones(len(every), bool))
        read_labels = list(itertools.compress(every, chosen))
        labelled = np.array(are_labelled(spec, read_labels), dtype=bool)
        values[part] = list(itertools.compress(read_labels, labelled))
        table.labelled = chosen.copy()
        table.labelled[chosen] = labelled
        for _ in range(int((~labelled).sum())):
            left_out.add("rows without a label", part)
    values = {part: given for part, given in values.items() if given or part == "train"}
    labels = numbered(spec, values, columns.classes)
    for part in values:
        tables[part].labels = labels.labels[part]
        tables[part].targets = labels.targets.get(part)
    root = path if path.is_dir() else path.parent
    return files.read_files(spec, {part: tables[part] for part in values}, labels.classes, root, left_out)


def _rows_of_parts(spec: Spec, path: Path, tables: Mapping[str, _Table]) -> dict[str, np.ndarray]:
    """Rows of each part, bool [N], where a column tells it; empty where files do, or no column does.

    Raises:
        InvalidInputError: the column holds other words, or no row for training.
    """
    train = tables["train"]
    split = train.columns.split
    if split is None or (set(tables) != {"train"} and "split" not in spec.options):
        return {}
    words = [str(value) for batch in train.batches(split) for value in batch]
    told = np.array([parts.part_of(word) or word for word in words])
    if set(told) - set(parts.OPTIONS) or "train" not in told:
        raise InvalidInputError(
            f"{path}: column {split}",
            expected=f"{', '.join(parts.OPTIONS)} in each row, and rows for training",
            received=", ".join(sorted(set(words))[:5]),
            hint=f"If it says something else: {with_option(spec.text, 'split', 'no')}, or the column's name",
        )
    return {part: told == part for part in parts.OPTIONS if part in told}


@dataclass(frozen=True)
class _Columns:
    """Names of the columns, and of the classes where the file tells them."""

    image: str
    label: str
    classes: tuple[str, ...] | None
    split: str | None


@dataclass
class _Table:
    """Rows of one part; see :class:`smash_search.data.files.EncodedImages`."""

    sources: Sequence[Path]
    columns: _Columns
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    targets: np.ndarray | None = None
    labelled: np.ndarray = field(default_factory=lambda: np.empty(0, bool))

    @property
    def selection(self) -> bytes:
        """The column of images, and which rows have a label."""
        return self.columns.image.encode() + b"\0" + np.packbits(self.labelled).tobytes()

    def batches(self, name: str) -> Iterator[list[Any]]:
        """Values of one column, batch by batch."""
        for path in self.sources:
            with _named_errors(path):
                for batch in _batches(path, name):
                    yield batch.column(0).to_pylist()

    def __iter__(self) -> Iterator[tuple[str, Path | bytes]]:
        row = 0
        for path in self.sources:
            with _named_errors(path):
                first = row
                for batch in _batches(path, self.columns.image):
                    for value in batch.column(0).to_pylist():
                        if self.labelled[row]:
                            yield _image(value, path, row - first)
                        row += 1


def _image(value: Any, path: Path, row: int) -> tuple[str, Path | bytes]:
    """Name and content of an image; its file where the table holds only a path inside its folder."""
    name = f"{shown(path)}, row {row}"
    if isinstance(value, bytes):
        return name, value
    value = {"path": value} if isinstance(value, str) else value
    value = value if isinstance(value, dict) else {}
    content, relative = value.get("bytes"), value.get("path")
    if content is not None and not isinstance(content, bytes):
        raise InvalidInputError(
            f"{name}: bytes of the image", expected="bytes", received=type(content).__name__
        )
    if content is not None:
        return f"{name} ({relative})" if relative else name, content
    file = path.parent / str(relative)
    if relative and file.resolve().is_relative_to(path.parent.resolve()):
        return f"{name} ({relative})", file
    return name, b""  # an empty image: said with its name


def _is_parquet(path: Path) -> bool:
    """Whether a file, whatever it is called, begins as Parquet does."""
    with open(path, "rb") as stream:
        return stream.read(4) == b"PAR1"


def _batches(path: Path, name: str) -> Iterator[pyarrow.RecordBatch]:
    if _is_parquet(path):
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH, columns=[name])
        return
    with _opened(path) as reader:
        for batch in reader:
            rows = batch.select([name])
            for start in range(0, rows.num_rows, BATCH):
                yield rows.slice(start, BATCH)


class _opened:
    """An Arrow file of either kind, mapped: ``save_to_disk`` writes streams, others write files."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        self._map = pyarrow.memory_map(str(path))

    def __enter__(self) -> Iterator[pyarrow.RecordBatch]:
        import pyarrow

        try:
            reader = pyarrow.ipc.open_file(self._map)
        except pyarrow.ArrowInvalid:
            self._map.seek(0)
            return iter(pyarrow.ipc.open_stream(self._map))
        return (reader.get_batch(index) for index in range(reader.num_record_batches))

    def __exit__(self, *_: object) -> None:
        self._map.close()


def _schema(path: Path) -> pyarrow.Schema:
    import pyarrow

    with _named_errors(path):
        if _is_parquet(path):
            import pyarrow.parquet

            return pyarrow.parquet.read_schema(path)
        with pyarrow.memory_map(str(path)) as mapped:
            try:
                return pyarrow.ipc.open_file(mapped).schema
            except pyarrow.ArrowInvalid:
                mapped.seek(0)
                return pyarrow.ipc.open_stream(mapped).schema


def _columns(spec: Spec, path: Path) -> _Columns:
    schema = _schema(path)
    image = column(spec, "image", schema.names, IMAGES) or ""
    label = column(spec, "label", schema.names, LABELS) or ""
    features = _features(schema, path.parent)
    feature = _member(features.get(label))
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, dict):  # as YAML of the Hub has them: {"0": "cat", ...}
        names = [names[key] for key in sorted(names, key=int)]
    split = column(spec, "split", schema.names, SPLITS, needed=False)
    return _Columns(image, label, tuple(map(str, names)) if isinstance(names, list) else None, split)


def _member(feature: Any) -> Any:
    """What a list is of, ``Sequence`` or ``List`` of ``datasets`` or a list of one; anything else itself."""
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    return feature.get("feature", feature) if isinstance(feature, dict) else feature


def _features(schema: pyarrow.Schema, folder: Path) -> dict[str, Any]:
    """What ``datasets`` says about the columns; empty where another program wrote the file."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        if text is not None:
            features = json.loads(text)["info"]["features"]
        elif (folder / "dataset_info.json").is_file():
            features = base_files.read_json(folder / "dataset_info.json", what="data set")["features"]
        else:
            return {}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInputError(f"{folder}: metadata of the columns", received=error) from None
    return features if isinstance(features, dict) else {}


class _named_errors:
    """pyarrow's errors as one of ours that names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        import pyarrow  # noqa: F401 - whoever lacks it hears of the extra here

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        import pyarrow

        if isinstance(error, pyarrow.ArrowException | OSError | KeyError):
            raise InvalidInputError(
                f"{self._path} is damaged or of another format", expected="a whole file", received=error
            ) from None
