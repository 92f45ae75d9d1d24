"""``inference.GRPCInferenceService``: the protocol of :mod:`protocol` over gRPC.

Each call has a thread of its own, which runs the model if it is free and waits for the model's worker if
not; the HTTP loop and this service never wait for each other. Calls beyond a few times the number of
threads are refused by gRPC at once. (``grpc.aio`` was measured beside it: the same latency, more processor
time.)
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np

from smash_base.errors import InvalidInputError, SmashError, UsageError
from smash_export import __version__
from smash_export.server import protocol
from smash_export.server.app import EXTENSIONS
from smash_export.server.batching import BusyError, ThreadJob
from smash_export.server.gate import Limits, State
from smash_export.server.logs import log
from smash_export.server.messages import METHODS, SERVICE, message
from smash_export.server.metrics import Metrics
from smash_export.server.models import Model, Repository, UnknownModelError

_PUBLIC = ("ServerLive", "ServerReady")
_InferResponse = message("ModelInferResponse")


class GrpcServer:
    """The service on one port.

    Args:
        repository, metrics, state, limits, api_key, administration: as for the HTTP application.
        threads: calls at once.
    """

    def __init__(
        self,
        repository: Repository,
        metrics: Metrics,
        state: State,
        limits: Limits,
        api_key: str | None = None,
        administration: bool = True,
        threads: int = 64,
    ) -> None:
        self._servicer = _Servicer(repository, state, limits, administration)
        self._metrics = metrics
        self._key = api_key.encode() if api_key else None
        self._server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
            maximum_concurrent_rpcs=4 * threads,
            options=[
                ("grpc.max_receive_message_length", limits.body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
        )
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._wrap(name, getattr(self._servicer, name)),
                request_deserializer=message(f"{name}Request").FromString,
                response_serializer=message(f"{name}Response").SerializeToString,
            )
            for name in METHODS
        }
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])

    def bind(self, host: str, port: int, tls: tuple[bytes, bytes] | None = None) -> int:
        """Take the port; with ``tls`` (private key, certificate chain) encrypted. Returns the port.

        Raises:
            UsageError: the port is in use.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls is None:
                return int(self._server.add_insecure_port(address))
            credentials = grpc.ssl_server_credentials([tls])
            return int(self._server.add_secure_port(address, credentials))
        except RuntimeError:
            raise UsageError(
                f"port {port} of {host} cannot be used for gRPC",
                hint="Another program has it? Choose another: --grpc-port PORT, or --no-grpc.",
            ) from None

    def start(self) -> None:
        """Answer from now on."""
        self._server.start()

    def stop(self, grace: float) -> None:
        """Refuse new calls, give those in progress ``grace`` seconds."""
        self._server.stop(grace).wait(grace + 1)

    def _wrap(self, name: str, method: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
        def call(request: Any, context: Any) -> Any:
            started = time.perf_counter()
            code = grpc.StatusCode.OK
            try:
                self._check_key(name, context)
                return method(request)
            except Exception as error:  # noqa: BLE001 - the one place where errors become answers
                code, sentence = _to_grpc(error)
                context.set_code(code)
                context.set_details(sentence)
                if code is grpc.StatusCode.INTERNAL:
                    log(40, "internal error", kind=type(error).__name__, error=str(error)[:500])
                return message(f"{name}Response")()
            finally:
                self._metrics.answered("grpc", name, code.name, time.perf_counter() - started)

        return call

    def _check_key(self, name: str, context: Any) -> None:
        if self._key is None or name in _PUBLIC:
            return
        given = dict(context.invocation_metadata())
        key = given.get("x-api-key") or given.get("authorization", "").removeprefix("Bearer ")
        key = key if isinstance(key, bytes) else key.encode()
        if not hmac.compare_digest(key, self._key):
            raise _WrongKeyError(
                "this server needs an API key, in the metadata authorization: Bearer KEY or x-api-key"
            )


class _WrongKeyError(Exception):
    pass


def _to_grpc(error: Exception) -> tuple[grpc.StatusCode, str]:
    codes = grpc.StatusCode
    if isinstance(error, _WrongKeyError):
        return codes.UNAUTHENTICATED, str(error)
    if isinstance(error, BusyError):
        return codes.UNAVAILABLE, str(error)
    if isinstance(error, UnknownModelError):
        return codes.NOT_FOUND, str(error)
    if isinstance(error, SmashError):
        return codes.INVALID_ARGUMENT, str(error)
    return codes.INTERNAL, "the model could not run; the server's log says more"


class _Servicer:
    """One method per call, from message to message."""

    def __init__(self, repository: Repository, state: State, limits: Limits, administration: bool) -> None:
        self._repository = repository
        self._state = state
        self._limits = limits
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

    def ModelInfer(self, request: Any) -> Any:
        with self._repository.use(request.model_name, request.model_version or None) as model:
            if model.batcher.full:
                raise model.batcher.refusal()
            tensor = _tensor(request, model)
            wanted = _outputs(request, model)
            job = ThreadJob(tensor)
            model.batcher.run(job)
            logits = job.wait(self._limits.answer_seconds)
            response = _InferResponse(
                model_name=model.spec.name, model_version=model.spec.version, id=request.id
            )
            for classes in wanted:
                _add_output(response, logits, classes, model)
            return response

    def RepositoryIndex(self, request: Any) -> Any:
        rows = self._repository.index()
        if request.ready:
            rows = [row for row in rows if row["state"] == "READY"]
        return message("RepositoryIndexResponse")(models=rows)

    def RepositoryModelLoad(self, request: Any) -> Any:
        self._administer(request)
        self._repository.load(request.model_name)
        return message("RepositoryModelLoadResponse")()

    def RepositoryModelUnload(self, request: Any) -> Any:
        self._administer(request)
        self._repository.unload(request.model_name)
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
    values = entry.contents.fp32_contents
    if len(raw) + bool(len(values)) != 1:
        raise InvalidInputError(
            "contents of the input", expected="one of raw_input_contents and contents.fp32_contents"
        )
    if len(raw):
        return protocol.check_finite(protocol.from_raw(raw[0], shape))
    tensor = np.asarray(values, dtype="<f4")
    return protocol.check_finite(protocol.from_raw(tensor.tobytes(), shape))


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
