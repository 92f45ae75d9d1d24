"""The Pareto front of trained networks, and one pick per limit on latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from smash_base.errors import GateError
from smash_search.rank.finalists import Trained, pick
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


def entries_of(trained: Sequence[Trained], scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """One entry per network of the search, after its last rung; what pareto.json holds.

    ``on_front`` says that no other one is better in one of error, latency (MACs where nothing was measured)
    and parameters without being worse in another. Networks that were dropped early have had fewer ``epochs``.
    """
    known = {entry.candidate.architecture.key: entry for entry in scored}
    last = {entry.key: entry for entry in trained if entry.group == "search"}  # later rungs come later
    entries: list[dict[str, Any]] = []
    for key, latest in last.items():
        cost: Cost = known[key].cost
        entries.append(
            {
                "key": key,
                "error": latest.error,
                "epochs": latest.epochs,
                "measures": known[key].measures,
                "cost": asdict(cost),
                "architecture": known[key].candidate.architecture.to_json(),
            }
        )
    for entry in entries:
        entry["on_front"] = not any(_dominates(other, entry) for other in entries)
    return sorted(entries, key=lambda entry: (entry["cost"]["macs"], entry["key"]))


def _dominates(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    first, second = _objectives(a), _objectives(b)
    no_worse = all(x <= y for x, y in zip(first, second, strict=True))
    return no_worse and any(x < y for x, y in zip(first, second, strict=True))


def _objectives(entry: Mapping[str, Any]) -> tuple[float, ...]:
    size = entry["measures"].get(LATENCY, entry["cost"]["macs"])
    return (entry["error"], size, entry["cost"]["parameters"])


def class_of(limits: Sequence[Limit]) -> Callable[[float], int]:
    """Latency -> how many limits it breaks; networks that break the same ones compete for a place."""
    return lambda latency: sum(latency > limit.milliseconds for limit in limits)


def pick_within(
    trained: Sequence[Trained],
    latencies: Mapping[str, float],
    limit: Limit,
) -> Trained:
    """The best network within a limit: of the last rung that has one.

    Args:
        trained: every network and rung of the search.
        latencies: by key.
        limit: to keep.

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
