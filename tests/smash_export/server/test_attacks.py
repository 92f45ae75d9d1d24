"""One client cannot hurt another: each attack runs beside honest requests and probes of health.

Bounded in count and time, over loopback. What is asserted is what the others see: health within a tenth of a
second (a second here, as tests share their machine), honest requests answered, memory kept.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.smash_export.server.client_requests import grpc_infer

INFER = "/v2/models/digits/infer"
LIVE = "/v2/health/live"
SOON_S = 1.0


def connect(server: Any) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=10)


def read_answer(connection: socket.socket) -> bytes:
    """Everything until the server closes or says nothing for a while."""
    got = b""
    with contextlib.suppress(OSError):
        while chunk := connection.recv(65536):
            got += chunk
            head, mark, body = got.partition(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
            if mark and len(body) >= int(length or 0):
                break
    return got


class Probe:
    """Asks for health all the time; the longest answer counts."""

    def __init__(self, server: Any) -> None:
        self.longest = 0.0
        self.statuses: set[int] = set()
        self._server, self._stop = server, threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _ask(self) -> None:
        while not self._stop.is_set():
            started = time.perf_counter()
            self.statuses.add(self._server.call("GET", LIVE)[0])
            self.longest = max(self.longest, time.perf_counter() - started)
            time.sleep(0.01)

    def check(self) -> None:
        assert self.statuses == {200}
        assert self.longest < SOON_S


@pytest.fixture
def mine(digits_bundle: Path, start: Any) -> Iterator[Any]:
    """A server of the test's own, which may be short of places."""
    options = ["--max-connections", "40", "--max-connections-per-address", "40", "--no-grpc"]
    with start(f"digits={digits_bundle}", *options, "--drain-delay", "0") as server:
        yield server


