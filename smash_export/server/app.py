"""The HTTP endpoints: Open Inference Protocol v2, image files, the page, metrics.

    GET  /                                       page            POST /v1/predict   image files -> labels
    GET  /v1/models[/{m}[/versions/{v}]/card]    for the page    GET  /metrics  /openapi.json
    GET  /v2  /v2/health/live  /v2/health/ready  server
    GET  /v2/models/{m}[/versions/{v}][/ready|/config|/stats]
    POST /v2/models/{m}[/versions/{v}]/infer     tensors -> tensors
    POST /v2/repository/index  /v2/repository/models/{m}/load|unload

The loop that runs this never computes: tensors run in the model's worker thread, files are decoded in a
small pool of threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from starlette.requests import Request
from starlette.routing import Route, Router

from smash_base.errors import InvalidInputError, SmashError
from smash_base.json_values import JsonObject
from smash_base.preprocess import present_classes, probabilities_of
from smash_export import __version__
from smash_export.server import protocol
from smash_export.server.batching import BusyError, LoopRequest
from smash_export.server.hosts import Hosts
from smash_export.server.logs import REQUEST_ID, log
from smash_export.server.metrics import CONTENT_TYPE, Metrics
from smash_export.server.middleware import (
    Bodies,
    BoundedThreads,
    HttpError,
    Middleware,
    Receive,
    RequestLimits,
    Scope,
    Send,
    State,
    respond,
    respond_json,
)
from smash_export.server.models import Model, Repository, require_files
from smash_export.server.openapi import describe_api
from smash_export.server.peers import Alone, Peers
from smash_export.server.uploads import Upload, uploaded

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]
MAX_TOP = 1000
_DECODERS = 2
_WAITING_DECODES = 32
_JSON = b"application/json"
_OCTETS = b"application/octet-stream"
_LENGTH_HEADER = protocol.HEADER_LENGTH.lower().encode()
_SCRIPT = b"text/javascript; charset=utf-8"
_STATIC = {"page.css": b"text/css; charset=utf-8", "page.js": _SCRIPT, "orientation.mjs": _SCRIPT}
_PAGE_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        b"connect-src 'self'; media-src blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)
_EXAMPLE_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-cache"))
Handler = Callable[[Scope, Receive, Send], Awaitable[None]]


def build_app(
    repository: Repository,
    metrics: Metrics,
    *,
    state: State | None = None,
    limits: RequestLimits | None = None,
    api_key: str | None = None,
    log_requests: bool = False,
    administration: bool = True,
    hosts: Hosts | None = None,
    root_path: str = "",
    peers: Peers | None = None,
) -> Middleware:
    """The ASGI application.

    Args:
        repository: the models.
        metrics: where requests are counted.
        state: shared with the process, which sets ``draining``.
        limits: Limits of bodies and times.
        api_key: what clients must show; None asks for nothing.
        log_requests: log successful requests too.
        administration: whether loading and unloading over HTTP is allowed.
        hosts, root_path: as :class:`Middleware`.
        peers: the other processes of this server.
    """
    state, limits = state or State(), limits or RequestLimits()
    bodies = Bodies(limits, state)
    peers = peers or Alone(repository, metrics)
    server = _Server(repository, peers, state, limits, bodies, administration, root_path)
    router = Router(server.routes(), redirect_slashes=False)
    middleware = Middleware(router, state, metrics, limits, bodies, api_key, log_requests, hosts, root_path)
    server.parsers = middleware.parsers
    return middleware


class _Endpoint:
    """A route that is a plain ASGI application: starlette's wrapping costs more than the protocol."""

    def __init__(self, handler: Handler, route: str) -> None:
        self._handler = handler
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["smash.route"] = self._route
        await self._handler(scope, receive, send)


