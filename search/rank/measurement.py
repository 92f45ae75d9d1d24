"""What a search asks of a device; see :class:`Measurement`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from smash_search.space.architecture import Architecture

LATENCY = "latency_ms"
"""The measure that limits are about."""

NOW = "latency_now_ms"
"""Among the measures of a network that was measured longer, where the machine had become slower than it was
for the short measurements: what it takes now. :data:`LATENCY` is what it took then.
"""

LOWEST = "latency_low_ms"
"""Among the measures of a network that was measured longer, several times: the fastest of its medians."""


class Measurement(Protocol):
    """Measures networks on a device; what it is belongs to the caller. The search knows no runtime."""

    def measure(self, architecture: Architecture) -> dict[str, float]:
        """Values by name, for example ``{"latency_ms": 1.8}``."""

    def confirm(self, architecture: Architecture) -> dict[str, float]:
        """The same values, measured longer: for the few networks that may be picked."""

    def times_over(
        self, architecture: Architecture, others: Sequence[Architecture], briefly: bool = False
    ) -> list[float]:
        """Latency over that of each of the others, all measured in turns, so that what else the machine does
        meets them alike. None of them where measurements are not taken here.

        Args:
            architecture: what is measured.
            others: Networks to measure it with.
            briefly: whether all of it is to take about as long as one :meth:`measure`.
        """

    def refusal(self, measures: dict[str, float]) -> str | None:
        """Why a network with these values may not be picked, or None."""


def undisturbed(measures: Mapping[str, float]) -> float:
    """Milliseconds of a longer measurement, as they would have been with nothing else on the machine.

    The fastest of several medians: a network near a limit is not given up for the slowest of them. Only the
    pick is held to that.
    """
    return min(measures[LATENCY], measures.get(LOWEST, math.inf))


def faster(confirmed: Sequence[dict[str, float]]) -> dict[str, float]:
    """The one of one or two longer measurements of a network that limits are held to."""
    return min(confirmed, key=lambda measures: measures[LATENCY])
