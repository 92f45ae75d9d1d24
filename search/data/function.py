"""``package.module:function``: data from your own code.

The function is called with the options of the specification as keyword strings. It returns
:class:`smash_search.data.Parts`, or a dictionary of which only ``train`` is required:
``{"train": (images, labels), "validation": ..., "test": ..., "classes": [...]}``. Labels are numbers [N], or
0 and 1 for every class [N, K], see :mod:`smash_search.data.arrays`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from smash_base.errors import InvalidInputError, SmashError, UsageError
from smash_search.data import arrays, several
from smash_search.data.dataset import Parts, Split
from smash_search.data.spec import Spec


def names_function(spec: Spec) -> bool:
    """Whether a specification is ``package.module:function``."""
    return (
        spec.path is not None
        and spec.path.isidentifier()
        and all(part.isidentifier() for part in spec.name.split("."))
    )


def read(spec: Spec) -> Parts:
    """Import the module (the current folder is searched too), call the function, take its arrays.

    Raises:
        UsageError: no such module or function.
        InvalidInputError: the function raises, or returns something else.
    """
    missing = UsageError(
        f"there is neither a data set nor a module {spec.name!r}",
        expected="NAME[:PATH] or package.module:function",
        received=spec.text,
        hint="smash-export datasets lists the names.",
    )
    function = imported_function(spec.name, spec.path or "", spec.text, missing)
    try:
        value = function(**spec.options)
    except SmashError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise InvalidInputError(
            f"{spec.text} gives no data", expected="a function that returns them", received=fault_of(error)
        ) from error
    if isinstance(value, Parts):
        return value
    known = {"train", "validation", "test", "classes"}
    if not isinstance(value, Mapping) or "train" not in value or not set(value) <= known:
        received = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise InvalidInputError(
            f"result of {spec.text}", expected="Parts, or a dictionary with 'train'", received=received
        )
    given = {part: value[part] for part in ("train", "validation", "test") if value.get(part) is not None}
    found = {part: _found(f"{spec.text}: {part}", of_part) for part, of_part in given.items()}
    has_targets = any(isinstance(split, Split) and split.targets is not None for split in given.values())
    own = (
        {several.OPTION: "yes"} if has_targets else {}
    )  # the options of the specification are the function's
    return arrays.parts_of(replace(spec, options=own), found, value.get("classes"))


def imported_function(module: str, name: str, text: str, missing: UsageError) -> Callable[..., Any]:
    """A function of a module that is imported; the current folder is searched too.

    What the module and its function print goes to stderr: stdout is for the answer of a command.

    Args:
        module, name: Module and its function.
        text: what the user wrote, for errors.
        missing: Error to raise where there is no such module.

    Raises:
        UsageError: no such module or function.
        InvalidInputError: the module raises while it is imported.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = importlib.import_module(module)
    except Exception as error:  # the user's code may raise anything
        name_missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if name_missing and (module == name_missing or module.startswith(f"{name_missing}.")):
            raise missing from None
        raise InvalidInputError(
            f"module {module} cannot be imported",
            expected="one that imports without an error",
            received=fault_of(error),
        ) from error
    function: Callable[..., Any] | None = getattr(found, name, None)
    if not callable(function):
        raise UsageError(f"module {module} has no function {name!r}", received=text)

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        with contextlib.redirect_stdout(sys.stderr):
            return function(*arguments, **options)

    return called


def fault_of(error: Exception) -> str:
    """An error of a user's code, and the file and line that raised it."""
    said = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:  # which names its own place
        return said
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno})"


def _found(where: str, value: Any) -> tuple[np.ndarray, np.ndarray]:
    """Samples, and their labels or targets."""
    if isinstance(value, Split):
        return value.images, value.labels if value.targets is None else value.targets
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise InvalidInputError(where, expected="a pair (images, labels)", received=type(value).__name__)
    images, labels = (np.asarray(item) for item in value)
    return arrays.as_samples(images, "auto", where), arrays.as_classes(labels, where)
