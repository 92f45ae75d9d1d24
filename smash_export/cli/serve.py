"""``smash-export serve``: bundles over HTTP and gRPC, with a page for people."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
from pathlib import Path

import click

from smash_base.errors import InvalidInputError, MissingRuntimeError
from smash_export.cli.console import Output, common_options
from smash_export.cli.groups import Grouped

GROUPS = {
    "Addresses": (
        "host",
        "port",
        "grpc_port",
        "no_grpc",
        "workers",
        "tls_certificate",
        "tls_key",
        "api_key_file",
    ),
    "Files": ("target", "precision", "all_targets", "threads", "device"),
    "Batching": ("max_batch", "queue_size", "queue_delay", "queue_timeout"),
    "Limits": (
        "max_body",
        "max_pixels",
        "body_timeout",
        "answer_timeout",
        "max_connections",
        "per_address",
    ),
    "Proxies": ("allowed_hosts", "proxy_headers", "root_path"),
    "Ending": ("drain_delay", "drain_timeout"),
    "Logs": ("log_level", "log_requests"),
}


@click.command(cls=Grouped, groups=GROUPS)
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME[:VERSION]=]BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; 0.0.0.0 for every network.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port of HTTP; 0: a free one.",
)
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    default=8001,
    show_default=True,
    help="Port of gRPC; 0: a free one.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Processes that share the port, each with a model of its own.",
)
@click.option("--no-grpc", is_flag=True, help="HTTP only.")
@click.option("--target", help="Runtime, instead of the one that the manifest recommends.")
@click.option("--precision", help="Precision of the file, for example int8.")
@click.option("--all-targets", is_flag=True, help="Serve every compiled file too, as NAME.TARGET-PRECISION.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Threads of one inference.  [default: one less than the cores, which is left for the network]",
)
@click.option("--device", help="cpu, cuda:0, ...")
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    help="Images at once. Default: as many as still raise the throughput, measured when a model opens.",
)
@click.option(
    "--queue-size",
    type=click.IntRange(1),
    help="Images that may wait. Default: 256 in a burst; under lasting overload as many as are answered "
    "within a few times the time of one, measured.",
)
@click.option(
    "--queue-delay",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Milliseconds to wait for a fuller batch.",
)
@click.option(
    "--queue-timeout",
    type=click.FloatRange(0, min_open=True),
    default=10_000.0,
    show_default=True,
    help="Milliseconds that a request may wait before it is refused.",
)
@click.option(
    "--max-body",
    type=click.FloatRange(0, min_open=True),
    default=32,
    show_default=True,
    help="Largest body of a request, MiB.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    metavar="N",
    help="Pixels of an image that is decoded; large JPEGs are decoded smaller. Default: the variable "
    "SMASH_EXPORT_MAX_PIXELS, or 50 million.",
)
@click.option(
    "--body-timeout",
    type=click.FloatRange(0, min_open=True),
    default=30,
    show_default=True,
    help="Seconds for the headers, and again for the body.",
)
@click.option(
    "--answer-timeout",
    type=click.FloatRange(0, min_open=True),
    default=60,
    show_default=True,
    help="Seconds after which a request is given up, whatever holds it.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help="File with the key that clients must show; or the variable SMASH_EXPORT_API_KEY.",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Further name that the server answers to without a key, and whose pages may use it; * for any.",
)
@click.option("--proxy-headers", is_flag=True, help="Believe X-Forwarded-Host of the proxy in front.")
@click.option("--root-path", default="", help="Prefix under which a proxy offers the server, e.g. /digits.")
@click.option(
    "--max-connections",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Most connections; idle ones are closed for new ones, beyond them only health is answered.",
)
@click.option(
    "--max-connections-per-address",
    "per_address",
    type=click.IntRange(1),
    help="Connections of one client's address. Default: three quarters of all.",
)
@click.option(
    "--tls-certificate", type=click.Path(path_type=Path), help="Certificate with its whole chain, PEM."
)
@click.option("--tls-key", type=click.Path(path_type=Path), help="Private key of the certificate, PEM.")
@click.option(
    "--drain-delay",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Seconds in which requests are still taken after SIGTERM.",
)
@click.option(
    "--drain-timeout",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Seconds after which unfinished requests are given up.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Least important lines that are logged.",
)
@click.option("--log-requests", is_flag=True, help="Log answered requests too, not only refused ones.")
@common_options(writes=False)
def command(
    bundles: tuple[str, ...],
    host: str,
    port: int,
    grpc_port: int,
    workers: int,
    no_grpc: bool,
    target: str | None,
    precision: str | None,
    all_targets: bool,
    threads: int | None,
    device: str | None,
    max_batch: int | None,
    queue_size: int | None,
    queue_delay: float,
    queue_timeout: float,
    max_body: float,
    max_pixels: int | None,
    body_timeout: float,
    answer_timeout: float,
    api_key_file: Path | None,
    allowed_hosts: tuple[str, ...],
    proxy_headers: bool,
    root_path: str,
    max_connections: int,
    per_address: int | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    drain_delay: float,
    drain_timeout: float,
    log_level: str,
    log_requests: bool,
    output: Output,
) -> None:
    """Serve bundles: Open Inference Protocol v2 over HTTP and gRPC, and a page at /.

    A model is called like its folder unless NAME=BUNDLE says otherwise. SIGHUP opens every bundle anew
    and exchanges it without dropping a request; SIGTERM answers what is there and leaves.
    """
    with contextlib.suppress(ValueError):  # another thread than the main one
        # Until the server takes it: a reload that comes while its modules are imported would end the process.
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        click.get_current_context().call_on_close(lambda: signal.signal(signal.SIGHUP, before))
    from dataclasses import replace

    from smash_base.images import LIMIT_VARIABLE, pixel_limit
    from smash_export.server.middleware import RequestLimits
    from smash_export.server.models import ModelSpec, variants
    from smash_export.server.run import Addresses, Settings
    from smash_export.server.sizing import Batching
    from smash_export.server.workers import serve

    if max_pixels is not None:
        os.environ[LIMIT_VARIABLE] = str(max_pixels)  # of this process and of its workers
    pixel_limit()  # refuses a variable that is no number, before a model is opened
    if not no_grpc and importlib.util.find_spec("grpc") is None:
        raise MissingRuntimeError(
            "gRPC is not installed", hint="Install it: pip install 'smash-export[grpc]', or pass --no-grpc"
        )
    specs = [replace(ModelSpec.parse(text), target=target, precision=precision) for text in bundles]
    if all_targets:
        specs = [variant for spec in specs for variant in variants(spec)]
    settings = Settings(
        host=host,
        port=port,
        grpc_port=None if no_grpc else grpc_port,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        api_key=_api_key(api_key_file),
        batching=Batching(max_batch, queue_size, queue_delay / 1e3, queue_timeout / 1e3),
        limits=RequestLimits(
            body_bytes=round(max_body * 2**20), body_seconds=body_timeout, answer_seconds=answer_timeout
        ),
        threads=threads or _threads(workers),
        workers=workers,
        device=device,
        max_connections=max_connections,
        per_address=per_address,
        allowed_hosts=allowed_hosts,
        proxy_headers=proxy_headers,
        root_path=root_path,
        drain_delay=drain_delay,
        drain_timeout=drain_timeout,
        log_level=log_level,
        log_requests=log_requests,
    )

    def ready(addresses: Addresses) -> None:
        output.result({"http": addresses.http, "grpc": addresses.grpc, "models": [s.name for s in specs]})
        output.text(f"{addresses.http} serves {', '.join(dict.fromkeys(spec.name for spec in specs))}")
        if addresses.grpc:
            output.text(f"gRPC on {addresses.grpc}")
        if settings.api_key is None and host not in ("127.0.0.1", "::1", "localhost"):
            output.warn("anyone on the network can use this server; give it a key with --api-key-file")

    serve(specs, settings, ready)


def _threads(workers: int) -> int:
    """Threads of one inference: one core is left for the network, or each worker has its own."""
    cores = len(os.sched_getaffinity(0))
    return max(1, cores - 1 if workers == 1 else cores // workers)


def _api_key(path: Path | None) -> str | None:
    if path is None:
        key = os.environ.get("SMASH_EXPORT_API_KEY") or None
    else:
        try:
            key = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"API key file {path} cannot be read", received=error) from None
    if key is not None and (len(key) < 8 or not key.isascii() or not key.isprintable()):
        raise InvalidInputError("the API key is too weak", expected="8 or more printable ASCII characters")
    return key
