"""Where the work of a search is done: in this process, in others, or on many machines.

One interface for scoring, measuring and training finalists. Work is a list of :class:`Task`; results come as
they are ready, with the number of their task. A worker holds HyperNet and images
(:class:`smash_search.executors.work.Worker`), so that a task is little more than an architecture.

Results do not depend on the executor as long as every worker computes with as many threads: sums of other
lengths are rounded otherwise.

``EXECUTORS`` is the registry: a new executor is one file and one line here.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from smash_base.errors import InvalidInputError, UsageError
from smash_search.executors.task import Task as Task

if TYPE_CHECKING:
    from smash_search.executors.work import Equipment, Worker
    from smash_search.train.network import Epoch

    OnEpoch = Callable[[int, Epoch], None]


@dataclass(frozen=True)
class ExecutorConfig:
    """Where to work; not part of what a search is, and free to differ when it is resumed.

    Attributes:
        name: One of :data:`EXECUTORS`.
        workers: how many; None for one per GPU, or per CPU core where there is none.
        threads: PyTorch threads of each worker; None shares the cores evenly, ``serial`` leaves them alone.
        ray_address: Address of a cluster ("auto" for the one on this machine); None starts a local one.
    """

    name: str = "serial"
    workers: int | None = None
    threads: int | None = None
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if self.name not in EXECUTORS:
            raise UsageError(
                f"there is no executor {self.name!r}", expected=", ".join(EXECUTORS), received=self.name
            )
        for name in ("workers", "threads"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 100_000:
                raise InvalidInputError(name, expected="1 to 100000", received=value)
        if self.name == "serial" and self.workers not in (None, 1):
            raise UsageError(
                "executor serial has one worker",
                received=f"{self.workers} workers",
                hint="Pass --executor process.",
            )
        if self.ray_address is not None and self.name != "ray":
            raise UsageError("a Ray address is for executor ray", received=f"executor {self.name}")

    def size(self, gpus: int) -> tuple[int, int]:
        """Workers, and threads of each, on a machine with so many GPUs."""
        cores = len(os.sched_getaffinity(0))
        workers = self.workers or gpus or cores
        return workers, self.threads or max(1, cores // workers)


class Executor(Protocol):
    """Does tasks; see the head of this module. A context manager that lets its workers go at the end."""

    @staticmethod
    def check(config: ExecutorConfig) -> None:
        """Raise MissingRuntimeError where there can be no workers; in seconds, before a search begins."""

    def run(
        self, tasks: Sequence[Task], *, alone: bool = False, on_epoch: OnEpoch | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Do all tasks; yields (number of the task, result) as results come.

        Args:
            tasks: Pieces of work to do.
            alone: one after the other, all by the same worker, while nothing else runs: for measurements
                of time, which neighbours would disturb.
            on_epoch: told the number of a task and what an epoch of its training brought; by Ray not.

        Raises:
            SmashError: whatever a task raised.
            WorkerDiedError: a task ended its worker twice.
        """

    def close(self) -> None:
        """End the workers."""


EXECUTORS: dict[str, str] = {
    "serial": "smash_search.executors.serial:Serial",
    "process": "smash_search.executors.process:Processes",
    "ray": "smash_search.executors.ray:RayActors",
}


def check_executor(config: ExecutorConfig) -> None:
    """Raise MissingRuntimeError where an executor of that name can have no workers."""
    _executor_class(config).check(config)


def make_executor(config: ExecutorConfig, equipment: Equipment, here: Worker) -> Executor:
    """The executor of that name.

    Args:
        config: which, how many workers.
        equipment: what each worker needs.
        here: the worker of this process, which ``serial`` uses.

    Raises:
        MissingRuntimeError: Ray is not installed, or there is no cluster at the address.
    """
    executor: Executor = _executor_class(config)(config, equipment, here)
    return executor


def _executor_class(config: ExecutorConfig) -> Any:
    module, _, attribute = EXECUTORS[config.name].partition(":")
    return getattr(importlib.import_module(module), attribute)
