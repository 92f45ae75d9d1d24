"""The server's figures: overhead over the runtime, batching, overload, exchange, drain, memory, packages.

    python -m benchmarks.serving            everything, about seven minutes on an idle machine
    python -m benchmarks.serving --only overhead --only batching     these; the others stay as recorded

One server process; the clients run on the same machine and share its cores. Four networks with random
weights:

    small       3 x 32 x 32, three convolutions, 2.9 million MACs: the processor is busy with one image
    larger      about 40 times that, for the overload: ten times what a server can take of the small one is
                more than a client on the same two cores can send
    drawn 0, 3  1 x 8 x 8, two draws of this project's space for small digits, 98 and 220 nodes: most of a
                run's time is the price of the nodes, not of the images

Batching can bring at most what the runtime gains from a batch; that is measured beside it. Clients: "lean"
ones send prepared bytes and read as little as they must, so that the server's time is what is seen;
NVIDIA's tritonclient is measured beside them.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import multiprocessing
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.record import RESULTS, record
from smash_base.preprocess import Preprocessing
from smash_export.bundle.bundle import Samples, write_bundle
from smash_export.measure import machine
from smash_export.prediction.classifier import load
from smash_targets.base import ModelSignature

SHAPE = (3, 32, 32)
NETWORKS = {"small": ((16, 1), (32, 2), (64, 2)), "larger": ((64, 1), (64, 1), (64, 1), (64, 2))}
BUNDLES = (*NETWORKS, "drawn 0", "drawn 3")
Goal = dict[str, Any]
server_cores: list[int] = []  # where servers run; anywhere if empty


def make_bundle(folder: Path, name: str) -> Path:
    """One of the networks at the head of this module."""
    if name.startswith("drawn"):
        shape, onnx = (1, 8, 8), drawn_network(int(name.rpartition(" ")[2]))
    else:
        shape, onnx = SHAPE, plain_network(name)
    return _write(folder / name.replace(" ", "-"), shape, onnx)


def drawn_network(slot: int) -> bytes:
    """A draw of the small space, as ``smash-export freeze`` writes it, with random weights."""
    from smash_export.device_search.latency import random_weights
    from smash_export.export.onnx_writer import onnx_from_architecture
    from smash_search.space.architecture import InputSpec
    from smash_search.space.space import space_for

    spec = InputSpec(1, (8, 8))
    architecture = space_for(spec, "small").draw(7, slot)
    return onnx_from_architecture(architecture, random_weights(architecture, spec, 10), spec)


def plain_network(name: str) -> bytes:
    """A network of 3 x 3 convolutions with random weights."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes, weights, last, channels = [], [], "input", SHAPE[0]
    for index, (units, stride) in enumerate(NETWORKS[name]):
        values = random.normal(0, (2 / (9 * channels)) ** 0.5, (units, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{index}"))
        settings: dict[str, Any] = {"pads": [1, 1, 1, 1], "strides": [stride, stride], "kernel_shape": [3, 3]}
        nodes.append(helper.make_node("Conv", [last, f"w{index}"], [f"c{index}"], **settings))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        last, channels = f"r{index}", units
    weights.append(numpy_helper.from_array(random.normal(size=(10, channels)).astype(np.float32), "head"))
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def _write(folder: Path, shape: tuple[int, int, int], onnx: bytes) -> Path:
    import onnxruntime

    channels, height, width = shape
    preprocessing = Preprocessing(height, width, channels, (0.5,) * channels, (0.5,) * channels)
    images = np.random.default_rng(0).integers(0, 256, (64, height, width, channels), dtype=np.uint8)
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": preprocessing.normalise(images)})
    return write_bundle(
        folder,
        onnx=onnx,
        torchscript=None,
        architecture=None,
        weights=None,
        labels=[f"class {number}" for number in range(10)],
        preprocessing=preprocessing,
        signature=ModelSignature("input", "logits", shape, 10, (1, 1, 32)),
        samples=Samples(images, logits.argmax(1).astype(np.int64), logits),
        calibration=None,
        provenance={"weights": "random"},
    ).path


@contextlib.contextmanager
def served(bundle: Path, *options: str) -> Iterator[dict[str, Any]]:
    """A server process: its addresses, its process."""
    command = [sys.executable, "-m", "smash_export.cli", "serve", f"net={bundle}", "--json", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--grpc-port", "0", "--threads", "1", "--log-level", "error", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=(lambda: os.sched_setaffinity(0, server_cores)) if server_cores else None,
    )
    assert process.stdout is not None
    text = ""
    try:
        for line in process.stdout:
            text += line
            with contextlib.suppress(ValueError):
                addresses = json.loads(text)
                break
        else:
            raise SystemExit("the server did not start")
        host, _, port = addresses["http"].partition("://")[2].rpartition(":")
        yield {"address": (host, int(port)), "grpc": addresses["grpc"], "process": process}
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()


def request_bytes(tensor: np.ndarray) -> bytes:
    """A whole binary infer request."""
    entry = {
        "name": "input",
        "datatype": "FP32",
        "shape": list(tensor.shape),
        "parameters": {"binary_data_size": tensor.nbytes},
    }
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    lines = (
        "POST /v2/models/net/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Length: {len(head) + tensor.nbytes}\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\n\r\n"
    )
    return lines.encode() + head + tensor.tobytes()


@dataclass
class Outcome:
    """What clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)  # of the accepted, seconds
    lost: int = 0
    sent: int = 0
    seconds: float = 0.0
    before: Outcome | None = None  # what was sent before the load was steady, and does not count
    after: int = 0  # requests that were sent when the measurement was over

    def percentile(self, which: float) -> float:
        """Milliseconds."""
        return round(float(np.percentile(self.latencies, which)) * 1e3, 3) if self.latencies else 0.0

    @property
    def rate(self) -> float:
        """Accepted requests in a second."""
        return round(self.statuses[200] / self.seconds, 1)


class Client:
    """Many kept connections in one thread.

    Args:
        address: Address of the server.
        request: bytes to send.
        connections: how many.
        rate: requests in a second, sent on time whatever the answers do (as far as connections are free);
            None sends the next one when the last one is answered.
    """

    def __init__(
        self, address: tuple[str, int], request: bytes, connections: int, rate: float | None = None
    ) -> None:
        self._request, self._rate = request, rate
        self._selector = selectors.DefaultSelector()
        self._idle: list[socket.socket] = []
        self._sent: dict[socket.socket, float] = {}
        self._parts: dict[socket.socket, bytes] = {}
        self.outcome = Outcome()
        for _ in range(connections):
            made = socket.create_connection(address)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(made, selectors.EVENT_READ)
            self._idle.append(made)

    def run(self, seconds: float = 1e9, count: int = 10**9, stop: threading.Event | None = None) -> Outcome:
        """Send until the time is over or ``count`` requests are sent; then wait for what is missing."""
        started = time.perf_counter()
        result = self.outcome
        while True:
            now = time.perf_counter()
            over = now - started > seconds or result.sent >= count or (stop is not None and stop.is_set())
            if over and not self._sent:
                break
            if over and now - started > seconds + 30:
                result.lost += len(self._sent)
                break
            if not over:
                due = len(self._idle)
                if self._rate is not None:
                    due = min(due, int((now - started) * self._rate) - result.sent)
                for _ in range(min(due, count - result.sent)):
                    self._send(self._idle.pop(), now)
            if not self._idle and not self._sent:
                break  # the server closed every connection
            for key, _ in self._selector.select(0.0005 if self._rate else 0.05):
                self._receive(key.fileobj)  # type: ignore[arg-type]
        result.seconds = time.perf_counter() - started
        return result

    def _send(self, connection: socket.socket, now: float) -> None:
        self._sent[connection] = now
        self._parts[connection] = b""
        self.outcome.sent += 1
        try:
            connection.sendall(self._request)
        except OSError:
            self._end(connection)

    def _receive(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._end(connection)
            return
        data = self._parts.get(connection, b"") + data
        self._parts[connection] = data
        head, mark, body = data.partition(b"\r\n\r\n")
        if not mark or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        status = int(data[9:12])
        self.outcome.statuses[status] += 1
        began = self._sent.pop(connection)
        if status == 200:
            self.outcome.latencies.append(time.perf_counter() - began)
        if b"connection: close" in head.lower():
            self._end(connection)
        else:
            self._idle.append(connection)

    def _end(self, connection: socket.socket) -> None:
        if self._sent.pop(connection, None) is not None:
            self.outcome.lost += 1
        elif connection in self._idle:
            self._idle.remove(connection)
        self._selector.unregister(connection)
        connection.close()

    def close(self) -> None:
        """Close what is open."""
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()


def drive(
    address: tuple[str, int],
    request: bytes,
    clients: int,
    seconds: float,
    rate: float | None = None,
    settle: float = 0.0,
) -> Outcome:
    """Kept connections that send for some seconds, by h2load where it is installed, else by :class:`Client`.

    Args:
        address: Address of the server.
        request: bytes to send.
        clients: how many connections.
        seconds: how long.
        rate: requests in a second of all of them, as far as connections are free; None for all they can.
        settle: seconds before, which do not count.
    """
    if load_generator() == _PYTHON:
        client = Client(address, request, clients, rate)
        before = client.run(seconds=settle) if settle else None
        client.outcome = Outcome(before=before)
        result = client.run(seconds=seconds)
        client.close()
        return result
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    # Clients of one process send in step with each other. Those of several do so by chance, if they are not
    # started one after the other, within the time between two requests of a client.
    parts = 1 if rate is None else min(_PROCESSES, clients)
    gap = 0.0 if rate is None else clients / rate * (1 + 1 / parts)
    lasts = settle + seconds + gap * parts + _SLACK_S * bool(settle)
    words = ["h2load", "--h1", "-t", "1", "-c", str(clients // parts), "-D", f"{round(lasts * 1e3)}ms"]
    words += [] if rate is None else [f"--rps={rate / clients:.3f}"]
    for line in lines:
        if not line.lower().startswith(("host:", "content-length:")):
            words += ["-H", line]
    url = f"http://{address[0]}:{address[1]}{first.split()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "body")
        data.write_bytes(body)
        logs = [Path(folder, f"log{part}") for part in range(parts)]
        running = []
        for log in logs:
            command = [*words, "-d", str(data), f"--log-file={log}", url]
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            time.sleep(gap)
        told = [process.communicate(timeout=lasts + 60)[0] for process in running]
        return _read_logs(logs, told, seconds, settle)


def _read_logs(logs: list[Path], told: list[str], seconds: float, settle: float) -> Outcome:
    """What h2load saw: status and latency of each answer, and requests that got none but were not cut off by
    the end of the measurement. With time to settle, what was sent within ``seconds`` after that; it begins
    when all of them send."""
    parts = [np.loadtxt(log, np.int64, ndmin=2) for log in logs]
    rows = np.concatenate(parts)
    lost = sum(int(count) for text in told for count in re.findall(r"(\d+) (?:errored|timeout)", text))
    if not settle:
        return _outcome(rows, seconds, lost)
    begin = max(part[:, 0].min() for part in parts) + settle * 1e6
    early, late = rows[:, 0] < begin, rows[:, 0] >= begin + seconds * 1e6
    result = _outcome(rows[~(early | late)], seconds, lost)
    result.before, result.after = _outcome(rows[early], settle, 0), int(late.sum())
    return result


def _outcome(rows: np.ndarray, seconds: float, lost: int) -> Outcome:
    statuses = Counter(rows[:, 1].tolist())
    latencies = rows[rows[:, 1] == 200, 2] / 1e6
    return Outcome(statuses, latencies.tolist(), lost, len(rows), seconds)


_SLACK_S = 0.3  # for processes to start
_PROCESSES = 16
_PYTHON = (
    "a client in Python: its own time is part of what it measures; h2load (Debian: nghttp2-client) is exact"
)


@functools.cache
def load_generator() -> str:
    """What sends the requests."""
    if shutil.which("h2load") is None:
        return _PYTHON
    return subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def goal(what: str, wanted: str, value: Any, met: bool | None, note: str = "") -> Goal:
    """One row of the goals."""
    return {"what": what, "goal": wanted, "value": value, "met": met, "note": note}


def overhead(bundles: dict[str, Path]) -> tuple[dict[str, Any], list[Goal]]:
    """One client: p50 of REST and gRPC above the runtime's own, measured in turns."""
    import grpc
    import tritonclient.grpc as triton_grpc
    import tritonclient.http as triton_http

    from smash_export.server.messages import SERVICE, message

    tensor = np.random.default_rng(1).normal(size=(1, *SHAPE)).astype(np.float32)
    with served(bundles["small"]) as server, load(bundles["small"], threads=1) as classifier:
        host, port = server["address"]
        rest = triton_http.InferenceServerClient(f"{host}:{port}")
        triton = triton_grpc.InferenceServerClient(server["grpc"])
        rest_input = triton_http.InferInput("input", list(tensor.shape), "FP32")
        rest_input.set_data_from_numpy(tensor)
        grpc_input = triton_grpc.InferInput("input", list(tensor.shape), "FP32")
        grpc_input.set_data_from_numpy(tensor)
        plain = http.client.HTTPConnection(host, port)
        request = request_bytes(tensor)
        body = request.partition(b"\r\n\r\n")[2]
        headers = {"Inference-Header-Content-Length": str(len(body) - tensor.nbytes)}
        raw = socket.create_connection((host, port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.sendall(request)
        size = len(_read_answer(raw))
        asked = message("ModelInferRequest")(model_name="net", raw_input_contents=[tensor.tobytes()])
        asked.inputs.add(name="input", datatype="FP32", shape=tensor.shape)
        encoded = asked.SerializeToString()
        channel = grpc.insecure_channel(server["grpc"])
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")  # bytes to bytes

        def by_http_client() -> None:
            plain.request("POST", "/v2/models/net/infer", body, headers)
            plain.getresponse().read()

        def by_socket() -> None:
            raw.sendall(request)
            got = 0
            while got < size - 8:  # the number in the request's id may have grown by a few digits
                got += len(raw.recv(65536))

        ways = {
            "runtime": lambda: classifier.logits(tensor),
            "rest, raw socket": by_socket,
            "rest, http.client": by_http_client,
            "rest, tritonclient": lambda: rest.infer("net", [rest_input]),
            "grpc, prepared bytes": lambda: infer(encoded),
            "grpc, tritonclient": lambda: triton.infer("net", [grpc_input]),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(110):
            for name, call in ways.items():
                for _ in range(20):
                    started = time.perf_counter()
                    call()
                    if turn >= 10:
                        times[name].append(time.perf_counter() - started)
        raw.close()
        plain.close()
        channel.close()
    rows = {
        name: {
            f"p{which}_ms": round(float(np.percentile(values, which)) * 1e3, 4) for which in (10, 50, 90, 99)
        }
        for name, values in times.items()
    }
    base = rows["runtime"]["p50_ms"]
    above = {name: round(row["p50_ms"] - base, 3) for name, row in rows.items() if name != "runtime"}
    goals = []
    for way, limit in (
        ("rest, raw socket", 0.7),
        ("rest, tritonclient", 0.7),
        ("grpc, prepared bytes", 0.6),
        ("grpc, tritonclient", 0.6),
    ):
        what = f"{way}: one client, p50 over the runtime's own"
        goals.append(goal(what, f"<= {limit} ms", above[way], above[way] <= limit, "client's time included"))
    return {"times": rows, "p50_above_runtime_ms": above, "n": len(times["runtime"])}, goals


def _read_answer(connection: socket.socket) -> bytes:
    data = b""
    while True:
        data += connection.recv(65536)
        head, mark, body = data.partition(b"\r\n\r\n")
        if mark and len(body) >= int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]):
            return data


def batching(bundles: dict[str, Path]) -> tuple[dict[str, Any], list[Goal]]:
    """32 clients: the measured batch against batch 1 in the same server; and what the runtime gains."""
    rows: dict[str, Any] = {}
    for name in ("small", "drawn 0", "drawn 3"):
        tensor = np.zeros((1, *(SHAPE if name == "small" else (1, 8, 8))), np.float32)
        row: dict[str, Any] = {}
        for label, options in (("batch 1", ["--max-batch", "1"]), ("dynamic", [])):
            with served(bundles[name], "--queue-size", "256", *options) as server:
                connection = http.client.HTTPConnection(*server["address"])
                connection.request("GET", "/v1/models")
                sizes = json.loads(connection.getresponse().read())["models"][0]["batching"]
                connection.close()
                client = Client(server["address"], request_bytes(tensor), 32)
                client.run(seconds=1)
                client.outcome = Outcome()
                result = client.run(seconds=6)
                client.close()
            row[label] = {
                "max_batch": sizes["max_batch"],
                "per_second": result.rate,
                "p50_ms": result.percentile(50),
                "p99_ms": result.percentile(99),
                "statuses": dict(result.statuses),
            }
            row["runtime_images_per_second"] = sizes["images_per_second"]
        row["factor"] = round(row["dynamic"]["per_second"] / row["batch 1"]["per_second"], 2)
        speeds = row["runtime_images_per_second"]
        row["runtime_factor"] = round(max(speeds.values()) / speeds["1"], 2)
        rows[name] = row
    best = max(rows, key=lambda name: float(rows[name]["factor"]))
    note = "; ".join(
        f"{name}: {row['factor']}x, the runtime alone {row['runtime_factor']}x" for name, row in rows.items()
    )
    factor = rows[best]["factor"]
    return rows, [
        goal("throughput, 32 clients, dynamic batching against batch 1", ">= 3x", factor, factor >= 3, note)
    ]


def overload(bundles: dict[str, Path], seconds: float = 20) -> tuple[dict[str, Any], list[Goal]]:
    """Far more than the server can take, with its own choice of batch and queue: ten times of the larger
    network, and of the fastest as much as 256 clients send that never wait. Lasting overload: a burst at an
    idle server may fill its queue, so the first second is told by itself."""
    slow = _overloaded(bundles["larger"], SHAPE, seconds, 10)
    fast = _overloaded(bundles["drawn 0"], (1, 8, 8), seconds, None)
    goals = []
    for name, row in (("larger", slow), ("drawn 0, 256 clients", fast)):
        ratio, clean = row["p99_over_unloaded_p99"], set(row["statuses"]) <= {200, 503} and not row["lost"]
        found = f"{row['statuses']}, lost {row['lost']}"
        goals.append(goal(f"answers under overload, {name}", "every one 200 or 503, none lost", found, clean))
        first = row["while_it_began"]["accepted_p99_ms"]
        note = (
            f"from the second second on; p99 of the first {first:.0f} ms, of all {row['whole_p99_ms']:.2g} ms"
        )
        what = f"p99 of the accepted under overload, {name}"
        goals.append(goal(what, "<= 5x unloaded p99", ratio, ratio <= 5, note))
    return {"larger": slow, "fast": fast}, goals


def _overloaded(
    bundle: Path, shape: tuple[int, int, int], seconds: float, times: float | None
) -> dict[str, Any]:
    request = request_bytes(np.zeros((1, *shape), np.float32))
    with served(bundle) as server:
        address, pid = server["address"], server["process"].pid
        drive(address, request, 1, 1)
        alone = drive(address, request, 1, seconds * 0.4)
        capacity = drive(address, request, 3, seconds / 4).rate
        used = cpu_seconds(pid)
        result = drive(address, request, 256, seconds, times and times * capacity, settle=min(1.0, seconds))
        used = cpu_seconds(pid) - used
    assert result.before is not None
    answers = result.before.sent + result.sent + result.after
    return {
        "load": load_generator(),
        "unloaded": {"p50_ms": alone.percentile(50), "p99_ms": alone.percentile(99)},
        "capacity_per_second": capacity,
        "offered_per_second": round(result.sent / result.seconds, 1),
        "seconds": round(result.seconds, 1),
        "statuses": dict(result.statuses),
        "lost": result.lost,
        "server_cpu_ms_per_answer": round(used / max(1, answers) * 1e3, 4),
        "accepted": {"p50_ms": result.percentile(50), "p99_ms": result.percentile(99)},
        "whole_p99_ms": Outcome(latencies=[*result.before.latencies, *result.latencies]).percentile(99),
        "accepted_over_capacity": round(result.rate / capacity, 3),
        "while_it_began": {
            "seconds": result.before.seconds,
            "statuses": dict(result.before.statuses),
            "accepted_p99_ms": result.before.percentile(99),
        },
        "p99_over_unloaded_p99": round(result.percentile(99) / alone.percentile(99), 2),
        "p99_over_unloaded_p50": round(result.percentile(99) / alone.percentile(50), 2),
    }


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def attacks(bundles: dict[str, Path], seconds: float = 4) -> tuple[dict[str, Any], list[Goal]]:
    """Health, beside each attack of one client, and what the attack holds in memory."""
    live = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n"
    infer = b"POST /v2/models/net/infer HTTP/1.1\r\nHost: localhost\r\n"
    numbers = b",".join([b"0.1234567890123456"] * 64 * 256)
    text = b'{"inputs":[{"name":"input","datatype":"FP32","shape":[256,1,8,8],"data":[' + numbers + b"]}]}"
    poison = request_bytes(np.full((1, 1, 8, 8), 1e38, np.float32))
    # Connections, what each sends at first and then again and again, and seconds between.
    plans: dict[str, tuple[int, bytes, bytes, float]] = {
        "none": (0, b"", b"", 1),
        "idle connections": (1100, b"", b"", 1),
        "bodies that nobody reads": (1100, live + b"Content-Length: 100000\r\n\r\n", b"a", 1),
        "endless header": (4, live + b"X: ", b"a" * 65536, 0.01),
        "pipelined, unread": (4, live + b"\r\n", (live + b"\r\n") * 200, 0.01),
        "largest JSON": (2, b"", infer + b"Content-Length: %d\r\n\r\n" % len(text) + text, 0.01),
        "poison": (4, b"", poison, 0.01),
    }
    rows = {}
    for name, plan in plans.items():
        with served(bundles["drawn 0"]) as server:
            rows[name] = _attacked(server, *plan, seconds)
    worst = max(row["longest_health_ms"] for name, row in rows.items() if name != "none")
    memory_mib = max(row["grown_mib"] for name, row in rows.items())
    quiet = rows["none"]["longest_health_ms"]
    failed = _honest_beside_poison(bundles["drawn 0"], poison)
    return {"rows": rows, "honest_beside_poison": failed}, [
        goal(
            "longest health latency under each attack",
            "<= 100 ms",
            worst,
            worst <= 100,
            f"without attack, on the same busy machine: {quiet} ms",
        ),
        goal(
            "memory that an attack holds", "<= 16 MiB a connection", memory_mib, memory_mib <= 16, "MiB, all"
        ),
        goal(
            "honest requests that fail beside 4 poisoning clients",
            "0",
            failed["failed"],
            failed["failed"] == 0,
            f"of {failed['honest']}, {failed['busy']} of them refused as busy",
        ),
    ]


def _attacked(
    server: Any, count: int, first: bytes, again: bytes, pause: float, seconds: float
) -> dict[str, float]:
    """The attacker is a process of its own, so that it does not hold up the probe."""
    statm = Path(f"/proc/{server['process'].pid}/statm")
    before = int(statm.read_text().split()[1])
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    arguments = (server["address"], count, first, again, pause, ready)
    attacker = context.Process(target=_attack, args=arguments, daemon=True)
    attacker.start()
    assert ready.wait(120)
    longest, asked, started, peak = 0.0, 0, time.perf_counter(), before
    while time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        probe = http.client.HTTPConnection(*server["address"], timeout=30)
        probe.request("GET", "/v2/health/live")
        assert probe.getresponse().status == 200
        probe.close()
        longest, asked = max(longest, time.perf_counter() - begun), asked + 1
        peak = max(peak, int(statm.read_text().split()[1]))
        time.sleep(0.005)
    attacker.kill()
    attacker.join()
    grown = (peak - before) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return {"longest_health_ms": round(longest * 1e3, 1), "probes": asked, "grown_mib": round(grown, 1)}


def _attack(
    address: tuple[str, int], count: int, first: bytes, again: bytes, pause: float, ready: Any
) -> None:
    connections = []
    for _ in range(count):
        made = socket.create_connection(address)
        made.settimeout(0.001)
        with contextlib.suppress(OSError):
            made.sendall(first)
        connections.append(made)
    ready.set()
    while True:
        for connection in connections if again else ():
            with contextlib.suppress(OSError):
                connection.send(again)
        time.sleep(pause)


def _honest_beside_poison(bundle: Path, poison: bytes, count: int = 2400) -> dict[str, int]:
    request = request_bytes(np.zeros((1, 1, 8, 8), np.float32))
    with served(bundle) as server:
        bad, good = Client(server["address"], poison, 4), Client(server["address"], request, 16)
        stop = threading.Event()
        thread = threading.Thread(target=bad.run, kwargs={"stop": stop})
        thread.start()
        outcome = good.run(count=count)
        stop.set()
        thread.join()
        good.close()
        bad.close()
    statuses = outcome.statuses
    failed = sum(number for status, number in statuses.items() if status not in (200, 503)) + outcome.lost
    return {"honest": count, "failed": failed, "busy": statuses[503], "poison_400": bad.outcome.statuses[400]}


def lifecycle(bundles: dict[str, Path]) -> tuple[dict[str, Any], list[Goal]]:
    """Exchanges, then SIGTERM, with 16 clients asking all the time."""
    request = request_bytes(np.zeros((1, *SHAPE), np.float32))
    with served(bundles["small"]) as server:
        stop = threading.Event()
        client = Client(server["address"], request, 16)
        thread = threading.Thread(target=client.run, kwargs={"stop": stop})
        thread.start()
        exchanges = []
        for _ in range(10):
            time.sleep(0.3)
            started = time.perf_counter()
            connection = http.client.HTTPConnection(*server["address"])
            connection.request("POST", "/v2/repository/models/net/load")
            exchanges.append(connection.getresponse().status)
            connection.close()
            seconds = time.perf_counter() - started
        stop.set()
        thread.join()
        exchange = client.outcome
        client.close()
        client = Client(server["address"], request, 16)
        thread = threading.Thread(target=client.run)
        thread.start()
        time.sleep(2)
        server["process"].send_signal(signal.SIGTERM)
        thread.join(60)
        code = server["process"].wait(30)
        ended = client.outcome
    good = exchanges == [200] * 10 and set(exchange.statuses) == {200} and exchange.lost == 0
    drained = set(ended.statuses) == {200} and ended.lost == 0 and code == 0
    return {
        "exchanges": len(exchanges),
        "last_exchange_seconds": round(seconds, 3),
        "exchange_statuses": dict(exchange.statuses),
        "exchange_lost": exchange.lost,
        "sigterm_statuses": dict(ended.statuses),
        "sigterm_lost": ended.lost,
        "exit_code": code,
    }, [
        goal(
            "exchange of a bundle under load, 10 times",
            "no failed request",
            f"{dict(exchange.statuses)}, lost {exchange.lost}",
            good,
        ),
        goal(
            "SIGTERM under load",
            "no failed request",
            f"{dict(ended.statuses)}, lost {ended.lost}",
            drained,
        ),
    ]


def memory(bundles: dict[str, Path], count: int = 100_000) -> tuple[dict[str, Any], list[Goal]]:
    """Resident memory of the server over 100,000 requests, after a warm-up of 5,000."""
    request = request_bytes(np.zeros((1, *SHAPE), np.float32))
    with served(bundles["small"]) as server:
        statm = Path(f"/proc/{server['process'].pid}/statm")

        def resident() -> float:
            return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

        client = Client(server["address"], request, 16)
        client.run(count=5000)
        marks = [resident()]
        for step in range(1, 11):
            client.run(count=5000 + step * count // 10)
            client.outcome.latencies.clear()
            marks.append(resident())
        result = client.outcome
        client.close()
    grown = round(marks[-1] - marks[0], 2)
    return {"resident_mib": [round(mark, 2) for mark in marks], "statuses": dict(result.statuses)}, [
        goal("resident memory over 100,000 requests", "grows < 5 MB", f"{grown} MiB", grown < 4.77)
    ]


def packages(bundles: dict[str, Path]) -> tuple[dict[str, Any], list[Goal]]:
    """What pip would install for the server beyond the runtime."""
    root = Path(__file__).resolve().parents[1]

    def would_install(extras: str) -> set[str]:
        with tempfile.NamedTemporaryFile(suffix=".json") as report:
            command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "-qq"]
            command += ["--report", report.name, f"{root}[{extras}]"]
            subprocess.run(command, check=True, capture_output=True)
            items = json.loads(Path(report.name).read_text())["install"]
        return {item["metadata"]["name"].lower() for item in items}

    runtime = would_install("cpu")
    server = sorted(would_install("cpu,serve") - runtime)
    both = sorted(would_install("cpu,serve,grpc") - runtime)
    return {"runtime": sorted(runtime), "serve": server, "serve_and_grpc": both}, [
        goal(
            "packages of the server beyond the runtime",
            "<= 12",
            len(both),
            len(both) <= 12,
            f"HTTP and gRPC; {len(server)} for HTTP alone",
        )
    ]


def loadgen(bundles: dict[str, Path]) -> tuple[dict[str, Any], list[Goal]]:
    """MLPerf LoadGen's Server scenario over HTTP: Poisson arrivals, p99 within 20 ms, for 10 s."""
    import queue

    import mlperf_loadgen as lg

    tensor = np.zeros((1, *SHAPE), np.float32)
    body = request_bytes(tensor).partition(b"\r\n\r\n")[2]
    headers = {"Inference-Header-Content-Length": str(len(body) - tensor.nbytes)}
    rows = {}
    for qps in (250, 500, 1000):
        with served(bundles["small"]) as server:
            waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
            address = server["address"]

            def work(address: tuple[str, int] = address, waiting: queue.SimpleQueue[Any] = waiting) -> None:
                connection = http.client.HTTPConnection(*address)
                while (sample := waiting.get()) is not None:
                    connection.request("POST", "/v2/models/net/infer", body, headers)
                    answer = connection.getresponse()
                    answer.read()
                    if answer.status == 200:
                        lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0)])
                connection.close()

            def issue(samples: list[Any], waiting: queue.SimpleQueue[Any] = waiting) -> None:
                for sample in samples:
                    waiting.put(sample)

            threads = [threading.Thread(target=work, daemon=True) for _ in range(16)]
            for thread in threads:
                thread.start()
            settings = lg.TestSettings()
            settings.scenario = lg.TestScenario.Server
            settings.mode = lg.TestMode.PerformanceOnly
            settings.server_target_qps = qps
            settings.server_target_latency_ns = 20_000_000
            settings.min_duration_ms = 10_000
            settings.min_query_count = 100
            with tempfile.TemporaryDirectory() as folder:
                logs = lg.LogSettings()
                logs.log_output.outdir = folder
                logs.enable_trace = False
                sut = lg.ConstructSUT(issue, lambda: None)
                library = lg.ConstructQSL(64, 64, lambda samples: None, lambda samples: None)
                lg.StartTestWithLogSettings(sut, library, settings, logs)
                lg.DestroyQSL(library)
                lg.DestroySUT(sut)
                summary = (Path(folder) / "mlperf_log_summary.txt").read_text()
            for _ in threads:
                waiting.put(None)
            wanted = ("Completed samples per second", "Result is", "50.00 percentile", "99.00 percentile")
            found = (line.partition(":") for line in summary.splitlines())
            rows[f"{qps} per second"] = {
                key.strip(): value.strip() for key, _, value in found if key.strip().startswith(wanted)
            }
    valid = {name: row.get("Result is") for name, row in rows.items()}
    return {"rows": rows}, [
        goal(
            "LoadGen's Server scenario over HTTP, p99 within 20 ms (MLPerf-style)",
            "VALID",
            str(valid),
            any(value == "VALID" for value in valid.values()),
        )
    ]


