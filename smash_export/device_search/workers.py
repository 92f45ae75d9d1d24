"""How many networks of a search are scored and trained beside each other on this machine.

A network for an edge device is too small to keep several cores busy: a second core lets one of them be
trained 1.1 to 1.35 times as fast, and two beside each other 1.4 times as fast again (docs/what-was-tried.md,
"Two cores for one training").
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from smash_export.measure.machine import memory_available

if TYPE_CHECKING:
    from smash_search.data import Dataset
    from smash_search.executors import ExecutorConfig
    from smash_search.stages.config import SearchConfig

LONG = 300_000_000  # pixels that the finalists are shown: two minutes of a fast core, ten of a slow one
MOST = 8  # workers: as many as there are networks in the last rung, and some
PROGRAM = 2**30  # bytes of a worker without its images
ACTIVATIONS = 1000  # bytes for each pixel of a training batch
MEMORY_SHARE = 0.5  # of the memory that is free


def fitting_executor(config: SearchConfig, dataset: Dataset, device: str) -> ExecutorConfig:
    """Worker processes for a search on a CPU of several cores that takes minutes; this process for others.

    Args:
        config: Configuration of the whole search.
        dataset: Images of the search.
        device: where to compute: "auto", "cpu", "cuda".
    """
    import torch

    from smash_search.executors import ExecutorConfig
    from smash_search.train.compute import pick_device
    from smash_search.train.distributed import world_size

    is_alone = pick_device(device).type != "cpu" or world_size() > 1
    if is_alone or pixels_of_race(config, dataset) < LONG:
        return ExecutorConfig()
    fitting = int(MEMORY_SHARE * memory_available() / memory_of_worker(config, dataset))
    workers = min(torch.get_num_threads(), MOST, fitting, config.finalists.entering)
    return processes(workers) if workers > 1 else ExecutorConfig()


def processes(workers: int) -> ExecutorConfig:
    """So many processes, among which PyTorch's threads are shared out."""
    import torch

    from smash_search.executors import ExecutorConfig

    return ExecutorConfig("process", workers=workers, threads=max(1, torch.get_num_threads() // workers))


def pixels_of_race(config: SearchConfig, dataset: Dataset) -> int:
    """Pixels of all images that finalists are trained on in a search."""
    finalists = config.finalists
    images = min(finalists.epoch_images or len(dataset.train), len(dataset.train))
    return finalists.epochs(finalists.entering) * images * _pixels(dataset)


def memory_of_worker(config: SearchConfig, dataset: Dataset) -> int:
    """Bytes that a worker needs, roughly. Images that are mapped from a file are shared by all workers."""
    own = [
        split.images.nbytes
        for split in (dataset.train, dataset.validation)
        if not isinstance(split.images, np.memmap)
    ]
    return PROGRAM + 2 * sum(own) + config.finalists.recipe.batch * _pixels(dataset) * ACTIVATIONS


def _pixels(dataset: Dataset) -> int:
    _, *size = dataset.preprocessing.input_shape
    return math.prod(size)
