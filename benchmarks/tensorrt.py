"""TensorRT on a GPU, all of it: engines by Python and by trtexec, parity, latency, reloads, refusals.

    python -m benchmarks.tensorrt [BUNDLE] [--seconds 2]     on a machine with a GPU, under 8 minutes
    python -m benchmarks.tensorrt --out tensorrt.json        writes the figures there, records nothing
    python -m benchmarks.tensorrt --from tensorrt.json       record what another machine measured
    python -m benchmarks.tensorrt --plan                     states the goals as not measured; needs no GPU

Without a bundle a network of the search's own space is trained on scikit-learn's digits. Each part runs when
what it needs is here: PyTorch with CUDA, ONNX Runtime's CUDA or TensorRT provider, TensorRT, trtexec. On a
machine with PyTorch, numpy, Pillow and a copy of this repository, and nothing else, a network with random
weights is measured in PyTorch, the reference of the goals; the figures then go to --out or the screen. With
neither a GPU nor TensorRT the exit code is 3.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smash_base.errors import SmashError
from smash_base.files import write_json
from smash_export.measure.timing import interleaved
from smash_targets.base import Session, SessionInfo, SessionOptions, get_target
from smash_targets.common import has_module
from smash_targets.tensorrt.session import TensorRtSession
from smash_targets.tensorrt.trtexec import RELEASES, Release, bench_words
from smash_targets.tensorrt.trtexec_results import read_log, read_times

if TYPE_CHECKING:  # needs packages that a machine with PyTorch alone does not have
    from smash_export.bundle.bundle import Bundle
    from smash_export.deploy.trtexec import ScriptSettings
    from smash_search.space.architecture import Architecture

BATCHES = (1, 8, 32)
PACKAGES = ("click", "rich", "pydantic", "onnx", "onnxruntime", "safetensors", "sklearn")
PRECISIONS = ("fp32", "fp16", "int8")
NOT_HERE = "no machine with a GPU and TensorRT was at hand"


class TorchSession(Session):
    """The network in PyTorch: batch to the device, forward, logits back."""

    def __init__(self, network: Any, device: str, half: bool) -> None:
        import torch

        self._torch, self._device = torch, device
        self._type = torch.float16 if half else torch.float32
        self._network = network
        self.info = SessionInfo("torch", torch.__version__, "eager", device, 0, "fp16" if half else "fp32")

    def run(self, batch: np.ndarray) -> np.ndarray:
        with self._torch.inference_mode():
            logits = self._network(self._torch.from_numpy(batch).to(self._device, self._type))
            return logits.float().cpu().numpy()


def torch_sessions(bundle: Bundle, device: str) -> dict[str, TorchSession]:
    """Of a bundle's own network; an adopted file has none."""
    architecture, weights = bundle.architecture, bundle.weights()
    if architecture is None or weights is None:
        return {}
    return sessions_of(architecture, weights, device)


def sessions_of(
    architecture: Architecture, weights: dict[str, np.ndarray], device: str
) -> dict[str, TorchSession]:
    """Eager and compiled PyTorch in half precision, and eager in single."""
    import torch

    from smash_search.model.interpreter import FrozenNetwork

    def network(half: bool) -> Any:
        found = FrozenNetwork(architecture, weights).eval().to(device)
        return found.half() if half else found

    found = {
        "torch eager fp32": TorchSession(network(False), device, False),
        "torch eager fp16": TorchSession(network(True), device, True),
    }
    if device != "cpu":  # there it needs a C++ compiler, and minutes
        compiled = torch.compile(network(True), mode="reduce-overhead")
        found["torch.compile fp16"] = TorchSession(compiled, device, True)
    return found