def test_a_poisoning_client_fails_alone(server: Any, tensor: np.ndarray, make_body: Any) -> None:
    poisoned, poison_headers = make_body(np.full_like(tensor[:1], 1e38))
    status, _, text = server.call("POST", INFER, poisoned, poison_headers)
    assert status == 400
    assert "NaN or infinity to image 0 of the input" in json.loads(text)["error"]
    body, headers = make_body(tensor[:1])
    statuses: dict[str, set[int]] = {"honest": set(), "poison": set()}

    def ask(who: str, body: bytes, headers: dict[str, str]) -> None:
        for _ in range(60):
            statuses[who].add(server.call("POST", INFER, body, headers)[0])

    threads = [threading.Thread(target=ask, args=("honest", body, headers)) for _ in range(8)]
    threads += [threading.Thread(target=ask, args=("poison", poisoned, poison_headers)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses["honest"] - {503} == {200}  # a busy machine may refuse; nobody else's fault is theirs
    assert statuses["poison"] - {503} == {400}


def idle(connection: socket.socket) -> None:
    """Says nothing."""


def unread_body(connection: socket.socket) -> None:
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")


def half_headers(connection: socket.socket) -> None:
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: loc")


def kept(connection: socket.socket) -> None:
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")


def half_body(connection: socket.socket) -> None:
    connection.sendall(
        b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\nab"
    )


@pytest.mark.parametrize("attack", [idle, unread_body, half_headers, kept, half_body])
def test_whoever_holds_connections_goes_before_others_wait(
    mine: Any, attack: Callable[[socket.socket], None], tensor: np.ndarray, make_body: Any
) -> None:
    body, headers = make_body(tensor[:1])
    with contextlib.ExitStack() as held:
        for _ in range(60):
            attack(held.enter_context(connect(mine)))
        with Probe(mine) as probe:
            time.sleep(1.2)  # a request that is still coming may be given up after a second
            for _ in range(20):
                assert mine.call("POST", INFER, body, headers)[0] == 200
        probe.check()


def test_health_keeps_places_of_its_own_when_nobody_can_go(digits_bundle: Path, start: Any) -> None:
    options = ["--queue-delay", "10000", "--max-batch", "32", "--max-connections", "4", "--no-grpc"]
    options += ["--max-connections-per-address", "4", "--drain-delay", "0", "--answer-timeout", "9"]
    body = np.zeros((1, 1, 8, 8), np.float32)
    head = {"name": "input", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": body.ravel().tolist()}
    text = json.dumps({"inputs": [head]}).encode()
    request = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"
    with start(f"digits={digits_bundle}", *options) as server, contextlib.ExitStack() as held:
        for _ in range(4):  # each waits for company that does not come
            held.enter_context(connect(server)).sendall(request % (INFER.encode(), len(text), text))
        time.sleep(0.3)  # whoever is not read yet could be given up for the next one
        deadline = time.monotonic() + 8
        while (refused := server.call("GET", "/v2"))[0] != 503:  # until all four are worked on
            assert time.monotonic() < deadline
        assert server.call("GET", LIVE)[0] == 200
        assert refused[1]["content-type"] == "application/json"
        assert "too many connections" in json.loads(refused[2])["error"]


@pytest.mark.parametrize(
    "lines",
    [
        b"X-Long: " + b"a" * 5_000_000,
        b"".join(b"X-%d: %s\r\n" % (number, b"a" * 100) for number in range(20_000)),
    ],
)
def test_headers_are_bounded(server: Any, lines: bytes) -> None:
    before = server.memory()
    with connect(server) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n" + lines)
        answer = read_answer(connection)
    assert not answer or answer.startswith(b"HTTP/1.1 431")  # a reset can overtake the answer
    assert server.memory() - before < 16 * 2**20
    status, _, text = server.call("GET", "/v2", headers={"X-Long": "a" * 66_000})
    assert status == 431
    assert "at most 65536 bytes" in json.loads(text)["error"]


def test_trailers_and_empty_lines_are_bounded(strict_times: Any) -> None:
    chunked = (
        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    )
    with connect(strict_times) as connection, contextlib.suppress(OSError):
        connection.sendall(chunked + b"X-Trailer: ")
        for _ in range(64):
            connection.sendall(b"a" * 65536)
        read_answer(connection)
    with connect(strict_times) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in read_answer(connection)
        connection.sendall(b"\r\n")
    with Probe(strict_times) as probe:
        time.sleep(0.2)
    probe.check()


@pytest.fixture(scope="module")
def strict_times(digits_bundle: Path, start: Any) -> Iterator[Any]:
    with start(f"digits={digits_bundle}", "--body-timeout", "0.5", "--no-grpc", "--drain-delay", "0") as it:
        yield it


def test_a_body_that_nobody_reads_has_a_deadline(strict_times: Any) -> None:
    with connect(strict_times) as connection:
        unread_body(connection)
        assert b"200 OK" in read_answer(connection)
        started = time.perf_counter()
        with contextlib.suppress(OSError):
            while time.perf_counter() - started < 5:
                connection.sendall(b"a")
                time.sleep(0.05)
        assert time.perf_counter() - started < 4


def test_answers_that_nobody_reads_are_not_kept(strict_times: Any) -> None:
    """Pipelined requests fill the memory neither as requests nor as answers, and end with the connection."""
    before = strict_times.memory()
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with contextlib.ExitStack() as held, Probe(strict_times) as probe:
        for _ in range(4):
            connection = held.enter_context(connect(strict_times))
            connection.settimeout(0.3)
            with contextlib.suppress(OSError):
                for _ in range(400):
                    connection.sendall(request * 50)
        assert strict_times.memory() - before < 24 * 2**20
    probe.check()


def numbers(count: int, text: bytes = b"0.1234567890123456") -> bytes:
    head = b'{"inputs":[{"name":"input","datatype":"FP32","shape":[%d,1,8,8],"data":['
    return head % (count // 64) + b",".join([text] * count) + b"]}]}"


def test_json_has_the_size_of_the_largest_tensor_and_blocks_nobody(server: Any) -> None:
    with connect(server) as connection:
        head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 31000000\r\n\r\n"
        connection.sendall(head.encode())
        answer = read_answer(connection)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"bytes of JSON" in answer
    with Probe(server) as probe:
        for _ in range(10):
            status, _, text = server.call("POST", INFER, numbers(256 * 64))
            assert status == 200
    probe.check()
    answer = json.loads(text)["outputs"][0]
    assert answer["shape"] == [256, 10]
    assert np.ptp(np.reshape(answer["data"], (256, 10)), axis=0).max() < 1e-4
    assert server.call("POST", INFER, numbers(256 * 64, b"[1]"))[0] == 400


def test_a_compressed_body_fills_no_memory(server: Any) -> None:
    """300 MB of zeros in 300 KB: refused at the limit of every body, and nothing of it is kept."""
    writer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(writer.compress(bytes(2**20)) for _ in range(300)) + writer.flush()
    assert len(bomb) < 2**19
    before = 0
    for path in ("/v1/predict", "/v2/models/digits/infer", "/v1/predict", "/v2/repository/index"):
        for _ in range(3):
            status, _, text = server.call("POST", path, bomb, {"Content-Encoding": "gzip"})
            assert status == 413, text
        before = before or server.memory()  # after the first: the allocator may keep one buffer for the next
    assert "when decompressed" in json.loads(text)["error"]
    give_up = time.monotonic() + 10  # what was answered may be let go of after the answer
    while (kept := server.memory() - before) >= 32 * 2**20 and time.monotonic() < give_up:
        time.sleep(0.05)
    assert kept < 32 * 2**20
    assert server.call("GET", "/v2/health/live")[0] == 200


def test_names_of_others_are_refused_without_a_key(server: Any) -> None:
    for host, status in {
        "attacker.example": 403,
        "localhost:8000": 200,
        "127.0.0.1": 200,
        "[::1]:8000": 200,
    }.items():
        headers = {"Host": host, "Origin": f"http://{host}"}
        got, _, text = server.call("POST", "/v2/repository/index", b"", headers)
        assert got == status, text
    headers = {"Host": "attacker.example", "Origin": "http://attacker.example"}
    for path in ("/v2/repository/models/other/unload", "/v1/predict", INFER):
        status, _, text = server.call("POST", path, b"x", headers)
        assert status == 403
        assert "--allowed-host" in json.loads(text)["error"]
    assert server.call("GET", "/v1/models", headers={"Host": "attacker.example"})[0] == 403
    assert server.call("GET", LIVE, headers={"Host": "10-0-0-7.pods.example"})[0] == 200


def test_a_log_that_nobody_reads_stops_nobody(digits_bundle: Path) -> None:
    words = [sys.executable, "-m", "smash_export.cli", "serve", f"digits={digits_bundle}", "--json"]
    words += ["--port", "0", "--no-grpc", "--log-requests", "--drain-delay", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        text = ""
        while "}" not in text:
            text += process.stdout.readline()
        host, _, port = json.loads(text)["http"].partition("://")[2].rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        for _ in range(1500):  # about 300 KiB of lines into a pipe of 64
            connection.request("GET", LIVE)
            assert connection.getresponse().read() == b'{"live": true}'
        connection.close()
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_a_flood_of_refusals_is_told_in_few_lines(server: Any) -> None:
    before, began = len(server.log), time.monotonic()
    with contextlib.closing(http.client.HTTPConnection(server.host, server.port, timeout=10)) as connection:
        for _ in range(400):
            connection.request("GET", "/v2/models/nothing")
            assert connection.getresponse().read()
    time.sleep(0.3)
    assert len(server.log) - before <= 50 * (time.monotonic() - began + 1)


def test_a_form_that_is_none_leaves_no_line_outside_the_log(server: Any) -> None:
    before = len(server.log)
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert server.call("POST", "/v1/predict", b"--b\r\nno header\r\n\r\n--b--\r\n", headers)[0] == 400
    time.sleep(0.3)
    assert all(line.startswith("{") for line in server.log[before:])


def test_out_of_files_is_said_and_survived(digits_bundle: Path, start: Any) -> None:
    import resource

    with start(f"digits={digits_bundle}", "--no-grpc", "--drain-delay", "0") as server:
        used = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used + 10, used + 10))
        with contextlib.ExitStack() as held:
            for _ in range(30):
                held.enter_context(connect(server))
            server.wait_for_log("out of file descriptors")
        assert all(line.startswith("{") for line in server.log)
        assert sum("socket.accept()" in line for line in server.log) <= 2
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                assert server.call("GET", LIVE)[0] == 200
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_grpc_reads_nothing_before_the_key_and_little_after(
    digits_bundle: Path, tmp_path: Path, start: Any
) -> None:
    grpc = pytest.importorskip("grpc")
    key = tmp_path / "key"
    key.write_text("correct horse")
    method = "/inference.GRPCInferenceService/ModelInfer"
    empties = b"\x2a\x00" * (15 * 2**20)  # 30 MiB of empty inputs
    with start(f"digits={digits_bundle}", "--api-key-file", str(key), "--drain-delay", "0") as server:
        before = server.memory()
        with grpc.insecure_channel(server.addresses["grpc"]) as channel, Probe(server) as probe:
            infer = channel.unary_unary(method)
            with pytest.raises(grpc.RpcError) as caught:
                infer(empties)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            metadata = [("authorization", "bearer correct horse")]
            for data, code in (
                (empties, grpc.StatusCode.RESOURCE_EXHAUSTED),  # the model's largest input is smaller
                (empties[:40_000], grpc.StatusCode.INVALID_ARGUMENT),
                (b"\xff" * 50, grpc.StatusCode.INVALID_ARGUMENT),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    infer(data, metadata=metadata)
                assert caught.value.code() is code
            for _ in range(20):
                with pytest.raises(grpc.RpcError):
                    infer(b"\xff" * 50, metadata=metadata)
        probe.check()
        assert server.memory() - before < 16 * 2**20
        assert sum("refused gRPC calls" in line for line in server.log) <= 1


def test_grpc_messages_that_do_not_come_are_given_up(digits_bundle: Path, start: Any) -> None:
    grpc = pytest.importorskip("grpc")
    method = "/inference.GRPCInferenceService/ModelInfer"
    release = threading.Event()

    def nothing() -> Iterator[bytes]:
        release.wait(20)
        yield b""

    with (
        start(f"digits={digits_bundle}", "--body-timeout", "0.5", "--drain-delay", "0") as server,
        grpc.insecure_channel(server.addresses["grpc"]) as channel,
    ):
        calls = [channel.stream_unary(method).future(nothing()) for _ in range(70)]
        health = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert health(b"", timeout=5) == b"\x08\x01"
        for call in calls:
            with pytest.raises(grpc.RpcError):
                call.result(timeout=15)
        release.set()


def test_grpc_and_http_share_one_bound_of_memory(digits_bundle: Path, tensor: np.ndarray) -> None:
    grpc = pytest.importorskip("grpc")
    from smash_export.server.batching import BusyError
    from smash_export.server.grpc_service import GrpcServer
    from smash_export.server.messages import SERVICE
    from smash_export.server.metrics import Metrics
    from smash_export.server.middleware import Bodies, RequestLimits, State
    from smash_export.server.models import ModelSpec, Repository
    from smash_export.server.sizing import Batching

    data = grpc_infer(tensor)
    metrics, state, limits = Metrics(), State(), RequestLimits(all_bodies_bytes=10_000)
    repository = Repository([ModelSpec.parse(f"digits={digits_bundle}")], Batching(8, 64), metrics, 1)
    repository.load_all()
    service = GrpcServer(repository, metrics, state, limits)
    port = service.bind("127.0.0.1", 0)
    service.start()
    http_bodies = Bodies(limits, state)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            http_bodies.reserve(9_000)  # bodies of HTTP requests in progress
            with pytest.raises(BusyError):
                http_bodies.reserve(2_000)
            with pytest.raises(grpc.RpcError) as caught:
                infer(data, timeout=20)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "too many large requests" in caught.value.details()
            http_bodies.release(9_000)
            assert infer(data, timeout=20)
        assert state.body_bytes == 0
    finally:
        service.stop(1)
        repository.close()


def test_grpc_takes_longer_messages_when_a_model_with_a_larger_input_is_loaded(digits_bundle: Path) -> None:
    grpc = pytest.importorskip("grpc")
    from smash_export.server.grpc_service import GrpcServer
    from smash_export.server.messages import SERVICE
    from smash_export.server.metrics import Metrics
    from smash_export.server.middleware import RequestLimits, State
    from smash_export.server.models import ModelSpec, Repository
    from smash_export.server.sizing import Batching

    images = 6_000  # 1.5 MB; without a model at most 1.1 MB are taken
    data = grpc_infer(np.zeros((images, 1, 8, 8), np.float32))
    metrics = Metrics()
    repository = Repository([ModelSpec.parse(f"digits={digits_bundle}")], Batching(8, images), metrics, 1)
    service = GrpcServer(repository, metrics, State(), RequestLimits(), largest=repository.largest_message())
    port = service.bind("127.0.0.1", 0)
    service.start()
    repository.on_load = service.grow

    def infer() -> int:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            return len(channel.unary_unary(f"/{SERVICE}/ModelInfer")(data, timeout=20, wait_for_ready=True))

    try:
        with pytest.raises(grpc.RpcError) as caught:
            infer()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for _ in range(2):  # the second changes nothing
            repository.load("digits")
            assert infer() > images * 10 * 4
    finally:
        service.stop(1)
        repository.close()


def test_health_of_grpc_is_the_usual_one(server: Any) -> None:
    grpc = pytest.importorskip("grpc")
    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"") == b"\x08\x01"
        assert check(b"\x0a\x06digits") == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as caught:
            check(b"\x0a\x04none")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