PARTS = {
    "packages": packages,
    "overhead": overhead,
    "batching": batching,
    "overload": overload,
    "attacks": attacks,
    "lifecycle": lifecycle,
    "memory": memory,
    "loadgen": loadgen,
}


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="Keep the others as recorded.")
def main(only: tuple[str, ...]) -> None:
    """Measure and write benchmarks/results/serving.json."""
    results, goals = recorded("serving", PARTS)
    folder = Path(tempfile.mkdtemp(prefix="serving-"))
    try:
        bundles = {name: make_bundle(folder, name) for name in BUNDLES}
        for name in only or PARTS:
            before, started = os.getloadavg()[0], time.time()
            measured, goals[name] = PARTS[name](bundles)
            results[name] = {
                "date": machine.now(),
                "load_average": [round(before, 2), round(os.getloadavg()[0], 2)],
                "took_seconds": round(time.time() - started),
                "goals": [row["what"] for row in goals[name]],
                **measured,
            }
            print(json.dumps({name: results[name], "goals": goals[name]}, indent=1), flush=True)
            parts = [part for part in PARTS if part in results]
            everything = [row for part in parts for row in goals[part]]
            record("serving", {part: results[part] for part in parts}, everything)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def recorded(name: str, parts: Iterable[str]) -> tuple[dict[str, Any], dict[str, list[Goal]]]:
    """Parts of a benchmark that were measured before, and their goals."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return {}, {}
    document = json.loads(path.read_text())
    results = {part: document["results"][part] for part in parts if part in document["results"]}
    by_name = {row["what"]: row for row in document["goals"]}
    return results, {part: [by_name[what] for what in row["goals"]] for part, row in results.items()}


if __name__ == "__main__":
    main()
