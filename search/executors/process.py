"""Worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import torch

from smash_search.executors import ExecutorConfig, Task
from smash_search.executors.pool import Pool
from smash_search.executors.work import Answer, Equipment, Remote, Worker

THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class _Process(NamedTuple):
    process: BaseProcess
    connection: Connection


class Processes(Pool):
    """Started afresh and not forked: a fork of a process with threads can hang.

    Args:
        config: workers and their threads.
        equipment: sent to each worker.
        here: not used.
    """

    def __init__(self, config: ExecutorConfig, equipment: Equipment, here: Worker) -> None:
        gpus = torch.cuda.device_count() if equipment.device.startswith("cuda") else 0
        workers, self._threads = config.size(gpus)
        super().__init__(workers)
        self._packed = equipment.packed(self._threads)
        self._context = multiprocessing.get_context("spawn")

    @staticmethod
    def check(config: ExecutorConfig) -> None:
        """See :class:`smash_search.executors.Executor`."""

    def start(self, number: int) -> _Process:
        """See :class:`Pool`."""
        mine, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self._packed, number), name=f"search worker {number}", daemon=True
        )
        with _threads_of_children(self._threads), _deaf_to_ctrl_c():
            process.start()
        theirs.close()  # so that its end is seen here
        return _Process(process, mine)

    def send(self, worker: _Process, task: Task) -> bool:
        """See :class:`Pool`."""
        try:
            worker.connection.send(task)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def wait(self, busy: dict[int, _Process]) -> Iterator[tuple[int, Answer | None]]:
        """See :class:`Pool`."""
        numbers = {worker.connection: number for number, worker in busy.items()}
        for connection in wait(list(numbers)):
            assert isinstance(connection, Connection)
            try:
                received: Answer | None = connection.recv()
            except (EOFError, ConnectionResetError):
                received = None
            yield numbers[connection], received

    def stop(self, worker: _Process) -> None:
        """See :class:`Pool`."""
        worker.connection.close()
        worker.process.kill()
        worker.process.join()


def _serve(connection: Connection, packed: bytes, number: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    worker = Remote(packed, number)
    while True:
        try:
            task = connection.recv()
        except (EOFError, ConnectionResetError):
            return  # whoever asked is gone
        try:
            connection.send(worker.do(task, connection.send))
        except BrokenPipeError:
            return


def _end_with_parent() -> None:
    """Where who asked was killed, a training would go on for an epoch and write beside its repetition."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Ctrl-C is for the process that asks. What is started meanwhile never gets it, nor in the seconds in
    which it imports PyTorch: a blocked signal stays blocked in a child, and waits here."""
    resource_tracker.ensure_running()  # or the first start does it, and unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _threads_of_children(threads: int) -> Iterator[None]:
    """Libraries read the number of their threads from the environment when they are loaded."""
    before = {name: os.environ.get(name) for name in THREAD_SETTINGS}
    os.environ.update(dict.fromkeys(THREAD_SETTINGS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
