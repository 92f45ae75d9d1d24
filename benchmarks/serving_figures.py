"""What clients, other servers and more processes do to the server: figures for docs/how-to/operate.md.

    python -m benchmarks.serving_figures    everything, about twelve minutes on an idle machine of two cores
    python -m benchmarks.serving_figures --only others --only workers    these; the others stay as recorded
    python -m benchmarks.serving_figures --quick    a little of each part, to see that it runs; no record

The load comes from the first core and the server runs on the others, except where two workers get both;
processor time is the server's own, of all its processes. Other servers are found where their packages are:
FastAPI beside this package, LitServe and MLServer in environments of their own (``--python litserve=PATH``):

    python -m venv litserve && litserve/bin/pip install litserve onnxruntime

They run the same file in ONNX Runtime with one thread and answer raw bytes where their protocol has them; the
notes of the goals say what they were sent.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import serving
from benchmarks.record import record
from benchmarks.serving import SHAPE, Client, Goal, cpu_seconds, drive, goal, make_bundle, request_bytes
from smash_export.measure import machine

CLIENTS = 32
_START_S = 60


CORES = sorted(os.sched_getaffinity(0))
LOAD_CORES = CORES[:1]
SERVER_CORES = CORES[1:] or CORES


@contextlib.contextmanager
def pinned(cores: list[int]) -> Iterator[None]:
    """This process, and what it starts, on these cores for the length of the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def family(pid: int) -> list[int]:
    """A process and everything that it started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += family(int(child))
    return found


def spent(pid: int) -> float:
    """Processor seconds of a process and of its children so far."""
    total = 0.0
    for member in family(pid):
        with contextlib.suppress(OSError):
            total += cpu_seconds(member)
    return total


@dataclass(frozen=True)
class Load:
    """One measurement.

    Attributes:
        rate: answers in a second.
        cpu_ms: the server's processor time for an answer, milliseconds.
        p50_ms, p99_ms: latency.
        statuses: how many of each.
    """

    rate: float
    cpu_ms: float
    p50_ms: float
    p99_ms: float
    statuses: dict[int, int]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "per_second": self.rate,
            "server_cpu_ms_per_answer": self.cpu_ms,
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
            "statuses": {str(status): count for status, count in self.statuses.items()},
        }


def measure(
    address: tuple[str, int], request: bytes, pid: int, seconds: float, clients: int = CLIENTS
) -> Load:
    """Kept connections that ask one after the other, after a warm-up."""
    drive(address, request, clients, max(0.5, seconds / 5))
    before = spent(pid)
    result = drive(address, request, clients, seconds)
    cpu = (spent(pid) - before) / max(1, result.statuses[200])
    return Load(
        result.rate, round(cpu * 1e3, 4), result.percentile(50), result.percentile(99), dict(result.statuses)
    )


FASTAPI = """
import sys
import numpy as np, onnxruntime, uvicorn
from fastapi import FastAPI, Request, Response
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
SHAPED = (-1, *map(int, sys.argv[3].split(",")))
app = FastAPI()
@app.post("/predict")
async def predict(request: Request) -> Response:
    tensor = np.frombuffer(await request.body(), np.float32).reshape(SHAPED)
    return Response(session.run(None, {"input": tensor})[0].tobytes(), media_type="application/octet-stream")
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), access_log=False, log_level="error")
"""
LITSERVE = """
import base64, sys
import numpy as np, onnxruntime
import litserve
SHAPED = (-1, *map(int, sys.argv[3].split(",")))
class Api(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    def decode_request(self, request):
        return np.frombuffer(base64.b64decode(request["tensor"]), np.float32).reshape(SHAPED)
    def predict(self, tensor):
        return self.session.run(None, {"input": tensor})[0]
    def encode_response(self, logits):
        return {"logits": base64.b64encode(logits.tobytes()).decode()}
if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="error", generate_client_file=False)
"""
MLSERVER = """
import numpy as np, onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
class Network(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"])
        return True
    async def predict(self, payload):
        tensor = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        logits = self.session.run(None, {"input": tensor})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("logits", logits)])
