"""Labelled images, one reader per format, found by ``--data NAME[:PATH][?option=value]``.

``READERS`` is the registry: a new format is one file with ``read(spec) -> Parts`` and one line here.
Everything that formats have in common (checks, splits, normalisation, fingerprint) is in
:mod:`smash_search.data.dataset`. Readers need no torch; :mod:`smash_search.data.augment` does.
"""

from __future__ import annotations

import difflib
import importlib
import shlex
from dataclasses import dataclass
from pathlib import Path

from smash_base.errors import InvalidInputError, UsageError
from smash_base.preprocess import Preprocessing
from smash_search.data import function
from smash_search.data.dataset import Dataset, Parts, Split, assemble, average_views
from smash_search.data.spec import Spec, parse_spec, with_option
from smash_search.data.summary import DatasetSummary, summarise

__all__ = [
    "Dataset",
    "DatasetSummary",
    "Parts",
    "Split",
    "as_seen_by",
    "average_views",
    "dataset_names",
    "describe",
    "folder_name",
    "load_dataset",
    "summarise",
    "with_option",
]


@dataclass(frozen=True)
class Reader:
    """One line of the registry.

    Attributes:
        module: holds ``read(spec) -> Parts``; imported when used.
        usage: the shortest specification.
        summary: one line for ``smash-export datasets``.
        image_files: whether it decodes image files, with the options of :mod:`smash_search.data.files`.
    """

    module: str
    usage: str
    summary: str
    image_files: bool = False


READER_OF_SUFFIX = {
    ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset", ".npz": "arrays",
}  # fmt: skip
READERS: dict[str, Reader] = {
    "digits": Reader("smash_search.data.digits", "digits", "1,797 handwritten digits, 8x8, built in"),
    "fashion-mnist": Reader(
        "smash_search.data.idx",
        "fashion-mnist[:FOLDER]",
        "70,000 garments, 28x28 grey; the folder of Debian's dataset-fashion-mnist is found by itself",
    ),
    "mnist": Reader("smash_search.data.idx", "mnist:FOLDER", "70,000 handwritten digits, 28x28, IDX files"),
    "idx": Reader(
        "smash_search.data.idx",
        "idx:FOLDER[?set=NAME]",
        "any IDX files: KMNIST, EMNIST (?set=letters), your own",
    ),
    "cifar10": Reader(
        "smash_search.data.cifar",
        "cifar10:PATH",
        "60,000 colour images, 32x32, 10 classes; folder or .tar.gz",
    ),
    "cifar100": Reader(
        "smash_search.data.cifar",
        "cifar100:PATH[?labels=coarse]",
        "60,000 colour images, 32x32, 100 or 20 classes; folder or .tar.gz",
    ),
    "stl10": Reader(
        "smash_search.data.stl10",
        "stl10:FOLDER[?fold=0]",
        "13,000 colour images, 96x96, 10 classes, 10 folds",
    ),
    "imagenet32": Reader(
        "smash_search.data.imagenet32", "imagenet32:FOLDER", "1.3 million colour images, 32x32, memory-mapped"
    ),
    "modelnet10": Reader(
        "smash_search.data.modelnet",
        "modelnet10:FOLDER[?rotations=24]",
        "4,899 objects as 32x32x32 volumes, 10 classes; OFF meshes or npz",
    ),
    "modelnet40": Reader(
        "smash_search.data.modelnet",
        "modelnet40:FOLDER[?rotations=24]",
        "12,311 objects as 32x32x32 volumes, 40 classes; OFF meshes or npz",
    ),
    "folder": Reader(
        "smash_search.data.folder",
        "folder:PATH[?size=32&channels=3]",
        "your images, one folder per class",
        True,
    ),
    "csv": Reader(
        "smash_search.data.table_of_paths",
        "csv:FILE[?image=COLUMN&label=COLUMN&split=COLUMN&several=semicolon]",
        "a table of paths and labels",
        True,
    ),
    "parquet": Reader(
        "smash_search.data.tables",
        "parquet:PATH",
        "Parquet files in the layout of Hugging Face, extra data",
        True,
    ),
    "arrow": Reader(
        "smash_search.data.tables",
        "arrow:PATH",
        "Arrow files of Hugging Face's save_to_disk, extra data",
        True,
    ),
    "webdataset": Reader(
        "smash_search.data.webdataset", "webdataset:PATH", "tar archives of images and labels", True
    ),
    "arrays": Reader(
        "smash_search.data.arrays",
        "arrays:PATH[?layout=nchw]",
        "an .npz file or a folder of .npy files; MedMNIST and Keras layouts",
    ),
}


