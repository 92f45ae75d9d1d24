"""Every registered target as it is on this machine."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from smash_targets.base import Target, get_target, target_names


@dataclass(frozen=True)
class TargetState:
    """One row of ``smash-export targets``.

    Attributes:
        target: its name.
        available, version, reason, install: see :class:`smash_targets.base.Availability`.
        precisions: what it can be asked for.
        deprecated: a line to show with every use, "" when there is nothing to say.
    """

    target: str
    available: bool = False
    version: str = ""
    precisions: tuple[str, ...] = ()
    reason: str = ""
    install: str = ""
    deprecated: str = ""


def described_targets() -> list[Target]:
    """Every registered target whose own module can be imported; no runtime is."""
    found = []
    for name in target_names():
        with contextlib.suppress(Exception):  # a module that fails is shown by targets()
            found.append(get_target(name))
    return found


def targets() -> list[TargetState]:
    """One row per registered target; a target whose own module fails is a row that says so."""
    return [_state(name) for name in target_names()]


def _state(name: str) -> TargetState:
    state = TargetState(name)
    try:
        target = get_target(name)
        state = replace(state, precisions=tuple(target.precisions), deprecated=target.deprecated)
        return replace(state, **vars(target.availability()))
    except Exception as error:  # noqa: BLE001 - runtimes fail to import in every way there is
        return replace(state, reason=" ".join(f"{type(error).__name__}: {error}".split())[:300])