"""


def _post(path: str, body: bytes, kind: str) -> bytes:
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True)
class Other:
    """Another server.

    Attributes:
        module: that its Python must have.
        note: what it is sent.
        request: the bytes of one request.
        command: Python, folder, file of the network, shape of an image, port -> the command line.
    """

    module: str
    note: str
    request: Callable[[np.ndarray], bytes]
    command: Command


Command = Callable[[str, Path, Path, tuple[int, ...], int], list[str]]


def _script(text: str) -> Command:
    def command(python: str, folder: Path, onnx: Path, shape: tuple[int, ...], port: int) -> list[str]:
        path = folder / "app.py"
        path.write_text(text)
        return [python, str(path), str(onnx), str(port), ",".join(map(str, shape))]

    return command


def _mlserver(python: str, folder: Path, onnx: Path, shape: tuple[int, ...], port: int) -> list[str]:
    (folder / "network.py").write_text(MLSERVER)
    settings = {"name": "net", "implementation": "network.Network", "parameters": {"uri": str(onnx)}}
    (folder / "model-settings.json").write_text(json.dumps(settings))
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    quiet = {"parallel_workers": 0, "debug": False, "use_structured_logging": False}
    (folder / "settings.json").write_text(json.dumps({"host": "127.0.0.1", **ports, **quiet}))
    return [str(Path(python).with_name("mlserver")), "start", str(folder)]


def _as_json(tensor: np.ndarray) -> bytes:
    entry = {"name": "input", "datatype": "FP32", "shape": tensor.shape, "data": tensor.ravel().tolist()}
    return _post("/v2/models/net/infer", json.dumps({"inputs": [entry]}).encode(), "application/json")


OTHERS = {
    "FastAPI": Other(
        "fastapi",
        "raw bytes both ways, run inside the event loop",
        lambda tensor: _post("/predict", tensor.tobytes(), "application/octet-stream"),
        _script(FASTAPI),
    ),
    "LitServe": Other(
        "litserve",
        "base64 in JSON both ways: it has no raw bodies",
        lambda tensor: _post(
            "/predict",
            json.dumps({"tensor": base64.b64encode(tensor.tobytes()).decode()}).encode(),
            "application/json",
        ),
        _script(LITSERVE),
    ),
    "MLServer": Other("mlserver", "the same protocol with numbers in JSON", _as_json, _mlserver),
}


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def other_server(
    other: Other, python: str, onnx: Path, shape: tuple[int, ...]
) -> Iterator[tuple[tuple[str, int], int]]:
    """Another server with the same file: address and process."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = other.command(python, Path(folder), onnx, shape, port)
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": folder},
        )
        try:
            deadline = time.monotonic() + _START_S
            while not _answers(("127.0.0.1", port), other.request(np.zeros((1, *shape), np.float32))):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{other.module} did not start: {' '.join(command)}")
                time.sleep(0.2)
            yield ("127.0.0.1", port), process.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(address: tuple[str, int], request: bytes) -> bool:
    try:
        client = Client(address, request, 1)
    except OSError:
        return False
    outcome = client.run(count=1)
    client.close()
    return outcome.statuses[200] == 1


def others(
    bundles: dict[str, Path], quick: bool, pythons: dict[str, str]
) -> tuple[dict[str, Any], list[Goal]]:
    """32 clients, one image each: the server's processor time for an answer, ours and that of others, in
    turns so that none has the quieter machine. Ours with the longer queue, as none of the others refuses."""
    seconds, rounds = (0.5, 1) if quick else (3, 3)
    python = {name: pythons.get(name.lower(), sys.executable) for name in OTHERS}
    missing = {
        name: f"not installed in {Path(python[name]).name}"
        for name, other in OTHERS.items()
        if subprocess.run(
            [python[name], "-c", f"import {other.module}, onnxruntime"], capture_output=True
        ).returncode
    }
    rows, goals = {}, []
    for network, shape in COMPARED.items():
        bundle = bundles[network]
        tensor = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
        found: dict[str, list[Load]] = {"smash-export": []}
        found |= {name: [] for name in OTHERS if name not in missing}
        for _ in range(rounds):
            for name, loads in found.items():
                if name == "smash-export":
                    request, started = request_bytes(tensor), _ours(bundle, "--queue-size", "256")
                else:
                    request = OTHERS[name].request(tensor)
                    started = other_server(OTHERS[name], python[name], bundle / "model.onnx", shape)
                with pinned(SERVER_CORES), started as (address, pid), pinned(LOAD_CORES):
                    loads.append(measure(address, request, pid, seconds))
        rows[network] = {name: min(loads, key=_cpu_ms).to_json() for name, loads in found.items()}
        mine = min(map(_cpu_ms, found["smash-export"]))
        for name, other in OTHERS.items():
            what = f"processor time per request, {network}, {CLIENTS} clients, over that of {name}, same file"
            if name in missing:
                goals.append(goal(what, "<= 0.4x", None, None, missing[name]))
                continue
            ratio = round(mine / min(map(_cpu_ms, found[name])), 3)
            goals.append(goal(what, "<= 0.4x", ratio, ratio <= 0.4, other.note))
    return {"load": serving.load_generator(), "rows": rows, "rounds": rounds}, goals


