"""``inference.GRPCInferenceService``: the protocol of :mod:`protocol` over gRPC.

Each call has a thread of its own, which runs the model if it is free and waits for the model's worker if
not; the HTTP loop and this service never wait for each other. Calls beyond a few times the number of
threads are refused by gRPC at once. (``grpc.aio`` was measured beside it: the same latency, more processor
time.)
"""

from __future__ import annotations

import functools
import hmac
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from smash_base.errors import InvalidInputError, SmashError, UsageError
from smash_export import __version__
from smash_export.server import protocol
from smash_export.server.app import EXTENSIONS
from smash_export.server.batching import BusyError, ThreadRequest
from smash_export.server.logs import Throttle
from smash_export.server.messages import HEALTH, INFERENCE, METHODS, SERVICE, message
from smash_export.server.metrics import Metrics
from smash_export.server.middleware import Bodies, RequestLimits, State, bearer_token
from smash_export.server.models import Model, Repository, UnknownModelError
from smash_export.server.peers import Alone, Peers
from smash_export.server.reflection import FILE as REFLECTION
from smash_export.server.reflection import METHODS as REFLECTION_METHODS
from smash_export.server.reflection import Reflection
from smash_export.server.wire import INFER_TENSORS, check_small

_PUBLIC = ("ServerLive", "ServerReady")
_InferResponse = message("ModelInferResponse")
_HEALTH_METHOD = "/grpc.health.v1.Health/Check"
_SERVING: bytes = HEALTH.message("HealthCheckResponse")(status=1).SerializeToString()
_NOT_SERVING: bytes = HEALTH.message("HealthCheckResponse")(status=2).SerializeToString()
_NO_KEY = "this server needs an API key, in the metadata authorization: Bearer KEY or x-api-key"
_FEWEST_THREADS = 4
_QUESTIONS = 100  # of one stream of reflection
_GOODBYE_S = 2.0  # calls are refused for so long before the port closes, at most
_QUIET_S = 0.25


