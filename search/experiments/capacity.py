"""The paper's second experiment: the correlation as the HyperNet shrinks."""

from __future__ import annotations

import numpy as np

from smash_base.json_values import JsonObject
from smash_search.experiments.workbench import Workbench
from smash_search.rank import statistics


def capacity(bench: Workbench) -> JsonObject:
    """Kendall's tau of the score of HyperNets of several sizes, over the same trained networks, with their
    filters and without.
    """
    population = bench.population()
    error = np.asarray([record.error for _, record in population], np.float64)
    rows = []
    for name, config in {"": bench.config.hypernet, **bench.config.hypernets}.items():
        if (
            name
            and bench.time_is_up
            and not (bench.folder / f"hypernet-{name.replace(' ', '-')}.pt").exists()
        ):
            bench.left_out = True
            continue
        scores, zeroed = [], []
        with bench.progress(f"scores {name}".strip(), len(population)) as advance:
            for architecture, _ in population:
                scores.append(bench.score(architecture, hypernet=name, config=config))
                without = bench.score(architecture, "zeroed", zeroed=True, hypernet=name, config=config)
                zeroed.append(without.error)
                advance(1)
        values = [score.error for score in scores]
        rows.append(
            {
                "hypernet": name or "full",
                "parameters": sum(layer.numel() for layer in bench.supernet(name, config).hypernet.layers),
                "loss": bench.training_loss(name),
                "score_mean": float(np.mean(values)),
                "score_sd": float(np.std(values)),
                "kendall": statistics.kendall(values, error).to_json(),
                "kendall_zeroed": statistics.kendall(zeroed, error).to_json(),
                "op_contribution": float(np.mean(zeroed) - np.mean(values)),
                "split_half": statistics.split_half(np.stack([score.errors() for score in scores])),
                "scores": values,
            }
        )
    return {"networks": len(population), "errors": error.tolist(), "hypernets": rows}
