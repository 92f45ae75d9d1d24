"""One task after the other, in this process."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from smash_search.executors import ExecutorConfig, Task
from smash_search.executors.work import Equipment, Worker

if TYPE_CHECKING:
    from smash_search.executors import OnEpoch


class Serial:
    """Does the tasks itself, with the worker of this process.

    Args:
        config: its name alone matters.
        equipment: the worker has it already.
        here: the worker.
    """

    def __init__(self, config: ExecutorConfig, equipment: Equipment, here: Worker) -> None:
        self._worker = here

    @staticmethod
    def check(config: ExecutorConfig) -> None:
        """See :class:`smash_search.executors.Executor`."""

    def run(
        self, tasks: Sequence[Task], *, alone: bool = False, on_epoch: OnEpoch | None = None
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`smash_search.executors.Executor`."""
        for number, task in enumerate(tasks):
            self._worker.on_epoch = on_epoch and functools.partial(on_epoch, number)
            yield number, getattr(self._worker, task.method)(*task.arguments)

    def close(self) -> None:
        """Nothing was started."""
