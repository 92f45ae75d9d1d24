"""What every target does the same way: find a module, check a batch, copy a file, take and free a device."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import numpy as np

from deploy_targets.base import Availability, ModelSignature
from smash_base.errors import InvalidInputError, UsageError


def find_module(module: str, distributions: tuple[str, ...], install: str) -> Availability:
    """Whether ``module`` could be imported, and the version of the distribution that brought it.

    A look at the installed files only: listing targets must not cost the import of each.
    """
    try:
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package is missing, or a half-imported module
        found = False
    if not found:
        return Availability(False, reason=f"the Python module {module} is not installed", install=install)
    for name in distributions:
        try:
            return Availability(True, version=importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return Availability(True)


def check_batch(batch: np.ndarray, signature: ModelSignature) -> np.ndarray:
    """The batch as C-contiguous float32 [B, *input_shape].

    Raises:
        InvalidInputError: another type, shape, or no image at all.
    """
    if batch.dtype != np.float32 or batch.shape[1:] != signature.input_shape or not len(batch):
        raise InvalidInputError(
            "this batch does not fit the network",
            expected=f"float32 [B, {', '.join(map(str, signature.input_shape))}] with B >= 1",
            received=f"{batch.dtype} {list(batch.shape)}",
        )
    return np.ascontiguousarray(batch)


def check_file(path: Path, what: str) -> Path:
    """``path`` itself, if it is a file that is not empty.

    Raises:
        InvalidInputError: it is not.
    """
    if not path.is_file():
        raise InvalidInputError(f"{what} {path} does not exist")
    if not path.stat().st_size:
        raise InvalidInputError(f"{what} {path} is empty")
    return path


def check_threads(threads: int | None) -> int | None:
    """``threads`` itself, if a runtime can be asked for that many.

    Raises:
        UsageError: fewer than one.
    """
    if threads is not None and threads < 1:
        raise UsageError("too few threads", expected="1 or more", received=threads)
    return threads


def damaged(path: Path, runtime: str, error: BaseException) -> InvalidInputError:
    """The one error for a file that its runtime does not take."""
    return InvalidInputError(
        f"{runtime} cannot open {path}",
        expected=f"a whole file, written for this version of {runtime}",
        received=str(error) or type(error).__name__,
        hint="Compile it again: smash-export compile BUNDLE --target NAME",
    )
