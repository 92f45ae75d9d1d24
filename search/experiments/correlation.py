"""Figure 3 of the paper: score against error after training, with all that says how far to believe it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from smash_base.json_values import JsonObject
from smash_search.experiments.workbench import Workbench
from smash_search.rank import statistics

BAND = 1.25  # the most MACs of a band over the fewest


@dataclass(frozen=True)
class ScoredAndTrained:
    """One architecture of the experiment.

    Attributes:
        key: Key of the architecture.
        parameters, macs: Its cost.
        score, score_loss: Error and loss with generated weights.
        zeroed: The same error with every generated filter set to zero.
        running: The same error with running BatchNorm statistics.
        one_epoch, error: Test errors after the first and the last epoch of training.
        second: Test error of a training with another seed; None where there was none.
    """

    key: str
    parameters: int
    macs: int
    score: float
    score_loss: float
    zeroed: float
    running: float
    one_epoch: float
    error: float
    second: float | None


def correlation(bench: Workbench) -> JsonObject:
    """Score random architectures, train them, compare.

    The score stands beside its version with running BatchNorm statistics (as in the original program, where
    statistics averaged over architectures are used), the one with zeros for all that is generated, the
    ceiling from two training seeds, and the baselines parameters, MACs and one epoch of training.
    """
    config = bench.config
    points: list[ScoredAndTrained] = []
    stride = max(1, config.networks // max(1, config.second_seeds))
    with bench.progress("networks", config.networks) as advance:
        for number in range(config.networks):
            architecture = bench.architecture(number)
            before = bench.was_trained(architecture)
            first = bench.trained(architecture)
            if first is None:
                break
            wanted = number % stride == 0 and number // stride < config.second_seeds
            second = bench.trained(architecture, 1) if wanted else None
            score, running = bench.score(architecture), bench.score_with_running_statistics(architecture)
            cost = bench.cost(architecture)
            points.append(
                ScoredAndTrained(
                    key=architecture.key,
                    parameters=cost.parameters,
                    macs=cost.macs,
                    score=score.error,
                    score_loss=score.loss,
                    zeroed=bench.score(architecture, "zeroed", zeroed=True).error,
                    running=running.error,
                    one_epoch=first.one_epoch,
                    error=first.error,
                    second=None if second is None else second.error,
                )
            )
            advance(1, before=float(before))
    if len(points) < 3:  # the time was too short for any statistic
        return {"networks": len(points), "points": [asdict(point) for point in points], "signals": []}
    wrong = np.stack([bench.score(bench.architecture(number)).errors() for number in range(len(points))])
    return summary(points, wrong) | {
        "hypernet_loss": bench.training_loss(),
        "hypernet_steps": config.training.steps,
        "epochs": config.recipe.epochs,
        "score_images": bench.score(bench.architecture(0)).images,
        "test_images": len(bench.dataset.test),
        "train_images": len(bench.dataset.train),
    }


def summary(points: list[ScoredAndTrained], wrong: np.ndarray) -> JsonObject:
    """All statistics of the experiment from its points and the errors of each score by image."""

    def column(name: str) -> np.ndarray:
        return np.asarray([getattr(point, name) for point in points], np.float64)

    error = column("error")
    signals = {
        "SMASH score": column("score"),
        "SMASH loss": column("score_loss"),
        "filters zeroed": column("zeroed"),
        "running statistics": column("running"),
        "parameters": -column("parameters"),
        "MACs": -column("macs"),
        "one epoch": column("one_epoch"),
    }
    pairs = [(point.error, point.second) for point in points if point.second is not None]
    both = np.asarray(pairs, np.float64).reshape(-1, 2)
    half = statistics.split_half(wrong)
    few, most, inside = widest_band(column("macs"))
    return {
        "networks": len(points),
        "second_seeds": len(both),
        "points": [asdict(point) for point in points],
        "signals": statistics.signal_table(error, signals),
        "band": {
            "macs": [few, most],
            "kendall": statistics.kendall(column("score")[inside], error[inside]).to_json(),
            "zeroed": statistics.kendall(column("zeroed")[inside], error[inside]).to_json(),
        },
        "ceiling": statistics.ceiling(both[:, 0], both[:, 1]).to_json() if len(both) > 2 else None,
        "seed_noise": statistics.seed_noise(both[:, 0], both[:, 1]) if len(both) else None,
        "error_mean": float(error.mean()),
        "error_sd": float(error.std(ddof=1)),
        "error_range": [float(error.min()), float(error.max())],
        "score_mean": float(column("score").mean()),
        "score_sd": float(column("score").std(ddof=1)),
        "op_contribution": float((column("zeroed") - column("score")).mean()),
        "running_mean": float(column("running").mean()),
        "running_sd": float(column("running").std(ddof=1)),
        "running_against_recomputed": statistics.spearman(column("running"), column("score")).to_json(),
        "split_half": half,
        "split_half_stepped_up": statistics.stepped_up(half),
    }


def widest_band(macs: np.ndarray) -> tuple[int, int, np.ndarray]:
    """The networks of like cost: the most that lie within a factor of :data:`BAND` in MACs.

    A score that tells small networks from large ones says nothing among those of one latency.

    Returns:
        the fewest and the most MACs among them, and who is inside, bool [N].
    """
    bands = [(macs >= low) & (macs <= BAND * low) for low in macs]
    inside = max(bands, key=np.count_nonzero)
    return int(macs[inside].min()), int(macs[inside].max()), inside
