"""A real server in a process of its own, and the clients that tests use against it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for module in ("uvicorn", "starlette", "prometheus_client", "python_multipart", "onnxruntime"):
    pytest.importorskip(module)

START_S = 60


class Server:
    """``smash-export serve`` on free ports."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        words = [sys.executable, "-m", "smash_export.cli", "serve", "--json", "--port", "0", *arguments]
        if "--no-grpc" not in arguments:
            words += ["--grpc-port", "0"]
        self.process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )
        self.log: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read_log, daemon=True).start()
        self.addresses = self._wait()
        self.host, _, port = self.addresses["http"].partition("://")[2].rpartition(":")
        self.port = int(port)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip())
            self._lines.put(line)

    def _wait(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        text = ""
        timer = threading.Timer(START_S, self.process.kill)
        timer.start()
        try:
            for line in self.process.stdout:
                text += line
                with contextlib.suppress(ValueError):
                    found: dict[str, Any] = json.loads(text)
                    return found
        finally:
            timer.cancel()
        raise AssertionError(f"the server did not start: {text} {self.log}")

    def wait_for_log(self, words: str, timeout: float = 20) -> None:
        """Return when a line of the log holds ``words``."""
        while True:
            if words in self._lines.get(timeout=timeout):
                return

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, headers, body."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def json(self, method: str, path: str, value: Any = None) -> tuple[int, Any]:
        """One request with JSON both ways."""
        status, _, body = self.call(method, path, None if value is None else json.dumps(value).encode())
        return status, json.loads(body)

    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self, timeout: float = 30) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        finally:
            self.process.kill()


@contextlib.contextmanager
def running(*arguments: str, **keywords: Any) -> Iterator[Server]:
    """A server for the length of the block."""
    server = Server(*arguments, **keywords)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def start() -> Any:
    """``with start(BUNDLE, OPTIONS...) as server``."""
    return running


@pytest.fixture(scope="session")
def server(digits_bundle: Path) -> Iterator[Server]:
    """One server for all tests that leave it as it is: the same bundle as digits, 1 and 2, and other."""
    bundle = str(digits_bundle)
    with running(f"digits:1={bundle}", f"digits:2={bundle}", f"other={bundle}", "--drain-delay", "0.1") as it:
        yield it
        assert it.process.poll() is None, "a test ended the server"
    internal = [line for line in it.log if "internal error" in line or "Traceback" in line]
    assert not internal


@pytest.fixture(scope="session")
def tensor(digits_bundle: Path) -> np.ndarray:
    """Normalised test images, float32 [16, 1, 8, 8]."""
    from smash_export.bundle.bundle import Bundle

    bundle = Bundle.open(digits_bundle)
    result: np.ndarray = bundle.preprocessing.normalise(bundle.samples().images[:16])
    return result


@pytest.fixture(scope="session")
def logits(digits_bundle: Path) -> np.ndarray:
    """What eager PyTorch says about ``tensor``: float32 [16, 10]."""
    from smash_export.bundle.bundle import Bundle

    return Bundle.open(digits_bundle).samples().logits[:16]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificate of localhost and its key, PEM."""
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "cert.pem", folder / "key.pem"
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    words += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(chain)]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return chain, key


def infer_body(tensor: np.ndarray, **changes: Any) -> tuple[bytes, dict[str, str]]:
    """A binary infer request: body and headers."""
    entry = {
        "name": "input",
        "datatype": "FP32",
        "shape": list(tensor.shape),
        "parameters": {"binary_data_size": tensor.nbytes},
        **changes,
    }
    head = json.dumps({"inputs": [entry]}).encode()
    return head + tensor.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


@pytest.fixture(scope="session")
def make_body() -> Any:
    """:func:`infer_body`."""
    return infer_body
