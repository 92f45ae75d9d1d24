"""Who does what next, and what happens when a worker dies: once for all kinds of remote workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from smash_base.errors import SmashError
from smash_search.executors import Task
from smash_search.executors.work import Answer

if TYPE_CHECKING:
    from smash_search.executors import OnEpoch

MOST_DEATHS = 2  # of workers at the same task: the first may be chance, the second is not


class WorkerDiedError(SmashError):
    """A worker ended in the middle of the same task twice, for example for want of memory."""


class Pool(ABC):
    """Workers that are started when there is work and replaced when they die.

    A task whose worker died is given to another one, once. A kind of workers is the four methods below.

    Args:
        size: most workers.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._workers: dict[int, Any] = {}  # by number

    @abstractmethod
    def start(self, number: int) -> Any:
        """A new worker."""

    @abstractmethod
    def send(self, worker: Any, task: Task) -> bool:
        """Give a worker a task; False when it has died since."""

    @abstractmethod
    def wait(self, busy: dict[int, Any]) -> Iterable[tuple[int, Answer | None]]:
        """Answers of at least one of the busy workers, by number; None for one that died.

        A worker that trains may answer with epochs before its result.
        """

    @abstractmethod
    def stop(self, worker: Any) -> None:
        """End a worker, whatever it does."""

    def run(
        self, tasks: Sequence[Task], *, alone: bool = False, on_epoch: OnEpoch | None = None
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`smash_search.executors.Executor`."""
        waiting, running = deque(range(len(tasks))), dict[int, int]()  # worker -> its task
        deaths: Counter[int] = Counter()
        try:
            while waiting or running:
                for number in range(1 if alone else self._size):
                    if waiting and number not in running:
                        self._give(number, tasks[waiting[0]])
                        running[number] = waiting.popleft()
                busy = {number: self._workers[number] for number in running}
                for number, answer in self.wait(busy):
                    index = running[number]
                    if answer is not None and answer[0] == "epoch":
                        if on_epoch is not None:
                            on_epoch(index, answer[1])
                        continue
                    del running[number]
                    if answer is None:
                        self.stop(self._workers.pop(number))
                        deaths[index] += 1
                        if deaths[index] >= MOST_DEATHS:
                            raise _died(tasks[index])
                        waiting.appendleft(index)
                        continue
                    kind, value = answer
                    if kind == "error":
                        raise value
                    if kind == "defect":
                        raise RuntimeError(f"in a worker, {tasks[index].label}:\n{value}")
                    yield index, value
        finally:
            for number in running:  # what nobody waits for must not answer the next question
                self.stop(self._workers.pop(number))

    def close(self) -> None:
        """End all workers."""
        while self._workers:
            _, worker = self._workers.popitem()
            self.stop(worker)

    def _give(self, number: int, task: Task) -> None:
        for _ in range(MOST_DEATHS):
            if number not in self._workers:
                self._workers[number] = self.start(number)
            if self.send(self._workers[number], task):
                return
            self.stop(self._workers.pop(number))  # it died while it had nothing to do
        raise _died(task)


def _died(task: Task) -> WorkerDiedError:
    return WorkerDiedError(
        f"two workers died at the same task: {task.method} {task.label}",
        hint="Most often memory ran out: use fewer --workers. --executor serial shows what happens; "
        "what is done already is kept.",
    )
