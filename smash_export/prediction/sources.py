"""From what a user names (a file, a folder, a pattern, arrays, a generator) to single images, lazily."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from smash_base.errors import InvalidInputError
from smash_base.images import MAX_FILE_BYTES, SUFFIXES, LeftOut, image_files
from smash_base.preprocess import Preprocessing

Channels = Literal["rgb", "bgr"]
_BGR = {3: [2, 1, 0], 4: [2, 1, 0, 3]}


@dataclass(frozen=True)
class Source:
    """One image that was not read yet.

    Attributes:
        name: its path, or "image 7" for the eighth of a sequence of arrays.
        image: what :meth:`Preprocessing.decode` takes, or an open file (:func:`read_stream`).
    """

    name: str
    image: Any


def is_single(images: Any, preprocessing: Preprocessing) -> bool:
    """Whether ``images`` is one image (and not a folder, a pattern, a batch or an iterable)."""
    if isinstance(images, np.ndarray):
        return _is_one_array(images, preprocessing)
    if isinstance(images, str | os.PathLike):
        path = os.fspath(images)
        return not os.path.isdir(path) and not _is_pattern(path)
    return isinstance(images, bytes | bytearray | Image.Image) or is_stream(images)


def is_stream(image: Any) -> bool:
    """Whether it is an open file, BytesIO or the like: not lines of text, as iterating over it would give."""
    return callable(getattr(image, "read", None))


def read_stream(stream: Any, name: str) -> bytes:
    """The whole content from its beginning, where it has one to go back to, as Pillow reads it.

    Raises:
        InvalidInputError: text, a closed file, or one that cannot be read.
    """
    try:
        if getattr(stream, "seekable", lambda: False)():
            stream.seek(0)
        data = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: closed; and text that is not UTF-8
        raise InvalidInputError(f"{name} cannot be read", expected="an open file", received=error) from None
    if not isinstance(data, bytes | bytearray):
        raise InvalidInputError(
            f"{name} gives text",
            expected="bytes",
            received=type(data).__name__,
            hint='Open it with mode "rb".',
        )
    return bytes(data)


def plain_arrays(images: Any, preprocessing: Preprocessing) -> Any:
    """A torch tensor as a uint8 array, channels last; anything else as it is. Needs no torch.

    Tensors are channels first, as torchvision's readers give them: [C, H, W], [N, C, H, W]; [H, W] is grey.

    Raises:
        InvalidInputError: a tensor that is not uint8, or has its channels elsewhere.
    """
    if not (
        type(images).__module__.partition(".")[0] == "torch" and callable(getattr(images, "numpy", None))
    ):
        return images
    array: np.ndarray = images.detach().cpu().numpy()
    place = array.ndim - len(preprocessing.sample_shape)  # where the channels are: behind the batch
    known = place not in (0, 1) or array.shape[place] in (1, 3, preprocessing.channels)
    if array.dtype != np.uint8 or not known:
        raise InvalidInputError(
            "a torch tensor is not an image",
            expected="uint8, channels first: [C, H, W] or [N, C, H, W]",
            received=f"{array.dtype} {list(array.shape)}",
            hint="For tensors that are normalised already use Classifier.logits(tensor.numpy()).",
        )
    return np.moveaxis(array, place, -1) if place in (0, 1) else array


def sources(
    images: Any,
    preprocessing: Preprocessing,
    left_out: LeftOut | None = None,
    channels: Channels = "rgb",
) -> Iterator[Source]:
    """Every image in ``images``, in order, nothing read or decoded yet.

    A folder gives its image files (by suffix, recursively, sorted), a pattern (``*``, ``?``, ``[]``) the
    files that match it, sorted; sequences and generators may mix everything.

    Args:
        left_out: collects what of the folders is no image file or cannot be read.
        channels: "bgr" for arrays whose last axis is blue, green, red (and opacity).

    Raises:
        InvalidInputError: a folder or pattern without images, or something that is no image at all.
    """
    if channels not in ("rgb", "bgr"):
        raise InvalidInputError("channels", expected='"rgb" or "bgr"', received=channels)
    images = plain_arrays(images, preprocessing)
    if isinstance(images, np.ndarray) and not _is_one_array(images, preprocessing):
        images = _rows(images, preprocessing)
    elif is_single(images, preprocessing) or isinstance(images, str | os.PathLike):
        images = (images,)
    if not isinstance(images, Iterable):
        raise InvalidInputError(
            "this is not an image",
            expected="a path, bytes, an open file, a PIL image, a uint8 array, or an iterable of these",
            received=type(images).__name__,
        )
    for index, image in enumerate(images):
        if isinstance(image, str | os.PathLike):
            yield from _files(os.fspath(image), left_out or LeftOut())
        else:
            name = getattr(image, "name", None) if is_stream(image) else None
            name = name if isinstance(name, str) else f"image {index}"
            image = plain_arrays(image, preprocessing)
            if channels == "bgr" and isinstance(image, np.ndarray) and image.ndim > 2:
                order = _BGR.get(image.shape[-1])
                image = image if order is None else image[..., order]
            yield Source(name, bytes(image) if isinstance(image, bytearray) else image)


def _files(path: str, left_out: LeftOut) -> Iterator[Source]:
    if os.path.isdir(path):
        found = image_files(path, left_out)
    elif _is_pattern(path):
        found = (name for name in sorted(glob.glob(path, recursive=True)) if os.path.isfile(name))
    else:
        yield Source(path, path)
        return
    first = next(found, None)
    if first is None:
        raise InvalidInputError(
            f"{path} holds no images",
            expected=f"files that end with {', '.join(SUFFIXES)}",
            received="; ".join(map(str, left_out.omissions())) or None,
        )
    yield Source(first, first)
    for name in found:
        yield Source(name, name)


def _is_pattern(path: str) -> bool:
    return glob.has_magic(path) and not os.path.lexists(path)


def _is_one_array(array: np.ndarray, preprocessing: Preprocessing) -> bool:
    shape = preprocessing.sample_shape
    if array.shape == shape:
        return True
    if array.ndim == len(shape) and array.shape[1:] == shape[:-1] and preprocessing.channels == 1:
        return array.ndim != 3 or array.shape[2] in (1, 3, 4)  # [N, H, W] of grey images is a batch
    return array.ndim <= len(shape)


def _rows(array: np.ndarray, preprocessing: Preprocessing) -> Iterator[np.ndarray]:
    if array.ndim > len(preprocessing.sample_shape) + 1:
        raise InvalidInputError(
            "an array of images has too many axes",
            expected=f"uint8 [N, {', '.join(map(str, preprocessing.sample_shape))}]",
            received=list(array.shape),
        )
    return iter(array)


def file_name(source: Source, taken: set[str]) -> Path:
    """A PNG file name for an annotated copy, different from those in ``taken``, which it joins."""
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(source.name).stem)[:100] or "image"
    name, count = f"{stem}.png", 1
    while name in taken:
        count += 1
        name = f"{stem}-{count}.png"
    taken.add(name)
    return Path(name)