def onnxruntime_sessions(
    bundle: Bundle, provider: str, work: Path, problems: list[str]
) -> dict[str, Session]:
    """ONNX Runtime on a GPU provider at each precision; what does not open is noted."""
    from smash_export.deploy.trtexec import graph_for_tensorrt

    found: dict[str, Session] = {}
    for precision in PRECISIONS:
        folder = work / f"{provider}-{precision}"
        folder.mkdir()
        try:
            onnx, _ = graph_for_tensorrt(bundle, precision, folder)
            options = SessionOptions(provider=provider)
            session = get_target("onnxruntime").open(onnx, bundle.signature, options)
        except SmashError as error:
            problems.append(f"ONNX Runtime {provider} {precision}: {error}")
            continue
        found[f"onnxruntime {provider} {precision}"] = session
    return found


def build_engines(path: Path, problems: list[str]) -> tuple[dict[str, Any], dict[str, Session]]:
    """Each precision built twice, the second time with a warm timing cache, opened and held to its gates."""
    from smash_export.bundle.bundle import Bundle
    from smash_export.compiling.compile import compile_bundle

    facts: dict[str, Any] = {}
    sessions: dict[str, Session] = {}
    for precision in PRECISIONS:
        try:
            seconds = []
            for _ in range(2):
                begin = time.monotonic()
                file = compile_bundle(path, "tensorrt", precision, {"batch": [1, 8, 32]})
                seconds.append(time.monotonic() - begin)
            begin = time.monotonic()
            opened = Bundle.open(path)
            session = get_target("tensorrt").open(file.folder / file.main, opened.signature, SessionOptions())
            reload_seconds = time.monotonic() - begin
        except SmashError as error:
            problems.append(f"tensorrt {precision}: {error}")
            continue
        facts[precision] = {
            "build_s": seconds[0],
            "rebuild_s": seconds[1],
            "reload_s": reload_seconds,
            "layers": file.notes["layers"],
            "parity": file.evidence["parity"],
        }
        sessions[f"tensorrt {precision}"] = session
    return facts, sessions


def refusals(path: Path) -> dict[str, bool]:
    """Whether an engine of another TensorRT version, GPU or network is refused before TensorRT sees it."""
    from smash_export.bundle.bundle import Bundle

    opened = Bundle.open(path)
    file = next(file for file in opened.compiled if file.target == "tensorrt")
    changes = {
        "version": {"tensorrt": "9.9.9"},
        "gpu": {"compute_capability": "5.0"},
        "file": {"engine_sha256": "0"},
    }
    found = {}
    for name, change in changes.items():
        with tempfile.TemporaryDirectory() as work:
            folder = Path(shutil.copytree(file.folder, Path(work) / "engine"))
            sidecar = folder / f"{file.main}.json"
            sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **change}))
            try:
                get_target("tensorrt").open(folder / file.main, opened.signature, SessionOptions()).close()
                found[name] = False
            except SmashError as error:
                found[name] = "smash-export compile" in str(error)
    return found


def gpu_times(sessions: dict[str, Session], seconds: float) -> dict[str, float]:
    """Milliseconds that the GPU computes one image in each TensorRT session, between two CUDA events.

    Nothing is copied in between: what trtexec calls GPU compute time. Needs PyTorch's CUDA.
    """
    import torch

    found = {}
    for name, session in sessions.items():
        if not isinstance(session, TensorRtSession):
            continue
        run, number = session.compute(1)
        stream = torch.cuda.ExternalStream(number)
        times: list[float] = []
        end = time.monotonic() + seconds
        while len(times) < 20 or time.monotonic() < end:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record(stream)
            run()
            last.record(stream)
            last.synchronize()
            times.append(first.elapsed_time(last))
        found[name] = float(np.median(times[10:]))
    return found


