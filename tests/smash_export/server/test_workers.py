"""Several processes on one port are one server: numbers, exchange, health and the end are those of all."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smash_export.bundle.bundle import Bundle
from smash_export.server.models import ModelSpec
from smash_export.server.peers import NUMBERS_S
from smash_export.server.run import Settings
from smash_export.server.workers import _Fleet, _hold_ports
from tests.smash_export.server.client_requests import grpc_infer
from tests.smash_export.server.test_lifecycle import PATH, PATIENT, Load, first_label, relabel

CLIENTS = 12
pytestmark = pytest.mark.slow  # two processes open a bundle each


def workers_of(process: int) -> list[int]:
    """Process ids of the children that serve."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [pid for child in children if "spawn_main" in _command(pid := int(child))]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def test_ports_are_held_while_connections_of_an_earlier_server_linger() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            served, _ = listener.accept()
            served.close()  # first, so that its side waits for stray packets
            assert client.recv(1) == b""
    held, settings = _hold_ports(Settings(port=port, grpc_port=None))
    for holder in held:
        holder.close()
    assert (len(held), settings.port) == (1, port)


def numbers(server: Any) -> dict[str, float]:
    text = server.call("GET", "/metrics")[2].decode()
    rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}


def label(server: Any, body: bytes, headers: dict[str, str]) -> str:
    """On a new connection, so by any of the workers."""
    status, _, text = server.call("POST", PATH, body, headers)
    assert status == 200
    return str(np.frombuffer(text[-40:], "<f4").argmax())


def prefixes(server: Any, tensor: np.ndarray) -> set[str]:
    """What labels begin with, by all of the workers."""
    return {first_label(server, tensor).partition("-")[0] for _ in range(16)}


def await_log(server: Any, *told: str) -> None:
    """Return when one of these is in the log since it was cleared."""
    deadline = time.monotonic() + 60
    while not any(words in line for line in list(server.log) for words in told):
        assert time.monotonic() < deadline, server.log
        time.sleep(0.05)


@pytest.fixture(scope="module")
def many(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory, start: Any) -> Any:
    path = tmp_path_factory.mktemp("workers") / "digits"
    shutil.copytree(digits_bundle, path)
    with start(f"digits={path}", "--workers", "2", "--drain-delay", "0.3", *PATIENT) as server:
        server.bundle = path
        yield server


def test_metrics_are_those_of_all_processes(many: Any, tensor: np.ndarray, make_body: Any) -> None:
    body, headers = make_body(tensor[:1])
    before = numbers(many)
    for _ in range(40):  # a connection each
        assert many.call("POST", PATH, body, headers)[0] == 200
    after = numbers(many)
    name = 'smash_export_images_total{model="digits",version="1"}'
    assert after[name] - before.get(name, 0) == 40
    (row,) = many.json("GET", "/v2/models/digits/stats")[1]["model_stats"]
    assert row["inference_count"] == after[name]
    resident = sum(
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for pid in workers_of(many.process.pid)
    )
    assert after["process_resident_memory_bytes"] == pytest.approx(resident, rel=0.2)
    families = {
        line.split()[2] for line in many.call("GET", "/metrics")[2].decode().splitlines() if "# TYPE" in line
    }
    assert {
        "process_cpu_seconds_total",
        "smash_export_requests_total",
        "smash_export_queue_images",
    } <= families


def test_a_process_that_hangs_holds_nobody_who_asks_for_the_numbers(many: Any) -> None:
    hung = workers_of(many.process.pid)[0]
    os.kill(hung, signal.SIGSTOP)
    try:
        answers, deadline = list[tuple[int, str]](), time.monotonic() + 60
        while not answers:  # the kernel gives some connections to the process that hangs
            assert time.monotonic() < deadline
            connection = http.client.HTTPConnection("127.0.0.1", many.port, timeout=NUMBERS_S + 3)
            with contextlib.suppress(TimeoutError), contextlib.closing(connection):
                connection.request("GET", "/metrics")
                response = connection.getresponse()
                answers.append((response.status, response.read().decode()))
    finally:
        os.kill(hung, signal.SIGCONT)
    assert answers[0][0] == 503
    assert "does not answer" in answers[0][1]
    assert many.call("GET", "/metrics")[0] == 200


def test_every_process_is_asked(many: Any, tensor: np.ndarray, make_body: Any) -> None:
    """Both take processor time: the kernel hands out connections."""
    body, headers = make_body(tensor)
    pids = workers_of(many.process.pid)
    assert len(pids) == 2

    def spent() -> list[int]:
        fields = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
        return [int(row[11]) + int(row[12]) for row in fields]

    before = spent()
    with Load(many, body, headers, CLIENTS) as clients:
        clients.wait_for(1500)
    assert set(clients.outcomes) == {200}
    assert all(now > then for now, then in zip(spent(), before, strict=True))


