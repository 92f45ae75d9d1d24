"""What every HTTP request passes: request id, API key, origin, errors as sentences, counts, logs.

A plain ASGI application around the router, whose parts :mod:`http` uses for inferences. Bodies are read here
too: under a limit in bytes (413) and in time (408), and with a bound on all bodies together (503), so that
many slow or large senders cannot fill the memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import itertools
import json
import logging
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.exceptions import HTTPException

from smash_base.errors import SmashError
from smash_export.server import encodings
from smash_export.server.batching import BusyError
from smash_export.server.hosts import Hosts
from smash_export.server.logs import LOGGER, REQUEST_ID, Throttle, log
from smash_export.server.metrics import Metrics
from smash_export.server.models import UnknownModelError
from smash_export.server.protocol import TooLargeError

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

RETRY_AFTER_S = "1"
_QUICK_BYTES = 2**18  # decompressed by the loop itself
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,100}")
_OPEN_TO_ALL = ("/", "/static", "/v2/health/live", "/v2/health/ready", "/openapi.json")


@dataclass(frozen=True)
class RequestLimits:
    """What one client may ask for.

    Attributes:
        body_bytes: Largest size of one body.
        all_bodies_bytes: Largest size of all bodies together that are being read or worked on.
        body_seconds: Time to send the headers, and again to send the body.
        answer_seconds: Time to answer once the body is there.
    """

    body_bytes: int = 32 * 2**20
    all_bodies_bytes: int = 512 * 2**20
    body_seconds: float = 30.0
    answer_seconds: float = 60.0


@dataclass
class State:
    """What changes while the server runs.

    Attributes:
        draining: SIGTERM came: everything is still answered, and connections end with their answer.
        leaving: nothing new is taken any more.
        active: requests in progress.
        body_bytes: in memory now, of HTTP and gRPC together.
        lock: Lock of ``body_bytes``; gRPC's calls run in threads of their own.
    """

    draining: bool = False
    leaving: bool = False
    active: int = 0
    body_bytes: int = 0
    reload_tasks: set[asyncio.Task[None]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


class HttpError(Exception):
    """An answer that is not 200, with its sentence."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = headers or {}


class Middleware:
    """See the head of this module.

    Args:
        app: answers what passes.
        state, metrics, limits: Shared parts of the server.
        api_key: what clients must show; None asks for nothing.
        log_requests: log successful requests too.
        hosts: names that the server answers to.
        root_path: prefix that a proxy may leave before every path.
    """

    def __init__(
        self,
        app: App,
        state: State,
        metrics: Metrics,
        limits: RequestLimits,
        bodies: Bodies,
        api_key: str | None,
        log_requests: bool,
        hosts: Hosts | None = None,
        root_path: str = "",
    ) -> None:
        self.state = state
        self.metrics = metrics
        self.limits = limits
        self.bodies = bodies
        self._app = app
        self._key = api_key.encode() if api_key else None
        self._log_requests = log_requests
        self._hosts = hosts or Hosts()
        self._root = root_path
        self.throttle = Throttle()
        self.parsers = BoundedThreads("parse", 2, 32)
        self._prefix = os.urandom(4).hex().encode()
        self._numbers = itertools.count(1)
        self._busy_answers = 0
        self._busy_logged = 0.0

    def identity(self, headers: dict[bytes, bytes]) -> bytes:
        """The id of a request: the client's, if it can stand in a header and a log, or a new one."""
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        return self.new_identity()

    def new_identity(self) -> bytes:
        """An id that no other request of this server has."""
        return b"%s-%d" % (self._prefix, next(self._numbers))

    def check(self, path: str, method: str, headers: dict[bytes, bytes]) -> None:
        """Refuse requests without the key, to names of others, and from another site's page.

        Raises:
            HttpError: 401, 403.
        """
        if not self._hosts.accept_host(path, headers):
            raise HttpError(403, _NOT_MY_NAME)
        if self._key is not None and not (path in _OPEN_TO_ALL or path.startswith("/static/")):
            given = headers.get(b"x-api-key") or bearer_token(headers.get(b"authorization", b""))
            if not hmac.compare_digest(given, self._key):
                raise HttpError(
                    401,
                    "this server needs an API key, in the header Authorization: Bearer KEY or X-API-Key",
                    {"WWW-Authenticate": "Bearer"},
                )
        if method == "POST" and not self._hosts.accept_origin(headers):
            raise HttpError(403, _OTHER_SITE)

    def report(self, error: Exception, failure: HttpError, identity: bytes) -> None:
        """Log what is the server's own fault."""
        if failure.status == 500:
            self.throttle.log(
                logging.ERROR,
                "internal error",
                kind=type(error).__name__,
                error=str(error)[:500],
                request_id=identity.decode(),
            )
            logging.getLogger(LOGGER).debug("internal error", exc_info=error)

    def count(self, route: str, method: str, path: str, status: int, seconds: float, identity: bytes) -> None:
        """Count and log one answer. Of 503s there can be thousands in a second: one line tells of all."""
        self.metrics.answered("http", route, status, seconds)
        if status == 503:
            self._log_busy(path)
        elif status >= 400 or self._log_requests:
            held = self.throttle.admit(f"{status // 100}xx") if status >= 400 else 0
            if held is None:
                return
            log(
                logging.WARNING if status >= 400 else logging.INFO,
                "request",
                method=method,
                path=path[:200],
                status=status,
                milliseconds=round(seconds * 1e3, 3),
                request_id=identity.decode(),
                **({"suppressed": held} if held else {}),
            )

    def refused(self, route: str, path: str) -> None:
        """Count and log a request for inference that was refused unread."""
        self.metrics.refused(route)
        self._log_busy(path)

    def _log_busy(self, path: str) -> None:
        self._busy_answers += 1
        now = time.monotonic()
        if now - self._busy_logged >= 1:
            log(logging.INFO, "busy", refused=self._busy_answers, path=path[:200])
            self._busy_answers, self._busy_logged = 0, now

    def _own_path(self, path: str) -> str:
        """A path without the proxy's prefix and without a slash at its end: nothing is ever redirected,
        as the address that clients see is known to the proxy only."""
        if self._root and path.startswith(self._root + "/"):
            path = path[len(self._root) :]
        return path.rstrip("/") or "/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        scope["path"] = self._own_path(scope["path"])
        headers: dict[bytes, bytes] = dict(scope["headers"])
        identity = self.identity(headers)
        token = REQUEST_ID.set(identity.decode())
        scope["app"] = self  # makes starlette raise for 404 and 405 instead of answering in its words
        scope["smash.headers"] = headers
        state = self.state
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [*message.get("headers", ()), (b"x-request-id", identity)]
                if state.draining:
                    extra.append((b"connection", b"close"))
                message["headers"] = extra
            await send(message)

        state.active += 1
        try:
            self.check(scope["path"], scope["method"], headers)
            await self._app(scope, receive, answer)
        except Disconnected:
            pass
        except Exception as error:  # noqa: BLE001 - the one place where errors become answers
            failure = to_http(error)
            self.report(error, failure, identity)
            if not status:
                await respond_json(answer, {"error": str(failure)}, failure.status, failure.headers.items())
        finally:
            state.active -= 1
            route = scope.get("smash.route", "other")
            seconds = time.perf_counter() - started
            self.count(route, scope["method"], scope["path"], status or 499, seconds, identity)
            REQUEST_ID.reset(token)


