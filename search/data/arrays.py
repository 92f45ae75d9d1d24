"""numpy arrays: one ``.npz``, or a folder of ``.npy`` files. MedMNIST's and Keras's layouts, and plain ones.

Labels are one class of each image, or 0 and 1 for every class (ChestMNIST): where each image is of exactly
one class that is one-hot (Keras's ``to_categorical``), else images may be of several classes, or of none.

Uncompressed arrays are memory-mapped. Pickled (object) arrays are refused. The size in an array's header
is compared with the file before anything is allocated.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from smash_base.errors import InvalidInputError, UsageError
from smash_base.images import LeftOut
from smash_search.data import maps, several
from smash_search.data.dataset import MAX_CLASSES, Parts, Split
from smash_search.data.spec import Spec

MAX_COMPRESSED = 2**33  # bytes of one compressed array, which has to be inflated into memory
LAYOUTS = ("nhw", "nhwc", "nchw", "ndhw", "ndhwc", "ncdhw")
# (images, labels) names by part, the first pair that is present counts.
NAMES = {
    "train": (
        ("train_images", "train_labels"),  # MedMNIST
        ("x_train", "y_train"),  # Keras
        ("X_train", "y_train"),
        ("images", "labels"),
        ("x", "y"),
        ("X", "y"),
        ("data", "labels"),
        ("features", "targets"),
    ),
    "validation": (
        ("val_images", "val_labels"),
        ("validation_images", "validation_labels"),
        ("valid_images", "valid_labels"),
        ("x_val", "y_val"),
        ("x_valid", "y_valid"),
        ("x_validation", "y_validation"),
        ("X_val", "y_val"),
    ),
    "test": (("test_images", "test_labels"), ("x_test", "y_test"), ("X_test", "y_test")),
}


def read(spec: Spec) -> Parts:
    """Read ``arrays:PATH``.

    Class names are the array ``classes``, else the numbers 0 to the largest training label. Options:
    ``layout``, order of the axes when it cannot be seen from the shape; ``several=yes`` where images may be
    of several classes although each is of one; ``none``, the class that stands for none of the others.
    """
    spec.options_known("layout", *several.OPTIONS)
    layout = spec.choice("layout", ("auto", *LAYOUTS), "auto")
    path = spec.folder(hint="Give a .npz file, or a folder with images.npy and labels.npy.")
    members = _members(path)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    used, left_out = {"classes"}, LeftOut()
    for part, pairs in NAMES.items():
        for images_name, labels_name in pairs:
            if images_name in members and labels_name in members:
                images = as_samples(read_member(path, images_name), layout, f"{path}: {images_name}")
                found[part] = images, as_classes(read_member(path, labels_name), f"{path}: {labels_name}")
                used |= {images_name, labels_name}
                break
    if "train" not in found:
        raise InvalidInputError(
            f"{path} has no training arrays",
            expected="train_images and train_labels, x_train and y_train, or images and labels",
            received=", ".join(sorted(members)) or "no arrays",
        )
    names = read_member(path, "classes") if "classes" in members else None
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise InvalidInputError(
            f"{path}: classes", expected="strings [K]", received=f"{names.dtype} {names.shape}"
        )
    for name in sorted(members - used):
        left_out.add("arrays of other names", f"{path}: {name}")
    parts = parts_of(spec, found, None if names is None else names.tolist())
    return replace(parts, left_out=left_out.omissions())


def as_samples(array: np.ndarray, layout: str, where: str) -> np.ndarray:
    """Any usual order of axes -> uint8 [N, H, W, C] or [N, D, H, W, C], a view where possible.

    Raises:
        InvalidInputError: not uint8 or bool, or an order that the shape does not show.
    """
    if array.dtype == np.bool_:
        array = array.view(np.uint8) * np.uint8(255)
    if array.dtype != np.uint8:
        raise InvalidInputError(
            f"{where}: type", expected="uint8 values 0 to 255", received=array.dtype,
            hint="Scale and convert once, for example (images * 255).round().astype('uint8').",
        )  # fmt: skip
    if layout == "auto":
        layout = _guess(array.shape, where)
    if array.ndim != len(layout):
        raise InvalidInputError(
            f"{where}: shape", expected=f"{len(layout)} axes, {layout}", received=array.shape
        )
    if "c" not in layout:
        return array[..., None]
    return np.moveaxis(array, layout.index("c"), -1)


def _guess(shape: tuple[int, ...], where: str) -> str:
    if len(shape) == 3:
        return "nhw"
    if len(shape) == 5:
        return "ncdhw" if shape[1] <= 4 < shape[-1] else "ndhwc"
    if len(shape) == 4 and shape[-1] <= 4:
        return "nhwc"
    if len(shape) == 4 and shape[1] in (1, 3):
        return "nchw"
    if len(shape) == 4 and shape[1] == shape[2] == shape[3]:
        return "ndhw"  # MedMNIST's volumes
    raise InvalidInputError(
        f"{where}: shape",
        expected="[N, H, W], [N, H, W, C] or [N, D, H, W, C]",
        received=shape,
        hint=f"If the axes are right, name them: add ?layout=, one of {', '.join(LAYOUTS)}.",
    )


def as_labels(array: np.ndarray, where: str) -> np.ndarray:
    """Whole numbers [N] or [N, 1] -> int64 [N]."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidInputError(
            f"{where}: labels", expected="whole numbers [N] or [N, 1], one label per image",
            received=f"{array.dtype} {array.shape}",
        )  # fmt: skip
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise InvalidInputError(f"{where}: labels", expected="small numbers", received=array.max())
    return array.astype(np.int64)


