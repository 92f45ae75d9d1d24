"""The Pareto front of trained networks, and one pick per limit on latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from smash_base.errors import GateError
from smash_base.json_values import JsonObject
from smash_search.rank.finalists import Trained, pick
from smash_search.space.architecture import Architecture
from smash_search.space.cost import Cost
from smash_search.strategies import Scored

LATENCY = "latency_ms"  # the measure that limits are about


@dataclass(frozen=True)
class Limit:
    """One latency that somebody can live with.

    Attributes:
        label: as given, for example "3ms"; also in the name of its file.
        milliseconds: the largest latency.
    """

    label: str
    milliseconds: float


@dataclass(frozen=True)
class ParetoEntry:
    """A trained network of the search after its last rung: one entry of pareto.json.

    Attributes:
        key: Key of the architecture.
        error: Validation error.
        epochs: Epochs of training; networks that were dropped early have had fewer.
        measures: Measurements on the device, by name; empty where nothing was measured.
        cost: Exact cost.
        architecture: The network.
        on_front: Whether no other network is better in one of error, latency (MACs where nothing was
            measured) and parameters without being worse in another.
    """

    key: str
    error: float
    epochs: int
    measures: dict[str, float]
    cost: Cost
    architecture: Architecture
    on_front: bool = False

    @property
    def objectives(self) -> tuple[float, float, float]:
        """What is compared, less being better: error, size, parameters."""
        return (self.error, self.measures.get(LATENCY, self.cost.macs), self.cost.parameters)

    def dominates(self, other: ParetoEntry) -> bool:
        """Whether this network is better in one objective and worse in none."""
        pairs = list(zip(self.objectives, other.objectives, strict=True))
        return all(mine <= its for mine, its in pairs) and any(mine < its for mine, its in pairs)

    def to_json(self) -> JsonObject:
        """An entry of pareto.json."""
        return {
            "key": self.key,
            "error": self.error,
            "epochs": self.epochs,
            "measures": self.measures,
            "cost": asdict(self.cost),
            "architecture": self.architecture.to_json(),
            "on_front": self.on_front,
        }


def pareto_entries(trained: Sequence[Trained], scored: Sequence[Scored]) -> list[ParetoEntry]:
    """One entry per network of the search, the smallest first."""
    known = {entry.candidate.architecture.key: entry for entry in scored}
    last = {entry.key: entry for entry in trained if entry.group == "search"}  # later rungs come later
    entries = [
        ParetoEntry(
            key,
            latest.error,
            latest.epochs,
            known[key].measures,
            known[key].cost,
            known[key].candidate.architecture,
        )
        for key, latest in last.items()
    ]
    entries = [
        replace(entry, on_front=not any(other.dominates(entry) for other in entries)) for entry in entries
    ]
    return sorted(entries, key=lambda entry: (entry.cost.macs, entry.key))


def class_of(limits: Sequence[Limit]) -> Callable[[float], int]:
    """Latency -> how many limits it breaks; networks that break the same ones compete for a place."""
    return lambda latency: sum(latency > limit.milliseconds for limit in limits)


def pick_within(
    trained: Sequence[Trained],
    latencies: Mapping[str, float],
    limit: Limit,
) -> Trained:
    """The best network within a limit, from the last rung that has one.

    Args:
        trained: every network and rung of the search.
        latencies: by key.
        limit: Limit that is kept.

    Raises:
        GateError: no trained network keeps the limit; names the fastest.
    """
    inside = [entry for entry in trained if latencies[entry.key] <= limit.milliseconds]
    if not inside:
        fastest = min(trained, key=lambda entry: latencies[entry.key])
        raise GateError(
            f"no finalist keeps the limit {limit.label}",
            expected=f"at most {limit.milliseconds:g} ms",
            received=f"{latencies[fastest.key]:.3g} ms for the fastest of them ({fastest.key})",
            hint="Raise the limit, or search among more --candidates and --finalists.",
        )
    return pick(inside)


def pick_that_keeps(
    limit: Limit,
    trained: Sequence[Trained],
    latencies: dict[str, float],
    confirm: Callable[[str], float],
) -> Trained:
    """The best network within a limit that keeps it in a longer measurement too.

    Many networks were measured shortly; among those near the limit the lucky ones look fast enough.

    Args:
        limit, trained, latencies: as in :func:`pick_within`; ``latencies`` is corrected by what is measured.
        confirm: measures the network of a key longer.

    Raises:
        GateError: no trained network keeps the limit.
    """
    while True:
        winner = pick_within(trained, latencies, limit)
        latencies[winner.key] = confirm(winner.key)
        if latencies[winner.key] <= limit.milliseconds:
            return winner
