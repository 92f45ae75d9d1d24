"""Every runtime that is here, at every precision that it has, one after the other.

A file that cannot be made or is refused costs that file only; a runtime that is missing is a line.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from smash_base.errors import MissingRuntimeError, SmashError, VerificationError
from smash_base.json_values import JsonObject
from smash_export.bundle.bundle import Bundle, CompiledFile, opened
from smash_export.compiling.compile import compile_bundle
from smash_export.compiling.effort import Effort
from smash_export.measure.evidence import parity_of
from smash_targets.base import Target
from smash_targets.listing import described_targets

Status = Literal["compiled", "rejected", "not possible", "missing"]


@dataclass(frozen=True)
class Outcome:
    """What became of one target at one precision.

    Attributes:
        target, precision: which file.
        status: "compiled", "rejected" by its gates, "not possible" for this network, or "missing" runtime.
        problem: Reason why there is no file, with the next command; "" when there is one.
        bytes: Size in bytes of the file.
        accuracy: share of right answers on the images it was judged on.
        points_lost: accuracy lost, in percentage points.
        seconds: Seconds that it took.
    """

    target: str
    precision: str
    status: Status
    problem: str = ""
    bytes: int | None = None
    accuracy: float | None = None
    points_lost: float | None = None
    seconds: float = 0.0

    def to_json(self) -> JsonObject:
        """JSON values."""
        return asdict(self)


def wishes() -> list[tuple[Target, str]]:
    """Every target with each of its precisions, fp32 first, in the order of the registry."""
    return [(target, precision) for target in described_targets() for precision in target.precisions]


def compile_all(
    bundle: Bundle | Path | str,
    *,
    max_drop: float | None = None,
    effort: Effort = "normal",
    data: str | None = None,
    split: str = "test",
    threads: int | None = None,
    isolated: bool = True,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Compile for every target and precision; see :func:`smash_export.compiling.compile.compile_bundle`.

    Args:
        max_drop: points of accuracy that int8 files may lose; 0.5 if None.
        effort: Effort for int8 files.
        data, split, threads, isolated: as there.
        on_outcome: called with each outcome as soon as it is known.
    """
    bundle = opened(bundle)
    make = functools.partial(
        compile_bundle, bundle, data=data, split=split, threads=threads, isolated=isolated
    )
    outcomes = []
    for outcome in _outcomes(make, max_drop, effort):
        outcomes.append(outcome)
        on_outcome(outcome)
    return outcomes


def _outcomes(make: Callable[..., CompiledFile], max_drop: float | None, effort: Effort) -> Iterator[Outcome]:
    for target, precision in wishes():
        state = target.availability()
        if not state.available:
            yield Outcome(target.name, precision, "missing", f"{state.reason}  {state.install}".strip())
            continue
        began = time.monotonic()
        of_int8 = {"max_drop": max_drop, "effort": effort} if precision == "int8" else {}
        try:
            file = make(target.name, precision, **of_int8)
        except SmashError as error:
            seconds = round(time.monotonic() - began, 2)
            yield Outcome(target.name, precision, _status(error), str(error), seconds=seconds)
        else:
            yield _compiled(file, round(time.monotonic() - began, 2))


def _status(error: SmashError) -> Status:
    if isinstance(error, MissingRuntimeError):
        return "missing"
    return "rejected" if isinstance(error, VerificationError) else "not possible"


def _compiled(file: CompiledFile, seconds: float) -> Outcome:
    parity = parity_of(file)
    return Outcome(
        file.target,
        file.precision,
        "compiled",
        bytes=file.size,
        accuracy=parity.accuracy,
        points_lost=parity.drop,
        seconds=seconds,
    )