def as_classes(array: np.ndarray, where: str) -> np.ndarray:
    """Labels int64 [N] of whole numbers [N] or [N, 1]; targets uint8 [N, K] of 0 and 1 for every class."""
    if array.ndim != 2 or array.shape[1] == 1 or array.dtype.kind not in "biuf":
        return as_labels(array, where)
    wrong = np.argwhere((array != 0) & (array != 1))
    if len(wrong):
        raise InvalidInputError(
            f"{where}: labels of several columns",
            expected="0 or 1 for each class, [N, classes]",
            received=f"{array[tuple(wrong[0])]} for image {wrong[0][0]}",
        )
    return array.astype(np.uint8)


def parts_of(
    spec: Spec, found: Mapping[str, tuple[np.ndarray, np.ndarray]], names: Sequence[object] | None
) -> Parts:
    """What a reader found, of samples and :func:`as_classes` of each part.

    Args:
        names: Names of the classes, in their order; None for numbers.

    Raises:
        InvalidInputError: labels of one part are of another form than those of training, or the names are not
            as many as the classes.
        UsageError: the options ``several`` or ``none`` do not fit the labels.
    """
    where, (_, first) = f"training labels of {spec.text}", found["train"]
    for part, (_, others) in found.items():
        if others.shape[1:] != first.shape[1:]:
            raise InvalidInputError(
                f"{part} labels of {spec.text}",
                expected=f"{_form(first)}, as in training",
                received=_form(others),
            )
    if first.ndim == 2 and names is not None and len(names) != first.shape[1]:
        raise InvalidInputError(where, expected=f"{len(names)} columns, one a class", received=_form(first))
    if names is None:
        names = numbers_up_to(first, where) if first.ndim == 1 else range(first.shape[1])
    classes = tuple(map(str, names))
    if not _may_be_several(spec, found):
        splits = {
            part: Split(images, labels if labels.ndim == 1 else labels.argmax(1))
            for part, (images, labels) in found.items()
        }
    else:
        targets = {part: labels for part, (_, labels) in found.items()}
        targets, classes = several.without_none(spec, targets, classes)
        splits = {
            part: Split(found[part][0], labels, targets[part])
            for part, labels in several.labels_of(targets).items()
        }
    return Parts(classes, train=splits["train"], validation=splits.get("validation"), test=splits.get("test"))


