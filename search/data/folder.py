"""Image folders: ``PATH/CLASS/*.png``, or ``PATH/train/CLASS``, ``PATH/val/CLASS`` and ``PATH/test/CLASS``.

Every file goes through :meth:`Preprocessing.decode`, the same function that prediction uses, so that a
network never sees an image in training that it would not see in use. What is not used is counted and named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smash_base.errors import InvalidInputError
from smash_base.images import SUFFIXES, SYSTEM_FOLDERS, LeftOut, image_files, shown
from smash_search.data import cache, parts, several
from smash_search.data.dataset import Parts
from smash_search.data.files import OPTIONS, Listed, read_files
from smash_search.data.spec import Spec


def read(spec: Spec) -> Parts:
    """Read ``folder:PATH``.

    Options: those of :mod:`smash_search.data.files`; ``train``, ``validation`` and ``test``, the folders
        of the parts where their names do not say it; ``several=yes`` takes equal files in folders of several
        classes for one image of all of them (:mod:`smash_search.data.several`), and ``none`` names the
        folder of images of no class.
    """
    spec.options_known(*several.OPTIONS, *OPTIONS, *parts.OPTIONS)
    root = spec.folder(hint="Give the folder that holds one folder per class.")
    if not root.is_dir():
        raise InvalidInputError(f"data path {root}", expected="a folder of class folders", received="a file")
    left_out = LeftOut()
    places = parts.find_parts(spec, root, left_out)
    folders = {part: parts.class_folders(places, part, left_out) for part in places}
    classes = _classes(places["train"], folders["train"])
    listed = {part: _list(place, folders[part], classes, left_out) for part, place in places.items()}
    if spec.flag(several.OPTION, False):
        listed, classes = _together(spec, listed, classes)
    elif several.NONE in spec.options:
        raise several.alone(spec)
    return read_files(spec, listed, classes, root, left_out)


def _together(
    spec: Spec, listed: dict[str, Listed], classes: tuple[str, ...]
) -> tuple[dict[str, Listed], tuple[str, ...]]:
    """Equal files of a part as one image with several classes; and the classes, without the one for none."""
    paths: dict[str, list[Path]] = {}
    found: dict[str, np.ndarray] = {}
    for part, files in listed.items():
        rows = several.equal_files(files.sources)
        targets = np.zeros((len(rows), len(classes)), np.uint8)
        for row, places in zip(targets, rows, strict=True):
            row[files.labels[places]] = 1
        paths[part], found[part] = [files.sources[places[0]] for places in rows], targets
    found, classes = several.without_none(spec, found, classes)
    labels = several.labels_of(found)
    return {part: Listed(paths[part], labels[part], found[part]) for part in found}, classes


def _classes(place: Path, folders: Sequence[Path]) -> tuple[str, ...]:
    classes = tuple(parts.class_name(folder.name) for folder in folders)
    if len(classes) < 2:
        raise InvalidInputError(
            f"{place} holds {len(classes)} class folders",
            expected="at least 2 folders, each named after its class",
            received=", ".join(map(shown, classes)) or "none",
        )
    for name in classes:
        if shown(name) != name:
            raise InvalidInputError(
                f"{place} has a class folder whose name is not UTF-8",
                expected="names that can be written into manifests and answers",
                received=shown(name),
                hint="Rename the folder; convmv renames whole archives.",
            )
    return classes


def _list(place: Path, folders: Sequence[Path], classes: tuple[str, ...], left_out: LeftOut) -> Listed:
    """All images below the class folders, sorted, with their labels."""
    named = {parts.class_name(folder.name): folder for folder in folders}
    unknown = [name for name in named if name not in classes]
    if unknown:
        raise InvalidInputError(
            f"{place} has a class that training has not",
            expected=", ".join(classes),
            received=", ".join(map(shown, unknown)),
        )
    for item in sorted(place.iterdir()):
        if item.name in SYSTEM_FOLDERS:
            left_out.add("folders of the system", item)
        elif (not item.is_dir() or item.name.startswith(".")) and item.name != cache.FOLDER:
            left_out.add("files beside the class folders", item)
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if name not in named:
            continue
        here = LeftOut()
        found = [Path(path) for path in image_files(named[name], here)]
        if not found:
            raise InvalidInputError(
                f"class folder {named[name]} holds no image that can be read",
                expected=", ".join(SUFFIXES),
                received="; ".join(map(str, here.omissions())) or "an empty folder",
            )
        left_out.join(here)
        paths += found
        labels += [label] * len(found)
    return Listed(paths, np.array(labels, dtype=np.int64))