def run_trtexec(path: Path, program: str, problems: list[str]) -> dict[str, Any]:
    """The bundle's own scripts: build, measure at each batch size, check every test image."""
    from smash_export.bundle.bundle import Bundle
    from smash_export.deploy.trtexec import ScriptSettings, write_scripts

    number = trtexec_release(program)
    if number is None:
        problems.append(f"trtexec: {program} is of no release that is known; 8.6, 10 and 11 are")
        return {}
    found: dict[str, Any] = {}
    for precision in PRECISIONS:
        settings = ScriptSettings(release=number, batches=BATCHES, images=256)
        file, _ = write_scripts(Bundle.open(path), precision, settings)
        with tempfile.TemporaryDirectory() as work:
            folder = Path(shutil.copytree(file.folder, Path(work) / "scripts"))
            for script in ("build_engine.sh", "bench_engine.sh", "check_engine.sh"):
                done = subprocess.run(
                    ["sh", folder / script],
                    env={**os.environ, "TRTEXEC": program},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    problems.append(f"trtexec {precision} {script}: {done.stderr.strip()[-300:]}")
                    break
            else:
                found[precision] = {
                    "compute_p50_ms": {
                        size: float(
                            np.median(
                                read_times((folder / f"bench_b{size}.times.json").read_text())["computeMs"]
                            )
                        )
                        for size in BATCHES
                    },
                    "latency_p50_ms": _with_transfers(path, folder, program, precision, settings, problems),
                    "version": read_log((folder / "bench_b1.log").read_text()).version,
                    "check": done.stdout.strip().splitlines()[-2:],
                }
    return found


def _with_transfers(
    path: Path, folder: Path, program: str, precision: str, settings: ScriptSettings, problems: list[str]
) -> float | None:
    """Median latency of one image with its copies to and from the GPU, which a session pays too."""
    from smash_export.bundle.bundle import Bundle
    from smash_export.deploy.trtexec import engine_command

    command = engine_command(Bundle.open(path), precision, settings)
    words = bench_words(command, 1, inputs="input_b1.bin", results="transfers", transfers=True)
    done = subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        problems.append(f"trtexec {precision} with transfers: {done.stderr.strip()[-300:]}")
        return None
    return float(np.median(read_times((folder / "transfers.times.json").read_text())["latencyMs"]))


def trtexec_release(program: str) -> Release | None:
    """The release that a trtexec is of; None for one that no lines are written for."""
    done = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    major, _, rest = read_log(done.stdout).version.partition(".")
    release = "8.6" if major == "8" and rest.startswith("6") else major
    return next((known for known in RELEASES if known == release), None)


def goals_of(results: dict[str, Any], note: str = NOT_HERE) -> list[dict[str, Any]]:
    """The goals, each met, missed or not measured."""

    def value(*keys: Any) -> Any:
        found: Any = results
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    goals: list[dict[str, Any]] = []

    def goal(what: str, limit: float, number: float | None, unit: str = "") -> None:
        met = None if number is None else number <= limit
        shown = "" if number is None else round(number, 4)
        goals.append(
            {
                "what": what,
                "goal": f"<= {limit:g}{unit}",
                "value": shown,
                "met": met,
                "note": note if met is None else "",
            }
        )

    eager = value("latency", "1", "torch eager fp16", "p50_ms")
    for precision, limit in (("fp16", 0.5), ("int8", 0.4)):
        own = value("latency", "1", f"tensorrt {precision}", "p50_ms")
        goal(f"{precision} engine over torch eager fp16, batch 1", limit, _ratio(own, eager))
    for precision, limit in (("fp16", 0.1), ("int8", 0.5)):
        drop = value("engines", precision, "parity", "drop")
        goal(f"{precision} engine: accuracy lost", limit, drop, " points")
    pairs = {
        "GPU time of the Python session over trtexec's, fp16, batch 1": (
            value("gpu_ms", "tensorrt fp16"),
            value("trtexec", "fp16", "compute_p50_ms", 1),
        ),
        "Python session over trtexec with transfers, fp16, batch 1": (
            value("latency", "1", "tensorrt fp16", "p50_ms"),
            value("trtexec", "fp16", "latency_p50_ms"),
        ),
    }
    for what, (own, trtexec) in pairs.items():
        goal(what, 1.05, _ratio(own, trtexec))
    first, again = value("engines", "fp16", "build_s"), value("engines", "fp16", "rebuild_s")
    goal("rebuild with a warm timing cache over the first build", 0.3, _ratio(again, first))
    return goals


def _ratio(value: float | None, other: float | None) -> float | None:
    return value / other if value and other else None


def measure(bundle: Bundle, sessions: dict[str, Session], seconds: float) -> dict[str, Any]:
    """Parity on all test images and latency by batch size, in turns."""
    from smash_export.measure.verify import measure_parity

    samples = bundle.samples()
    parities: dict[str, Any] = {}
    for name, session in sessions.items():
        parity = measure_parity(session, samples, bundle.preprocessing, bundle.signature.batch)
        parities[name] = {key: parity.to_json()[key] for key in ("agreement", "drop", "max_difference")}
    images = bundle.preprocessing.normalise(samples.images[np.arange(max(BATCHES)) % len(samples)])
    return {"parity": parities, "latency": latencies(sessions, images, seconds)}


def latencies(sessions: dict[str, Session], images: np.ndarray, seconds: float) -> dict[str, Any]:
    """Batch size -> session -> latency, measured in turns; ``images``: float32 [B, C, H, W]."""
    found: dict[str, Any] = {}
    for size in BATCHES:
        batch = np.ascontiguousarray(images[:size], np.float32)
        runs = {name: (session, batch) for name, session in sessions.items()}
        measured = interleaved(runs, seconds=seconds) if runs else {}
        found[str(size)] = {name: latency.to_json() for name, latency in measured.items()}
    return found


def run_bare(device: str, seconds: float, missing: list[str]) -> dict[str, Any]:
    """What PyTorch alone can measure: a drawn network with random weights, on noise."""
    from smash_export.device_search.latency import random_weights
    from smash_search.space.architecture import InputSpec
    from smash_search.space.space import space_for

    spec = InputSpec(1, (8, 8)) if device == "cpu" else InputSpec(3, (32, 32))  # toy size for the tests
    architecture = space_for(spec).draw(0, 0)
    sessions: dict[str, Session] = {
        **sessions_of(architecture, random_weights(architecture, spec, 10), device)
    }
    images = np.random.default_rng(0).standard_normal(
        (max(BATCHES), spec.channels, *spec.size), dtype=np.float32
    )
    return {
        "network": "drawn, random weights",
        "latency": latencies(sessions, images, seconds),
        "problems": [
            f"engines and files need {', '.join(missing)}: pip install 'smash-export[search,cpu,tensorrt]'"
        ],
    }


def here() -> dict[str, str]:
    """Part -> "" where it can run here, else why not."""
    parts: dict[str, Callable[[], str]] = {
        "torch": _torch_cuda,
        "onnxruntime cuda": lambda: _provider("CUDAExecutionProvider"),
        "onnxruntime tensorrt": lambda: _provider("TensorrtExecutionProvider"),
        "tensorrt": lambda: get_target("tensorrt").availability().reason,
        "trtexec": lambda: "" if trtexec_program() else "not found; set TRTEXEC=/path/to/trtexec",
    }
    return {name: reason() for name, reason in parts.items()}


def trtexec_program() -> str | None:
    """Path of trtexec, from ``TRTEXEC``, the search path or where JetPack puts it."""
    wanted = os.environ.get("TRTEXEC", "trtexec")
    return shutil.which(wanted) or shutil.which("/usr/src/tensorrt/bin/trtexec")


def _torch_cuda() -> str:
    import torch

    return "" if torch.cuda.is_available() else "PyTorch finds no CUDA device"


def _provider(name: str) -> str:
    try:
        import onnxruntime
    except ImportError:
        return "ONNX Runtime is not installed"

    return "" if name in onnxruntime.get_available_providers() else f"ONNX Runtime has no {name}"


def missing_packages() -> list[str]:
    """What bundles and files need and this machine lacks."""
    return [name for name in PACKAGES if not has_module(name)]


def make_bundle(folder: Path) -> Path:
    """A network of the search's own space, trained on scikit-learn's digits for a few epochs."""
    from smash_export.export.freeze import freeze, input_of
    from smash_search.data import load_dataset
    from smash_search.space.best import BestFile
    from smash_search.space.space import space_for
    from smash_search.train.network import Recipe

    dataset = load_dataset("digits")
    spec = input_of(dataset)
    best = BestFile(space_for(spec).draw(0, 0), spec, tuple(dataset.classes))
    return freeze(best, dataset, folder / "digits", recipe=Recipe(epochs=8)).bundle.path


def run(source: Path | None, seconds: float, parts: dict[str, str]) -> dict[str, Any]:
    """Every part that can run, on a copy of the bundle."""
    from smash_export.bundle.bundle import Bundle

    problems: list[str] = []
    results: dict[str, Any] = {"parts": parts, "problems": problems}
    with tempfile.TemporaryDirectory(prefix="tensorrt-") as name:
        work = Path(name)
        path = Path(shutil.copytree(source, work / "bundle")) if source else make_bundle(work)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")  # the first build must find no timings
        bundle = Bundle.open(path)
        sessions: dict[str, Session] = {}
        if not parts["torch"]:
            sessions |= torch_sessions(bundle, "cuda:0")
        for provider in ("cuda", "tensorrt"):
            if not parts[f"onnxruntime {provider}"]:
                sessions |= onnxruntime_sessions(bundle, provider, work, problems)
        if not parts["tensorrt"]:
            results["engines"], engines = build_engines(path, problems)
            sessions |= engines
            if engines:
                results["refusals"] = refusals(path)
        results |= measure(bundle, sessions, seconds)
        if not (parts["torch"] or parts["tensorrt"]):
            results["gpu_ms"] = gpu_times(sessions, seconds)
        for session in sessions.values():
            session.close()
        program = trtexec_program()
        if program:
            results["trtexec"] = run_trtexec(path, program, problems)
    return results


def main() -> int:
    """Run what can run here, print a table, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each session at each batch size")
    parser.add_argument("--device", default="cuda:0", help="of PyTorch on a machine with PyTorch alone")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON instead of recording them")
    parser.add_argument("--from", dest="source", type=Path, help="record these figures")
    parser.add_argument("--plan", action="store_true", help="record the goals as not measured")
    arguments = parser.parse_args()
    if arguments.plan:
        return _record({"status": "not measured", "why": NOT_HERE})
    if arguments.source:
        return _record(json.loads(arguments.source.read_text()))
    parts = here()
    missing = missing_packages()
    if arguments.device == "cuda:0" and all(parts.values()):
        print(f"nothing to measure: no GPU and no TensorRT here ({parts['tensorrt']})", file=sys.stderr)
        return 3
    begin = time.monotonic()
    if missing:
        results = {"parts": parts, **run_bare(arguments.device, arguments.seconds, missing)}
    else:
        results = run(arguments.bundle, arguments.seconds, parts)
    results["seconds"] = round(time.monotonic() - begin, 1)
    for problem in results["problems"]:
        print(problem, file=sys.stderr)
    if arguments.out:
        write_json(arguments.out, results)
    elif missing:
        print(json.dumps(results, indent=2))
    else:
        _show(results)
        return _record(results)
    return 0


def _show(results: dict[str, Any]) -> None:
    from smash_export.progress import Output

    for size, measured in results["latency"].items():
        rows = [
            [name, item["min_ms"], item["p50_ms"], item["p90_ms"], item["n"]]
            for name, item in measured.items()
        ]
        Output().table(f"batch {size}", ["session", "min ms", "p50", "p90", "n"], rows)


def _record(results: dict[str, Any]) -> int:
    from benchmarks.record import record

    parts: dict[str, str] = results.get("parts", {})
    missing = ", ".join(f"{part}: {reason}" for part, reason in parts.items() if reason)
    note = (missing or "not measured") if parts else NOT_HERE
    record("tensorrt", results, goals_of(results, note))
    return 0


if __name__ == "__main__":
    sys.exit(main())
