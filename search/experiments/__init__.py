"""The paper's experiments (section 4), resumable, at a CPU's size and at the paper's.

``EXPERIMENTS`` is the registry: a new experiment is one file with ``function(bench) -> plain result`` and
one line here. All experiments of a folder share one HyperNet and the same trained networks
(:mod:`smash_search.experiments.workbench`). Sizes are in :mod:`smash_search.experiments.config`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from smash_base import files
from smash_base.errors import UsageError
from smash_base.json_values import JsonObject

if TYPE_CHECKING:
    from smash_base.progress import ShowProgress
    from smash_search.data import Dataset
    from smash_search.experiments.config import ExperimentConfig

EXPERIMENTS: dict[str, str] = {
    "correlation": "figure 3: score against error after training",
    "capacity": "the correlation as the HyperNet shrinks",
    "encoding": "the right c against corrupted ones",
    "gradient": "dE/dc-guided steps against random perturbation",
    "transfer": "the best architectures of one data set trained on others",
    "presets": "where ResNet, DenseNet and FractalNet patterns rank among random networks",
}
"""Name (also of the module and its function) -> what the experiment shows."""


def run_experiment(
    name: str,
    config: ExperimentConfig,
    dataset: Dataset,
    folder: Path,
    progress: ShowProgress,
    *,
    device: str = "cpu",
    minutes: float | None = None,
) -> JsonObject:
    """Run one experiment and write ``NAME.json`` into the folder; what is there already is not redone.

    Args:
        name: one of ``EXPERIMENTS``.
        config: its size.
        dataset: Data set of all experiments in the folder.
        folder: holds everything; created if missing.
        progress: shows how far long stages are.
        device: where to compute.
        minutes: no further network is trained after so much time; the result counts what there is.

    Returns:
        The content of ``NAME.json``.

    Raises:
        UsageError: no such experiment, or the folder belongs to another size or other data.
    """
    if name not in EXPERIMENTS:
        raise UsageError(f"there is no experiment {name!r}", expected=", ".join(EXPERIMENTS), received=name)
    from smash_search.experiments.workbench import Workbench

    with files.exclusive(folder, purpose="experiment"):
        bench = Workbench(config, dataset, folder, progress, device=device, minutes=minutes)
        function = getattr(importlib.import_module(f"smash_search.experiments.{name}"), name)
        found = function(bench)
        result = {
            "experiment": name,
            "size": config.size,
            "data": dataset.name,
            "fingerprint": bench.dataset.fingerprint,
            "stopped_by_time": bench.left_out,
            **found,
        }
        files.write_json(folder / f"{name}.json", result)
    return result
