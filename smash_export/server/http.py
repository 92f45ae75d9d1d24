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
:mod:`connections`. Under lasting overload a request that waited while others were read is refused
(:mod:`turns`).

A client says the same in the head of each of its requests. A head that was parsed once and found plain is
remembered, byte by byte: a request that comes in one piece with such a head is not parsed again, and what
depends on nothing else (name, key, origin, length) is not checked again.

Built on ``HttpToolsProtocol``: its callbacks of the parser, ``cycle``, ``pipeline`` and
``on_response_complete``.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from smash_export.server import protocol
from smash_export.server.batching import Batcher, BusyError, CallbackRequest
from smash_export.server.connections import Connections
from smash_export.server.encodings import WORTH_BYTES
from smash_export.server.middleware import HttpError, Middleware, encode_error, to_http
from smash_export.server.models import Model, Repository
from smash_export.server.turns import TurnSelector

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
_HEADS = 256  # that are remembered
_HEAD_BYTES = 1024  # of the longest of them
_OCTETS = b"content-type: application/octet-stream\r\n%s: %d\r\n"


@dataclass(frozen=True, slots=True)
class Head:
    """What the head of an infer request says.

    Attributes:
        path, route: as it was called, and as it is counted.
        model, version: Model that shall answer, and its version.
        size: bytes of the body.
        json_size: value of ``Inference-Header-Content-Length``.
        keep_alive: whether the connection goes on.
        accept: value of ``Accept-Encoding``.
    """

    path: str
    route: str
    model: str
    version: str | None
    size: int
    json_size: str | None
    keep_alive: bool
    accept: bytes


