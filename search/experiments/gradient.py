"""The paper's fourth experiment: steps guided by dE/dc against random perturbation, with equal budget.

The prediction of a mutation's effect, <dE/dc, c' - c>, is that of :mod:`smash_search.strategies.gradient`.
"""

from __future__ import annotations

import numpy as np

from smash_base.json_values import JsonObject
from smash_search.experiments.workbench import Workbench
from smash_search.rank import statistics
from smash_search.space.architecture import Architecture
from smash_search.strategies.gradient import Encoded, predicted_change
from smash_search.train.compute import seed_of

STEP_STREAM = 0x96AD


def gradient(bench: Workbench) -> JsonObject:
    """From each start, both searches score the same number of mutations; compare what they reach.

    Besides, over all scored mutations: whether the predicted change agrees with the change of the score.
    """
    config = bench.config
    guided: list[list[float]] = []
    unguided: list[list[float]] = []
    starts: list[float] = []
    predictions: list[tuple[float, float]] = []
    with bench.progress("steps", 2 * config.starts * config.steps) as advance:
        for start in range(config.starts):
            first = bench.architecture(start)
            starts.append(bench.score(first).error)
            for use_gradient, reached in ((True, guided), (False, unguided)):
                path = [starts[-1]]
                centre = first
                for step in range(config.steps):
                    centre, error = _step(bench, centre, start, step, use_gradient, predictions)
                    path.append(min(error, path[-1]))
                    advance(1)
                reached.append(path)
    ends = [path[-1] for path in guided], [path[-1] for path in unguided]
    predicted = [pair[0] for pair in predictions]
    changed = [pair[1] for pair in predictions]
    return {
        "starts": config.starts,
        "steps": config.steps,
        "scored_per_step": config.batch,
        "start_errors": starts,
        "guided": guided,
        "random": unguided,
        "guided_against_random": statistics.paired(ends[0], ends[1]).to_json(),
        "predictions": len(predictions),
        "prediction_kendall": statistics.kendall(predicted, changed).to_json() if predictions else None,
    }


def _step(
    bench: Workbench,
    centre: Architecture,
    start: int,
    step: int,
    use_gradient: bool,
    predictions: list[tuple[float, float]],
) -> tuple[Architecture, float]:
    """Score some mutations of ``centre``; the best of them and ``centre``, and its score."""
    config = bench.config
    seed = seed_of(config.seed, STEP_STREAM, start, step)
    here = bench.score(centre).error
    count = config.mutants if use_gradient else config.batch
    mutants = [bench.space.mutate(centre, seed, slot, config.rate) for slot in range(count)]
    if use_gradient:
        layout, slope = bench.encoding_gradient(centre)
        known = Encoded(layout, centre, slope)
        changes = [predicted_change(known, mutant) for mutant in mutants]
        order = np.argsort([0.0 if change is None else change for change in changes], kind="stable")
        mutants = [mutants[index] for index in order[: config.batch]]
        for index in order[: config.batch]:
            if (change := changes[index]) is not None:
                mutant = bench.space.mutate(centre, seed, int(index), config.rate)
                predictions.append((change, bench.score(mutant).error - here))
    best = min(mutants, key=lambda mutant: bench.score(mutant).error)
    error = bench.score(best).error
    return (best, error) if error < here else (centre, here)
