"""Stand-ins for a device under search; at the top of a module, so that they travel to other processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of


class Device:
    """A latency that is a function of the architecture.

    Args:
        folder: remembers who was measured, one line per attempt.
        fatal: keys whose measurement kills the process.
        times: how often it does.
        broken: keys whose measurement raises.
    """

    def __init__(
        self, folder: Path, fatal: tuple[str, ...] = (), times: int = 1, broken: tuple[str, ...] = ()
    ) -> None:
        self.folder, self.fatal, self.times, self.broken = folder, fatal, times, broken

    def measure(self, architecture: Architecture) -> dict[str, float]:
        key = architecture.key
        with open(self.folder / "attempts", "a") as stream:
            stream.write(f"{key} {os.getpid()}\n")
        if key in self.broken:
            raise ZeroDivisionError("a defect of the device")
        attempts = [line.split()[0] for line in (self.folder / "attempts").read_text().splitlines()]
        if key in self.fatal and attempts.count(key) <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"latency_ms": float(int(key, 16) % 7)}

    def confirm(self, architecture: Architecture) -> dict[str, float]:
        return self.measure(architecture)

    def times_over(
        self, architecture: Architecture, others: Sequence[Architecture], briefly: bool = False
    ) -> list[float]:
        return []

    def refusal(self, measures: dict[str, float]) -> str | None:
        return None


class ByMacs:
    """A latency that is that of the multiply-accumulates of networks for digits; at most 4 ms are allowed."""

    def measure(self, architecture: Architecture) -> dict[str, float]:
        return {"latency_ms": cost_of(architecture, InputSpec(1, (8, 8)), 10).macs / 1e5}

    def confirm(self, architecture: Architecture) -> dict[str, float]:
        return self.measure(architecture)

    def times_over(
        self, architecture: Architecture, others: Sequence[Architecture], briefly: bool = False
    ) -> list[float]:
        return []

    def refusal(self, measures: dict[str, float]) -> str | None:
        return None if measures["latency_ms"] <= 4.0 else "too slow"


class InTurns(ByMacs):
    """The same, where networks can be measured in turns with each other."""

    def times_over(
        self, architecture: Architecture, others: Sequence[Architecture], briefly: bool = False
    ) -> list[float]:
        latency, *latencies = (self.measure(entry)["latency_ms"] for entry in (architecture, *others))
        return [latency / other for other in latencies]
