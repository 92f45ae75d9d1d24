"""Under load: an exchange and SIGTERM lose no request, overload answers 200 or 503 only."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from benchmarks.serving import Client, request_bytes
from smash_export.bundle.bundle import Bundle, write_bundle
from tests.smash_export.server.client_requests import grpc_infer

PATH = "/v2/models/digits/infer"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
PATIENT = ("--queue-size", "256")  # a busy machine is overload; whoever asks for a queue waits instead


class Clients:
    """Threads that ask until told to stop; ``outcomes`` counts what they were answered."""

    def __init__(self, count: int) -> None:
        self.outcomes: Counter[Any] = Counter()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self) -> None:
        raise NotImplementedError


class Load(Clients):
    """Clients with kept connections that ask until told to stop or until the server says goodbye.

    ``outcomes`` counts statuses; "lost" is a request that was sent and not answered.
    """

    def __init__(self, server: Any, body: bytes, headers: dict[str, str], clients: int) -> None:
        super().__init__(clients)
        self.retry_after = 0
        self._server, self._body, self._headers = server, body, headers
        self._lock = threading.Lock()

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + 30
        while sum(self.outcomes.values()) < count:
            assert time.monotonic() < deadline, self.outcomes
            time.sleep(0.005)

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(self._server.host, self._server.port, timeout=20)
        with contextlib.closing(connection):
            while not self._stop.is_set():
                outcome: object
                closing = False
                try:
                    connection.request("POST", PATH, self._body, self._headers)
                    answer = connection.getresponse()
                    answer.read()
                    outcome = answer.status
                    closing = answer.getheader("Connection", "").lower() == "close"
                    if answer.status == 503 and answer.getheader("Retry-After"):
                        self.retry_after += 1
                except (OSError, http.client.HTTPException) as error:
                    outcome = ("lost", type(error).__name__)
                    closing = True
                with self._lock:
                    self.outcomes[outcome] += 1
                if closing:
                    return


@pytest.fixture
def load(tensor: np.ndarray, make_body: Any) -> Any:
    body, headers = make_body(tensor[:1])

    def make(server: Any, clients: int = 8) -> Load:
        return Load(server, body, headers, clients)

    return make


def relabel(source: Path, destination: Path, prefix: str) -> None:
    """Replace ``destination`` by the same network with other labels."""
    bundle = Bundle.open(source)
    write_bundle(
        destination,
        onnx=bundle.onnx.read_bytes(),
        torchscript=None,
        architecture=None,
        weights=None,
        labels=[f"{prefix}{label}" for label in bundle.labels],
        preprocessing=bundle.preprocessing,
        signature=bundle.signature,
        samples=bundle.samples(),
        calibration=None,
        provenance={},
        force=True,
    )


def first_label(server: Any, tensor: np.ndarray) -> str:
    values = tensor[:1].ravel().tolist()
    status, answer = server.json(
        "POST",
        PATH,
        {
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": values}],
            "outputs": [{"name": "logits", "parameters": {"classification": 1}}],
        },
    )
    assert status == 200, answer
    return str(answer["outputs"][0]["data"][0].split(":")[2])


def test_a_bundle_is_exchanged_under_load_without_a_failed_request(
    digits_bundle: Path, tmp_path: Path, tensor: np.ndarray, start: Any, load: Any
) -> None:
    path = tmp_path / "digits"
    shutil.copytree(digits_bundle, path)
    with start(str(path), "--no-grpc", *PATIENT) as server:
        old = first_label(server, tensor)
        with load(server) as clients:
            clients.wait_for(50)
            for number in range(3):  # through the protocol
                relabel(digits_bundle, path, f"v{number}-")
                assert server.json("POST", "/v2/repository/models/digits/load")[0] == 200
                assert first_label(server, tensor) == f"v{number}-{old}"
                clients.wait_for(sum(clients.outcomes.values()) + 50)
            relabel(digits_bundle, path, "by-signal-")  # and by signal
            server.process.send_signal(signal.SIGHUP)
            server.wait_for_log("model loaded")
            deadline = time.monotonic() + 20
            while first_label(server, tensor) != f"by-signal-{old}":
                assert time.monotonic() < deadline
            clients.wait_for(sum(clients.outcomes.values()) + 50)
        assert set(clients.outcomes) == {200}, clients.outcomes


def test_a_reload_while_the_server_starts_is_done_when_it_is_ready(digits_bundle: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "smash_export.cli",
        "serve",
        str(digits_bundle),
        "--port",
        "0",
        "--no-grpc",
    ]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        maps = Path(f"/proc/{process.pid}/maps")
        for loaded in ("numpy", "onnxruntime"):  # the command imports what it needs; it opens the model
            while process.poll() is None and loaded not in maps.read_text():
                time.sleep(0.01)
            process.send_signal(signal.SIGHUP)
        said = [json.loads(next(process.stderr, "{}")).get("message") for _ in range(4)]
        process.terminate()
    assert said == ["model opened", "ready", "model opened", "model loaded"]


def test_a_bundle_that_changes_on_the_disk_does_no_harm(
    digits_bundle: Path, tmp_path: Path, tensor: np.ndarray, start: Any
) -> None:
    path = tmp_path / "digits"
    shutil.copytree(digits_bundle, path)
    with start(str(path), "--no-grpc") as server:
        label = first_label(server, tensor)
        data = bytearray((path / "model.onnx").read_bytes())
        data[len(data) // 2] ^= 1
        (path / "model.onnx").write_bytes(data)
        assert first_label(server, tensor) == label
        status, answer = server.json("POST", "/v2/repository/models/digits/load")
        assert status == 400
        assert "model.onnx" in answer["error"]
        assert first_label(server, tensor) == label
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("the old one goes on")
        shutil.rmtree(path)
        status, answer = server.json("POST", "/v2/repository/index")
        assert (answer[0]["state"], "has changed" in answer[0]["reason"]) == ("READY", True)
        assert server.json("POST", "/v2/repository/models/digits/load")[0] == 400
        assert first_label(server, tensor) == label


def test_sigterm_under_load_answers_everything_that_was_sent(
    digits_bundle: Path, start: Any, load: Any
) -> None:
    with start(f"digits={digits_bundle}", "--drain-delay", "0.7", *PATIENT) as server:
        with load(server, 16) as clients:
            clients.wait_for(200)
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_log("draining")
            assert server.call("GET", "/v2/health/live")[0] == 200
            status, headers, _ = server.call("GET", "/v2/health/ready")
            assert (status, headers["connection"]) == (503, "close")
            for thread in clients._threads:
                thread.join(20)
        assert set(clients.outcomes) == {200}, clients.outcomes
        assert server.process.wait(20) == 0


def read_live(connection: socket.socket) -> None:
    answer = b""
    while not answer.endswith(b'{"live": true}'):
        chunk = connection.recv(1000)
        assert chunk, "closed without an answer"
        answer += chunk


def test_whoever_has_connected_before_the_end_of_the_drain_is_answered(
    digits_bundle: Path, start: Any
) -> None:
    with start(f"digits={digits_bundle}", "--no-grpc", "--drain-delay", "0.5") as server:
        with contextlib.ExitStack() as held:

            def connect(count: int) -> list[socket.socket]:
                address = (server.host, server.port)
                return [
                    held.enter_context(socket.create_connection(address, timeout=10)) for _ in range(count)
                ]

            kept = connect(120)
            for connection in kept:
                connection.sendall(LIVE)
                read_live(connection)
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_log("draining")
            server.process.send_signal(signal.SIGSTOP)
            for connection in kept[:60]:
                connection.sendall(LIVE)
            late = connect(20)  # neither the first nor the last that a turn of the loop looks at
            for connection in (*late, *kept[60:]):
                connection.sendall(LIVE)
            time.sleep(0.8)  # the delay ends while they wait
            server.process.send_signal(signal.SIGCONT)
            for connection in (*kept, *late):
                read_live(connection)
        assert server.process.wait(20) == 0


class GrpcLoad(Clients):
    """gRPC clients that ask until they are told to stop or refused; counts codes."""

    def __init__(self, server: Any, tensor: np.ndarray, clients: int = 8) -> None:
        super().__init__(clients)
        self._data = grpc_infer(tensor[:1])
        self._address = server.addresses["grpc"]

    def wait_for_more(self, count: int) -> None:
        wanted, deadline = self.outcomes["OK"] + count, time.monotonic() + 20
        while self.outcomes["OK"] < wanted:
            assert time.monotonic() < deadline, self.outcomes
            time.sleep(0.01)

    def _ask(self) -> None:
        grpc = pytest.importorskip("grpc")
        from smash_export.server.messages import SERVICE

        with grpc.insecure_channel(self._address) as channel:
            infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            while not self._stop.is_set():
                try:
                    infer(self._data, timeout=20)
                    self.outcomes["OK"] += 1
                except grpc.RpcError as error:
                    self.outcomes[error.code().name] += 1
                    return


def test_a_bundle_is_exchanged_under_grpc_load_without_a_failed_call(
    digits_bundle: Path, tmp_path: Path, tensor: np.ndarray, start: Any
) -> None:
    grpc = pytest.importorskip("grpc")
    from smash_export.server.messages import SERVICE, message

    path = tmp_path / "digits"
    shutil.copytree(digits_bundle, path)
    with start(str(path), *PATIENT) as server, grpc.insecure_channel(server.addresses["grpc"]) as channel:
        load_model = channel.unary_unary(f"/{SERVICE}/RepositoryModelLoad")
        asked = message("RepositoryModelLoadRequest")(model_name="digits").SerializeToString()
        old = first_label(server, tensor)
        with GrpcLoad(server, tensor) as clients:
            for number in range(3):
                clients.wait_for_more(50)
                relabel(digits_bundle, path, f"v{number}-")
                load_model(asked, timeout=30)
                assert first_label(server, tensor) == f"v{number}-{old}"
            clients.wait_for_more(50)
        assert set(clients.outcomes) == {"OK"}, clients.outcomes


def test_sigterm_cuts_off_no_grpc_call(digits_bundle: Path, start: Any, tensor: np.ndarray) -> None:
    """Calls are answered, or refused with the code after which clients look for another server."""
    pytest.importorskip("grpc")
    options = ("--drain-delay", "0.3", *PATIENT)
    with start(f"digits={digits_bundle}", *options) as server, GrpcLoad(server, tensor) as clients:
        clients.wait_for_more(100)
        assert server.stop() == 0
    assert set(clients.outcomes) == {"OK", "UNAVAILABLE"}, clients.outcomes


def test_sigterm_with_nothing_to_do_ends_at_once(digits_bundle: Path, start: Any) -> None:
    with start(f"digits={digits_bundle}", "--no-grpc", "--drain-delay", "20") as server:
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 10


def test_overload_answers_200_or_503_and_recovers(digits_bundle: Path, start: Any, load: Any) -> None:
    options = ["--no-grpc", "--max-batch", "1", "--queue-size", "2", "--drain-delay", "0"]
    with start(f"digits={digits_bundle}", *options) as server:
        with load(server, 24) as clients:
            clients.wait_for(2500)
        assert set(clients.outcomes) == {200, 503}, clients.outcomes
        assert clients.retry_after == clients.outcomes[503]
        with load(server, 1) as alone:
            alone.wait_for(20)
        assert set(alone.outcomes) == {200}


def test_refusals_under_overload_are_told_counted_and_keep_their_connections(
    digits_bundle: Path, start: Any, tensor: np.ndarray
) -> None:
    """Requests in one piece, whose refusal takes the shortest way of all."""
    request, refused = request_bytes(tensor[:1]), []
    options = ["--no-grpc", "--max-batch", "1", "--queue-size", "2", "--drain-delay", "0"]
    with start(f"net={digits_bundle}", *options) as server:
        address = server.host, server.port
        crowd, one = Client(address, request, 24), http.client.HTTPConnection(*address, timeout=20)
        thread = threading.Thread(target=crowd.run, kwargs={"count": 4000})
        thread.start()
        one.connect()
        asked = Counter[int]()
        while thread.is_alive() and len(refused) < 20:
            one.sock.sendall(request)  # http.client would send the body by itself
            answer = http.client.HTTPResponse(one.sock, method="POST")
            answer.begin()
            body = answer.read()
            asked[answer.status] += 1
            if answer.status == 503:
                refused.append((answer.getheader("X-Request-ID"), answer.getheader("Retry-After"), body))
        thread.join(30)
        outcome = crowd.outcome
        assert not outcome.lost
        assert set(outcome.statuses) == {200, 503}
        assert refused
        assert len({identity for identity, _, _ in refused}) == len(refused)
        for _, later, body in refused:
            assert later == "1"
            assert "too many requests are waiting" in json.loads(body)["error"]
        statuses = outcome.statuses + asked
        told = server.call("GET", "/metrics")[2].decode().splitlines()
        labels = 'protocol="http",route="/v2/models/{model}/infer"}'
        for code in (200, 503):
            assert f'smash_export_requests_total{{code="{code}",{labels} {statuses[code]}.0' in told
        assert f"smash_export_request_seconds_count{{{labels} {statuses.total()}.0" in told
        crowd.close()
        one.close()


def test_memory_stays_flat_over_requests_good_and_bad(
    server: Any, tensor: np.ndarray, make_body: Any, load: Any
) -> None:
    body, headers = make_body(tensor[:1])

    def round_of_requests() -> None:
        with load(server, 4) as clients:
            clients.wait_for(1500)
        for _ in range(20):
            server.call("POST", PATH, body[:-3], headers)
            server.call("POST", "/v1/predict", bytes(200_000))

    round_of_requests()
    before = server.memory()
    round_of_requests()
    assert server.memory() - before < 6 * 2**20
