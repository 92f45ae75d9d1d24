"""What a search asks of a device; see :class:`Measurement`."""

from __future__ import annotations

from typing import Protocol

from smash_search.space.architecture import Architecture


class Measurement(Protocol):
    """Measures networks on a device; what it is belongs to the caller. The search knows no runtime."""

    def measure(self, architecture: Architecture) -> dict[str, float]:
        """Values by name, for example ``{"latency_ms": 1.8}``."""

    def confirm(self, architecture: Architecture) -> dict[str, float]:
        """The same values, measured longer: for the few networks that may be picked."""

    def refusal(self, measures: dict[str, float]) -> str | None:
        """Why a network with these values may not be picked, or None."""