class InferCall:
    """One inference on its way; what uvicorn's protocol knows as its request's ``cycle``."""

    __slots__ = (
        "age",
        "body",
        "disconnected",
        "head",
        "identity",
        "keep_alive",
        "model",
        "queued",
        "reserved",
        "response_complete",
        "started",
    )

    def __init__(self, head: Head, identity: bytes) -> None:
        self.head, self.identity, self.keep_alive = head, identity, head.keep_alive
        self.started = time.perf_counter()
        self.age = 0.0  # seconds that it waited while others were read
        self.body: list[bytes] = []
        self.reserved = 0
        self.model: Model | None = None
        self.queued: CallbackRequest | None = None
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
    turns: TurnSelector
    heads: dict[bytes, Head]
    busy: dict[int, tuple[bytes, bytes]]  # images that may wait -> parts of the refusal

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._receiving = self._in_headers = False
        self._timer: asyncio.TimerHandle | None = None  # until the headers or the body are there
        self._unread: asyncio.TimerHandle | None = None  # until the client takes what is written
        self._unparsed = 0  # bytes since something was whole: headers, a piece of a body
        self._whole = self._health_only = False
        self._plain: Head | None = None  # of the request that is being read, if it may be remembered
        self._descriptor = -1
        self.address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._descriptor = transport.get_extra_info("socket").fileno()
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
        between = not self._receiving and not self._unparsed and self._is_free()
        if between:
            end = data.find(b"\r\n\r\n", 0, _HEAD_BYTES) + 4
            head = self.heads.get(data[:end])
            if head is not None and len(data) == end + head.size:
                if not self._refused_known(head):
                    self._answer_known(head, data[end:])
                return
        self._plain = None
        self._unparsed += len(data)
        self._whole = False
        super().data_received(data)
        if between and self._plain is not None and not self._receiving:
            self._remember(data, self._plain)
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

    def _is_free(self) -> bool:
        """Whether a request that comes now is the only one of this connection."""
        cycle = self.cycle
        return (
            (cycle is None or cycle.response_complete)
            and not self._health_only
            and not self.pipeline
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def _remember(self, data: bytes, head: Head) -> None:
        """Keep the head of a request that came in one piece, if it is what it looks like."""
        text = data[: len(data) - head.size]
        if len(text) <= _HEAD_BYTES and text.find(b"\r\n\r\n") == len(text) - 4:
            if len(self.heads) >= _HEADS:
                self.heads.clear()
            self.heads[text] = head

    def _refused_known(self, head: Head) -> bool:
        """Refuse a whole request with a known head if its model is busy: what an overloaded server does most
        must cost it least, as the network needs the same core."""
        middleware = self.middleware
        batcher = self.repository.batcher(head.model, head.version)
        if batcher is None or not head.keep_alive or middleware.state.draining:
            return False
        bound = batcher.busy(self.turns.waited(self._descriptor), self.turns.average)
        if bound is None:
            return False
        self._disarm()
        self._unset_keepalive_if_required()
        first, last = self.busy.get(bound) or self._busy_answer(batcher, bound)
        self.transport.write(b"".join((first, middleware.new_identity(), last)))
        self.server_state.total_requests += 1
        self.places.rests(self)
        middleware.refused(head.route, head.path)
        return True

    def _busy_answer(self, batcher: Batcher, bound: int) -> tuple[bytes, bytes]:
        """What a refusal says before and after the request's id, made once for each bound."""
        body, extra = encode_error(to_http(batcher.refusal(bound)))
        first = b"%s%s%scontent-length: %d\r\nx-request-id: " % (STATUS_LINE[503], _JSON, extra, len(body))
        answer = self.busy[bound] = (first, b"\r\n\r\n" + body)
        return answer

    def _answer_known(self, head: Head, body: bytes) -> None:
        """A whole request with a head that was parsed and checked before."""
        self._disarm()
        self._unset_keepalive_if_required()
        self.places.works(self)
        call = self._begin(head, self.middleware.new_identity())
        try:
            model = self._admit(call)
            if model is None:
                return
            self.middleware.bodies.reserve(len(body))
            call.reserved = len(body)
            self._parse(call, model, body)
        except Exception as error:  # noqa: BLE001 - every error becomes an answer
            self._refuse(call, error)

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
        length = headers.get(_LENGTH_HEADER)
        head = Head(
            self.url.decode(),
            _ROUTE if version is None else _VERSION_ROUTE,
            name.decode(),
            None if version is None else version.decode(),
            int(claimed),
            None if length is None else length.decode("latin-1"),
            self.parser.should_keep_alive(),
            headers.get(b"accept-encoding", b""),
        )
        call = self._begin(head, self.middleware.identity(headers))
        try:
            self.middleware.check(head.path, "POST", headers)
            self.middleware.bodies.check_claim(claimed)
            if b"x-request-id" not in headers:
                self._plain = head
            self._admit(call)
        except Exception as error:  # noqa: BLE001 - every error becomes an answer
            self._refuse(call, error)

    def _begin(self, head: Head, identity: bytes) -> InferCall:
        call = InferCall(head, identity)
        self.cycle = call  # type: ignore[assignment]
        self.middleware.state.active += 1
        return call

    def _admit(self, call: InferCall) -> Model | None:
        """The model of a call; None if it is busy, which is answered then.

        Raises:
            UnknownModelError, TooLargeError: no.
        """
        head = call.head
        call.model = model = self.repository.take(head.model, head.version)
        call.age = self.turns.waited(self._descriptor)
        if model.batcher.busy(call.age, self.turns.average) is not None:
            self._refuse(call, model.batcher.refusal())
            return None
        if head.json_size is None and head.size > model.json_limit:
            raise protocol.TooLargeError("the body", expected=f"at most {model.json_limit} bytes of JSON")
        return model

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
        try:
            self._parse(call, model, body)
        except Exception as error:  # noqa: BLE001 - every error becomes an answer
            self._refuse(call, error)

    def _parse(self, call: InferCall, model: Model, body: bytes) -> None:
        length = call.head.json_size
        if protocol.is_slow(len(body), length):
            self._later(self._submit_later(call, model, body, length))
            return
        request = protocol.parse_infer(body, length, model.signature, model.max_images)
        self._accept(call, model, request)

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
        if images.dtype.kind == "f":
            self._submit(call, model, request)
            return
        size = model.tensor_bytes(len(images))
        self.middleware.bodies.reserve(size)
        call.reserved += size
        if model.is_quick(images):
            self._submit(call, model, request._replace(tensor=model.converted(images)))
            return
        self._later(self._convert_later(call, model, request))

    async def _convert_later(self, call: InferCall, model: Model, request: protocol.InferRequest) -> None:
        try:
            tensor = await self.middleware.parsers.run(lambda: model.converted(request.tensor))
            if not call.response_complete:
                self._submit(call, model, request._replace(tensor=tensor))
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
        if call.head.accept and len(body) >= WORTH_BYTES:
            self._later(self._write_shortened(call, kind, body))
            return
        self._write(call, 200, kind, body)

    async def _write_shortened(self, call: InferCall, headers: bytes, body: bytes) -> None:
        """The client takes compressed answers; a long one is compressed beside the loop."""
        body, encoding = await self.middleware.bodies.shortened(body, call.head.accept)
        if encoding is not None:
            headers += b"content-encoding: %s\r\n" % encoding.encode()
        if not call.response_complete:
            self._write(call, 200, headers, body)

    def _refuse(self, call: InferCall, error: Exception) -> None:
        failure = to_http(error)
        self.middleware.report(error, failure, call.identity)
        body, extra = encode_error(failure)
        self._write(call, failure.status, _JSON + extra, body)

    def expire(self) -> None:
        """The answer is late. The usual way has a clock of its own."""
        call = self.cycle
        if isinstance(call, InferCall) and not call.response_complete:
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
        if self.pipeline or self._receiving:
            self.on_response_complete()
        elif call.keep_alive:
            self.server_state.total_requests += 1
            self.places.rests(self)  # which closes it as well, without a timer for each answer

    def _end(self, call: InferCall, status: int) -> None:
        """Let go of what a call holds, and count it."""
        if call.model is not None:
            call.model.leave()
        self.middleware.bodies.release(call.reserved)
        self.middleware.state.active -= 1
        call.model = call.queued = None
        call.body.clear()
        seconds = time.perf_counter() - call.started
        head = call.head
        self.middleware.count(head.route, "POST", head.path, status, seconds, call.identity)

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


_ENDED = InferCall(
    Head("", "", "", None, 0, None, False, b""), b""
)  # what follows a connection's last answer is not looked at
_ENDED.response_complete = True
_TOO_LONG = f"the headers are too long; expected at most {MAX_HEAD_BYTES} bytes"
_TOO_MANY = "too many connections; only health is answered on this one. Try again in a moment."


def connection_class(
    repository: Repository, middleware: Middleware, places: Connections, turns: TurnSelector
) -> type[Connection]:
    """The class of connections of one server."""
    shared = {"repository": repository, "middleware": middleware, "places": places}
    return type("Connection", (Connection,), {**shared, "turns": turns, "heads": {}, "busy": {}})