def test_an_exchange_reaches_every_process(many: Any, tensor: np.ndarray, make_body: Any) -> None:
    body, headers = make_body(tensor[:1])

    def labels() -> set[str]:
        wanted = {
            "inputs": [
                {
                    "name": "input",
                    "datatype": "FP32",
                    "shape": [1, 1, 8, 8],
                    "data": tensor[0].ravel().tolist(),
                }
            ],
            "outputs": [{"name": "logits", "parameters": {"classification": 1}}],
        }
        answers = [many.json("POST", PATH, wanted)[1] for _ in range(16)]
        return {answer["outputs"][0]["data"][0].split(":")[2] for answer in answers}

    (old,) = labels()
    with Load(many, body, headers, CLIENTS) as clients:
        clients.wait_for(50)
        relabel(many.bundle, many.bundle, "new-")
        assert many.json("POST", "/v2/repository/models/digits/load")[0] == 200
        assert labels() == {f"new-{old}"}
        clients.wait_for(sum(clients.outcomes.values()) + 50)
    assert set(clients.outcomes) == {200}
    (many.bundle / "model.onnx").rename(many.bundle / "gone")
    status, answer = many.json("POST", "/v2/repository/models/digits/load")
    assert (status, "missing" in answer["error"]) == (400, True)
    assert labels() == {f"new-{old}"}
    (many.bundle / "gone").rename(many.bundle / "model.onnx")


@pytest.mark.parametrize("other", ["none", "newest-"])
def test_what_one_process_cannot_open_or_finds_replaced_is_served_by_none(
    other: str, digits_bundle: Path, tmp_path: Path, start: Any, tensor: np.ndarray
) -> None:
    bundle = tmp_path / "digits"
    relabel(digits_bundle, bundle, "old-")
    with start(f"digits={bundle}", "--workers", "2", "--no-grpc", "--drain-delay", "0") as server:
        _, second = workers_of(server.process.pid)
        relabel(bundle, bundle, "new-")
        server.log.clear()
        os.kill(second, signal.SIGSTOP)
        server.process.send_signal(signal.SIGHUP)
        await_log(server, "model opened")  # by the first
        if other == "none":
            (bundle / "model.onnx").rename(bundle / "gone")
        else:
            relabel(bundle, bundle, other)
        os.kill(second, signal.SIGCONT)
        await_log(server, "model not loaded")
        assert prefixes(server, tensor) == {"old"}
        if other == "none":
            (bundle / "gone").rename(bundle / "model.onnx")
        assert server.json("POST", "/v2/repository/models/digits/load")[0] == 200
        assert prefixes(server, tensor) == {"new" if other == "none" else "newest"}
        loads = {name: count for name, count in numbers(server).items() if "model_loads" in name}
        assert sorted(loads.values()) == [2.0, 4.0], loads  # refused; done, at the start and now


def test_a_process_that_dies_is_started_again(many: Any) -> None:
    pids = workers_of(many.process.pid)
    os.kill(pids[0], signal.SIGKILL)
    deadline = time.monotonic() + 40
    while True:
        now = workers_of(many.process.pid)
        if len(now) == 2 and pids[0] not in now:
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for _ in range(10):
        assert many.call("GET", "/v2/health/ready")[0] == 200


def test_a_process_that_is_told_to_reload_while_it_starts_does_so_when_it_is_ready(many: Any) -> None:
    before = set(workers_of(many.process.pid))
    os.kill(min(before), signal.SIGKILL)
    deadline = time.monotonic() + 40
    while not (new := set(workers_of(many.process.pid)) - before):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    many.process.send_signal(signal.SIGHUP)
    many.wait_for_log('"ready"')
    many.wait_for_log("model loaded")
    assert set(workers_of(many.process.pid)) == new | before - {min(before)}


def test_a_process_that_is_started_again_serves_no_model_that_was_unloaded(many: Any) -> None:
    assert many.json("POST", "/v2/repository/models/digits/unload")[0] == 200
    before = workers_of(many.process.pid)
    many.log.clear()
    os.kill(before[0], signal.SIGKILL)
    deadline = time.monotonic() + 40
    while not any('"ready"' in line for line in many.log):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    try:
        assert {many.call("GET", "/v2/models/digits/ready")[0] for _ in range(20)} == {404}
    finally:
        assert many.json("POST", "/v2/repository/models/digits/load")[0] == 200
    assert {many.call("GET", "/v2/models/digits/ready")[0] for _ in range(20)} == {200}


