"""The Pareto front of trained networks, and one pick per limit on latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from smash_base.errors import GateError
from smash_base.json_values import JsonObject
from smash_search.rank.measurement import LATENCY
from smash_search.rank.trained import Trained, pick, sound
from smash_search.space.architecture import Architecture
from smash_search.space.cost import Cost
from smash_search.strategies import Scored


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
    """A trained network after its last rung: one entry of pareto.json.

    Attributes:
        key: Key of the architecture.
        error: Validation error.
        epochs: Epochs of training; networks that were dropped early have had fewer.
        measures: Measurements on the device, by name; empty where nothing was measured.
        cost: Exact cost.
        architecture: The network.
        on_front: Whether no other network is better in one of error, latency (MACs where nothing was
            measured) and parameters without being worse in another; errors are those after the last rung that
            both have gone through. Networks with a training that diverged are not compared, and not on it.
    """

    key: str
    error: float
    epochs: int
    measures: dict[str, float]
    cost: Cost
    architecture: Architecture
    on_front: bool = False

    @property
    def sizes(self) -> tuple[float, float]:
        """Latency, or MACs where nothing was measured, and parameters."""
        return (self.measures.get(LATENCY, self.cost.macs), self.cost.parameters)

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
    """One entry per network, the smallest first.

    Args:
        trained: every network and rung, those of the random search included: any of them may be picked.
        scored: every candidate.
    """
    known = {entry.candidate.architecture.key: entry for entry in scored}
    errors: dict[str, dict[int, float]] = {}
    last: dict[str, Trained] = {}
    for trainee in trained:
        errors.setdefault(trainee.key, {})[trainee.rung] = trainee.error
        last[trainee.key] = trainee  # later rungs come later
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

    def beats(one: ParetoEntry, other: ParetoEntry) -> bool:
        mine, its = errors[one.key], errors[other.key]
        rung = max(mine.keys() & its.keys())
        pairs = list(zip((mine[rung], *one.sizes), (its[rung], *other.sizes), strict=True))
        return all(left <= right for left, right in pairs) and any(left < right for left, right in pairs)

    able = {trainee.key for trainee in sound(trained)}
    pickable = [entry for entry in entries if entry.key in able]
    front = {entry.key for entry in pickable if not any(beats(other, entry) for other in pickable)}
    entries = [replace(entry, on_front=entry.key in front) for entry in entries]
    return sorted(entries, key=lambda entry: (entry.cost.macs, entry.key))


def class_of(limits: Sequence[Limit]) -> Callable[[float], int]:
    """Latency -> how many limits it breaks; networks that break the same ones compete for a place."""
    return lambda latency: sum(latency > limit.milliseconds for limit in limits)


def pick_within(
    trained: Sequence[Trained],
    latencies: Mapping[str, float],
    limit: Limit,
    handicap: Callable[[Trained], float] | None = None,
) -> Trained:
    """The best network within a limit, from the last rung that has one.

    Args:
        trained: every network and rung of the search.
        latencies: by key.
        limit: Limit that is kept.
        handicap: see :func:`smash_search.rank.trained.expected`.

    Raises:
        GateError: no trained network keeps the limit; names the fastest.
        DivergedError: those that keep it could not be trained.
    """
    inside = [entry for entry in trained if latencies[entry.key] <= limit.milliseconds]
    if not inside:
        fastest = min(trained, key=lambda entry: latencies[entry.key])
        raise GateError(
            f"no finalist keeps the limit {limit.label}",
            expected=f"at most {limit.milliseconds:g} ms",
            received=f"{latencies[fastest.key]:.3g} ms for the fastest of them ({fastest.key})",
            hint="Repeat the command while nothing else runs, and they are measured again; or raise the "
            "limit, or search among more --candidates and --finalists.",
        )
    return pick(inside, handicap)


def pick_that_keeps(
    limit: Limit,
    trained: Sequence[Trained],
    latencies: dict[str, float],
    confirm: Callable[[str], float],
    handicap: Callable[[Trained], float] | None = None,
) -> Trained:
    """The best network within a limit that keeps it in a longer measurement too.

    Many networks were measured shortly; among those near the limit the lucky ones look fast enough.

    Args:
        limit, trained, latencies, handicap: as in :func:`pick_within`; ``latencies`` is corrected by what is
            measured.
        confirm: measures the network of a key longer.

    Raises:
        GateError: no trained network keeps the limit.
    """
    while True:
        winner = pick_within(trained, latencies, limit, handicap)
        latencies[winner.key] = confirm(winner.key)
        if latencies[winner.key] <= limit.milliseconds:
            return winner