class GrpcServer:
    """The service on one port.

    Args:
        repository, metrics, state, limits, api_key, administration: as for the HTTP application.
        largest: bytes of the largest message that a model can take; longer ones are not received.
        peers: the other processes of this server.
        share_port: whether they listen on the same port.
        threads: calls at once, fewer if their messages together could exceed half the limit of all bodies.
    """

    def __init__(
        self,
        repository: Repository,
        metrics: Metrics,
        state: State,
        limits: RequestLimits,
        api_key: str | None = None,
        administration: bool = True,
        largest: int | None = None,
        threads: int = 64,
        peers: Peers | None = None,
        share_port: bool = False,
    ) -> None:
        self._limits, self._most_threads, self._share_port = limits, threads, share_port
        peers = peers or Alone(repository, metrics)
        servicer = _Servicer(repository, peers, state, limits, administration)
        self._calls = _Calls(servicer, repository, metrics, state, limits, api_key)
        self._growing = threading.Lock()
        self._started = False
        self._address: tuple[str, int, tuple[bytes, bytes] | None] | None = None
        self._largest = min(largest or limits.body_bytes, limits.body_bytes)
        self._server, self._threads = self._make()

    def _make(self) -> tuple[Any, ThreadPoolExecutor]:
        """A server for messages of the size that is now the largest, and its threads."""
        most = self._limits.all_bodies_bytes // 2 // self._largest
        count = max(_FEWEST_THREADS, min(self._most_threads, most))
        threads = ThreadPoolExecutor(count, thread_name_prefix="grpc")
        made = grpc.server(
            threads,
            maximum_concurrent_rpcs=4 * count,
            options=[
                ("grpc.max_receive_message_length", self._largest),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", int(self._share_port)),
            ],
        )
        made.add_generic_rpc_handlers([self._calls])
        return made, threads

    def bind(self, host: str, port: int, tls: tuple[bytes, bytes] | None = None) -> int:
        """Take the port; with ``tls`` (private key, certificate chain) encrypted. Returns the port.

        Raises:
            UsageError: the port is in use.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls is None:
                port = int(self._server.add_insecure_port(address))
            else:
                port = int(self._server.add_secure_port(address, grpc.ssl_server_credentials([tls])))
        except RuntimeError:
            raise UsageError(
                f"port {port} of {host} cannot be used for gRPC",
                hint="Another program has it? Choose another: --grpc-port PORT, or --no-grpc.",
            ) from None
        self._address = host, port, tls
        return port

    def start(self) -> None:
        """Answer from now on."""
        self._server.start()
        self._started = True

    def grow(self, largest: int) -> None:
        """Take longer messages than before, if a model wants them. gRPC has one limit for the life of a
        server: another takes over on the same port, and this one answers the calls that it has.

        Args:
            largest: Bytes of the largest message that a model can take.

        Raises:
            UsageError: the port was taken by another program in between.
        """
        largest = min(largest, self._limits.body_bytes)
        with self._growing:
            if not self._started or largest <= self._largest or self._address is None:
                return
            old, threads = self._server, self._threads
            self._largest = largest
            self._server, self._threads = self._make()
            if self._share_port:  # no moment without a listener
                self.bind(*self._address)
                ended = old.stop(self._limits.answer_seconds)
            else:
                ended = old.stop(self._limits.answer_seconds)
                self._bind_soon(*self._address)
            self._server.start()
        threading.Thread(target=_retire, args=(ended, threads), name="grpc-retire", daemon=True).start()

    def _bind_soon(self, host: str, port: int, tls: tuple[bytes, bytes] | None) -> None:
        """:meth:`bind` to a port that is being left."""
        deadline = time.monotonic() + _GOODBYE_S
        while True:
            try:
                self.bind(host, port, tls)
                return
            except UsageError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def stop(self, grace: float) -> None:
        """Refuse new calls with UNAVAILABLE until none has come for a moment, so that clients look for
        another server and no call is cut off; then end, giving those in progress ``grace`` seconds."""
        with self._growing:
            self._started = False
        deadline = time.monotonic() + _GOODBYE_S
        while self._calls.busy(_QUIET_S) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._server.stop(grace).wait(grace + 1)
        self._calls.close()


def _retire(ended: threading.Event, threads: ThreadPoolExecutor) -> None:
    """Let go of the threads of a server when its last call is answered."""
    ended.wait()
    threads.shutdown(wait=False)


class _Calls(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """From a call's name and metadata to its answer.

    gRPC asks for a handler when the metadata is there and before the message is: what has no key, or comes
    while the server leaves, is refused with its message unread. All methods are handled as streams of
    requests, which are the same on the wire: only so is the moment known in which a message is waited for,
    and one that does not come in time is given up.
    """

    def __init__(
        self,
        servicer: _Servicer,
        repository: Repository,
        metrics: Metrics,
        state: State,
        limits: RequestLimits,
        api_key: str | None,
    ) -> None:
        self._repository, self._metrics, self._state, self._limits = repository, metrics, state, limits
        self._bodies = Bodies(limits, state)  # one count with HTTP
        self._key = api_key.encode() if api_key else None
        self._throttle = Throttle(1, 60.0)
        self._active = 0
        self._last = 0.0
        self._lock = threading.Lock()
        self._waiting: dict[Any, float] = {}  # context -> until when its message must be there
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="grpc-deadlines", daemon=True).start()
        health_threads = ThreadPoolExecutor(2, thread_name_prefix="grpc-health")
        self._handlers = {_HEALTH_METHOD: self._handler(self._health, health_threads)}
        self._reflection = Reflection((INFERENCE, HEALTH, REFLECTION))
        few = ThreadPoolExecutor(2, thread_name_prefix="grpc-reflection")
        for method in REFLECTION_METHODS:
            questions = functools.partial(self._reflect)
            questions.experimental_thread_pool = few  # type: ignore[attr-defined]
            self._handlers[method] = grpc.stream_stream_rpc_method_handler(questions)
        for name in METHODS:
            behaviour = self._behaviour(name, getattr(servicer, name))
            threads = health_threads if name in _PUBLIC else None
            self._handlers[f"/{SERVICE}/{name}"] = self._handler(behaviour, threads)

    @staticmethod
    def _handler(behaviour: Any, threads: ThreadPoolExecutor | None = None) -> Any:
        if threads is not None:
            behaviour = functools.partial(behaviour)
            behaviour.experimental_thread_pool = threads
        return grpc.stream_unary_rpc_method_handler(behaviour)

    def service(self, handler_call_details: Any) -> Any:
        """Called by gRPC for each call, before its message is received."""
        method = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None:
            return None
        self._last = time.monotonic()
        if self._state.leaving:
            return self._refusal(method, grpc.StatusCode.UNAVAILABLE, "this server is being stopped")
        public = method == _HEALTH_METHOD or method.rpartition("/")[2] in _PUBLIC
        if not public and not self._has_key(handler_call_details.invocation_metadata):
            return self._refusal(method, grpc.StatusCode.UNAUTHENTICATED, _NO_KEY)
        return handler

    def busy(self, seconds: float) -> bool:
        """Whether a call is in progress or came within the last ``seconds``."""
        return self._active > 0 or time.monotonic() - self._last < seconds

    def close(self) -> None:
        """End the thread that watches deadlines."""
        self._closed.set()

    def _refusal(self, method: str, code: grpc.StatusCode, sentence: str) -> Any:
        def refuse(messages: Any, context: Any) -> bytes:
            context.set_code(code)
            context.set_details(sentence)
            self._metrics.answered("grpc", method.rpartition("/")[2], code.name, 0.0)
            return b""

        return grpc.stream_unary_rpc_method_handler(refuse)

    def _has_key(self, metadata: Any) -> bool:
        if self._key is None:
            return True
        given = {name: value if isinstance(value, bytes) else value.encode() for name, value in metadata}
        key = given.get("x-api-key") or bearer_token(given.get("authorization", b""))
        return hmac.compare_digest(key, self._key)

    def _behaviour(self, name: str, method: Callable[[Any], Any]) -> Callable[[Any, Any], bytes]:
        request_class, response_class = message(f"{name}Request"), message(f"{name}Response")
        tensors = INFER_TENSORS if name == "ModelInfer" else {}

        def answer(messages: Any, context: Any) -> bytes:
            started = time.perf_counter()
            code = grpc.StatusCode.OK
            with self._lock:
                self._active += 1
            try:
                data = self._receive(messages, context)
                with self._bodies.holding(len(data)):
                    check_small(data, tensors)
                    response: bytes = method(_decode(request_class, data)).SerializeToString()
                    return response
            except Exception as error:  # noqa: BLE001 - the one place where errors become answers
                code, sentence = _to_grpc(error)
                context.set_code(code)
                context.set_details(sentence)
                self._report(code, error)
                return response_class().SerializeToString()  # type: ignore[no-any-return]
            finally:
                with self._lock:
                    self._active -= 1
                self._metrics.answered("grpc", name, code.name, time.perf_counter() - started)

        return answer

    def _report(self, code: grpc.StatusCode, error: Exception) -> None:
        if code is grpc.StatusCode.INTERNAL:
            self._throttle.log(40, "internal error", kind=type(error).__name__, error=str(error)[:500])
        elif code is grpc.StatusCode.INVALID_ARGUMENT:
            self._throttle.log(30, "refused gRPC calls", error=str(error)[:500])

    def _receive(self, messages: Any, context: Any) -> bytes:
        with self._lock:
            self._waiting[context] = time.monotonic() + self._limits.body_seconds
        try:
            data: bytes = next(messages)
            return data
        except StopIteration:
            raise InvalidInputError("the call holds no message", expected="one") from None
        finally:
            with self._lock:
                self._waiting.pop(context, None)

    def _watch(self) -> None:
        while not self._closed.wait(0.25):
            now = time.monotonic()
            with self._lock:
                late = [context for context, until in self._waiting.items() if until < now]
            for context in late:
                context.cancel()

    def _reflect(self, messages: Any, context: Any) -> Iterator[bytes]:
        """A stream of questions; ends with the first that does not come in time, or after a hundred."""
        for _ in range(_QUESTIONS):
            try:
                data = self._receive(messages, context)
            except InvalidInputError:  # the client has no more
                return
            try:
                check_small(data, {})
                request = _decode(REFLECTION.message("ServerReflectionRequest"), data)
            except InvalidInputError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            yield self._reflection.answer(request).SerializeToString()
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"at most {_QUESTIONS} questions in a stream")

    def _health(self, messages: Any, context: Any) -> bytes:
        """``grpc.health.v1.Health/Check``: the whole server, the service of the protocol, or one model."""
        try:
            service = _service_name(self._receive(messages, context))
        except InvalidInputError as error:
            context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
            context.set_details(str(error))
            return b""
        if service not in ("", SERVICE, *self._repository.names()):
            context.set_code(grpc.StatusCode.NOT_FOUND)
            context.set_details("no such service")
            return b""
        whole = service in ("", SERVICE)
        ready = self._repository.ready() if whole else bool(self._repository.versions(service))
        return _SERVING if ready and not self._state.draining else _NOT_SERVING


def _decode(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InvalidInputError(
            "the message cannot be read", expected="a protobuf message of the protocol"
        ) from None


def _service_name(data: bytes) -> str:
    """``HealthCheckRequest.service``, its one field: a text of at most 127 bytes here."""
    if not data:
        return ""
    if data[0] != 0x0A or len(data) < 2 or data[1] != len(data) - 2 or data[1] > 127:
        raise InvalidInputError("the health check cannot be read", expected="a HealthCheckRequest")
    return data[2:].decode(errors="replace")


def _to_grpc(error: Exception) -> tuple[grpc.StatusCode, str]:
    codes = grpc.StatusCode
    if isinstance(error, grpc.RpcError):  # while the message was waited for: nobody hears the answer
        return codes.CANCELLED, "the client left, or its message is too large"
    if isinstance(error, BusyError):
        return codes.UNAVAILABLE, str(error)
    if isinstance(error, UnknownModelError):
        return codes.NOT_FOUND, str(error)
    if isinstance(error, SmashError):
        return codes.INVALID_ARGUMENT, str(error)
    return codes.INTERNAL, "the model could not run; the server's log says more"


class _Servicer:
    """One method per call, from message to message."""

    def __init__(
        self, repository: Repository, peers: Peers, state: State, limits: RequestLimits, administration: bool
    ) -> None:
        self._repository, self._peers = repository, peers
        self._state = state
        self._limits = limits
        self._bodies = Bodies(limits, state)
        self._administration = administration

    def ServerLive(self, request: Any) -> Any:
        return message("ServerLiveResponse")(live=True)

    def ServerReady(self, request: Any) -> Any:
        ready = self._repository.ready() and not self._state.draining
        return message("ServerReadyResponse")(ready=ready)

    def ModelReady(self, request: Any) -> Any:
        try:
            with self._repository.use(request.name, request.version or None):
                return message("ModelReadyResponse")(ready=True)
        except UnknownModelError:
            if request.name not in self._repository.names():
                raise
            return message("ModelReadyResponse")(ready=False)

    def ServerMetadata(self, request: Any) -> Any:
        return message("ServerMetadataResponse")(
            name="smash-export", version=__version__, extensions=EXTENSIONS
        )

    def ModelMetadata(self, request: Any) -> Any:
        with self._repository.use(request.name, request.version or None) as model:
            return message("ModelMetadataResponse")(**model.metadata(self._repository.versions(request.name)))

    def ModelConfig(self, request: Any) -> Any:
        with self._repository.use(request.name, request.version or None) as model:
            return ParseDict({"config": model.config()}, message("ModelConfigResponse")())

    def ModelInfer(self, request: Any) -> Any:
        with self._repository.use(request.model_name, request.model_version or None) as model:
            if model.batcher.full:
                raise model.batcher.refusal()
            tensor = _tensor(request, model)
            wanted = _outputs(request, model)
            logits = self._run(model, tensor) if tensor.dtype != np.uint8 else self._run_images(model, tensor)
            response = _InferResponse(
                model_name=model.spec.name, model_version=model.spec.version, id=request.id
            )
            for classes in wanted:
                _add_output(response, logits, classes, model)
            return response

    def _run_images(self, model: Model, images: np.ndarray) -> np.ndarray:
        with self._bodies.holding(model.tensor_bytes(len(images))):
            return self._run(model, model.converted(images))

    def _run(self, model: Model, tensor: np.ndarray) -> np.ndarray:
        queued = ThreadRequest(tensor)
        model.batcher.run(queued)
        return queued.wait(self._limits.answer_seconds)

    def ModelStatistics(self, request: Any) -> Any:
        keys = self._repository.open_models()
        if request.name:
            with self._repository.use(request.name, request.version or None) as model:
                keys = [model.key]
        metrics = self._peers.metrics()
        rows = [metrics.statistics(*key) for key in keys]
        for row in rows:
            del row["batch_stats"]
        return message("ModelStatisticsResponse")(model_stats=rows)

    def RepositoryIndex(self, request: Any) -> Any:
        rows = self._repository.index()
        if request.ready:
            rows = [row for row in rows if row["state"] == "READY"]
        return message("RepositoryIndexResponse")(models=rows)

    def RepositoryModelLoad(self, request: Any) -> Any:
        self._administer(request)
        self._peers.load(request.model_name)
        return message("RepositoryModelLoadResponse")()

    def RepositoryModelUnload(self, request: Any) -> Any:
        self._administer(request)
        self._peers.unload(request.model_name)
        return message("RepositoryModelUnloadResponse")()

    def _administer(self, request: Any) -> None:
        if not self._administration:
            raise InvalidInputError(
                "models cannot be loaded or unloaded here: the server listens beyond this machine without "
                "an API key"
            )
        if any(name != "unload_dependents" for name in request.parameters):
            raise InvalidInputError(
                "load and unload take no parameters: a model is read from the path it was started with"
            )


def _tensor(request: Any, model: Model) -> np.ndarray:
    signature = model.signature
    if len(request.inputs) != 1:
        raise InvalidInputError("inputs", expected="one input", received=f"{len(request.inputs)} of them")
    entry = request.inputs[0]
    if entry.name != signature.input_name:
        raise InvalidInputError(
            "unknown input", expected=repr(signature.input_name), received=repr(entry.name)
        )
    shape = protocol.check_shape(entry.datatype, list(entry.shape[:17]), signature, model.max_images)
    raw = request.raw_input_contents
    images = entry.datatype == protocol.IMAGES
    values = entry.contents.uint_contents if images else entry.contents.fp32_contents
    if len(raw) + bool(len(values)) != 1:
        typed = "uint_contents" if images else "fp32_contents"
        raise InvalidInputError(
            "contents of the input", expected=f"one of raw_input_contents and contents.{typed}"
        )
    if len(raw):
        return protocol.check_values(protocol.from_raw(raw[0], shape, entry.datatype), signature)
    if images and max(values) > 255:
        raise InvalidInputError("contents of the input", expected="0 to 255", received=max(values))
    data = np.asarray(values, dtype="u1" if images else "<f4").tobytes()
    return protocol.check_values(protocol.from_raw(data, shape, entry.datatype), signature)


def _outputs(request: Any, model: Model) -> list[int]:
    """The number of classes of each wanted output; 0 is the logits."""
    if len(request.outputs) > 4:
        raise InvalidInputError("outputs", expected="at most 4", received=len(request.outputs))
    found = []
    for entry in request.outputs:
        if entry.name != model.signature.output_name:
            raise InvalidInputError(
                "unknown output", expected=repr(model.signature.output_name), received=repr(entry.name)
            )
        count = 0
        if "classification" in entry.parameters:
            count = protocol.check_class_count(
                int(entry.parameters["classification"].int64_param), model.signature
            )
        found.append(count)
    return found or [0]


def _add_output(response: Any, logits: np.ndarray, classes: int, model: Model) -> None:
    output = response.outputs.add(name=model.signature.output_name)
    if classes:
        rows = protocol.classify(logits, model.labels, classes)
        output.datatype = "BYTES"
        output.shape.extend((len(rows), len(rows[0])))
        raw = protocol.bytes_tensor([text for row in rows for text in row])
    else:
        output.datatype = protocol.DATATYPE
        output.shape.extend(logits.shape)
        raw = protocol.little_endian(logits)
    response.raw_output_contents.append(raw)
