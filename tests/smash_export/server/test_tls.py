"""TLS over HTTP: whoever does not shake hands has no more places and no more time than others."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
MOST = 8
HEALTH_ONLY = 32


@pytest.fixture
def options(certificate: tuple[Path, Path]) -> list[str]:
    chain, key = certificate
    return ["--tls-certificate", str(chain), "--tls-key", str(key), "--no-grpc", "--drain-delay", "0"]


def connect(server: Any) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=10)


def is_live(server: Any, chain: Path) -> bool:
    context = ssl.create_default_context(cafile=str(chain))
    connection = http.client.HTTPSConnection(server.host, server.port, context=context, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/v2/health/live")
        return connection.getresponse().status == 200


def test_connections_that_never_shake_hands_are_counted(
    digits_bundle: Path, certificate: tuple[Path, Path], options: list[str], start: Any
) -> None:
    options += ["--max-connections", str(MOST), "--max-connections-per-address", str(MOST)]
    with start(f"digits={digits_bundle}", *options) as server, contextlib.ExitStack() as held:
        files = Path(f"/proc/{server.process.pid}/fd")
        before = len(list(files.iterdir()))
        for _ in range(100):
            held.enter_context(connect(server))
        assert is_live(server, certificate[0])  # whoever came before has been accepted
        assert len(list(files.iterdir())) - before <= MOST + HEALTH_ONLY
        assert is_live(server, certificate[0])


def test_a_handshake_has_a_deadline(
    digits_bundle: Path, certificate: tuple[Path, Path], options: list[str], start: Any
) -> None:
    with start(f"digits={digits_bundle}", *options, "--body-timeout", "0.5") as server:
        with connect(server) as silent, connect(server) as plain:
            plain.sendall(LIVE)
            began = time.monotonic()
            with contextlib.suppress(ConnectionError):
                assert silent.recv(100) == b""
            assert time.monotonic() - began < 5
            with contextlib.suppress(ConnectionError):
                while plain.recv(100):  # an alert, perhaps
                    pass
        assert is_live(server, certificate[0])
        assert all(line.startswith("{") for line in server.log)


def test_a_request_that_comes_with_the_end_of_the_handshake_is_answered(
    digits_bundle: Path, certificate: tuple[Path, Path], options: list[str], start: Any
) -> None:
    context = ssl.create_default_context(cafile=str(certificate[0]))
    came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(came, goes, server_hostname="localhost")
    with start(f"digits={digits_bundle}", *options) as server, connect(server) as connection:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.sendall(goes.read())
                came.write(connection.recv(65536))
        client.write(LIVE)
        connection.sendall(goes.read())
        answer = b""
        while b"true" not in answer:
            came.write(connection.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                while True:  # one record each
                    answer += client.read(65536)
        assert answer.startswith(b"HTTP/1.1 200")
