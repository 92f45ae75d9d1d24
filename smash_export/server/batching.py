"""Dynamic batching: whatever gathered while the worker was busy is one batch.

No request waits for company unless ``delay`` says so: on an idle server a request runs at once, on a
busy one the batch grows by itself. The queue is bounded in images and in time, so an overloaded server
says so at once instead of answering late.

Two bounds, after the "controlled delay" of B. Maurer, "Fail at Scale" (ACM Queue 13/8, 2015): a burst may
fill the whole queue, as it is worked off soon; but once the worker has hardly been idle for a while, more
comes than it can take, and then only as much may wait as is answered quickly; what waited longer is refused
instead of run.

A change of threads costs more than a short run. So an event loop runs what it has read itself, one batch in
each of its turns, where that is short (``in_loop``); everything else is run by a thread.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from smash_base.errors import InvalidInputError, SmashError
from smash_export.server.turns import call_after_turn

BURST_SECONDS = 0.1  # time constant of the worker's load: busy for about twice as long is no burst any more
_OVERLOADED = 0.8  # load, 0 to 1


class BusyError(SmashError):
    """The queue is full or the request waited too long; HTTP 503, gRPC UNAVAILABLE. Try again."""


class RunError(Exception):
    """A runtime failed: its process crashed, or it has no device any more. HTTP 500, gRPC INTERNAL, and
    logged. What is wrong with a request itself is found before it runs, or by its own rows."""


@dataclass(frozen=True)
class QueueLimits:
    """Limits of one model's queue.

    Attributes:
        max_batch: images that run at once, at most.
        queue_size: images that may wait; more are refused. Also the most images of one request.
        standing: images that may wait under lasting overload; None for ``queue_size``. One request of
            any size may wait alone.
        patience: seconds that a request may wait under lasting overload; None for ``timeout``.
        delay: seconds to wait for company. 0 runs what is there.
        timeout: seconds that a request may wait before it is refused instead of run.
        allowed: seconds that requests may wait for the event loop on average. When they wait longer, those
            are refused that do not come at once; None for any time.
        in_loop: images that an event loop runs itself, at most.
    """

    max_batch: int = 32
    queue_size: int = 256
    standing: int | None = None
    delay: float = 0.0
    timeout: float = 10.0
    patience: float | None = None
    allowed: float | None = None
    in_loop: int = 0


class QueuedRequest:
    """One request on its way through the queue.

    Attributes:
        tensor: float32 [B, *input_shape].
        logits: float32 [B, K] once it ran.
        error: what went wrong instead.
        waited, ran: seconds in the queue and in the runtime.
        batch: images that ran together.
        age: seconds that it had waited elsewhere when it came into the queue; counted in ``waited``.
        abandoned: set by a caller that no longer wants the answer.
    """

    __slots__ = ("abandoned", "age", "batch", "entered", "error", "logits", "ran", "tensor", "waited")

    def __init__(self, tensor: np.ndarray) -> None:
        self.tensor = tensor
        self.logits: np.ndarray | None = None
        self.error: Exception | None = None
        self.entered = self.waited = self.ran = 0.0
        self.age = 0.0
        self.batch = 0
        self.abandoned = False

    def result(self) -> np.ndarray:
        """The logits, or the error."""
        if self.error is not None:
            raise self.error
        assert self.logits is not None
        return self.logits


class _LoopBound(QueuedRequest):
    """A request that comes from an event loop and is answered there.

    Attributes:
        loop: where ``done`` is called.
    """

    __slots__ = ("loop",)

    loop: asyncio.AbstractEventLoop

    def done(self) -> None:
        """Called in the loop."""
        raise NotImplementedError


class CallbackRequest(_LoopBound):
    """A request whose answer an event loop takes by a call; no task, no future.

    Args:
        tensor: float32 [B, *input_shape].
        loop: where ``done`` is called.
        done: takes the request once it ran or failed.
    """

    __slots__ = ("_call",)

    def __init__(
        self,
        tensor: np.ndarray,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[CallbackRequest], None],
    ) -> None:
        super().__init__(tensor)
        self.loop = loop
        self._call = done

    def done(self) -> None:
        """Called in the loop."""
        self._call(self)


class LoopRequest(_LoopBound):
    """A request that a coroutine waits for."""

    __slots__ = ("_future",)

    def __init__(self, tensor: np.ndarray) -> None:
        super().__init__(tensor)
        self.loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self.loop.create_future()

    async def wait(self) -> np.ndarray:
        """The logits; a cancelled waiter takes its request out of the queue."""
        try:
            await self._future
        except asyncio.CancelledError:
            self.abandoned = True
            raise
        return self.result()

    def done(self) -> None:
        """Called in the loop."""
        if not self._future.done():
            self._future.set_result(None)


class ThreadRequest(QueuedRequest):
    """A request that a thread waits for."""

    __slots__ = ("_answered",)

    def __init__(self, tensor: np.ndarray) -> None:
        super().__init__(tensor)
        self._answered = threading.Lock()
        self._answered.acquire()

    def wait(self, timeout: float) -> np.ndarray:
        """The logits.

        Raises:
            BusyError: no answer within ``timeout`` seconds.
        """
        if not self._answered.acquire(timeout=timeout):
            self.abandoned = True
            raise BusyError("no answer in time", expected=f"within {timeout:g} s")
        return self.result()

    def done(self) -> None:
        """Called in the worker."""
        self._answered.release()


Observer = Callable[[list[QueuedRequest]], None]


class Batcher:
    """A queue and the one thread that empties it.

    Args:
        run: float32 [N, *input_shape] -> float32 [N, K]; one call at a time.
        settings: limits.
        name: Name of the worker thread.
        observe: called in the worker with the requests of every batch that ran, before they are delivered.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray], np.ndarray],
        settings: QueueLimits,
        name: str = "model",
        observe: Observer | None = None,
    ) -> None:
        self.settings = settings
        self._run = run
        self._observe = observe
        self._queue: queue.SimpleQueue[QueuedRequest | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # held by the thread that runs the model
        self._gathered: deque[_LoopBound] = deque()  # what an event loop runs in its next turn
        self._waiting = 0
        self._load = 0.0  # the share of the last time that the worker was busy
        self._changed = time.perf_counter()  # when the load was counted last
        self._busy = False
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"batch-{name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return self._waiting

    def busy(self, age: float, average: float) -> int | None:
        """Images that may wait now, if a request should be refused before it is looked at, else None.

        That is because the queue is full, or because the request waited for the loop. The latter counts under
        lasting overload only: of the queue itself, or while the longest waits, averaged, are long.

        Args:
            age: seconds that it waited before it came here.
            average: seconds that others wait there.
        """
        waiting, settings = self._waiting, self.settings
        if not waiting and not age:
            return None
        overloaded = self._overloaded(time.perf_counter())
        bound = self._bound(overloaded)
        if waiting >= bound:
            return bound
        if not age or settings.allowed is None or settings.patience is None:
            return None
        late = average > settings.allowed or (overloaded and age > settings.patience)
        return bound if late else None

    @property
    def full(self) -> bool:
        """Whether the next image would be refused; lets a server refuse before it reads a body."""
        return bool(self._waiting) and self._waiting >= self.bound

    @property
    def bound(self) -> int:
        """Images that may wait now."""
        return self._bound(self._overloaded(time.perf_counter()))

    def _bound(self, overloaded: bool) -> int:
        settings = self.settings
        if settings.standing is None or not overloaded:
            return settings.queue_size
        return settings.standing

    def _overloaded(self, now: float) -> bool:
        kept = math.exp((self._changed - now) / BURST_SECONDS)
        return kept * self._load + (1 - kept) * self._busy > _OVERLOADED

    def _count_load(self, busy: bool) -> None:
        """The worker begins or ends to be busy."""
        now = time.perf_counter()
        kept = math.exp((self._changed - now) / BURST_SECONDS)
        self._load = kept * self._load + (1 - kept) * self._busy
        self._changed, self._busy = now, busy

    def submit(self, request: QueuedRequest) -> None:
        """Put a request into the queue.

        Raises:
            BusyError: the queue is full, or closed.
        """
        count = len(request.tensor)
        request.entered = time.perf_counter() - request.age
        with self._lock:
            if self._closed:
                raise self._closing()
            bound = self.bound if self._waiting else self.settings.queue_size
            if self._waiting + count > bound:
                raise self.refusal()
            self._waiting += count
            if count > self.settings.in_loop or not isinstance(request, _LoopBound):
                self._queue.put(request)
                return
            self._gathered.append(request)
            if len(self._gathered) == 1:
                self._count_load(True)
                call_after_turn(request.loop, self._run_gathered)

    def run(self, request: QueuedRequest) -> None:
        """Run a request in the calling thread if nothing runs or waits, else put it into the queue.

        For threads that would only wait: two changes of threads less. The request is done when this returns,
        or later; wait for it either way.

        Raises:
            BusyError: as :meth:`submit`.
        """
        if self._waiting or self.settings.delay > 0 or not self._turn.acquire(blocking=False):
            self.submit(request)
            return
        try:
            if self._closed:
                raise self._closing()
            request.entered = time.perf_counter()
            self._execute([request])
        finally:
            self._turn.release()

    def _closing(self) -> BusyError:
        return BusyError("this model is being closed", hint="Try again.")

    def refusal(self, bound: int | None = None) -> BusyError:
        """The error of a full queue, which may hold ``bound`` images, or as many as it may now."""
        return BusyError(
            "too many requests are waiting",
            expected=f"at most {bound or self.bound} images in the queue",
            hint="Try again in a moment.",
        )

    def close(self) -> None:
        """Refuse new requests, run those that wait, and end the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        held: QueuedRequest | None = None
        while True:
            self._count_load(False)
            request = held or self._queue.get()
            self._count_load(True)
            held = None
            if request is None:
                return
            with self._turn:
                requests, held, last = self._gather(request)
                live = self._still_wanted(requests)
                if live:
                    self._execute(live)
            del requests, live, request  # nothing of a request stays in memory while the worker is idle
            if last:
                return

    def _run_gathered(self) -> None:
        """A turn of an event loop: one batch of what it has read, and the answers."""
        if not self._turn.acquire(blocking=False):  # a thread runs another one; the worker takes these next
            while self._gathered:
                self._queue.put(self._gathered.popleft())
            return
        try:
            requests = self._next_gathered()
            loop = requests[0].loop
            live = self._still_wanted(requests, loop)
            if live:
                self._execute(live, loop)
        finally:
            self._turn.release()
        if self._gathered:  # after a turn that reads what has come meanwhile
            loop.call_soon(call_after_turn, loop, self._run_gathered)
        else:
            self._count_load(False)

    def _next_gathered(self) -> list[_LoopBound]:
        requests = [self._gathered.popleft()]
        total = len(requests[0].tensor)
        while self._gathered and total + len(self._gathered[0].tensor) <= self.settings.in_loop:
            requests.append(self._gathered.popleft())
            total += len(requests[-1].tensor)
        with self._lock:
            self._waiting -= total
        return requests

    def _gather(self, first: QueuedRequest) -> tuple[list[QueuedRequest], QueuedRequest | None, bool]:
        """Requests that run together; the one that did not fit any more; whether the queue has ended."""
        requests, total = [self._leave(first)], len(first.tensor)
        settings = self.settings
        deadline = first.entered + settings.delay
        while total < settings.max_batch:
            try:
                if settings.delay > 0:
                    following = self._queue.get(timeout=max(0.0, deadline - time.perf_counter()))
                else:
                    following = self._queue.get_nowait()
            except queue.Empty:
                break
            if following is None:
                return requests, None, True
            if total + len(following.tensor) > settings.max_batch:
                return requests, following, False
            requests.append(self._leave(following))
            total += len(following.tensor)
        return requests, None, False

    def _leave(self, request: QueuedRequest) -> QueuedRequest:
        with self._lock:
            self._waiting -= len(request.tensor)
        return request

    def _still_wanted(
        self, requests: Sequence[QueuedRequest], here: asyncio.AbstractEventLoop | None = None
    ) -> list[QueuedRequest]:
        now = time.perf_counter()
        live: list[QueuedRequest] = []
        late: list[QueuedRequest] = []
        limit = self.settings.timeout
        if self.settings.patience is not None and self._overloaded(now):
            limit = min(limit, self.settings.patience)
        for request in requests:
            request.waited = now - request.entered
            if request.abandoned:
                continue
            if request.waited > limit:
                request.error = BusyError(
                    "the request waited too long",
                    expected=f"at most {limit * 1e3:.4g} ms in the queue",
                    hint="Try again in a moment.",
                )
                late.append(request)
            else:
                live.append(request)
        if late:
            _deliver(late, here)
        return live

    def _execute(self, requests: list[QueuedRequest], here: asyncio.AbstractEventLoop | None = None) -> None:
        """Run requests together; if that fails, each by itself, so that nobody pays for another's input."""
        tensors = [request.tensor for request in requests]
        started = time.perf_counter()
        try:
            tensor = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
            logits = self._run(tensor)
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything; the callers report it
            if len(requests) > 1:
                for request in requests:
                    self._execute([request], here)
                return
            requests[0].error = RunError(str(error)) if isinstance(error, SmashError) else error
        else:
            _hand_out(requests, logits, time.perf_counter() - started)
        if self._observe is not None:
            self._observe(requests)
        _deliver(requests, here)


def _hand_out(requests: list[QueuedRequest], logits: np.ndarray, ran: float) -> None:
    """Give each request its rows. Each is judged by its own: a row that overflows spoils no other."""
    finite, start = bool(np.isfinite(logits).all()), 0
    for request in requests:
        end = start + len(request.tensor)
        rows = logits[start:end]
        request.ran, request.batch = ran, len(logits)
        if finite or np.isfinite(rows).all():
            request.logits = rows
        else:
            request.error = _overflow(rows)
        start = end


def _overflow(rows: np.ndarray) -> InvalidInputError:
    images = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    return InvalidInputError(
        f"the network answers NaN or infinity to image {images[0]} of the input",
        expected="values as the model's preprocessing makes them",
        hint="Numbers that large overflow inside the network.",
    )


def _deliver(requests: list[QueuedRequest], here: asyncio.AbstractEventLoop | None) -> None:
    """Wake those that wait; a loop is woken once for all its requests, and not at all where it runs this."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_LoopBound]] = {}
    for request in requests:
        if isinstance(request, _LoopBound):
            by_loop.setdefault(request.loop, []).append(request)
        elif isinstance(request, ThreadRequest):
            request.done()
    for loop, waiting in by_loop.items():
        if loop is here:
            _done(waiting)
            continue
        try:
            loop.call_soon_threadsafe(_done, waiting)
        except RuntimeError:  # the loop has ended; nobody waits any more
            continue


def _done(requests: list[_LoopBound]) -> None:
    for request in requests:
        request.done()
