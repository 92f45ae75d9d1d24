"""The files of a bundle that a runtime can open: one list for verify, bench, compare, predict and Triton.

These are the compiled files, and the two source files wherever no compiled file of the same runtime at
fp32 stands for them: ``model.torchscript.pt`` for torchscript, ``model.onnx`` for onnxruntime.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smash_base.errors import UsageError
from smash_export.bundle.bundle import Bundle
from smash_targets.base import get_target, target_names
from smash_targets.elsewhere import ElsewhereTarget


@dataclass(frozen=True)
class RunnableFile:
    """One file of a bundle and the path that its target opens.

    Attributes:
        target, precision: which runtime opens it, and at which precision it computes.
        path: what :meth:`smash_targets.base.Target.open` takes.
        size: bytes of all that belongs to it.
        source: whether it is model.onnx or model.torchscript.pt itself, not a compiled file.
        notes: what the target said while compiling; empty for a source file.
        max_drop: points of accuracy that it was allowed to lose when it was compiled; None for the usual.
    """

    target: str
    precision: str
    path: Path
    size: int
    source: bool
    notes: Mapping[str, Any] = field(default_factory=dict)
    max_drop: float | None = None

    @property
    def name(self) -> str:
        """``target:precision``, as in ``--target``."""
        return f"{self.target}:{self.precision}"


def runnable_files(
    bundle: Bundle, target: str | None = None, precision: str | None = None
) -> list[RunnableFile]:
    """Source files first, then the compiled ones in the order in which they were added.

    Args:
        target, precision: only files of these; None for any.

    Raises:
        UsageError: the bundle has no such file.
    """
    files = [file for file in _all(bundle) if target in (None, file.target)]
    files = [file for file in files if precision in (None, file.precision)]
    if not files:
        raise missing_file(bundle, target, precision)
    return files


def selected_files(bundle: Bundle, selection: Sequence[str] = ()) -> list[RunnableFile]:
    """The files that any of ``target`` or ``target:precision`` names; no selection means all.

    Raises:
        UsageError: a selection names no file of the bundle.
    """
    names: set[str] = set()
    for wish in selection:
        target, _, precision = wish.partition(":")
        names.update(file.name for file in runnable_files(bundle, target, precision or None))
    return [file for file in _all(bundle) if not selection or file.name in names]


def missing_file(bundle: Bundle, target: str | None, precision: str | None) -> UsageError:
    """The one error for a file that a bundle does not have, with the command that would make it."""
    wish = f"{target or 'any target'} {precision or 'any precision'}"
    return UsageError(
        f"{bundle.path} has no file for {wish}",
        expected=", ".join(file.name for file in _all(bundle)),
        received=wish,
        hint=f"Make it: {_maker(bundle, target)}" + (f" --precision {precision}" if precision else ""),
    )


def _maker(bundle: Bundle, target: str | None) -> str:
    """Command that makes a file of a target."""
    path = shlex.quote(str(bundle.path))
    known = get_target(target) if target in target_names() else None
    if isinstance(known, ElsewhereTarget):
        return known.command.replace("BUNDLE", path)
    return f"smash-export compile {path} --target {target or 'onnxruntime'}"


def _all(bundle: Bundle) -> list[RunnableFile]:
    compiled = [
        RunnableFile(
            file.target, file.precision, file.main, file.size, False, file.notes, _max_drop(file.evidence)
        )
        for file in bundle.compiled
    ]
    there = {file.name for file in compiled}
    sources = [
        RunnableFile(target, "fp32", path, path.stat().st_size, True)
        for target, path in (("torchscript", bundle.torchscript), ("onnxruntime", bundle.onnx))
        if path is not None
    ]
    return [*(file for file in sources if file.name not in there), *compiled]


def _max_drop(evidence: Mapping[str, Any]) -> float | None:
    gate = evidence.get("gate")
    drop = gate.get("drop") if isinstance(gate, dict) else None
    return float(drop) if isinstance(drop, int | float) else None
