"""Which draws of a search are worth a score or a training: near a limit on latency, and busy within it.

At one latency networks of more multiply-accumulates learn more: of 66 draws at that of ResNet-8 (CIFAR-10,
six epochs of 12,000 images) the third with the fewest had 33.0 % error and the others 31.4 %; Kendall's tau
of MACs and error was -0.38 (benchmarks/results/draws_at_one_latency.json and others beside it). So the third
of the draws near a limit that has the fewest is left out. Mutations and known networks reach it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from smash_search.rank.latency_model import LatencyModel
from smash_search.rank.pareto import Limit
from smash_search.rank.patterns import pattern_of
from smash_search.space.architecture import Architecture
from smash_search.space.cost import cost_of
from smash_search.space.space import Space
from smash_search.train.compute import seed_of

LEAST_SHARE = 0.65  # of a latency limit that a draw has to use, by prediction
IDLE = 1 / 3  # share of the draws near a limit that is left out: those of the fewest MACs
SAMPLE, FEWEST = 96, 24  # draws near a limit that tell how many MACs they have; with fewer, nothing is told
TRIES = 2000  # draws among which a sample is looked for


@dataclass(frozen=True)
class Aim:
    """Where draws for one limit on latency are to be.

    Attributes:
        low, high: Milliseconds, by prediction.
        macs: fewest multiply-accumulates.
    """

    low: float
    high: float
    macs: int = 0


@dataclass(frozen=True)
class Aims:
    """Where draws of a search are to be: one place for each of its limits on latency.

    Attributes:
        latency: Predicts latency, as the survey of the device taught it. What is learned later is left out,
            so that what a draw is worth stays what it was.
        places: One for each limit.
    """

    latency: LatencyModel
    places: tuple[Aim, ...]

    def near(self, architecture: Architecture) -> bool:
        """Whether a network is at one of the places: what leaves much of a limit unused is rarely best."""
        predicted = self.latency.predict(architecture)
        places = [place for place in self.places if place.low <= predicted <= place.high]
        return bool(places) and min(place.macs for place in places) <= _macs(self.latency, architecture)


def aims_for(
    latency: LatencyModel,
    limits: Sequence[Limit],
    space: Space,
    seed: int,
    accepts: Callable[[Architecture], bool] = lambda architecture: True,
) -> Aims:
    """Where draws are to be for limits on latency; a pure function of what is given.

    Where a limit is looser than most networks of the space need, the largest quarter of them counts as near.

    Args:
        latency: Model of the device.
        limits: on latency.
        space: where draws come from.
        seed: Random seed of the search.
        accepts: whether a network keeps all other limits.
    """
    slack, own = 1 + latency.error, seed_of(seed, 0xA13)
    places = []
    for limit in limits:
        place = Aim(min(LEAST_SHARE * limit.milliseconds, latency.usual) / slack, limit.milliseconds * slack)
        anything = Aims(latency, (place,))
        drawn = (space.draw(own, slot) for slot in range(TRIES))
        near = (entry for entry in drawn if anything.near(entry) and accepts(entry))
        macs = [_macs(latency, entry) for entry in itertools.islice(near, SAMPLE)]
        least = int(np.quantile(macs, IDLE)) if len(macs) >= FEWEST else 0
        places.append(replace(place, macs=least))
    return Aims(latency, tuple(places))


def busiest_within(
    aims: Aims, networks: Iterable[Architecture], is_within: Callable[[Architecture], bool]
) -> Iterator[Architecture]:
    """Networks within the limits: those that use most of one, by limit and wiring in turns, then all others.

    Of one limit and wiring the busiest come first: which known network is best differs between limits, and at
    one latency it is one with many multiply-accumulates.

    Args:
        aims: What uses most of a limit.
        networks: All there are.
        is_within: whether a network keeps the limits; asked one by one, in the order of what comes out.
    """
    places = sorted(aims.places, key=lambda place: place.high)
    large: dict[tuple[Aim, str, bool], list[Architecture]] = {}
    rest: list[Architecture] = []
    for network in networks:
        predicted = aims.latency.predict(network)
        near = (place for place in places if place.low <= predicted <= place.high)
        # Beyond all of them the prediction may be wrong; whether a network is within is asked.
        place = next(near, places[-1] if predicted > places[-1].high else None)
        if place is None:
            rest.append(network)
            continue
        squeezed = any(op.squeeze for block in network.blocks for op in block.ops)
        large.setdefault((place, pattern_of(network), squeezed), []).append(network)
    for entries in large.values():
        entries.sort(key=lambda entry: (-_macs(aims.latency, entry), entry.key))
    turns = [filter(is_within, entries) for entries in large.values()]
    while turns:
        for wiring in list(turns):
            largest = next(wiring, None)
            if largest is None:
                turns.remove(wiring)
            else:
                yield largest
    yield from filter(is_within, rest)


def _macs(latency: LatencyModel, architecture: Architecture) -> int:
    return cost_of(architecture, latency.input_spec, latency.classes).macs
