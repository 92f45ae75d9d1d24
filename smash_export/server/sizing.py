"""How many images run together and how many may wait, from the times of the opened file itself.

Batches pay where a run has a price of its own: on a GPU, or for a small network of many nodes. A network
that keeps one core busy with one image gains nothing, and a large batch only makes its requests wait for
each other. So the batch grows as long as doubling it brings clearly more images per second.

The queue follows from the same times. Under lasting overload it is always full, and an accepted request waits
for the run in progress and for what stands before it; that may take a few times what one request takes
alone. More may wait in a burst (see :mod:`batching`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from smash_base.errors import UsageError
from smash_base.json_values import JsonObject
from smash_export.server.batching import QueueLimits

QUEUE_SIZE = 256
_GAIN = 1.1  # images per second that doubling the batch must bring
_PATIENCE = 2.5  # under overload a request waits at most about this many times what it takes alone
_NETWORK_S = 0.0002  # what a request alone takes beyond its run
_SHORT_S = 0.008  # a wait of so long for the event loop is no overload, however fast the network
_QUICK_S = 0.004  # dozens of clients that wait for each other at a very fast network are no overload
_IN_LOOP_S = 0.001  # a run that holds up the event loop for so long costs less than a change of threads
_ROUNDS_S = 0.03
_ROUNDS = (3, 20)


@dataclass(frozen=True)
class Batching:
    """What whoever starts the server asks for.

    Attributes:
        max_batch: images that run at once, at most; None to measure.
        queue_size: images that may wait; None for 256 in a burst and a measured number under overload.
        delay, timeout: as :class:`QueueLimits`.
    """

    max_batch: int | None = None
    queue_size: int | None = None
    delay: float = 0.0
    timeout: float = 10.0

    def __post_init__(self) -> None:
        if self.max_batch and self.queue_size and self.max_batch > self.queue_size:
            raise UsageError(
                "the queue is smaller than a batch",
                expected=f"--queue-size of at least {self.max_batch}",
                received=self.queue_size,
            )


@dataclass(frozen=True)
class Sizes:
    """What was chosen, and the times behind it.

    Attributes:
        settings: for the queue.
        seconds: batch -> seconds of a run, the quickest of a few.
    """

    settings: QueueLimits
    seconds: dict[int, float]

    def describe(self) -> JsonObject:
        """For logs and ``GET /v1/models``."""
        settings = self.settings
        return {
            "max_batch": settings.max_batch,
            "queue_size": settings.queue_size,
            "queue_under_overload": settings.standing or settings.queue_size,
            "images_per_second": {str(batch): round(batch / run) for batch, run in self.seconds.items()},
        }


def choose_sizes(
    run: Callable[[np.ndarray], np.ndarray], image: np.ndarray, largest: int, asked: Batching
) -> Sizes:
    """Measure and choose; takes a few runs of each size that pays.

    Args:
        run: float32 [B, *input_shape] -> float32 [B, K].
        image: float32 [1, *input_shape].
        largest: batch that the file takes.
        asked: what is not to be measured.
    """
    limit = min(largest, asked.max_batch or largest)
    if asked.queue_size is not None:
        limit = min(limit, asked.queue_size)
    seconds = {1: _quickest(run, image)}
    best = 1
    if asked.max_batch is not None:
        best = limit
        seconds[best] = _quickest(run, np.repeat(image, best, axis=0))
    else:
        while 2 * best <= limit:
            twice = 2 * best
            seconds[twice] = _quickest(run, np.repeat(image, twice, axis=0))
            if twice / seconds[twice] < _GAIN * best / seconds[best]:
                break
            best = twice
    in_loop = 0
    if not asked.delay:
        in_loop = max(
            (size for size, took in seconds.items() if size <= best and took <= _IN_LOOP_S), default=0
        )
    if asked.queue_size is not None:
        settings = QueueLimits(
            best, asked.queue_size, delay=asked.delay, timeout=asked.timeout, in_loop=in_loop
        )
    else:
        wait = _PATIENCE * (seconds[1] + _NETWORK_S)
        if seconds[1] < _NETWORK_S:
            wait = max(wait, _QUICK_S)
        batches = int(wait / seconds[best]) - 1  # one is running
        standing = best * max(batches, 1) + in_loop  # what a loop runs next is still in the queue
        queue_size = max(QUEUE_SIZE, best)
        settings = QueueLimits(
            best,
            queue_size,
            standing=min(standing, queue_size),
            delay=asked.delay,
            timeout=asked.timeout,
            patience=max(wait, 2 * seconds[best]),
            allowed=max(wait, _SHORT_S),
            in_loop=in_loop,
        )
    return Sizes(settings, seconds)


def _quickest(run: Callable[[np.ndarray], np.ndarray], batch: np.ndarray) -> float:
    """The quickest of a few runs: what else the machine does can only make a run slower."""
    run(batch)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < _ROUNDS[0] or (len(times) < _ROUNDS[1] and time.perf_counter() - began < _ROUNDS_S):
        started = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - started)
    return min(times)
