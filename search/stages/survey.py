"""Networks measured on a device, before a search or for a table, to predict the latency of all others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from smash_search.rank.latency_model import LEAST, LatencyModel, fit_latency
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import Cost, cost_of
from smash_search.space.known import known_networks
from smash_search.space.space import Space
from smash_search.train.compute import seed_of

PROBES = 64  # draws measured before a search, to predict the latency of others
FURTHER = 1000  # draws among which those near a limit are looked for; at half of ResNet-8's one in thirty is
KNOWN_PROBES = 16
"""Known networks that are measured with them. ReLU6 is rare in draws and usual in inverted bottlenecks: with
prices of draws alone known ones of these were predicted at 1.5 times their latency, those with
squeeze-excitation at 0.75 times (medians, at ResNet-8's latency); with sixteen known ones at 0.93 and 0.96.
Tables of devices that are not here hold as many.
"""


def probe_draws(space: Space, seed: int) -> list[Architecture]:
    """Networks that the survey of a device chooses from, for the search of that seed."""
    own = seed_of(seed, 0x9806)
    return [space.draw(own, slot) for slot in range(4 * PROBES)]


def known_probes(
    known: Iterable[Architecture], draws: Sequence[Architecture], cost: Callable[[Architecture], Cost]
) -> list[Architecture]:
    """Known networks for the survey, none larger than the largest of the draws."""
    most = max((cost(entry).macs for entry in draws), default=0)
    inside = (entry for entry in known if cost(entry).macs <= most)
    return list(itertools.islice(inside, KNOWN_PROBES))


def table_networks(
    space: Space, input_spec: InputSpec, classes: int, seed: int, count: int
) -> list[Architecture]:
    """Networks for the latency table of a device that is not here: draws, and known ones as in a survey.

    Args:
        space: Space whose networks the table is to predict.
        input_spec, classes: Input and number of classes of the networks.
        seed: Random seed of the draws.
        count: Number of networks in all; as large a share of them as of a survey is known, where the space
            has so many, and no more of them.
    """
    wanted = min(KNOWN_PROBES, count * KNOWN_PROBES // (PROBES + KNOWN_PROBES))
    draws = [space.draw(seed, slot) for slot in range(count)]
    others = (entry for entry in known_networks(space) if entry not in draws)
    known = known_probes(others, draws, lambda entry: cost_of(entry, input_spec, classes))[:wanted]
    return draws[: count - len(known)] + known


@dataclass(frozen=True)
class Survey:
    """Chooses what is measured on a device before a search: from small to large, then near the limits.

    Draws of a space lie at one to twenty times a tight limit. A model of such draws alone took those near
    half of ResNet-8's latency for a tenth to a fifth slower or faster than they were, by the seed; half of
    the networks near the limits make that a twentieth.

    Attributes:
        space, seed: Where draws come from.
        limits: Milliseconds that networks of the search are to keep, one or more.
        cost: Cost of a network.
        known: Known networks of the space.
        accepts: whether a network keeps the limits on cost.
    """

    space: Space
    seed: int
    limits: Sequence[float]
    cost: Callable[[Architecture], Cost]
    known: Sequence[Architecture]
    accepts: Callable[[Architecture], bool]

    @cached_property
    def reference(self) -> Architecture | None:
        """The network that all others are measured in turns with, larger than a quarter of the draws.

        It is known before anything is measured, so that what the survey teaches and what candidates take
        later are in one unit. None where no draw and no known network keeps the limits on cost: all is then
        measured alone.
        """
        return self._usual[len(self._usual) // 4] if self._usual else None

    @property
    def most(self) -> int:
        """Number of networks that are measured, where there are so many."""
        return PROBES + KNOWN_PROBES

    def measured(
        self, measure: Callable[[Architecture], float], input_spec: InputSpec, classes: int
    ) -> tuple[list[Architecture], LatencyModel | None]:
        """Networks that were measured, and what they tell; no model where there are too few.

        Args:
            measure: gives the milliseconds of a network.
            input_spec, classes: Input and number of classes of the networks.
        """
        probes = self._from_small_to_large()
        times = [measure(probe) for probe in probes]
        if len(probes) < LEAST:
            return probes, None
        near = self._near(fit_latency(probes, times, input_spec, classes), probes)
        probes, times = probes + near, times + [measure(probe) for probe in near]
        return probes, fit_latency(probes, times, input_spec, classes)

    @cached_property
    def _usual(self) -> list[Architecture]:
        """Draws from small to large, without the largest, which take long and keep no limit."""
        drawn = [entry for entry in probe_draws(self.space, self.seed) if self.accepts(entry)]
        if len(drawn) < PROBES:  # limits on cost are tight: known networks are many small ones
            drawn = list(dict.fromkeys([*drawn, *filter(self.accepts, self.known)]))
        by_size = sorted(drawn, key=lambda entry: (self.cost(entry).macs, entry.key))
        return by_size[: max(PROBES, 3 * len(by_size) // 4)]

    def _from_small_to_large(self) -> list[Architecture]:
        usual = self._usual
        places = np.unique(np.linspace(0, len(usual) - 1, min(PROBES // 2, len(usual))).round().astype(int))
        draws = list(dict.fromkeys(usual[place] for place in places))  # a narrow prior draws some again
        others = (entry for entry in self.known if self.accepts(entry) and entry not in draws)
        return draws + known_probes(others, usual, self.cost)[: KNOWN_PROBES // 2]

    def _near(self, model: LatencyModel, taken: Sequence[Architecture]) -> list[Architecture]:
        """Further draws and known networks, those nearest to a limit by prediction first, limits in turns."""
        own = seed_of(self.seed, 0x9806)
        further = (self.space.draw(own, slot) for slot in range(4 * PROBES, 4 * PROBES + FURTHER))
        draws = dict.fromkeys([*self._usual, *filter(self.accepts, further)])
        known = dict.fromkeys(filter(self.accepts, self.known))
        chosen = dict.fromkeys(taken)
        for networks, count in ((draws, PROBES - PROBES // 2), (known, KNOWN_PROBES - KNOWN_PROBES // 2)):
            predicted = {entry: model.predict(entry) for entry in networks if entry not in chosen}
            orders = [iter(_by_distance(predicted, limit)) for limit in self.limits]
            in_turns = itertools.chain.from_iterable(zip(*orders, strict=True))
            chosen |= dict.fromkeys(itertools.islice(dict.fromkeys(in_turns), count))
        return list(chosen)[len(taken) :]


def _by_distance(times: Mapping[Architecture, float], milliseconds: float) -> list[Architecture]:
    """Networks whose time is nearest to so long first, as a ratio."""

    def distance(entry: Architecture) -> tuple[float, str]:
        return abs(math.log(max(1e-6, times[entry]) / milliseconds)), entry.key

    return sorted(times, key=distance)
