"""The images that travel in a bundle, and the npz files they are stored in.

The bytes of a file are a function of its arrays, and reading allocates nothing larger than the file.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smash_base.errors import InvalidInputError
from smash_base.preprocess import Preprocessing


@dataclass(frozen=True)
class Samples:
    """Real test images with what eager PyTorch says about them.

    Attributes:
        images: uint8 [N, *sample_shape].
        labels: int64 [N], K for an image of no class.
        logits: float32 [N, K].
        targets: uint8 [N, K], 1 where a class is there, of classes that do not exclude each other; None for
            others, and in bundles of early versions.
    """

    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    targets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)


def array_bytes(**arrays: np.ndarray) -> bytes:
    """An uncompressed npz; numpy stamps its entries with a fixed date, so the bytes are a function
    of the arrays."""
    stream = io.BytesIO()
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    np.savez(stream, allow_pickle=False, **contiguous)
    return stream.getvalue()


def read_arrays(
    path: Path, kinds: Mapping[str, str], optional: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Read an npz whose arrays are known by name and type; of the optional ones, those that are there.

    Nothing larger than the file is ever allocated: entries must be uncompressed, and a header that
    promises more than its entry holds is refused before an array is made.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            there = {name: kind for name, kind in (optional or {}).items() if f"{name}.npy" in infos}
            kinds = {**kinds, **there}
            if set(infos) != {f"{name}.npy" for name in kinds}:
                found = ", ".join(sorted(name.removesuffix(".npy") for name in infos))
                raise ValueError(f"arrays {found}")
            return {name: _read_array(archive, infos[f"{name}.npy"], kind) for name, kind in kinds.items()}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, KeyError, RuntimeError) as error:
        arrays = " and ".join(f"{name} {np.dtype(kind)}" for name, kind in kinds.items())
        raise InvalidInputError(
            f"{path} cannot be read",
            expected=f"an npz file as numpy.savez writes it, with {arrays} alone",
            received=error,
        ) from None


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, kind: str) -> np.ndarray:
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("a compressed entry")
    stream = io.BytesIO(archive.read(info))
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("another npy version")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype != np.dtype(kind):
        raise ValueError(f"{info.filename} is {dtype} instead of {np.dtype(kind)}")
    if fortran:
        raise ValueError(f"{info.filename} in Fortran order: save numpy.ascontiguousarray(...) of it")
    data = stream.getbuffer()[stream.tell() :]
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def check_images(what: str, images: np.ndarray, preprocessing: Preprocessing) -> None:
    """Raise InvalidInputError unless ``images`` are uint8 [N, *sample_shape] with N >= 1."""
    if images.dtype != np.uint8 or images.shape[1:] != preprocessing.sample_shape or not len(images):
        raise InvalidInputError(
            what,
            expected=f"uint8 [N, {', '.join(map(str, preprocessing.sample_shape))}], N >= 1",
            received=f"{images.dtype} {list(images.shape)}",
        )


def check_samples(samples: Samples, preprocessing: Preprocessing, classes: int) -> None:
    """Raise InvalidInputError unless images, labels and logits fit each other and the network."""
    check_images("sample images", samples.images, preprocessing)
    count = len(samples.images)
    if samples.labels.shape != (count,) or samples.logits.shape != (count, classes):
        raise InvalidInputError(
            "samples do not fit each other",
            expected=f"{count} labels and logits [{count}, {classes}]",
            received=f"labels {samples.labels.shape}, logits {samples.logits.shape}",
        )
    targets = samples.targets
    last = classes - 1 if targets is None or targets.any(1).all() else classes
    if samples.labels.min() < 0 or samples.labels.max() > last:
        raise InvalidInputError("sample labels", expected=f"0 to {last}", received=samples.labels)
    if targets is not None and (targets.shape != samples.logits.shape or targets.max() > 1):
        raise InvalidInputError(
            "sample targets", expected=f"0 and 1 [{count}, {classes}]", received=f"{list(targets.shape)}"
        )
    if not np.isfinite(samples.logits).all():
        raise InvalidInputError("sample logits", expected="finite numbers", received="NaN or infinity")