def dataset_names() -> list[str]:
    """The registered names."""
    return list(READERS)


def describe() -> list[dict[str, str]]:
    """Name, usage and summary of every registered data set, for people."""
    return [
        {"name": name, "usage": reader.usage, "summary": reader.summary} for name, reader in READERS.items()
    ]


def as_seen_by(preprocessing: Preprocessing, spec: str) -> str:
    """The specification for image files decoded as a network of that preprocessing takes them: its size, the
    centre cut out or not, EXIF heeded or not. What ``spec`` says itself stays, and so does the specification
    of data that are no image files."""
    reader = READERS.get(parse_spec(spec).name)
    if not (reader and reader.image_files) or preprocessing.depth or preprocessing.channels not in (1, 3):
        return spec
    wishes = {
        "size": f"{preprocessing.height}x{preprocessing.width}",
        "channels": str(preprocessing.channels),
        "resize": preprocessing.resize,
        "exif": "yes" if preprocessing.exif else "no",
    }
    if preprocessing.short_side is not None:
        wishes["short-side"] = str(preprocessing.short_side)
    for option, value in wishes.items():
        spec = with_option(spec, option, value)
    return spec


def folder_name(dataset: Dataset) -> str:
    """The name of what a data set's results are kept under: ``photos`` of ``folder:holiday/photos``, since
    "folder" would be that of everybody's data; of others their own name. Letters, digits, ``-`` and ``_``.
    """
    kind, _, place = dataset.spec.partition("?")[0].partition(":")
    reader, name = READERS.get(kind), dataset.name
    if place and reader is not None and (reader.image_files or kind == "arrays"):
        path = Path(place).expanduser().resolve()
        name = (path.stem if path.is_file() else path.name) or name
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)


def _meant(parsed: Spec) -> str | None:
    """What a specification with an unknown name may have meant: a path without a name, or a slip."""
    path = Path(parsed.name).expanduser()
    reader = "folder" if path.is_dir() else READER_OF_SUFFIX.get(path.suffix.lower())
    if reader and path.exists():
        return f"Did you mean {shlex.quote(f'{reader}:{parsed.text}')}?"
    close = difflib.get_close_matches(parsed.name, READERS, n=1)
    return f"Did you mean {close[0]}?" if close else None


def load_dataset(
    spec: str,
    *,
    seed: int = 0,
    validation: float | None = None,
    allow_code: bool = True,
    whole: bool = False,
) -> Dataset:
    """Read a data set and split it.

    Args:
        spec: ``NAME``, ``NAME:PATH`` or ``package.module:function``, each with ``?option=value&...``.
        seed: Random seed of the splits that the data do not have themselves.
        validation: share of the training images kept for validation; None means the data's own
            validation part, or 10 %.
        allow_code: whether ``package.module:function`` may be imported and called. Pass False when the
            specification comes from a file rather than from the user.
        whole: leave all images in ``train``, those of parts that came with the data too: for judging alone,
            also of so few that they cannot be split.

    Raises:
        UsageError: an unknown name or option.
        InvalidInputError: missing, damaged, mislabelled or unsafe files.
    """
    parsed = parse_spec(spec)
    reader = READERS.get(parsed.name)
    if reader is None and function.names_function(parsed):
        if not allow_code:
            raise InvalidInputError(
                f"the data set {spec} is code, and was named by a file",
                expected="a registered name",
                hint="If you trust it, name it on the command line with --data.",
            )
        return assemble(
            function.read(parsed),
            name=f"{parsed.name}:{parsed.path}",
            spec=spec,
            seed=seed,
            validation=validation,
            whole=whole,
        )
    if reader is None:
        raise UsageError(
            f"there is no data set {parsed.name!r}",
            expected=", ".join(READERS),
            received=spec,
            hint=_meant(parsed),
        )
    parts = importlib.import_module(reader.module).read(parsed)
    return assemble(parts, name=parsed.name, spec=spec, seed=seed, validation=validation, whole=whole)
