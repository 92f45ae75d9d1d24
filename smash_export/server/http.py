"""The HTTP connection: uvicorn's, with a short way for inferences and a limit on slow headers.

``POST /v2/models/{m}[/versions/{v}]/infer`` with a plain body is answered here from parser to worker and
back by calls alone. The way through ASGI (a task, events, routing, four messages) costs about three times
as much processor time per request, and the loop's time is what bounds the throughput of a small network.
Everything unusual about a request (chunks, encodings, an unknown address, another request before it that is
not answered yet, too many connections) goes the usual way, which does the same with the same words; this
one adds no rule of its own.

A full queue is answered as soon as the headers are there; the body is skipped when it comes and the
connection is kept.

Bounds, whatever a client does: 64 KiB of headers (431), 64 requests sent ahead, ``body_seconds`` for
headers, for a body (read or not) and for taking an answer out of the socket, and the places of
:mod:`connections`. A request that waited for this loop for longer than the model allows is refused like one
that waits in its queue.

Built on ``HttpToolsProtocol``: its callbacks of the parser, ``cycle``, ``pipeline`` and
``on_response_complete``.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from smash_export.server import protocol
from smash_export.server.batching import BusyError, CallbackRequest
from smash_export.server.connections import Arrivals, Connections
from smash_export.server.encodings import WORTH_BYTES
from smash_export.server.middleware import HttpError, Middleware, encode_error, to_http
from smash_export.server.models import Model, Repository

_INFER = re.compile(rb"/v2/models/([A-Za-z0-9._-]{1,100})(?:/versions/([0-9]{1,9}))?/infer", re.ASCII)
_ROUTE = "/v2/models/{model}/infer"
_VERSION_ROUTE = "/v2/models/{model}/versions/{version}/infer"
# Headers that change how a body is read: such requests go the usual way.
_UNUSUAL = frozenset((b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"))
_LENGTH_HEADER = protocol.HEADER_LENGTH.lower().encode()
_JSON = b"content-type: application/json\r\n"
MAX_HEAD_BYTES = 2**16
MAX_AHEAD = 64
_HEALTH = (b"/v2/health/live", b"/v2/health/ready")
_SHORT_S = 2.0  # for a request in a place where only health is answered
_OCTETS = b"content-type: application/octet-stream\r\n%s: %d\r\n"


class InferCall:
    """One inference on its way; what uvicorn's protocol knows as its request's ``cycle``."""

    __slots__ = (
        "accept",
        "age",
        "body",
        "disconnected",
        "identity",
        "keep_alive",
        "length",
        "model",
        "path",
        "queued",
        "reserved",
        "response_complete",
        "route",
        "started",
        "timer",
    )

    def __init__(
        self, path: str, route: str, identity: bytes, length: bytes | None, keep_alive: bool
    ) -> None:
        self.path, self.route, self.identity = path, route, identity
        self.length, self.keep_alive = length, keep_alive
        self.accept = b""
        self.started = time.perf_counter()
        self.age = 0.0
        self.body: list[bytes] = []
        self.reserved = 0
        self.model: Model | None = None
        self.queued: CallbackRequest | None = None
        self.timer: asyncio.TimerHandle | None = None  # until the answer is there
        self.response_complete = self.disconnected = False

    @property
    def message_event(self) -> InferCall:
        """uvicorn wakes a waiting application through it; here nobody waits."""
        return self

    def set(self) -> None:
        """See ``message_event``."""


class Connection(HttpToolsProtocol):
    """See the head of this module. The models and the middleware are class attributes of a subclass, as
    uvicorn makes its connections itself: :func:`connection_class`."""

    repository: Repository
    middleware: Middleware
    places: Connections
    arrivals: Arrivals

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._receiving = self._in_headers = False
        self._timer: asyncio.TimerHandle | None = None  # until the headers or the body are there
        self._unread: asyncio.TimerHandle | None = None  # until the client takes what is written
        self._unparsed = 0  # bytes since something was whole: headers, a piece of a body
        self._whole = self._health_only = False
        self.address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._health_only = not self.places.admit(self)
        self._arm()

    def evict(self) -> None:
        """Make room for another connection."""
        self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.middleware.limits.body_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.resume_writing()
        self.places.leave(self)
        call = self.cycle
        if isinstance(call, InferCall) and not call.response_complete:
            call.response_complete = True
            if call.queued is not None:
                call.queued.abandoned = True
            self._end(call, 499)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.arrivals.read(time.perf_counter()):
            self.loop.call_soon(self.arrivals.over)
        self._unparsed += len(data)
        self._whole = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._whole:
            self._unparsed = 0
        if self._unparsed > MAX_HEAD_BYTES:
            self._refuse_early(431, _TOO_LONG)
        elif self._receiving:
            # A request that came in one piece needs no timer; the usual way has one of its own for bodies.
            cycle = self.cycle
            if self._timer is None and (
                self._in_headers or isinstance(cycle, InferCall) or cycle.response_complete
            ):
                self._arm()
        elif self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_next()  # nothing but empty lines

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP."""
        self._refuse_early(400, "this is not an HTTP/1.1 request")

    def _unsupported_upgrade_warning(self) -> None:
        """Answered as if nothing had been asked for; a client could fill the log with it."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._receiving = self._in_headers = True
        self.places.sends(self)

    def on_headers_complete(self) -> None:
        self._disarm()
        self._in_headers = False
        self._whole = True
        if self.transport.is_closing():
            self.cycle = _ENDED  # type: ignore[assignment]
            return
        if self._unparsed > MAX_HEAD_BYTES and _size(self.url, self.headers) > MAX_HEAD_BYTES:
            self._refuse_early(431, _TOO_LONG)
            return
        if self._health_only and self.url.partition(b"?")[0] not in _HEALTH:
            self._refuse_early(503, _TOO_MANY)
            return
        if len(self.pipeline) >= MAX_AHEAD:
            self.transport.abort()  # the answers before it are not there yet: nothing can be said
            self.cycle = _ENDED  # type: ignore[assignment]
            return
        before = self.cycle
        found = _INFER.fullmatch(self.url)
        if found is None or (before is not None and not before.response_complete) or self.pipeline:
            super().on_headers_complete()
            return
        headers = dict(self.headers)
        claimed = headers.get(b"content-length", b"")
        if (
            self.parser.get_method() != b"POST"
            or self.parser.get_http_version() != "1.1"
            or not (claimed.isdigit() and len(claimed) <= 18)
            or not _UNUSUAL.isdisjoint(headers)
            or self.flow.write_paused  # a client that does not read its answers
        ):
            super().on_headers_complete()
            return
        name, version = found.groups()
        call = InferCall(
            self.url.decode(),
            _ROUTE if version is None else _VERSION_ROUTE,
            self.middleware.identity(headers),
            headers.get(_LENGTH_HEADER),
            self.parser.should_keep_alive(),
        )
        call.accept = headers.get(b"accept-encoding", b"")
        self.cycle = call  # type: ignore[assignment]
        self.middleware.state.active += 1
        try:
            self.middleware.check(call.path, "POST", headers)
            call.model = model = self.repository.take(
                name.decode(), None if version is None else version.decode()
            )
            call.age = self.arrivals.age(call.started)
            if model.batcher.full or model.batcher.late(call.age, self.arrivals.average):
                raise model.batcher.refusal()
            self.middleware.bodies.check_claim(claimed)
            if call.length is None and int(claimed) > model.json_limit:
                raise protocol.TooLargeError("the body", expected=f"at most {model.json_limit} bytes of JSON")
        except Exception as error:  # noqa: BLE001 - every error becomes an answer
            self._refuse(call, error)

    def on_body(self, body: bytes) -> None:
        self._whole = True
        call = self.cycle
        if not isinstance(call, InferCall):
            super().on_body(body)
        elif not call.response_complete:
            try:
                self.middleware.bodies.reserve(len(body))  # what came, not what is claimed
            except BusyError as error:
                self._refuse(call, error)
                return
            call.reserved += len(body)
            call.body.append(body)

    def on_message_complete(self) -> None:
        self._receiving = False
        self._whole = True
        call = self.cycle
        if call.response_complete:  # the rest of a body that nobody reads
            self._disarm()
            self.places.rests(self)
            self._await_next()
            return
        self.places.works(self)
        if not isinstance(call, InferCall):
            super().on_message_complete()
            return
        self._disarm()
        model, body = call.model, call.body[0] if len(call.body) == 1 else b"".join(call.body)
        assert model is not None
        length = None if call.length is None else call.length.decode("latin-1")
        call.timer = self.loop.call_later(self.middleware.limits.answer_seconds, self._no_answer, call)
        if protocol.is_slow(len(body), length):
            self._later(self._submit_later(call, model, body, length))
            return
        try:
            request = protocol.parse_infer(body, length, model.signature, model.max_images)
            self._accept(call, model, request)
        except Exception as error:  # noqa: BLE001 - every error becomes an answer
            self._refuse(call, error)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Go on beside this call; the loop itself keeps weak references only, and a drain waits for these."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _submit_later(self, call: InferCall, model: Model, body: bytes, length: str | None) -> None:
        """Much JSON is parsed beside the loop."""
        try:
            request = await self.middleware.parsers.run(
                lambda: protocol.parse_infer(body, length, model.signature, model.max_images)
            )
            if not call.response_complete:
                self._accept(call, model, request)
        except Exception as error:  # noqa: BLE001 - every error becomes an answer
            if not call.response_complete:
                self._refuse(call, error)

    def _accept(self, call: InferCall, model: Model, request: protocol.InferRequest) -> None:
        """Images become a tensor, beside the loop where that takes time."""
        images = request.tensor
        if images.dtype != np.uint8:
            self._submit(call, model, request)
            return
        size = model.tensor_bytes(len(images))
        self.middleware.bodies.reserve(size)
        call.reserved += size
        if model.is_quick(images):
            self._submit(call, model, replace(request, tensor=model.converted(images)))
            return
        self._later(self._convert_later(call, model, request))

    async def _convert_later(self, call: InferCall, model: Model, request: protocol.InferRequest) -> None:
        try:
            tensor = await self.middleware.parsers.run(lambda: model.converted(request.tensor))
            if not call.response_complete:
                self._submit(call, model, replace(request, tensor=tensor))
        except Exception as error:  # noqa: BLE001 - every error becomes an answer
            if not call.response_complete:
                self._refuse(call, error)

    def _submit(self, call: InferCall, model: Model, request: protocol.InferRequest) -> None:
        call.queued = CallbackRequest(request.tensor, self.loop, lambda _: self._answer(call, request))
        call.queued.age = call.age
        model.batcher.submit(call.queued)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()  # uvicorn would read on after each answer, without end
        elif not self._receiving and not self.transport.is_closing():
            self.places.rests(self)
        elif self._receiving and self.cycle.response_complete and not self._in_headers:
            self.places.rests(self)  # an answer that did not need the rest of the body
            if self._timer is None and not self.transport.is_closing():
                self._arm()

    def _answer(self, call: InferCall, request: protocol.InferRequest) -> None:
        """The request ran, or failed."""
        queued, model = call.queued, call.model
        if call.response_complete or queued is None or model is None:
            return  # the client left, or was told that it takes too long
        try:
            body, json_length = protocol.encode_infer(
                request,
                queued.result(),
                model.labels,
                output_name=model.signature.output_name,
                model=model.spec.name,
                version=model.spec.version,
            )
        except Exception as error:  # noqa: BLE001 - every error becomes an answer
            self._refuse(call, error)
            return
        kind = _JSON if json_length is None else _OCTETS % (_LENGTH_HEADER, json_length)
        if call.accept and len(body) >= WORTH_BYTES:
            self._later(self._write_shortened(call, kind, body))
            return
        self._write(call, 200, kind, body)

    async def _write_shortened(self, call: InferCall, headers: bytes, body: bytes) -> None:
        """The client takes compressed answers; a long one is compressed beside the loop."""
        body, encoding = await self.middleware.bodies.shortened(body, call.accept)
        if encoding is not None:
            headers += b"content-encoding: %s\r\n" % encoding.encode()
        if not call.response_complete:
            self._write(call, 200, headers, body)

    def _refuse(self, call: InferCall, error: Exception) -> None:
        failure = to_http(error)
        self.middleware.report(error, failure, call.identity)
        body, extra = encode_error(failure)
        self._write(call, failure.status, _JSON + extra, body)

    def _no_answer(self, call: InferCall) -> None:
        if call.queued is not None:
            call.queued.abandoned = True
        self._refuse(call, BusyError("no answer in time", hint="Try again in a moment."))

    def _too_slow(self) -> None:
        """Headers or a body did not come in time."""
        self._timer = None
        call = self.cycle
        if isinstance(call, InferCall) and not call.response_complete and call.queued is None:
            self._refuse(call, self.middleware.bodies.too_slow())
        elif call is not None and not call.response_complete:
            self._arm()  # the next request can wait: an earlier one is not answered yet
        elif not self.transport.is_closing():
            if self._in_headers:
                self._refuse_early(408, str(self.middleware.bodies.too_slow("the headers")))
            self.transport.close()

    def _refuse_early(self, status: int, sentence: str) -> None:
        """An answer to what never became a request, and the end of the connection."""
        self.cycle = _ENDED  # type: ignore[assignment]
        body, _ = encode_error(HttpError(status, sentence))
        extra = b"retry-after: 1\r\n" if status == 503 else b""
        head = b"%s%scontent-length: %d\r\n%sconnection: close\r\n\r\n"
        self.transport.write(head % (STATUS_LINE[status], _JSON, len(body), extra) + body)
        self.transport.close()
        self.middleware.count("other", "", "", status, 0.0, b"")

    def _write(self, call: InferCall, status: int, headers: bytes, body: bytes) -> None:
        if self.middleware.state.draining:
            call.keep_alive = False
        if b"connection: close" in headers:
            call.keep_alive, close = False, b""
        else:
            close = b"" if call.keep_alive else b"connection: close\r\n"
        head = b"%s%scontent-length: %d\r\nx-request-id: %s\r\n%s\r\n" % (
            STATUS_LINE[status],
            headers,
            len(body),
            call.identity,
            close,
        )
        call.response_complete = True
        self.transport.write(head + body)
        self._end(call, status)
        if not call.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _end(self, call: InferCall, status: int) -> None:
        """Let go of what a call holds, and count it."""
        if call.timer is not None:
            call.timer.cancel()
        if call.model is not None:
            call.model.leave()
        self.middleware.bodies.release(call.reserved)
        self.middleware.state.active -= 1
        call.model = call.queued = call.timer = None
        call.body.clear()
        seconds = time.perf_counter() - call.started
        self.middleware.count(call.route, "POST", call.path, status, seconds, call.identity)

    def _await_next(self) -> None:
        """The rest of a refused body is there: the connection is idle from now on."""
        if self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _arm(self) -> None:
        seconds = self.middleware.limits.body_seconds
        self._timer = self.loop.call_later(
            min(seconds, _SHORT_S) if self._health_only else seconds, self._too_slow
        )

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _size(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    return len(url) + sum(len(name) + len(text) + 4 for name, text in headers)


_ENDED = InferCall("", "", b"", None, False)  # what follows a connection's last answer is not looked at
_ENDED.response_complete = True
_TOO_LONG = f"the headers are too long; expected at most {MAX_HEAD_BYTES} bytes"
_TOO_MANY = "too many connections; only health is answered on this one. Try again in a moment."


def connection_class(repository: Repository, middleware: Middleware, places: Connections) -> type[Connection]:
    """The class of connections of one server."""
    shared = {"repository": repository, "middleware": middleware, "places": places, "arrivals": Arrivals()}
    return type("Connection", (Connection,), shared)
