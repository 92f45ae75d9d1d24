"""Further networks to train, proposed by a model of those that were trained already.

After each round of short trainings a Gaussian process is fitted to their losses, over features of
architectures: sizes, widths, depths and forms. It then ranks mutations and crossovers of the best networks,
fresh draws, a thousand of them, and what was scored and not trained, known networks for example; somewhat
optimistic about what it knows little of (lower confidence bound; Srinivas et al. 2010). No two of a round are
alike, so that none holds one idea eight times. Every trained network teaches the model. Proposals are a pure
function of seed, round and results, so that a resumed search proposes the same ones.

What the HyperNet scores far worse than the networks that were trained (:func:`outer_fence`) is left out: of
the 14 such networks that six searches on CIFAR-10 trained, all ended in the worst third, 12 in the worst
sixth.

On average of 24 searches on CIFAR-10 at four limits on latency, what the process predicts of each network
from the others has a Kendall's tau of 0.57 with the loss that orders the race; MACs have 0.42, the SMASH
score 0.19. Latency, MACs per millisecond and the score as further features add less than 0.01
(benchmarks/error_model.py).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from smash_search.space.architecture import Architecture
from smash_search.space.cost import Cost
from smash_search.space.space import Space
from smash_search.strategies import Candidate
from smash_search.strategies.features import features
from smash_search.train.compute import seed_of

PARENTS = 6
POOL = 1000  # architectures that the model chooses from
OPTIMISM = 0.5  # standard deviations
SHARES = (("mutation", 0.5), ("crossover", 0.25), ("random", 0.25))
MUTATION_RATES = (0.02, 0.05, 0.15)
FENCE = 4.0  # interquartile ranges above the third quartile


@dataclass(frozen=True)
class Observation:
    """A network that was trained.

    Attributes:
        architecture, cost: what it is.
        judged: what orders networks of the race (:func:`smash_search.rank.trained.expected`).
    """

    architecture: Architecture
    cost: Cost
    judged: float


class ErrorModel:
    """Loss or error after a short training, predicted from what an architecture is.

    Args:
        rows: Features of two or more networks by name.
        judged: What orders each of them in the race.
    """

    def __init__(self, rows: Sequence[Mapping[str, float]], judged: Sequence[float]) -> None:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        self._names = sorted({name for row in rows for name in row})
        matrix = self._matrix(rows)
        self._mean, deviation = matrix.mean(0), matrix.std(0)
        self._deviation = np.where(deviation > 0, deviation, 1.0)
        dims = math.sqrt(len(self._names))
        kernel = ConstantKernel(1.0) * Matern(dims, (0.2 * dims, 20 * dims), nu=2.5) + WhiteKernel(0.2)
        known = self._scaled(matrix)
        gaps = np.linalg.norm(known[:, None] - known, axis=2)
        np.fill_diagonal(gaps, np.inf)
        self._apart = float(np.median(gaps.min(1))) / 2
        self._process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bound that was reached: few networks, nothing to be done
            self._process.fit(known, list(judged))

    @classmethod
    def of(cls, observations: Sequence[Observation]) -> ErrorModel:
        """The model of two or more trained networks."""
        rows = [features(entry.architecture, entry.cost) for entry in observations]
        return cls(rows, [entry.judged for entry in observations])

    def predict(self, rows: Sequence[Mapping[str, float]]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of what is expected of each network, [N] each.

        Args:
            rows: Features by name; those of the model that are not there are 0.
        """
        mean, deviation = self._process.predict(self._scaled(self._matrix(rows)), return_std=True)
        return mean, deviation

    def choose(self, architectures: Sequence[tuple[Architecture, Cost]], count: int) -> list[int]:
        """Places of the most promising ones, the best first, and as long as there are others no two alike.

        The bound of each is its mean minus :data:`OPTIMISM` standard deviations. Alike are those whose
        features are closer than half of what a trained network is from its nearest one.
        """
        rows = [features(*entry) for entry in architectures]
        places = self._scaled(self._matrix(rows))
        mean, deviation = self.predict(rows)
        order = np.argsort(mean - OPTIMISM * deviation, kind="stable").tolist()
        chosen: list[int] = []
        for place in order:
            if len(chosen) == count:
                break
            gaps = np.linalg.norm(places[chosen] - places[place], axis=1)
            if not chosen or gaps.min() >= self._apart:
                chosen.append(place)
        taken = set(chosen)
        chosen += [place for place in order if place not in taken][: max(0, count - len(chosen))]
        return chosen

    def _matrix(self, rows: Sequence[Mapping[str, float]]) -> np.ndarray:
        return np.asarray([[row.get(name, 0.0) for name in self._names] for row in rows], np.float64)

    def _scaled(self, matrix: np.ndarray) -> np.ndarray:
        scaled: np.ndarray = (matrix - self._mean) / self._deviation
        return scaled


