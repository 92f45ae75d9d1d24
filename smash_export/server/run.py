"""The server process: sockets, uvicorn, gRPC, signals.

    SIGTERM, SIGINT   drain: "not ready" for balancers, everything that still comes is answered with
                      Connection: close, then no new connections, then out when the last answer is sent
    SIGHUP            open every bundle anew and exchange it

Addresses are taken before any model is opened, so that a port in use is said at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import ipaddress
import os
import resource
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

import uvicorn
from PIL import Image

from smash_base.errors import InvalidInputError, UsageError
from smash_export.server import logs
from smash_export.server.app import build_app, reload_all
from smash_export.server.connections import HEALTH_SHARE, Connections
from smash_export.server.hosts import Hosts
from smash_export.server.http import connection_class
from smash_export.server.metrics import Metrics
from smash_export.server.middleware import Middleware, RequestLimits, State
from smash_export.server.models import ModelSpec, Repository, specs_of
from smash_export.server.peers import Alone, Peers
from smash_export.server.sizing import Batching
from smash_export.server.tls import handshake_class
from smash_export.server.turns import TurnLoop, TurnSelector

if TYPE_CHECKING:
    from smash_export.server.grpc_service import GrpcServer

_OTHER_FILES = 128  # that a server with gRPC and a few models opens beside its connections
_SPARE_FILES = 8  # for a load of a bundle while all connections are taken
_DROP = 8  # idle connections that are closed when files run out
_LAST_WORDS_S = 0.1  # for the first request of a connection that was accepted last
_SWITCH_INTERVAL_S = 0.0005  # a worker that comes back from its run waits this long for the loop, not 5 ms


@dataclass(frozen=True)
class Settings:
    """Everything a server is started with.

    Attributes:
        host, port: HTTP address; port 0 takes a free one.
        grpc_port: None for no gRPC.
        tls_certificate, tls_key: PEM files; both or none.
        api_key: what clients must show.
        batching, limits: see there.
        threads, device: for one inference.
        max_connections, per_address: HTTP connections of everybody and of one address; None for three
            quarters of all.
        allowed_hosts, proxy_headers, root_path: see :mod:`hosts`, and for prefixes that a proxy adds.
        workers: processes; see :mod:`smash_export.server.workers`.
        share_port: whether other processes may listen on the same port.
        drain_delay: seconds in which new requests are still taken after SIGTERM.
        drain_timeout: seconds after which unfinished requests are given up.
        log_level, log_requests: see :mod:`logs`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    api_key: str | None = None
    batching: Batching = field(default_factory=Batching)
    limits: RequestLimits = field(default_factory=RequestLimits)
    threads: int | None = None
    device: str | None = None
    max_connections: int = 1024
    per_address: int | None = None
    allowed_hosts: tuple[str, ...] = ()
    proxy_headers: bool = False
    root_path: str = ""
    workers: int = 1
    share_port: bool = False
    drain_delay: float = 1.0
    drain_timeout: float = 30.0
    log_level: str = "info"
    log_requests: bool = False


@dataclass(frozen=True)
class Addresses:
    """Where the server answers."""

    http: str
    grpc: str | None