class BoundedThreads:
    """A few threads for what would hold up the loop, with a bound on what waits for them.

    Args:
        name: Name of the threads.
        threads: at once.
        waiting: pieces of work that are taken, those in progress included.
    """

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._name, self._most, self._now = name, waiting, 0

    async def run(self, work: Callable[[], T]) -> T:
        """What ``work`` returns.

        Raises:
            BusyError: too much waits already.
        """
        if self._now >= self._most:
            raise BusyError(
                f"too many requests wait for threads ({self._name})", hint="Try again in a moment."
            )
        self._now += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._now -= 1


class Disconnected(Exception):
    """The client left; there is nobody to answer."""


def to_http(error: Exception) -> HttpError:
    """Status and sentence of an error."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, HTTPException):
        return HttpError(error.status_code, error.detail, dict(error.headers or {}))
    if isinstance(error, BusyError):
        return HttpError(503, str(error), {"Retry-After": RETRY_AFTER_S})
    if isinstance(error, UnknownModelError):
        return HttpError(404, str(error))
    if isinstance(error, TooLargeError):
        return HttpError(413, str(error), _CLOSE)
    if isinstance(error, SmashError):
        return HttpError(400, str(error))
    return HttpError(500, "the model could not run; the server's log says more under this request's id")


_NOT_MY_NAME = (
    "the Host header is no name of this server; without an API key it answers to addresses, localhost and "
    "the names of --allowed-host"
)
_OTHER_SITE = (
    "requests from pages of other sites are refused; behind a proxy name the public host with --allowed-host"
)


def bearer_token(authorization: bytes) -> bytes:
    """The key in ``Authorization: Bearer KEY``; the word in any case (RFC 9110, 11.1)."""
    scheme, _, token = authorization.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else authorization


class Bodies:
    """Reads bodies under the limits, decompressed.

    Attributes:
        threads: where what is long is compressed and decompressed.
    """

    def __init__(self, limits: RequestLimits, state: State) -> None:
        self._limits = limits
        self._state = state
        self.threads = BoundedThreads("inflate", 2, 32)

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, decompressed. Its bytes are counted until :meth:`release`.

        Raises:
            HttpError: 408, 411 to 415, 503.
            InvalidInputError, TooLargeError: as :func:`smash_export.server.encodings.decompress`.
        """
        headers = scope["smash.headers"]
        named = headers.get(b"content-encoding", b"").strip().lower()
        if named not in (b"identity", b"", *encodings.REQUESTS):
            raise HttpError(
                415,
                "the body is compressed in an unknown way; expected gzip, deflate or nothing",
                {"Accept-Encoding": "gzip, deflate"},
            )
        body = await self._received(headers, receive)
        encoding = encodings.REQUESTS.get(named)
        return body if encoding is None or not body else await self._decompressed(body, encoding)

    async def shortened(self, answer: bytes, accept: bytes) -> tuple[bytes, str | None]:
        """An answer as its client's ``Accept-Encoding`` asks, and the encoding it got: none where it would
        not pay, or where other answers wait to be compressed already."""
        encoding = encodings.accepted(accept)
        if encoding is None or len(answer) < encodings.WORTH_BYTES:
            return answer, None
        try:
            return await self.threads.run(lambda: encodings.compress(answer, encoding)), encoding
        except BusyError:
            return answer, None

    async def _decompressed(self, body: bytes, encoding: str) -> bytes:
        """The content, counted in place of the body; room for the longest that it can be must be free."""
        limit, most = self._limits.body_bytes, encodings.most_bytes(len(body), self._limits.body_bytes)
        try:
            self.reserve(most)
        except BusyError:
            self.release(len(body))
            raise
        content = b""
        try:
            if most <= _QUICK_BYTES:
                content = encodings.decompress(body, encoding, limit)
            else:
                content = await self.threads.run(lambda: encodings.decompress(body, encoding, limit))
        finally:
            self.release(len(body) + most - len(content))
        return content

    async def _received(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        limit = self._limits.body_bytes
        claimed = headers.get(b"content-length")
        if claimed is not None:
            self.check_claim(claimed)
        message = await self._first(receive)
        body: bytes = message.get("body", b"")
        if not message.get("more_body"):
            if len(body) > limit:
                raise self._too_large()
            self.reserve(len(body))
            return body
        chunks, total = [body], len(body)
        self.reserve(total)
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while message.get("more_body"):
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    chunk = message.get("body", b"")
                    if total + len(chunk) > limit:
                        raise self._too_large()
                    self.reserve(len(chunk))
                    total += len(chunk)
                    chunks.append(chunk)
        except BaseException as error:
            self.release(total)
            if isinstance(error, TimeoutError):
                raise self.too_slow() from None
            raise
        return b"".join(chunks)

    def check_claim(self, claimed: bytes) -> None:
        """Refuse a Content-Length that is none or too large, before the body comes.

        Raises:
            HttpError: 413.
        """
        if not claimed.isdigit() or len(claimed) > 18 or int(claimed) > self._limits.body_bytes:
            raise self._too_large()

    @contextlib.contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count ``size`` bytes, for example of a tensor that a body becomes, as long as the block lasts.

        Raises:
            BusyError: as :meth:`reserve`.
        """
        self.reserve(size)
        try:
            yield
        finally:
            self.release(size)

    def release(self, size: int) -> None:
        """The body is no longer in use."""
        with self._state.lock:
            self._state.body_bytes -= size

    async def _first(self, receive: Receive) -> Message:
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                message = await receive()
        except TimeoutError:
            raise self.too_slow() from None
        if message["type"] == "http.disconnect":
            raise Disconnected
        return message

    def reserve(self, size: int) -> None:
        """Count bytes of a body until :meth:`release`.

        Raises:
            BusyError: all bodies together are too large.
        """
        with self._state.lock:
            fits = self._state.body_bytes + size <= self._limits.all_bodies_bytes
            if fits:
                self._state.body_bytes += size
        if not fits:
            raise BusyError("too many large requests at once", hint="Try again in a moment.")

    def _too_large(self) -> HttpError:
        return HttpError(
            413, f"the body is too large; expected at most {self._limits.body_bytes} bytes", _CLOSE
        )

    def too_slow(self, what: str = "the body") -> HttpError:
        """The 408."""
        return HttpError(
            408, f"{what} came too slowly; expected within {self._limits.body_seconds:g} s", _CLOSE
        )


_CLOSE = {"Connection": "close"}


def encode_error(failure: HttpError) -> tuple[bytes, bytes]:
    """Body and header lines of an error's answer, for those who write to the connection themselves."""
    return _encode_error(str(failure), tuple(failure.headers.items()))


@functools.lru_cache(64)  # an overloaded server says the same thousands of times in a second
def _encode_error(sentence: str, headers: tuple[tuple[str, str], ...]) -> tuple[bytes, bytes]:
    lines = "".join(f"{name.lower()}: {text}\r\n" for name, text in headers)
    return json.dumps({"error": sentence}).encode(), lines.encode("latin-1")


async def respond(
    send: Send, status: int, body: bytes, content_type: bytes, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Send a whole answer."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", content_type),
                (b"content-length", b"%d" % len(body)),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def respond_json(
    send: Send, value: Any, status: int = 200, headers: Iterable[tuple[str, str]] = ()
) -> None:
    """Send a JSON answer."""
    body = json.dumps(value, allow_nan=False).encode()
    encoded = [(name.lower().encode("latin-1"), text.encode("latin-1")) for name, text in headers]
    await respond(send, status, body, b"application/json", encoded)
