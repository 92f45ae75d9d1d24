"""Ray actors: one per GPU or share of the CPU cores, on this machine or on a cluster.

Ray core alone, and not Ray Tune: a task takes seconds, and its result goes into the files of the search, not
into those of a trial. Each actor is sent HyperNet and images once, through Ray's object store.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch

from smash_base.errors import MissingRuntimeError
from smash_base.json_values import JsonObject
from smash_search.executors import ExecutorConfig, Task
from smash_search.executors.pool import Pool
from smash_search.executors.work import Answer, Equipment, Remote, Worker

ANSWER_SECONDS = 30  # for a cluster to answer; Ray itself asks a dead address for minutes
_ASK = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='error')"
_HINT = "Start one with ray start --head; others join it: ray start --address=HEAD:6379."


class RayActors(Pool):
    """Actors that hold HyperNet and images.

    Args:
        config: how many, their threads, and the address of a cluster.
        equipment: sent to each actor.
        here: not used.

    Raises:
        MissingRuntimeError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, config: ExecutorConfig, equipment: Equipment, here: Worker) -> None:
        self._ray = require_ray()
        uses_gpu = equipment.device.startswith("cuda")
        gpus = torch.cuda.device_count() if uses_gpu else 0
        workers, threads = config.size(gpus)
        # Several on each GPU of this machine if asked for; a cluster's GPUs are not counted here.
        share = (1.0 if config.ray_address else min(1.0, gpus / workers)) if uses_gpu else 0.0
        self._owns = not self._ray.is_initialized()
        if self._owns:
            self._connect(config.ray_address, workers * threads)
        if config.workers is None and config.ray_address is not None:
            resources = self._ray.cluster_resources()
            workers = max(1, int(resources.get("GPU", 0) if uses_gpu else resources["CPU"] // threads))
        super().__init__(workers)
        self._packed = self._ray.put(equipment.packed(threads))
        self._actor = self._ray.remote(num_cpus=threads, num_gpus=share, max_restarts=0, max_task_retries=0)(
            Remote
        )
        self._answers: dict[Any, Any] = {}  # actor -> reference to its coming answer

    @staticmethod
    def check(config: ExecutorConfig) -> None:
        """See :class:`smash_search.executors.Executor`: Ray is installed and the cluster answers."""
        ray = require_ray()
        if config.ray_address is not None and not ray.is_initialized():
            _ask(config.ray_address)

    def _connect(self, address: str | None, cores: int) -> None:
        quiet: JsonObject = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
        try:
            if address is None:
                self._ray.init(address="local", num_cpus=cores, **quiet)
            else:
                self._ray.init(address=address, log_to_driver=False, logging_level="error")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise MissingRuntimeError(
                f"no Ray cluster at {address or 'this machine'}",
                received=error,
                hint=_HINT,
            ) from None

    def start(self, number: int) -> Any:
        """See :class:`Pool`."""
        return self._actor.remote(self._packed, number)

    def send(self, worker: Any, task: Task) -> bool:
        """See :class:`Pool`."""
        self._answers[worker] = worker.do.remote(task)
        return True

    def wait(self, busy: dict[int, Any]) -> Iterator[tuple[int, Answer | None]]:
        """See :class:`Pool`; also an actor on a lost node has died."""
        numbers = {self._answers[worker]: number for number, worker in busy.items()}
        ready, _ = self._ray.wait(list(numbers), num_returns=1)
        for reference in ready:
            try:
                received: Answer | None = self._ray.get(reference)
            except self._ray.exceptions.RayActorError:
                received = None
            yield numbers[reference], received

    def stop(self, worker: Any) -> None:
        """See :class:`Pool`."""
        self._answers.pop(worker, None)
        self._ray.kill(worker)

    def close(self) -> None:
        """End all actors, and Ray where it was started for this search."""
        super().close()
        if self._owns:
            self._ray.shutdown()


@functools.cache
def _ask(address: str) -> None:
    """Connect once in a process of its own, which can be ended: a call of Ray's that waits cannot."""
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-c", _ASK, address],
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        received = "none"
    else:
        if ended.returncode == 0:
            return
        received = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
    raise MissingRuntimeError(
        f"no Ray cluster at {address}",
        expected=f"an answer within {ANSWER_SECONDS} s",
        received=received,
        hint=_HINT,
    )


def require_ray() -> Any:
    """The module; raises MissingRuntimeError with the command that installs it."""
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingRuntimeError(
            "executor ray needs Ray", received=error, hint="Install it: pip install 'smash-export[ray]'"
        ) from None
    return ray
