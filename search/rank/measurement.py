"""What a search asks of a device; see :class:`Measurement`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from smash_search.rank.pareto import LATENCY
from smash_search.space.architecture import Architecture

SLOWDOWN = "latency_slowdown"
"""Among the measures of a network that was measured longer: how many times slower than before the machine was
just then, where it was.
"""


class Measurement(Protocol):
    """Measures networks on a device; what it is belongs to the caller. The search knows no runtime."""

    def measure(self, architecture: Architecture) -> dict[str, float]:
        """Values by name, for example ``{"latency_ms": 1.8}``."""

    def confirm(self, architecture: Architecture) -> dict[str, float]:
        """The same values, measured longer: for the few networks that may be picked."""

    def refusal(self, measures: dict[str, float]) -> str | None:
        """Why a network with these values may not be picked, or None."""


def as_before(measures: Mapping[str, float]) -> float:
    """Milliseconds of a longer measurement, as they would have been had the machine not become slower."""
    return measures[LATENCY] / measures.get(SLOWDOWN, 1.0)