def _may_be_several(spec: Spec, found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether images may be of several classes, or of none."""
    is_asked = spec.flag(several.OPTION, several.NONE in spec.options)
    rows = [labels.sum(1, dtype=np.int64) for _, labels in found.values() if labels.ndim == 2]
    if not rows:
        if is_asked:
            raise UsageError(
                f"options {several.OPTION} and {several.NONE} of data set {spec.text}",
                expected="labels of 0 and 1 for each class, [N, classes]",
                received="one number for each image",
            )
        return False
    other = sum(int((row != 1).sum()) for row in rows)
    if other and spec.options.get(several.OPTION) == "no":
        raise InvalidInputError(
            f"labels of {spec.text}",
            expected="exactly one 1 for each image",
            received=f"none or several for {other} images",
        )
    return is_asked or other > 0


def _form(labels: np.ndarray) -> str:
    return "one number for each image" if labels.ndim == 1 else f"{labels.shape[1]} columns of 0 and 1"


def numbers_up_to(labels: np.ndarray, where: str) -> tuple[str, ...]:
    """Class names "0" to the largest label, int64 [N].

    Raises:
        InvalidInputError: the numbers are none of classes; names for all of them would fill the memory.
    """
    largest = int(labels.max(initial=0))
    if largest >= MAX_CLASSES:
        raise InvalidInputError(where, expected=f"0 to {MAX_CLASSES - 1}", received=largest)
    return tuple(map(str, range(largest + 1)))


def _members(path: Path) -> set[str]:
    if path.is_dir():
        return {file.stem for file in path.glob("*.npy")}
    if path.suffix == ".npy":
        raise InvalidInputError(
            f"data path {path}", expected="an .npz file, or a folder with images.npy and labels.npy",
            received="one .npy file",
        )  # fmt: skip
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InvalidInputError(
            f"{path} is damaged or no npz file", expected="a whole .npz file", received=error
        ) from None


def read_member(path: Path, name: str) -> np.ndarray:
    """One array of an .npz file or of a folder of .npy files; mapped copy-on-write if uncompressed.

    Raises:
        InvalidInputError: missing, damaged, of Python objects, or larger than the file can hold.
    """
    where = f"{path}: {name}"
    try:
        if path.is_dir():
            return _map(path / f"{name}.npy", 0, (path / f"{name}.npy").stat().st_size, where)
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1:
                return _map(path, _data_start(path, member), member.file_size, where)
            if member.file_size > MAX_COMPRESSED:
                raise InvalidInputError(
                    f"{where} is too large to be compressed", expected=f"at most {MAX_COMPRESSED} bytes",
                    received=member.file_size, hint="Save it with numpy.savez, which can be mapped.",
                )  # fmt: skip
            with archive.open(member) as stream:
                shape, fortran, dtype = _header(stream, member.file_size, where)
                data = bytearray(stream.read())
            size = math.prod(shape) * dtype.itemsize
            if len(data) != size:
                raise InvalidInputError(f"{where} is truncated", expected=f"{size} bytes", received=len(data))
            return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    except KeyError:
        raise InvalidInputError(f"{path}", expected=f"an array {name!r}") from None
    except (
        zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, NotImplementedError,
        RuntimeError,
    ) as error:  # fmt: skip
        raise InvalidInputError(
            f"{where} is damaged", expected="an array as numpy.save writes it", received=error
        ) from None


def _map(path: Path, start: int, size: int, where: str) -> np.ndarray:
    with open(path, "rb") as stream:
        stream.seek(start)
        shape, fortran, dtype = _header(stream, size, where)
        offset = stream.tell()
        state = maps.state(os.fstat(stream.fileno()))
    if math.prod(shape) == 0:
        return np.empty(shape, dtype)
    if offset + math.prod(shape) * dtype.itemsize != start + size:
        raise InvalidInputError(
            f"{where} is truncated or too long", expected=f"{math.prod(shape) * dtype.itemsize} bytes",
            received=start + size - offset,
        )  # fmt: skip
    array: np.memmap = np.memmap(path, dtype, "c", offset, shape, order="F" if fortran else "C")
    maps.remember(array, path, state)
    return array


def _header(stream: object, size: int, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)  # type: ignore[arg-type]
    reader = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if reader is None:
        raise InvalidInputError(f"{where}: npy version", expected="1.0 or 2.0", received=version)
    shape, fortran, dtype = reader(stream)  # type: ignore[arg-type]
    if dtype.hasobject or dtype.kind not in "biufU":
        raise InvalidInputError(f"{where}: type", expected="plain numbers", received=dtype)
    if any(axis < 0 for axis in shape) or math.prod(shape) * dtype.itemsize > size:
        raise InvalidInputError(
            f"{where} does not hold what its header says", expected=f"shape {shape} {dtype}",
            received=f"{size} bytes",
        )  # fmt: skip
    return shape, fortran, dtype


def _data_start(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member begin: behind its local header, whose lengths are its own."""
    with open(path, "rb") as stream:
        stream.seek(member.header_offset)
        header = stream.read(30)
    lengths: tuple[int, int] = struct.unpack("<HH", header[26:30])  # of the name and the extra field
    return member.header_offset + 30 + sum(lengths)