def serve(
    bundles: ModelSpec | Path | str | Sequence[ModelSpec | Path | str],
    settings: Settings | None = None,
    ready: Callable[[Addresses], None] = lambda addresses: None,
    join: Callable[[Repository, Metrics], Peers] = Alone,
    unloaded: Collection[str] = (),
    served: Mapping[tuple[str, str], str] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; returns when the last answer is sent.

    Args:
        bundles: what to serve: a bundle or several, each as its path, "NAME=PATH", "NAME:VERSION=PATH" or a
            :class:`ModelSpec`.
        settings: how; the defaults of :class:`Settings` if None.
        ready: called once with the addresses when requests are answered.
        join: makes the connection with other processes of the same server.
        unloaded: models that are not opened before somebody loads them.
        served: what other processes of the same server have open; see :meth:`Repository.load_all`.

    Raises:
        UsageError: a port in use, or settings that contradict each other.
        SmashError: a bundle that cannot be opened.
    """
    with _early_hangups() as hangups:
        _serve(bundles, settings or Settings(), ready, join, unloaded, served, hangups)


@contextlib.contextmanager
def _early_hangups() -> Iterator[list[int]]:
    """SIGHUPs that come while models are opened, which the server heeds when it is ready. They would end the
    process, and a service manager takes that for wanted."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = signal.signal(signal.SIGHUP, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        signal.signal(signal.SIGHUP, before)


def _serve(
    bundles: ModelSpec | Path | str | Sequence[ModelSpec | Path | str],
    settings: Settings,
    ready: Callable[[Addresses], None],
    join: Callable[[Repository, Metrics], Peers],
    unloaded: Collection[str],
    served: Mapping[tuple[str, str], str] | None,
    hangups: list[int],
) -> None:
    tls = _tls(settings)
    lines = logs.configure(settings.log_level)
    metrics, state = Metrics(), State()
    repository = Repository(specs_of(bundles), settings.batching, metrics, settings.threads, settings.device)
    peers = join(repository, metrics)
    # One of several processes listens when it can answer: the kernel hands connections to all that listen.
    listener = None if settings.share_port else listen(settings.host, settings.port)
    grpc_server = grpc_address = None
    try:
        reserved = _reserve_grpc(settings)
        Image.preinit()  # image formats; else the first picture waits for their import
        repository.load_all(unloaded, served)
        listener = listener or listen(settings.host, settings.port, shared=True)
        if settings.grpc_port is not None:
            if reserved is not None:
                reserved.close()
            grpc_server, port = _grpc(repository, metrics, state, settings, peers, tls and tls.pair)
            grpc_address = f"{_host(settings.host)}:{port}"
        app = build_app(
            repository,
            metrics,
            state=state,
            limits=settings.limits,
            api_key=settings.api_key,
            log_requests=settings.log_requests,
            administration=_may_administer(settings),
            hosts=_hosts(settings),
            root_path=settings.root_path.rstrip("/"),
            peers=peers,
        )
        scheme = "http" if tls is None else "https"
        addresses = Addresses(f"{scheme}://{_host(settings.host)}:{listener.getsockname()[1]}", grpc_address)
        most = _affordable(settings.max_connections)
        places = Connections(most, settings.per_address or max(1, most * 3 // 4))
        loop = TurnLoop()
        config = _uvicorn(app, repository, settings, places, loop.turns, tls and tls.context)
        server = _Server(config, state, repository, settings, places, lambda: ready(addresses), hangups)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        if grpc_server is not None:
            grpc_server.start()
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(server.serve(sockets=[listener]))
        if grpc_server is not None:
            grpc_server.stop(settings.drain_timeout)
    finally:
        if listener is not None:
            listener.close()
        repository.close()
        lines.flush()
    if not server.started:
        raise UsageError("the server could not start", hint="The log above says why.")


def _grpc(
    repository: Repository,
    metrics: Metrics,
    state: State,
    settings: Settings,
    peers: Peers,
    tls: tuple[bytes, bytes] | None,
) -> tuple[GrpcServer, int]:
    """The gRPC server on its port, and the port."""
    from smash_export.server.grpc_service import GrpcServer

    made = GrpcServer(
        repository,
        metrics,
        state,
        settings.limits,
        settings.api_key,
        _may_administer(settings),
        repository.largest_message(),
        peers=peers,
        share_port=settings.share_port,
    )
    assert settings.grpc_port is not None
    repository.on_load = made.grow
    return made, made.bind(settings.host, settings.grpc_port, tls)


def _may_administer(settings: Settings) -> bool:
    """Whether models may be loaded and unloaded by clients."""
    return settings.api_key is not None or _is_loopback(settings.host)


class _Server(uvicorn.Server):
    """uvicorn with a drain instead of an end, and SIGHUP."""

    def __init__(
        self,
        config: uvicorn.Config,
        state: State,
        repository: Repository,
        settings: Settings,
        places: Connections,
        ready: Callable[[], None],
        hangups: list[int],
    ) -> None:
        super().__init__(config)
        self._hangups = hangups  # that came before it could take them
        self._places = places
        self._descriptors = Descriptors()
        self._state = state
        self._repository = repository
        self._settings = settings
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what is there now stays: no collection needs to look at it while requests wait
        if self.started:
            self._ready()
            logs.log(20, "ready")
            if self._hangups:
                self._reload()

    async def on_tick(self, counter: int) -> bool:
        if counter % 5 == 0 and self._descriptors.exhausted():
            self._places.drop_resting(_DROP)
        self._places.expire(self.config.timeout_keep_alive, self._settings.limits.answer_seconds)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but whoever has connected already is answered: closing a socket that listens resets
        those that wait in its queue, and uvicorn closes connections whose first request is not read yet."""
        waiting = [connection for listener in sockets or [] for connection in _waiting(listener)]
        for server in self.servers:
            server.close()
        for connection in waiting:
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        if self.server_state.connections:
            await asyncio.sleep(_LAST_WORDS_S)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._reload if sig == signal.SIGHUP else self._drain)
        elif sig == signal.SIGHUP:
            self._hangups.append(sig)
        else:
            self.should_exit = True

    def _reload(self) -> None:
        task = asyncio.get_running_loop().create_task(reload_all(self._repository))
        self._state.reload_tasks.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(self._state.reload_tasks.discard)

    def _drain(self) -> None:
        if self._state.draining:  # asked twice: whatever is not answered yet is given up
            self.should_exit = self.force_exit = True
            return
        self._state.draining = True
        logs.log(20, "draining", active=self._state.active)
        idle = not self.server_state.connections
        delay = 0.0 if idle and self._settings.grpc_port is None else self._settings.drain_delay
        asyncio.get_running_loop().call_later(delay, self._leave)

    def _leave(self) -> None:
        self._state.leaving = True
        self.should_exit = True


def _waiting(listener: socket.socket) -> list[socket.socket]:
    """Connections that nobody has accepted yet."""
    found = []
    with contextlib.suppress(OSError):  # none is left
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            found.append(connection)
    return found


class Descriptors:
    """One open file in reserve: when it cannot be had twice, there is none left for a connection."""

    def __init__(self) -> None:
        self._spare = os.open(os.devnull, os.O_RDONLY)
        self._log = logs.Throttle(1, 60.0)

    def exhausted(self) -> bool:
        """Whether the process is out of file descriptors; said in the log once a minute."""
        try:
            os.close(os.dup(self._spare))
        except OSError:
            self._log.log(
                40,
                "out of file descriptors: new connections are refused",
                limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                hint="raise it: LimitNOFILE= of the unit, or ulimit -n; or lower --max-connections",
            )
            return True
        return False


def _affordable(asked: int) -> int:
    """Connections that the process may have open: all of the hard limit of files, less what else it opens."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and soft < asked + _OTHER_FILES:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft == resource.RLIM_INFINITY:
        return asked
    open_now = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else _OTHER_FILES
    affordable = max(4, soft - open_now - _SPARE_FILES - HEALTH_SHARE // 8)
    if affordable < asked:
        logs.log(
            30,
            "fewer connections than asked for: the limit of open files is low",
            connections=affordable,
            asked=asked,
            limit=soft,
            hint="raise it: LimitNOFILE= of the unit, or ulimit -n",
        )
    return min(asked, affordable)


def _hosts(settings: Settings) -> Hosts:
    names = {settings.host.lower(), *(name.lower() for name in settings.allowed_hosts)}
    return Hosts(settings.api_key is not None, frozenset(names), settings.proxy_headers)


def _uvicorn(
    app: Middleware,
    repository: Repository,
    settings: Settings,
    places: Connections,
    turns: TurnSelector,
    tls: ssl.SSLContext | None,
) -> uvicorn.Config:
    connection: type[asyncio.Protocol] = connection_class(repository, app, places, turns)
    if tls is not None:
        connection = handshake_class(connection, tls, places, settings.limits.body_seconds)
    return uvicorn.Config(
        app,
        http=connection,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=None,  # :mod:`connections` decides
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
    )


def _reserve_grpc(settings: Settings) -> socket.socket | None:
    """Hold gRPC's port while the models open: a port in use is said at once, and gRPC wants to know the
    largest message before it takes it."""
    if not settings.grpc_port or settings.share_port:
        return None
    return listen(settings.host, settings.grpc_port, "--grpc-port")


def listen(host: str, port: int, option: str = "--port", *, shared: bool = False) -> socket.socket:
    """A listening socket; ``shared`` with other processes, to which the kernel hands connections in turn.

    Raises:
        UsageError: the port is in use, or the host is no address of this machine.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024, reuse_port=shared)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = f"Another program has it? Choose another: {option} PORT (0 takes a free one)."
        number = getattr(error, "errno", None) or 0
        if number == errno.EADDRNOTAVAIL or number < 0:  # below 0: of looking a name up
            hint = "Name an address of this machine: --host 127.0.0.1, or 0.0.0.0 for all of them."
        raise UsageError(f"port {port} of {host} cannot be used", received=reason, hint=hint) from None


class _Tls(NamedTuple):
    """Private key and certificate chain.

    Attributes:
        context: for HTTP.
        pair: key and chain as gRPC wants them.
    """

    context: ssl.SSLContext
    pair: tuple[bytes, bytes]


def _tls(settings: Settings) -> _Tls | None:
    """Both files, read before anything starts."""
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise UsageError("TLS needs both files", expected="--tls-certificate and --tls-key")
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
        return _Tls(context, (settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes()))
    except OSError as error:  # ssl's errors are OSErrors too
        raise InvalidInputError(
            f"TLS files {settings.tls_certificate} and {settings.tls_key} cannot be used",
            expected="a certificate chain and its private key, PEM",
            received=error,
        ) from None


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