def _cpu_ms(load: Load) -> float:
    return load.cpu_ms


COMPARED: dict[str, tuple[int, ...]] = {"small": SHAPE, "drawn 0": (1, 8, 8)}


@contextlib.contextmanager
def _ours(bundle: Path, *options: str) -> Iterator[tuple[tuple[str, int], int]]:
    with serving.served(bundle, *options) as server:
        yield server["address"], server["process"].pid


def workers(
    bundles: dict[str, Path], quick: bool, pythons: dict[str, str]
) -> tuple[dict[str, Any], list[Goal]]:
    """Two workers against one, in turns, everything on the same cores; a network whose run is most of a
    request, as the load needs its part of the two cores as well."""
    seconds, rounds = (0.5, 1) if quick else (5, 3)
    request = request_bytes(np.zeros((1, *SHAPE), np.float32))
    rates: dict[str, dict[int, list[float]]] = {}
    for name in ("small", "larger"):
        rates[name] = {1: [], 2: []}
        for _ in range(rounds):
            for count in (1, 2):
                with _ours(bundles[name], "--workers", str(count), "--queue-size", "256") as (address, pid):
                    rates[name][count].append(measure(address, request, pid, seconds).rate)
    factors = {name: round(max(row[2]) / max(row[1]), 2) for name, row in rates.items()}
    note = f"{len(CORES)} cores, shared with the load; small network {factors['small']}x"
    what = "throughput with 2 workers against 1, larger network"
    return {"per_second": rates, "factors": factors}, [
        goal(what, ">= 1.7x", factors["larger"], factors["larger"] >= 1.7, note)
    ]


