"""Running any number of images through a session that takes a range of batch sizes."""

from __future__ import annotations

import numpy as np

from smash_base.preprocess import Preprocessing
from smash_targets.base import Session

BatchRange = tuple[int, int, int]  # smallest, usual, largest batch that the file takes


def run_tensors(
    session: Session, tensors: np.ndarray, batch: BatchRange, size: int | None = None
) -> np.ndarray:
    """Logits of float32 [N, *input_shape], in batches of ``size`` (the largest allowed by default).

    A last batch smaller than the file takes is filled up by repeating its last image.
    """
    smallest, _, largest = batch
    size = min(size or largest, largest)
    results = []
    for start in range(0, len(tensors), size):
        part = np.ascontiguousarray(tensors[start : start + size], dtype=np.float32)
        count = len(part)
        if count < smallest:
            part = np.concatenate([part, np.repeat(part[-1:], smallest - count, axis=0)])
        results.append(session.run(part)[:count])
    return results[0] if len(results) == 1 else np.concatenate(results)


def run_images(
    session: Session,
    images: np.ndarray,
    preprocessing: Preprocessing,
    batch: BatchRange,
    size: int | None = None,
) -> np.ndarray:
    """Logits of uint8 [N, *sample_shape]; normalises piece by piece, so ``images`` may be a memmap."""
    step = max(batch[2], 256 // batch[2] * batch[2])  # whole batches, and few of them in memory
    return np.concatenate(
        [
            run_tensors(
                session, preprocessing.normalise(np.asarray(images[start : start + step])), batch, size
            )
            for start in range(0, len(images), step)
        ]
    )