class _Server:
    def __init__(
        self,
        repository: Repository,
        peers: Peers,
        state: State,
        limits: RequestLimits,
        bodies: Bodies,
        administration: bool,
        root_path: str,
    ) -> None:
        self._root_path = root_path
        self._repository = repository
        self._peers = peers
        self._state = state
        self._limits = limits
        self._administration = administration
        self._bodies = bodies
        self._decoders = BoundedThreads("decode", _DECODERS, _WAITING_DECODES)
        self.parsers = BoundedThreads("parse", _DECODERS, _WAITING_DECODES)
        folder = resources.files("smash_export.server") / "static"
        self._static = {name: (folder / name).read_bytes() for name in ("index.html", "page.css", "page.js")}
        shared = resources.files("smash_export.prediction") / "orientation.mjs"  # with the page of ``web``
        self._static[shared.name] = shared.read_bytes()

    def routes(self) -> list[Route]:
        model = "/v2/models/{model}"
        version = model + "/versions/{version}"
        table: list[tuple[str, str, Handler]] = [
            ("POST", model + "/infer", self.infer),
            ("POST", version + "/infer", self.infer),
            ("POST", "/v1/predict", self.predict),
            ("GET", "/v2/health/live", self.live),
            ("GET", "/v2/health/ready", self.ready),
            ("GET", "/v2", self.server_metadata),
            ("GET", "/v2/models/stats", self.all_statistics),
            ("GET", model + "/stats", self.statistics),
            ("GET", version + "/stats", self.statistics),
            ("GET", model, self.model_metadata),
            ("GET", version, self.model_metadata),
            ("GET", model + "/config", self.model_config),
            ("GET", version + "/config", self.model_config),
            ("GET", model + "/ready", self.model_ready),
            ("GET", version + "/ready", self.model_ready),
            ("POST", "/v2/repository/index", self.index),
            ("POST", "/v2/repository/models/{model}/load", self.load),
            ("POST", "/v2/repository/models/{model}/unload", self.unload),
            ("GET", "/v1/models", self.models),
            ("GET", "/v1/models/{model}/card", self.card),
            ("GET", "/v1/models/{model}/versions/{version}/card", self.card),
            ("GET", "/v1/models/{model}/versions/{version}/examples/{number}", self.example),
            ("GET", "/metrics", self.metrics),
            ("GET", "/openapi.json", self.openapi),
            ("GET", "/static/{name}", self.static),
            ("GET", "/", self.page),
        ]
        return [Route(path, _Endpoint(handler, path), methods=[method]) for method, path, handler in table]

    async def infer(self, scope: Scope, receive: Receive, send: Send) -> None:
        parameters = scope["path_params"]
        model = self._repository.take(parameters["model"], parameters.get("version"))
        try:
            if model.batcher.full:
                raise model.batcher.refusal()  # before the body is read and parsed
            body = await self._bodies.read(scope, receive)
            try:
                await self._infer(model, body, scope, send)
            finally:
                self._bodies.release(len(body))
        finally:
            model.leave()

    async def _infer(self, model: Model, body: bytes, scope: Scope, send: Send) -> None:
        value = scope["smash.headers"].get(_LENGTH_HEADER)
        length = None if value is None else value.decode("latin-1")

        def parse() -> protocol.InferRequest:
            return protocol.parse_infer(body, length, model.signature, model.max_images)

        large = protocol.is_slow(len(body), length)
        request = await self.parsers.run(parse) if large else parse()
        if request.tensor.dtype == np.uint8:
            logits = await self._infer_images(model, request.tensor)
        else:
            logits = await self._run(model, request.tensor)
        answer, json_length = protocol.encode_infer(
            request,
            logits,
            model.labels,
            output_name=model.signature.output_name,
            model=model.spec.name,
            version=model.spec.version,
        )
        headers = [] if json_length is None else [(_LENGTH_HEADER, b"%d" % json_length)]
        accept = scope["smash.headers"].get(b"accept-encoding", b"")
        answer, encoding = await self._bodies.shortened(answer, accept)
        if encoding is not None:
            headers.append((b"content-encoding", encoding.encode()))
        await respond(send, 200, answer, _JSON if json_length is None else _OCTETS, headers)

    async def _infer_images(self, model: Model, images: np.ndarray) -> np.ndarray:
        """Logits of uint8 [B, H, W, C]; the tensor that they become is counted as bodies are."""
        with self._bodies.holding(model.tensor_bytes(len(images))):
            return await self._run(model, await self.parsers.run(lambda: model.converted(images)))

    async def _run(self, model: Model, tensor: np.ndarray) -> np.ndarray:
        queued = LoopRequest(tensor)
        model.batcher.submit(queued)
        return await self._answer(queued)

    async def _answer(self, queued: LoopRequest, deadline: float | None = None) -> np.ndarray:
        seconds = self._limits.answer_seconds if deadline is None else deadline - time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                return await queued.wait()
        except TimeoutError:
            raise _late() from None

    async def predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        query = Request(scope).query_params
        name = query.get("model") or self._repository.default_name()
        top = _top(query.get("top_k", "5"))
        with self._repository.use(name, query.get("version") or None) as model:
            require_files(model)
            if model.batcher.full:
                raise model.batcher.refusal()
            body = await self._bodies.read(scope, receive)
            size = len(body)
            try:
                content_type = scope["smash.headers"].get(b"content-type", b"").decode("latin-1")
                deadline = time.monotonic() + self._limits.answer_seconds
                decoded = await self._decode(model, body, content_type, deadline)
            finally:
                self._bodies.release(size)
            del body
            try:
                queued = LoopRequest(decoded.tensor)
                model.batcher.submit(queued)
                rows = _named(model, await self._answer(queued, deadline), top)
            finally:
                self._bodies.release(decoded.tensor.nbytes)
            answer: JsonObject = {
                "model": model.spec.name,
                "version": model.spec.version,
                "target": model.classifier.choice.target,
                "precision": model.classifier.choice.precision,
                **(decoded.results(rows) if decoded.batch else rows[0]),
                "milliseconds": {
                    "decode": round(decoded.seconds * 1e3, 3),
                    "queue": round(queued.waited * 1e3, 3),
                    "run": round(queued.ran * 1e3, 3),
                    "total": round((time.perf_counter() - started) * 1e3, 3),
                },
                "request_id": REQUEST_ID.get(),
            }
            await respond_json(send, answer)

    async def _decode(self, model: Model, body: bytes, content_type: str, deadline: float) -> _Decoded:
        """Files -> tensor, in the pool. Its bytes are counted as those of a body until they are released:
        small files become large tensors."""
        limit = self._limits.body_bytes

        def work() -> _Decoded:
            begun = time.perf_counter()
            files, batch = uploaded(body, content_type, model.max_images, limit)
            self._bodies.reserve(size := model.tensor_bytes(len(files)))
            try:
                pixels, errors = _pictures(model, files, batch, deadline)
                tensor = model.preprocessing.normalise(pixels)
            except BaseException:
                self._bodies.release(size)
                raise
            self._bodies.release(size - tensor.nbytes)
            names = [file.name for file in files]
            return _Decoded(tensor, names, errors, batch, time.perf_counter() - begun)

        return await self._decoders.run(work)

    async def live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond_json(send, {"live": True})

    async def ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        ready = self._repository.ready() and not self._state.draining
        await respond_json(send, {"ready": ready}, 200 if ready else 503)

    async def server_metadata(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond_json(send, {"name": "smash-export", "version": __version__, "extensions": EXTENSIONS})

    async def model_metadata(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._of_path(scope) as model:
            about = model.metadata(self._repository.versions(model.spec.name))
            parameters = {"image_input": model.image_input, "outputs": model.signature.outputs}
            await respond_json(send, {**about, "parameters": parameters})

    async def model_config(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._of_path(scope) as model:
            await respond_json(send, model.config())

    async def model_ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._of_path(scope) as model:
            await respond_json(send, {"name": model.spec.name, "ready": True})

    async def index(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._bodies.read(scope, receive)
        self._bodies.release(len(body))
        ready = protocol.parse_object(body, "the request").get("ready") if body.strip() else None
        if not isinstance(ready, bool | None):
            raise InvalidInputError("ready", expected="true or false", received=repr(ready)[:40])
        rows = await asyncio.to_thread(self._repository.index)
        await respond_json(send, [row for row in rows if row["state"] == "READY"] if ready else rows)

    async def statistics(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._of_path(scope) as model:
            metrics = await asyncio.to_thread(self._peers.metrics)
            await respond_json(send, {"model_stats": [metrics.statistics(*model.key)]})

    async def all_statistics(self, scope: Scope, receive: Receive, send: Send) -> None:
        metrics = await asyncio.to_thread(self._peers.metrics)
        rows = [metrics.statistics(*key) for key in self._repository.open_models()]
        await respond_json(send, {"model_stats": rows})

    async def load(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = await self._administer(scope, receive)
        await asyncio.to_thread(self._peers.load, name)
        log(20, "model loaded", model=name)
        await respond_json(send, {})

    async def unload(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = await self._administer(scope, receive)
        await asyncio.to_thread(self._peers.unload, name)
        log(20, "model unloaded", model=name)
        await respond_json(send, {})

    async def _administer(self, scope: Scope, receive: Receive) -> str:
        if not self._administration:
            raise HttpError(
                403,
                "models cannot be loaded or unloaded here: the server listens beyond this machine without "
                "an API key; send SIGHUP to its process instead",
            )
        body = await self._bodies.read(scope, receive)
        self._bodies.release(len(body))
        if body.strip():
            parameters = protocol.parse_object(body, "the request").get("parameters")
            if parameters not in (None, {}, {"unload_dependents": False}):
                raise InvalidInputError(
                    "load and unload take no parameters: a model is read from the path it was started with"
                )
        name: str = scope["path_params"]["model"]
        return name

    async def models(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = await asyncio.to_thread(self._repository.describe)
        await respond_json(send, {"models": found, "max_body_bytes": self._limits.body_bytes})

    async def card(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._of_path(scope) as model:
            await respond(send, 200, model.card.encode(), b"text/plain; charset=utf-8")

    async def example(self, scope: Scope, receive: Receive, send: Send) -> None:
        number = scope["path_params"]["number"]
        with self._of_path(scope) as model:
            short = number.isascii() and number.isdecimal() and len(number) <= 4
            if not (short and int(number) < len(model.examples)):
                raise HttpError(404, f"there are {len(model.examples)} examples, from 0")
            await respond(send, 200, model.examples[int(number)][1], b"image/png", _EXAMPLE_HEADERS)

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        metrics = await asyncio.to_thread(self._peers.metrics)
        await respond(send, 200, metrics.text(), CONTENT_TYPE.encode())

    async def openapi(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond_json(send, describe_api(self._root_path))

    async def page(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, self._static["index.html"], b"text/html; charset=utf-8", _PAGE_HEADERS)

    async def static(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["name"]
        if name not in _STATIC:
            raise HttpError(404, "not found")
        await respond(send, 200, self._static[name], _STATIC[name], _PAGE_HEADERS)

    def _of_path(self, scope: Scope) -> Any:
        parameters = scope["path_params"]
        return self._repository.use(parameters["model"], parameters.get("version"))


class _Decoded(NamedTuple):
    """The images of a request.

    Attributes:
        tensor: float32 [B, *input_shape], of the files that could be read.
        names: names of all files.
        errors: place -> sentence, of those that could not.
        batch: whether they are answered as a list.
        seconds: Time that it took.
    """

    tensor: np.ndarray
    names: list[str]
    errors: dict[int, str]
    batch: bool
    seconds: float

    def results(self, rows: list[JsonObject]) -> JsonObject:
        """The answers by file, in the order of the request."""
        left = iter(rows)
        return {
            "results": [
                {"file": name, **({"error": self.errors[place]} if place in self.errors else next(left))}
                for place, name in enumerate(self.names)
            ]
        }


def _late() -> BusyError:
    return BusyError("no answer in time", hint="Try again in a moment.")


def _pictures(
    model: Model, files: list[Upload], batch: bool, deadline: float
) -> tuple[np.ndarray, dict[int, str]]:
    """The files that can be read, uint8 [B, *sample_shape], and place -> sentence of the others.

    Raises:
        SmashError: none can be read, or the only one of a request that is no batch; the deadline, a time of
            the monotonic clock, is over with some of them left.
    """
    pixels, errors = [], {}
    for place, file in enumerate(files):
        if time.monotonic() >= deadline:
            raise _late()
        try:
            pixels.append(model.preprocessing.decode(file.data))
        except SmashError as error:
            if not batch:
                raise
            errors[place] = str(error)
    if not pixels:
        raise InvalidInputError(
            f"none of {len(files)} files can be read", received=f"{files[0].name}: {errors[0]}"
        )
    return np.stack(pixels), errors


def _named(model: Model, logits: np.ndarray, top: int) -> list[JsonObject]:
    """Logits as classes, for each image."""
    rows: list[JsonObject] = []
    best = np.argsort(-logits, axis=1, kind="stable")[:, : min(top, len(model.labels))]
    all_probabilities = probabilities_of(logits, model.signature.outputs)
    for indices, probabilities in zip(best.tolist(), all_probabilities, strict=True):
        row: JsonObject = {"predictions": [_score(model.labels, index, probabilities) for index in indices]}
        rows.append({**row, **_present(model, probabilities), **_doubt(model, probabilities)})
    return rows


def _score(labels: Sequence[str], index: int, probabilities: np.ndarray) -> JsonObject:
    return {"label": labels[index], "index": index, "probability": float(probabilities[index])}


def _present(model: Model, probabilities: np.ndarray) -> JsonObject:
    """Every class that is there, for networks whose classes do not exclude each other."""
    if model.signature.outputs != "sigmoid":
        return {}
    indices = present_classes(probabilities)
    return {"present": [_score(model.labels, index, probabilities) for index in indices]}


def _doubt(model: Model, probabilities: np.ndarray) -> dict[str, bool]:
    """Whether the image is perhaps of none of the classes, where the bundle says from when on."""
    limit = model.doubt_below
    return {} if limit is None else {"doubtful": bool(probabilities.max() < limit)}


def _top(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= MAX_TOP):
        raise InvalidInputError("top_k", expected=f"1 to {MAX_TOP}", received=text[:40])
    return int(text)


async def reload_all(repository: Repository) -> None:
    """Load every model anew but what is unloaded meanwhile; what fails is logged and goes on as it was."""
    repository.plan_reload()
    for name in repository.names():
        try:
            if await asyncio.to_thread(repository.load_due, name):
                log(20, "model loaded", model=name)
        except Exception as error:  # noqa: BLE001 - the others are loaded whatever is wrong with this one
            kind = {} if isinstance(error, SmashError) else {"kind": type(error).__name__}
            log(40, "model not loaded; the old one goes on", model=name, error=str(error), **kind)
