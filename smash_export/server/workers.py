"""``serve --workers N``: whole servers that share the port, and the process that keeps them together.

Each worker is a server as :mod:`smash_export.server.run` makes it, with a model of its own: the kernel hands
each new connection to one of them (SO_REUSEPORT), and nothing is copied between processes while requests run.
It takes the memory of the model N times, which image classifiers have; one model process behind shared memory
would save that and pay a change of processes for every request.

The first process only keeps the port, passes signals on, starts a worker again that died, and asks all of
them what one of them wants to know of all (:mod:`smash_export.server.peers`). A worker that is started again
opens what the others serve. Where the disk holds something else by then, it does not start before all are
told to load that. A load opens the bundle in all before any of them serves it. So two bundles never answer on
one port because a process died, or could not open the new one.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from smash_base.errors import InvalidInputError, SmashError, UsageError
from smash_export.server import logs, run
from smash_export.server.middleware import RequestLimits
from smash_export.server.models import ModelSpec, specs_of
from smash_export.server.peers import ANSWER_S, NUMBERS_S, Member, answer_of
from smash_export.server.run import Addresses, Settings, listen

_START_S = 300.0
_RESTART_S = 1.0  # between the death of a worker and the next one
_RETRY_S = 10.0  # after one that did not start: each try takes seconds of a core from those that serve
_TOLD_S = 10.0  # for an answer that takes no work
_LEAVE_S = 15.0  # beyond the times of a drain


def serve(
    bundles: ModelSpec | Path | str | Sequence[ModelSpec | Path | str],
    settings: Settings | None = None,
    ready: Callable[[Addresses], None] = lambda addresses: None,
) -> None:
    """Serve until SIGTERM or SIGINT, in ``settings.workers`` processes.

    With several, a program's own file calls it behind ``if __name__ == "__main__":``, since they import it.

    Args:
        bundles, settings, ready: as of :func:`smash_export.server.run.serve`.

    Raises:
        UsageError: a port in use, or settings that contradict each other.
        SmashError: a bundle that cannot be opened.
    """
    settings = settings or Settings()
    if settings.workers == 1:
        run.serve(bundles, settings, ready)
    else:
        _serve_many(specs_of(bundles), settings, ready)


def _serve_many(specs: list[ModelSpec], settings: Settings, ready: Callable[[Addresses], None]) -> None:
    if not hasattr(socket, "SO_REUSEPORT"):
        raise UsageError("this system cannot share a port between processes", hint="Leave --workers out.")
    lines = logs.configure(settings.log_level)
    held, settings = _hold_ports(settings)
    fleet = _Fleet(specs, _shared_out(settings))
    before = {number: signal.signal(number, fleet.handle) for number in _SIGNALS}
    try:
        addresses = fleet.start(settings.workers)
        if addresses is not None:
            ready(addresses)
        fleet.watch()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        fleet.end()
        for holder in held:
            holder.close()
        lines.flush()


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _hold_ports(settings: Settings) -> tuple[list[socket.socket], Settings]:
    """Take the ports for all workers; refused when another program has one of them."""
    held, ports = [], {}
    for name, option in (("port", "--port"), ("grpc_port", "--grpc-port")):
        wanted: int | None = getattr(settings, name)
        if wanted is None:
            continue
        # Whoever shares a port could share it with a stranger as well: so it must be free first.
        with listen(settings.host, wanted, option) as alone:
            port = alone.getsockname()[1]
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        holder = socket.socket(family, socket.SOCK_STREAM)
        # Connections of an earlier server linger.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((settings.host, port))  # bound and not listening: no connection comes here
        held.append(holder)
        ports[name] = port
    return held, replace(settings, **ports)


def _shared_out(settings: Settings) -> Settings:
    """What one worker gets: its part of connections and of the memory of bodies."""
    count = settings.workers
    bound = max(settings.limits.body_bytes, settings.limits.all_bodies_bytes // count)
    per_address = settings.per_address and max(1, settings.per_address // count)
    limits: RequestLimits = replace(settings.limits, all_bodies_bytes=bound)
    return replace(
        settings,
        share_port=True,
        limits=limits,
        max_connections=max(1, settings.max_connections // count),
        per_address=per_address,
    )


def _work(
    connection: Connection,
    specs: list[ModelSpec],
    settings: Settings,
    unloaded: frozenset[str],
    served: dict[tuple[str, str], str],
) -> None:
    """A worker process."""
    os.setpgrp()  # a key pressed in the terminal reaches the first process only, which passes it on
    try:
        run.serve(
            specs,
            settings,
            lambda addresses: connection.send(("ready", 0, addresses, "")),
            lambda repository, metrics: Member(connection, repository, metrics),
            unloaded,
            served,
        )
    except SmashError as error:
        with contextlib.suppress(OSError):
            connection.send(("failed", 0, error, ""))
        sys.exit(error.exit_code)


@dataclass
class _Worker:
    """A worker as the first process sees it.

    Attributes:
        addresses: set when it is ready.
        failure: Reason why it never was.
        left: whether it answers no question any more.
        owed: question -> what waits for its answer.
        again: Time on the monotonic clock before which no other takes its place.
    """

    process: Any
    connection: Connection
    lock: threading.Lock = field(default_factory=threading.Lock)
    told: threading.Event = field(default_factory=threading.Event)
    addresses: Addresses | None = None
    failure: SmashError | None = None
    left: bool = False
    owed: dict[int, Future[Any]] = field(default_factory=dict)
    again: float = 0.0

    def send(self, *message: Any) -> None:
        with self.lock, contextlib.suppress(OSError):
            self.connection.send(message)

    def ask(self, number: int, what: str, name: str) -> Future[Any]:
        """Its answer; None where it left before it gave one."""
        future = self.owed[number] = Future[Any]()
        self.send("do", number, what, name)
        if self.left:  # it may have left between the last look and this question
            self.gone()
        return future

    def gone(self) -> None:
        self.left = True
        self.told.set()
        with contextlib.suppress(KeyError):
            while True:  # each is taken once, whichever thread comes first
                self.owed.popitem()[1].set_result(None)


class _Fleet:
    """All workers."""

    def __init__(self, specs: list[ModelSpec], settings: Settings) -> None:
        self._specs, self._settings = specs, settings
        self._names = list(dict.fromkeys(spec.name for spec in specs))
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._numbers = itertools.count()
        self._due: set[str] = set()  # models that SIGHUP asked for and that were not opened anew since
        self._unloaded: set[str] = set()  # names of models, which a worker that is started again has as well
        self._leaving = threading.Event()
        self._asking = threading.Lock()  # one load in all at a time

    def start(self, count: int) -> Addresses | None:
        """Start ``count`` workers; the addresses when all are ready, None when told to leave before.

        Raises:
            SmashError: one could not start.
        """
        for place in range(count):
            self._place(place)
        for worker in self._workers:
            self._await(worker)
        return None if self._leaving.is_set() else self._workers[0].addresses

    def watch(self) -> None:
        """Until every worker has left; one that dies before it is told to is started again."""
        while not self._leaving.is_set():
            for place, worker in enumerate(self._workers):
                if worker.process.is_alive() or time.monotonic() < worker.again:
                    continue
                if not self._leaving.wait(_RESTART_S):
                    logs.log(40, "a worker died and is started again", code=worker.process.exitcode)
                    try:
                        self._await(self._place(place, self._served()))
                    except (SmashError, OSError) as error:  # the others go on; tried again
                        logs.log(40, "the worker did not start", error=str(error))
                        self._workers[place].again = time.monotonic() + _RETRY_S
            self._leaving.wait(0.1)
        deadline = time.monotonic() + self._settings.drain_delay + self._settings.drain_timeout + _LEAVE_S
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))

    def handle(self, number: int, frame: object) -> None:
        """Pass a signal on; for SIGHUP, open every bundle anew."""
        if number == signal.SIGHUP:
            self._due.update(self._names)
            threading.Thread(target=self._reload, daemon=True).start()
            return
        self._leaving.set()
        for worker in self._alive():
            os.kill(worker.process.pid, number)

    def end(self) -> None:
        """Whatever is still there ends now."""
        for worker in self._workers:
            if worker.process.is_alive():
                worker.process.kill()
            worker.process.join()

    def _served(self) -> dict[tuple[str, str], str]:
        """What a new worker must open: the models of one that serves; anything where none is left."""
        for worker in self._alive():
            if worker.addresses is not None:
                with contextlib.suppress(TimeoutError):  # it hangs: the next one
                    told = worker.ask(next(self._numbers), "identities", "").result(_TOLD_S)
                    if isinstance(told, dict):
                        return told
        return {}

    def _place(self, place: int, served: dict[tuple[str, str], str] | None = None) -> _Worker:
        """Start a worker. One that was in no place yet when all were told to leave is told so here."""
        worker = self._spawn(served or {})
        self._workers[place : place + 1] = [worker]
        if self._leaving.is_set():
            worker.process.terminate()
        return worker

    def _spawn(self, served: dict[tuple[str, str], str]) -> _Worker:
        mine, theirs = self._context.Pipe()
        arguments = (theirs, self._specs, self._settings, frozenset(self._unloaded), served)
        process = self._context.Process(target=_work, args=arguments, daemon=False)
        process.start()
        theirs.close()
        worker = _Worker(process, mine)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        return worker

    def _await(self, worker: _Worker) -> None:
        worker.told.wait(_START_S)
        if worker.failure is not None:
            raise worker.failure
        if worker.addresses is None and not self._leaving.is_set():
            raise UsageError("a worker could not start", hint="The log above says why.")

    def _listen(self, worker: _Worker) -> None:
        while True:
            try:
                kind, number, what, name = worker.connection.recv()
            except (EOFError, OSError):
                worker.gone()
                return
            if kind == "ready":
                worker.addresses = what
                worker.told.set()
                threading.Thread(target=self._catch_up, args=(worker,), daemon=True).start()
            elif kind == "failed":
                worker.failure = what
                worker.told.set()
            elif kind == "ask":
                arguments = (worker, number, what, name)
                threading.Thread(target=self._answer, args=arguments, daemon=True).start()
            elif (future := worker.owed.pop(number, None)) is not None:
                future.set_result(what)

    def _catch_up(self, worker: _Worker) -> None:
        """What all were told while a worker started: to serve some models no more.

        One after the other with what is asked of all, so that the last word counts.
        """
        with self._asking:
            for name in self._unloaded:
                result = self._told(worker, "unload", name)
                if isinstance(result, Exception):
                    logs.log(40, "a new worker did not unload a model", model=name, error=str(result))

    def _reload(self) -> None:
        for name in self._names:
            with self._asking:
                if name not in self._due:  # unloaded meanwhile
                    continue
                self._due.discard(name)
                failure = self._load(name)
            if failure is None:
                logs.log(20, "model loaded", model=name)
            else:
                logs.log(40, "model not loaded; the old one goes on", model=name, error=str(failure))

    def _answer(self, asker: _Worker, number: int, what: str, name: str) -> None:
        """Ask everyone for one of them, who gets the answers, or the first error."""
        asker.send("answer", number, self._counts() if what == "counts" else self._done(what, name), "")

    def _counts(self) -> list[Any] | Exception:
        """Numbers of all that answer, asked at once, or the first error."""
        futures = [worker.ask(next(self._numbers), "counts", "") for worker in self._alive()]
        deadline = time.monotonic() + NUMBERS_S
        results = [answer_of(future, deadline - time.monotonic()) for future in futures]
        failure = next((result for result in results if isinstance(result, Exception)), None)
        return failure or [result for result in results if result is not None]

    def _done(self, what: str, name: str) -> Exception | None:
        """Load or unload a model in all; the first error."""
        with self._asking:
            return self._load(name) if what == "load" else self._unload(name)

    def _load(self, name: str) -> Exception | None:
        """Open a model anew in all, one after the other, then exchange it in all; in none if one fails, or
        opens another bundle than the one before it. Each holds two of the model meanwhile.
        """
        workers, opened = self._alive(), None
        for worker in workers:
            result = self._told(worker, "prepare", name)
            if opened and result and not isinstance(result, Exception) and result != opened:
                result = InvalidInputError(
                    f"the bundle of {name} was replaced while the processes of this server opened it",
                    hint="Load it again.",
                )
            if isinstance(result, Exception):
                for other in workers:
                    other.ask(next(self._numbers), "discard", name)
                return result
            opened = opened or result
        failures = [result for worker in workers if (result := self._told(worker, "exchange", name))]
        self._unloaded.discard(name)
        return failures[0] if failures else None

    def _unload(self, name: str) -> Exception | None:
        self._due.discard(name)
        for worker in self._alive():
            result = self._told(worker, "unload", name)
            if isinstance(result, Exception):
                return result
        self._unloaded.add(name)
        return None

    def _told(self, worker: _Worker, what: str, name: str) -> Any:
        """What a worker answers, an error included; None where it left."""
        return answer_of(worker.ask(next(self._numbers), what, name), ANSWER_S)

    def _alive(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.process.is_alive()]