def test_a_process_that_is_started_again_serves_what_the_others_serve(
    digits_bundle: Path, tmp_path: Path, start: Any, tensor: np.ndarray
) -> None:
    """Not what lies on the disk meanwhile, unless nothing that decides about answers has changed there."""
    bundle = tmp_path / "digits"
    relabel(digits_bundle, bundle, "old-")
    with start(f"digits={bundle}", "--workers", "2", "--no-grpc", "--drain-delay", "0") as server:

        def end_one(*told: str) -> None:
            """End the older one, and wait until one of these is in the log."""
            server.log.clear()
            os.kill(min(workers_of(server.process.pid)), signal.SIGKILL)
            await_log(server, *told)

        Bundle.open(bundle).record("bench", {"files": []})
        end_one('"ready"')
        assert prefixes(server, tensor) == {"old"}
        relabel(bundle, bundle, "new-")
        end_one("did not start", '"ready"')
        assert prefixes(server, tensor) == {"old"}
        await_log(server, "repository/models/digits/load")  # what is to be done
        assert server.json("POST", "/v2/repository/models/digits/load")[0] == 200
        await_log(server, '"ready"')
        assert prefixes(server, tensor) == {"new"}
        relabel(bundle, bundle, "newest-")
        for pid in workers_of(server.process.pid):
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while True:  # the others are none
            with contextlib.suppress(OSError):
                assert prefixes(server, tensor) == {"newest"}
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_process_that_the_system_cannot_start_now_is_started_later_and_the_others_serve_on(
    digits_bundle: Path, start: Any
) -> None:
    with start(f"digits={digits_bundle}", "--workers", "2", "--no-grpc", "--drain-delay", "0") as server:
        parent = server.process.pid
        limits = resource.prlimit(parent, resource.RLIMIT_NOFILE)
        resource.prlimit(parent, resource.RLIMIT_NOFILE, (3, limits[1]))  # no pipe to a new process
        dead = min(workers_of(parent))
        os.kill(dead, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while not any("did not start" in line for line in list(server.log)):
            assert server.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert {server.call("GET", "/v2/health/ready")[0] for _ in range(8)} == {200}
        resource.prlimit(parent, resource.RLIMIT_NOFILE, limits)
        while len(workers_of(parent)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_sigterm_reaches_a_process_that_is_being_started(digits_bundle: Path) -> None:
    settings = Settings(port=0, grpc_port=None, workers=2, drain_delay=0, drain_timeout=0)
    held, settings = _hold_ports(settings)
    fleet = _Fleet([ModelSpec.parse(str(digits_bundle))], settings)
    start_one = fleet._spawn

    def spawn(served: Any) -> Any:
        worker = start_one(served)
        fleet.handle(signal.SIGTERM, None)  # before it has its place
        return worker

    fleet._spawn = spawn  # type: ignore[method-assign]
    began = time.monotonic()
    try:
        assert fleet.start(2) is None
        fleet.watch()
        assert time.monotonic() - began < 10
    finally:
        fleet.end()
        for holder in held:
            holder.close()


def test_the_end_loses_no_request(
    digits_bundle: Path, start: Any, tensor: np.ndarray, make_body: Any
) -> None:
    options = ("--workers", "2", "--drain-delay", "0.5", *PATIENT)
    body, headers = make_body(tensor[:1])
    with start(f"digits={digits_bundle}", *options) as server:
        pids = workers_of(server.process.pid)
        with Load(server, body, headers, CLIENTS) as clients:
            clients.wait_for(100)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 0
        assert set(clients.outcomes) == {200}, clients.outcomes
        assert not [pid for pid in pids if _command(pid)]


def test_a_port_in_use_is_said_though_ports_can_be_shared(digits_bundle: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = [sys.executable, "-m", "smash_export.cli", "serve", str(digits_bundle), "--port", port]
        done = subprocess.run([*words, "--workers", "2", "--no-grpc"], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"port {port}" in done.stderr


def test_grpc_is_shared_too(many: Any, tensor: np.ndarray) -> None:
    grpc = pytest.importorskip("grpc")
    from smash_export.server.messages import SERVICE, message

    before = numbers(many)
    data = grpc_infer(tensor[:1])
    for _ in range(8):
        with grpc.insecure_channel(
            many.addresses["grpc"], [("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            assert channel.unary_unary(f"/{SERVICE}/ModelInfer")(data, timeout=20)
    asked = message("ModelStatisticsRequest")(name="digits").SerializeToString()
    with grpc.insecure_channel(many.addresses["grpc"]) as channel:
        text = channel.unary_unary(f"/{SERVICE}/ModelStatistics")(asked, timeout=20)
    count = message("ModelStatisticsResponse").FromString(text).model_stats[0].inference_count
    assert count - before['smash_export_images_total{model="digits",version="1"}'] == 8
