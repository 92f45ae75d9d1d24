"""What a network of a search may cost and how long it may take: computed, predicted, measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

from smash_search.executors import ExecutorConfig, make_executor
from smash_search.executors.work import Worker
from smash_search.rank.evaluation import Evaluator
from smash_search.rank.latency_model import LatencyModel, fit_latency
from smash_search.rank.measurement import LATENCY
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.known import known_networks
from smash_search.space.limits import CostLimits
from smash_search.stages.aims import Aims, aims_for, busiest_within
from smash_search.stages.config import Run, SearchConfig
from smash_search.stages.survey import Survey


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


class Bounds:
    """Limits of a run on cost and latency.

    Attributes:
        model: Predicts latency, where there are limits on it and the device was surveyed.
        aims: Where draws are to be, as the survey told; None where latency is not limited.
        evaluator: Measures what is near a limit on latency, from the end of the HyperNet's training on.
        probes: Networks that were measured to predict the latency of others.
        reference: The network that they and all others are measured in turns with.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.model: LatencyModel | None = None
        self.aims: Aims | None = None
        self.evaluator: Evaluator | None = None
        self.probes: list[Architecture] = []
        self.reference: Architecture | None = None

    @property
    def limits_latency(self) -> bool:
        """Whether there are limits on latency, and something to measure it with."""
        return bool(self._run.config.latency_limits) and self._run.measurement is not None

    def known(self) -> tuple[Architecture, ...]:
        """Known networks within the limits; where latency is limited, the busiest near its limits first."""

        def is_within(entry: Architecture) -> bool:
            return self.refusal(entry) is None

        known = known_networks(self._run.space)
        inside: Iterator[Architecture] = filter(is_within, known)
        if self.aims is not None:
            inside = busiest_within(self.aims, known, is_within)
        return tuple(itertools.islice(inside, self._run.config.known))

    def survey(self, here: Worker) -> None:
        """Measure some networks of the space to predict the latency of all others."""
        run = self._run
        limits = [limit.milliseconds for limit in run.config.latency_limits]
        known = known_networks(run.space)
        survey = Survey(run.space, run.config.seed, limits, run.cost, known, self.within_cost)
        workers = make_executor(ExecutorConfig(), here.equipment, here)
        evaluator = Evaluator(run.folder, run.images, run.cost, run.measurement, workers)
        self.reference = survey.reference

        with run.progress("device", survey.most) as advance:
            if self.reference is not None:
                evaluator.refer_to(self.reference)

            def measure(probe: Architecture) -> float:
                evaluator.measure([probe])
                advance(1)
                return evaluator.measures[probe.key][LATENCY]

            self.probes, self.model = survey.measured(measure, run.spec, run.classes)
        self._aim()

    def measure_by(self, evaluator: Evaluator) -> None:
        """Let this measure what is near a limit; whether the survey met a busy machine is asked before."""
        if self.reference is not None:
            evaluator.refer_to(self.reference)
        evaluator.measure(self.probes)  # read back, first in their file
        self.evaluator = evaluator
        if evaluator.refer_again():
            self.learn()
            self._aim()

    def _aim(self) -> None:
        run = self._run
        if self.model is not None:
            self.aims = aims_for(
                self.model, run.config.latency_limits, run.space, run.config.seed, self.within_cost
            )

    def learn(self) -> None:
        """Predict latency from all that was measured so far, what was too slow included.

        The best of many predictions are those that promise too much: what a model of the first measurements
        proposed at the limit was nearly all slower than it.
        """
        if self.model is None or self.evaluator is None:
            return
        measured = self.evaluator.measured
        self.model = fit_latency(
            list(measured.values()),
            [self.evaluator.measures[key][LATENCY] for key in measured],
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
