"""What a network of a search may cost and how long it may take: computed, predicted, measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np

from smash_search.executors import ExecutorConfig, make_executor
from smash_search.executors.work import Worker
from smash_search.rank.evaluation import Evaluator
from smash_search.rank.latency_model import LEAST, LatencyModel, fit_latency
from smash_search.rank.measurement import LATENCY
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import Cost, cost_of
from smash_search.space.known import known_networks
from smash_search.space.limits import CostLimits
from smash_search.space.space import Space
from smash_search.stages.aims import Aims, aims_for, busiest_within
from smash_search.stages.config import Run, SearchConfig
from smash_search.strategies import Scored
from smash_search.train.compute import seed_of

PROBES = 64  # draws measured before a search, to predict the latency of others
KNOWN_PROBES = 16
"""Known networks that are measured with them. ReLU6 is rare in draws and usual in inverted bottlenecks: with
prices of draws alone known ones of these were predicted at 1.5 times their latency, those with
squeeze-excitation at 0.75 times (medians, at ResNet-8's latency); with sixteen known ones at 0.93 and 0.96.
Tables of devices that are not here hold as many.
"""


def accepted_draws(
    config: SearchConfig, input_spec: InputSpec, classes: int, aims: Aims | None
) -> Callable[[Architecture], bool] | None:
    """Whether a HyperNet is to be trained on a draw: inside the limits, near one on latency. None for all.

    Args:
        config: Limits of the search.
        input_spec, classes: Input and number of classes of the networks.
        aims: Where draws are to be, where there are limits on latency.
    """
    if aims is None and config.limits == CostLimits():
        return None

    def accept(architecture: Architecture) -> bool:
        if config.limits.refusal(cost_of(architecture, input_spec, classes)) is not None:
            return False
        return aims is None or aims.near(architecture)

    return accept


def probe_draws(space: Space, seed: int) -> list[Architecture]:
    """Networks that the survey of a device chooses from, for the search of that seed."""
    own = seed_of(seed, 0x9806)
    return [space.draw(own, slot) for slot in range(4 * PROBES)]


def nearest_in_latency(
    networks: Sequence[Architecture], measures: Mapping[str, Mapping[str, float]], milliseconds: float
) -> Architecture:
    """The measured network that takes nearest to so long, as a ratio.

    Args:
        networks: One or more, measured.
        measures: Measures of each, by key.
        milliseconds: Time that it is to take.
    """

    def distance(entry: Architecture) -> float:
        return abs(math.log(max(1e-6, measures[entry.key][LATENCY]) / milliseconds))

    return min(networks, key=lambda entry: (distance(entry), entry.key))


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


class Bounds:
    """Limits of a run on cost and latency.

    Attributes:
        model: Predicts latency, where there are limits on it and the device was surveyed.
        aims: Where draws are to be, as the survey told; None where latency is not limited.
        evaluator: Measures what is near a limit on latency, from the end of the HyperNet's training on.
        probes: Networks that were measured to predict the latency of others.
        reference: The one of them that all others are measured in turns with.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.model: LatencyModel | None = None
        self.aims: Aims | None = None
        self.evaluator: Evaluator | None = None
        self.probes: list[Architecture] = []
        self.reference: Architecture | None = None

    @cached_property
    def _known(self) -> tuple[Architecture, ...]:
        """Known networks of the space, which take a second to write down."""
        return known_networks(self._run.space)

    @property
    def limits_latency(self) -> bool:
        """Whether there are limits on latency, and something to measure it with."""
        return bool(self._run.config.latency_limits) and self._run.measurement is not None

    def known(self) -> tuple[Architecture, ...]:
        """Known networks within the limits; where latency is limited, the busiest near its limits first."""

        def is_within(entry: Architecture) -> bool:
            return self.refusal(entry) is None

        inside: Iterator[Architecture] = filter(is_within, self._known)
        if self.aims is not None:
            inside = busiest_within(self.aims, self._known, is_within)
        return tuple(itertools.islice(inside, self._run.config.known))

    def survey(self, here: Worker) -> None:
        """Measure some networks of the space, from small to large, to predict the latency of all others."""
        run = self._run
        drawn = [entry for entry in probe_draws(run.space, run.config.seed) if self.within_cost(entry)]
        if len(drawn) < PROBES:  # limits on cost are tight: known networks are many small ones
            drawn += filter(self.within_cost, self._known)
            drawn = list(dict.fromkeys(drawn))
        by_size = sorted(drawn, key=lambda entry: (run.cost(entry).macs, entry.key))
        usual = by_size[: max(PROBES, 3 * len(by_size) // 4)]  # the largest take long and keep no limit
        places = np.unique(np.linspace(0, len(usual) - 1, min(PROBES, len(usual))).round().astype(int))
        draws = [usual[place] for place in places]
        others = (entry for entry in self._known if self.within_cost(entry) and entry not in draws)
        self.probes = draws + known_probes(others, usual, run.cost)
        workers = make_executor(ExecutorConfig(), here.equipment, here)
        evaluator = Evaluator(run.folder, run.images, run.cost, run.measurement, workers)
        with run.progress("device", len(self.probes)) as advance:
            for probe in self.probes:
                evaluator.measure([probe])
                advance(1)
        measured = [evaluator.measures[probe.key][LATENCY] for probe in self.probes]
        if len(measured) >= LEAST:
            self.model = fit_latency(self.probes, measured, run.spec, run.classes)
            self.aims = aims_for(
                self.model, run.config.latency_limits, run.space, run.config.seed, self.within_cost
            )
        tightest = min(limit.milliseconds for limit in run.config.latency_limits)
        self.reference = nearest_in_latency(self.probes, evaluator.measures, tightest)
        evaluator.refer_to(self.reference)

    def learn(self, scored: Sequence[Scored]) -> None:
        """Predict latency from all that was measured so far.

        The best of many predictions are those that promise too much: what a model of the first measurements
        proposed at the limit was nearly all slower than it.
        """
        if self.model is None or self.evaluator is None:
            return
        measures = self.evaluator.measures
        architectures = {entry.key: entry for entry in self.probes}
        architectures |= {entry.candidate.architecture.key: entry.candidate.architecture for entry in scored}
        measured = {key: measures[key][LATENCY] for key in architectures if key in measures}
        self.model = fit_latency(
            [architectures[key] for key in measured],
            list(measured.values()),
            self._run.spec,
            self._run.classes,
        )

    def within_cost(self, architecture: Architecture) -> bool:
        """Whether a network keeps the limits on cost."""
        return self._run.config.limits.refusal(self._run.cost(architecture)) is None

    def refusal(self, architecture: Architecture) -> str | None:
        """Why a network may not be proposed, or None. What is near a latency limit is measured to know it.

        So candidates count within the limits, whatever the strategy.
        """
        reason = self._run.config.limits.refusal(self._run.cost(architecture))
        if reason is None:
            reason = self.predicted_refusal(architecture)
        if reason is None and self.limits_latency and self.evaluator is not None:
            self.evaluator.measure([architecture])
            reason = self.evaluator.refusal(architecture)
        return reason

    def predicted_refusal(
        self, architecture: Architecture, slack: float = 2.0, limit: float = math.inf
    ) -> str | None:
        """Why a network is slower than the limits by prediction.

        Args:
            architecture: the network.
            slack: What is borne beyond the limit, in errors of the prediction.
            limit: Milliseconds, where they are fewer than those of the largest limit.
        """
        if self.model is None:
            return None
        limit = min(limit, max(entry.milliseconds for entry in self._run.config.latency_limits))
        predicted = self.model.predict(architecture)
        if predicted <= limit * (1 + slack * self.model.error):
            return None
        return f"about {predicted:.3g} ms by prediction, where at most {limit:g} ms are allowed"

    def worthwhile(self, architecture: Architecture) -> bool:
        """Whether a draw is worth a proposal: near a latency limit, where there is one."""
        return self.aims is None or self.aims.near(architecture)