def parsing(
    bundles: dict[str, Path], quick: bool, pythons: dict[str, str]
) -> tuple[dict[str, Any], list[Goal]]:
    """Numbers in JSON: json, orjson, and orjson by slices as the server does, processor time per byte."""
    import orjson

    from smash_export.server.protocol import parse_infer
    from smash_targets.base import ModelSignature

    values = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    entry = {"name": "input", "datatype": "FP32", "shape": values.shape, "data": values.ravel().tolist()}
    text = json.dumps({"inputs": [entry]}).encode()
    signature = ModelSignature("input", "logits", (3, 224, 224), 10, (1, 1, 32))
    ways: dict[str, Callable[[], object]] = {
        "json": lambda: np.array(json.loads(text)["inputs"][0]["data"], np.float32),
        "orjson": lambda: np.array(orjson.loads(text)["inputs"][0]["data"], np.float32),
        "the server": lambda: parse_infer(text, None, signature, 1),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(2 if quick else 15):
        for name, parse in ways.items():
            started = time.process_time()
            parse()
            times[name].append(time.process_time() - started)
    rows = {name: round(min(row) * 1e9 / len(text), 2) for name, row in times.items()}
    ratio = round(rows["the server"] / rows["json"], 2)
    return {"ns_per_byte": rows, "bytes": len(text)}, [
        goal(
            "numbers in JSON, time of the server over that of json", "<= 0.5x", ratio, ratio <= 0.5, str(rows)
        )
    ]


def fuzz(bundles: dict[str, Path], quick: bool, pythons: dict[str, str]) -> tuple[dict[str, Any], list[Goal]]:
    """Seeded nonsense over REST and gRPC: no fault of the server, flat memory, quick health."""
    count = 500 if quick else 50_000
    rows = {}
    with serving.served(bundles["small"]) as server:
        statm = Path(f"/proc/{server['process'].pid}/statm")

        def resident() -> float:
            return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

        for name, run in (("rest", _fuzz_rest), ("grpc", _fuzz_grpc)):
            run(server, count // 10, 1)  # what is kept once, such as compiled parts of Python, is there
            before = resident()
            with _health_probe(server["address"]) as longest:
                codes = run(server, count, 0)
            rows[name] = {
                "codes": codes,
                "grown_mib": round(resident() - before, 2),
                "longest_health_ms": round(longest.value * 1e3, 1),
            }
    wrong = sum(
        number
        for row in rows.values()
        for code, number in row["codes"].items()
        if code in ("500", "lost", "INTERNAL", "UNKNOWN")
    )
    grown = max(row["grown_mib"] for row in rows.values())
    health = max(row["longest_health_ms"] for row in rows.values())
    return {"requests": count, "rows": rows}, [
        goal(
            f"faults of the server over {count} fuzzed requests each, REST and gRPC", "0", wrong, wrong == 0
        ),
        goal("memory over them", "flat: <= 8 MiB", grown, grown <= 8),
        goal("longest health latency throughout", "<= 100 ms", health, health <= 100),
    ]


def _nonsense(draw: random.Random, good: bytes) -> bytes:
    """A body that is right, nearly right, or nothing."""
    kind = draw.randrange(6)
    if kind == 0:
        return good
    if kind == 1:
        return draw.randbytes(draw.randrange(200))
    data = bytearray(good)
    if kind == 2:
        return bytes(data[: draw.randrange(len(data))])
    for _ in range(draw.randrange(1, 8)):
        data[draw.randrange(min(len(data), 200 if kind == 3 else len(data)))] = draw.randrange(256)
    if kind == 5:
        place = draw.randrange(len(data))
        data[place:place] = draw.randbytes(draw.randrange(40))
    return bytes(data)


_PATHS = (
    "/v2/models/net/infer", "/v2/models/net/infer", "/v2/models/net/versions/1/infer", "/v1/predict",
    "/v2/repository/index", "/v2/models/net/versions/%00/infer", "/v2/models//infer", "/v2/models/net/ready",
    "/v1/predict?top_k=99999", "/v2/models/net/config", "/%ff", "/v2",
)  # fmt: skip


def _fuzz_rest(server: Any, count: int, seed: int) -> dict[str, int]:
    draw = random.Random(seed)
    good = request_bytes(np.zeros((1, *SHAPE), np.float32)).partition(b"\r\n\r\n")[2]
    head = str(len(good) - 4 * int(np.prod(SHAPE)))
    codes: Counter[str] = Counter()
    connection = http.client.HTTPConnection(*server["address"], timeout=30)
    for _ in range(count):
        headers = {}
        if draw.random() < 0.8:
            headers["Inference-Header-Content-Length"] = draw.choice([head, head, "0", "-1", "999999", "x"])
        if draw.random() < 0.2:
            name = draw.choice(
                ["Content-Encoding", "Content-Type", "Host", "Accept-Encoding", "X-Request-ID"]
            )
            headers[name] = draw.choice(["gzip", "deflate", "multipart/form-data; boundary=X", "a:b", "\x7f"])
        method = draw.choice(["POST", "POST", "POST", "POST", "GET", "PUT"])
        try:
            connection.request(method, draw.choice(_PATHS), _nonsense(draw, good), headers)
            answer = connection.getresponse()
            answer.read()
            codes[str(answer.status)] += 1
        except (OSError, http.client.HTTPException):
            codes["lost"] += 1
            connection.close()
    connection.close()
    return dict(codes)


def _fuzz_grpc(server: Any, count: int, seed: int) -> dict[str, int]:
    import grpc

    from smash_export.server.messages import METHODS, SERVICE, message

    asked = message("ModelInferRequest")(
        model_name="net", raw_input_contents=[np.zeros(SHAPE, np.float32).tobytes()]
    )
    asked.inputs.add(name="input", datatype="FP32", shape=[1, *SHAPE])
    good = asked.SerializeToString()
    codes: Counter[str] = Counter()
    lock = threading.Lock()
    names = [name for name in METHODS if "Repository" not in name]

    def work(part: int) -> None:
        draw = random.Random(seed * 100 + part)
        with grpc.insecure_channel(server["grpc"], [("grpc.use_local_subchannel_pool", 1)]) as channel:
            calls = [channel.unary_unary(f"/{SERVICE}/{name}") for name in names]
            infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            for _ in range(count // 4):
                call = infer if draw.random() < 0.7 else draw.choice(calls)
                try:
                    call(_nonsense(draw, good), timeout=30)
                    code = "OK"
                except grpc.RpcError as error:
                    code = error.code().name
                with lock:
                    codes[code] += 1

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(codes)


@contextlib.contextmanager
def _health_probe(address: tuple[str, int]) -> Iterator[Any]:
    """A process that asks for health all the time; ``value`` is the longest answer so far, seconds."""
    context = multiprocessing.get_context("fork")
    longest, stop = context.Value("d", 0.0), context.Event()

    def probe() -> None:
        while not stop.is_set():
            begun = time.perf_counter()
            connection = http.client.HTTPConnection(*address, timeout=30)
            connection.request("GET", "/v2/health/live")
            connection.getresponse().read()
            connection.close()
            longest.value = max(longest.value, time.perf_counter() - begun)
            time.sleep(0.01)

    process = context.Process(target=probe, daemon=True)
    process.start()
    try:
        yield longest
    finally:
        stop.set()
        process.join()


def _of_serving(part: Callable[..., tuple[dict[str, Any], list[Goal]]], **quickly: float) -> Any:
    """A part of the other benchmark, which this table has as well."""

    def run(
        bundles: dict[str, Path], quick: bool, pythons: dict[str, str]
    ) -> tuple[dict[str, Any], list[Goal]]:
        return part(bundles, **(quickly if quick else {}))

    return run


def profile(
    bundles: dict[str, Path], quick: bool, pythons: dict[str, str]
) -> tuple[dict[str, Any], list[Goal]]:
    """Where the time of a gRPC call goes: grpcio that does nothing, and the server's own parts."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    handler = grpc.stream_unary_rpc_method_handler(lambda messages, context: next(messages)[:0])
    empty = grpc.server(ThreadPoolExecutor(2))
    empty.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("nothing.Service", {"Call": handler})]
    )
    port = empty.add_insecure_port("127.0.0.1:0")
    empty.start()
    rows, goals = serving.overhead(bundles)
    payload = bytes(4 * int(np.prod(SHAPE)))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call, times = channel.unary_unary("/nothing.Service/Call"), []
        for _ in range(200 if quick else 2200):
            started = time.perf_counter()
            call(payload)
            times.append(time.perf_counter() - started)
    empty.stop(0)
    nothing = round(float(np.percentile(times[100:], 50)) * 1e3, 3)
    above = rows["p50_above_runtime_ms"]["grpc, prepared bytes"]
    wanted = [row for row in goals if row["what"].startswith("grpc, prepared")]
    what = f"{nothing} ms of it is grpcio in one process doing nothing with the same bytes"
    return {**rows, "grpcio_doing_nothing_ms": nothing}, [
        {**row, "value": above, "note": what} for row in wanted
    ]


PARTS = {
    "attacks": _of_serving(serving.attacks, seconds=0.3),
    "overload": _of_serving(serving.overload, seconds=1),
    "others": others,
    "workers": workers,
    "profile": profile,
    "parsing": parsing,
    "fuzz": fuzz,
}


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="Parts; all if none is named.")
@click.option("--quick", is_flag=True, help="See that it runs; nothing is recorded.")
@click.option(
    "--python", "pythons", multiple=True, metavar="NAME=PATH", help="Python that has litserve or mlserver."
)
def main(only: tuple[str, ...], quick: bool, pythons: tuple[str, ...]) -> None:
    """Measure, and write benchmarks/results/serving_figures.json."""
    known = {name: path for name, _, path in (text.partition("=") for text in pythons)}
    folder = Path(tempfile.mkdtemp(prefix="serving-"))
    results, goals = serving.recorded("serving_figures", () if quick else PARTS)
    try:
        bundles = {name: make_bundle(folder, name) for name in ("small", "larger", "drawn 0")}
        for name in only or PARTS:
            before, started = os.getloadavg()[0], time.time()
            serving.server_cores = [] if name == "workers" else SERVER_CORES
            with pinned(CORES if name == "workers" else LOAD_CORES):
                measured, goals[name] = PARTS[name](bundles, quick, known)
            results[name] = {
                "date": machine.now(),
                "load_average": [round(before, 2), round(os.getloadavg()[0], 2)],
                "took_seconds": round(time.time() - started),
                "goals": [row["what"] for row in goals[name]],
                **measured,
            }
            print(json.dumps({name: results[name], "goals": goals[name]}, indent=1), flush=True)
            if not quick:
                parts = [part for part in PARTS if part in results]
                everything = [row for part in parts for row in goals[part]]
                record("serving_figures", {part: results[part] for part in parts}, everything)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