def outer_fence(scores: Sequence[float]) -> float:
    """The score (an error) beyond which a network is not worth a training, by those of trained ones.

    Tukey's outer fence (1977), a step farther out: on digits, where scores say less, networks at three and a
    half ranges were among the better ones. Scores whose quartiles are one say nothing: a HyperNet that is
    hardly trained answers with one class for most networks.
    """
    if len(scores) < 2:
        return math.inf
    low, high = np.percentile(scores, [25, 75])
    return float(high + FENCE * (high - low)) if high > low else math.inf


def propose(
    model: ErrorModel,
    wanted: int,
    *,
    parents: Sequence[Observation],
    space: Space,
    seed: int,
    fits: Callable[[Architecture], bool],
    cost: Callable[[Architecture], Cost],
    waiting: Sequence[Candidate] = (),
) -> list[Candidate]:
    """Architectures to train, the most promising first: ``wanted``, or fewer where limits leave few.

    Args:
        model: Model of the errors of all that was trained so far.
        wanted: how many.
        parents: Trained networks whose best are moved from.
        space: Space to move and draw in.
        seed: Random seed of this round.
        fits: whether an architecture may be proposed: new, within all limits that cost nothing to check.
        cost: Exact cost of an architecture.
        waiting: Candidates that keep the limits and were not trained; they are chosen among as well.
    """
    if not wanted:
        return []
    pool = list(waiting) + _pool(parents, POOL, space, seed, fits)
    if not pool:
        return []
    pool.sort(key=lambda candidate: candidate.architecture.key)
    pairs = [(candidate.architecture, cost(candidate.architecture)) for candidate in pool]
    return [pool[place] for place in model.choose(pairs, wanted)]


def _pool(
    observations: Sequence[Observation],
    size: int,
    space: Space,
    seed: int,
    fits: Callable[[Architecture], bool],
) -> list[Candidate]:
    ranked = sorted(observations, key=lambda entry: (entry.judged, entry.architecture.key))
    parents = [entry.architecture for entry in ranked[:PARENTS]]
    random = np.random.default_rng(seed_of(seed, 0x9A3))
    origins = [origin for origin, _ in SHARES]
    shares = [share for _, share in SHARES]
    pool: dict[str, Candidate] = {}
    for slot in range(20 * size):
        if len(pool) == size:
            break
        origin = origins[int(random.choice(len(origins), p=shares))]
        first, second = (parents[int(index)] for index in random.integers(len(parents), size=2))
        if origin == "mutation":
            rate = MUTATION_RATES[int(random.integers(len(MUTATION_RATES)))]
            proposed = space.mutate(first, seed, slot, rate)
        elif origin == "crossover":
            proposed = space.crossover(first, second, seed, slot)
        else:
            proposed = space.draw(seed, slot)
        if proposed.key not in pool and fits(proposed):
            pool[proposed.key] = Candidate(proposed, origin)
    return list(pool.values())
