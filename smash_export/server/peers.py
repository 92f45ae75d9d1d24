"""What one server process knows of the others that serve the same models on the same port.

A process alone loads, unloads and counts by itself (:class:`Alone`). One of several (:class:`Member`) asks
the process that started them, which asks everyone: so a load through any is a load in all, and metrics
are those of all together.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Protocol

from smash_base.errors import SmashError
from smash_export.server.batching import BusyError
from smash_export.server.metrics import Counts, Metrics
from smash_export.server.models import Repository

ANSWER_S = 300.0  # a load may open large files in each of many processes
NUMBERS_S = 5.0  # numbers take no work, and who asks for them every few seconds gives up after ten


class Peers(Protocol):
    """All processes of a server; every method waits for all of them."""

    def load(self, name: str) -> None:
        """:meth:`Repository.load` everywhere."""

    def unload(self, name: str) -> None:
        """:meth:`Repository.unload` everywhere."""

    def metrics(self) -> Metrics:
        """The numbers of all together."""


def answer_of(future: Future[Any], seconds: float) -> Any:
    """What a process answered, an error included; BusyError where it did not within so many seconds."""
    try:
        return future.result(max(0.0, seconds))
    except TimeoutError:
        return BusyError("another process of this server does not answer", hint="Try again.")


class Alone:
    """The only process."""

    def __init__(self, repository: Repository, metrics: Metrics) -> None:
        self._repository, self._metrics = repository, metrics

    def load(self, name: str) -> None:
        """See :class:`Peers`."""
        self._repository.load(name)

    def unload(self, name: str) -> None:
        """See :class:`Peers`."""
        self._repository.unload(name)

    def metrics(self) -> Metrics:
        """See :class:`Peers`."""
        return self._metrics


class Member:
    """One of several processes.

    Args:
        connection: Pipe to the process that started this one; when it ends, so does this one.
        repository, metrics: Models and numbers of this process.
    """

    def __init__(self, connection: Connection, repository: Repository, metrics: Metrics) -> None:
        self._connection, self._repository, self._metrics = connection, repository, metrics
        self._numbers = itertools.count()
        self._asked: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="peer")
        threading.Thread(target=self._listen, name="peers", daemon=True).start()

    def load(self, name: str) -> None:
        """See :class:`Peers`."""
        self._ask("load", name)

    def unload(self, name: str) -> None:
        """See :class:`Peers`."""
        self._ask("unload", name)

    def metrics(self) -> Metrics:
        """See :class:`Peers`."""
        counts: list[Counts] = self._ask("counts", "")
        return Metrics.together(counts)

    def _ask(self, what: str, name: str) -> Any:
        number = next(self._numbers)
        future: Future[Any] = Future()
        self._asked[number] = future
        try:
            self._send(("ask", number, what, name))
            result = answer_of(future, ANSWER_S)
        finally:
            self._asked.pop(number, None)
        if isinstance(result, BaseException):
            raise result
        return result

    def _send(self, message: tuple[Any, ...]) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._connection.send(message)

    def _listen(self) -> None:
        while True:
            try:
                kind, number, what, name = self._connection.recv()
            except (EOFError, OSError):
                os.kill(os.getpid(), signal.SIGTERM)
                return
            if kind == "do":
                self._pool.submit(self._do, number, what, name)
            elif (future := self._asked.get(number)) is not None:
                future.set_result(what)

    def _do(self, number: int, what: str, name: str) -> None:
        result: Any = None
        try:
            if what in ("prepare", "exchange", "discard", "unload"):
                result = getattr(self._repository, what)(name)
            elif what == "identities":
                result = self._repository.identities()
            else:
                result = self._metrics.counts()
        except SmashError as error:
            result = error
        except Exception as error:  # noqa: BLE001 - whoever asked waits for an answer, whatever went wrong
            result = RuntimeError(f"{what} failed in process {os.getpid()}: {type(error).__name__}: {error}")
        self._send(("done", number, result, ""))
