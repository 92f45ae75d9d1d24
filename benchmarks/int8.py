"""int8: is it judged rightly, and how fast is it against fp32 in the same runtime.

    python -m benchmarks.int8 [RUNTIME ...]
    python -m benchmarks.int8 --results int8_trained --bundle BUNDLE --bundle ...

Gates: 200 made files whose true loss of accuracy is known from a large population, each judged on a sample.
Speed: processor time of one thread at batch 1, files interleaved, so that the ratios bear a shared machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx

from benchmarks.record import record
from smash_base import files
from smash_base.errors import VerificationError
from smash_export.bundle.bundle import Bundle, CompiledFile
from smash_export.compiling.compile import compile_bundle
from smash_export.compiling.effort import Effort
from smash_export.compiling.precision.int8 import quantise_untrained, scheme_for
from smash_export.compiling.precision.placements import measured
from smash_export.device_search.latency import random_weights
from smash_export.export.onnx_graphs import prepared
from smash_export.export.onnx_writer import onnx_from_architecture
from smash_export.export.torch_program import export_program
from smash_export.measure.gates import GATES, accuracy_loss
from smash_export.measure.machine import cpu_features
from smash_search.model.interpreter import FrozenNetwork
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.known import PRESETS
from smash_search.space.space import space_for
from smash_targets.base import (
    CompileRequest,
    ModelSignature,
    Precision,
    Session,
    SessionOptions,
    Target,
    get_target,
)
from smash_targets.common import open_graph
from smash_targets.isolation.parent import IsolatedSession

TRAINED_ON = ("onnxruntime", "openvino", "ncnn", "mnn")
KNOWN = ("resnet-8", "resnet-20", "mobilenetv2")
DRAWS = 7
SPEC, CLASSES = InputSpec(3, (32, 32)), 10
SIGNATURE = ModelSignature("input", "logits", (3, 32, 32), CLASSES)
FILES = 200
POPULATION = 20_000
SAMPLES = (512, 2000)
ROUNDS = 60
WANTED_RUNTIMES = 6  # with a verified file of one network
LIMITS = {"litert": 0.4}  # the goal of int8 over fp32 where it is not 0.5
THREAD = SessionOptions(threads=1)
PRECISIONS: tuple[Precision, Precision] = ("fp32", "int8")


def population(images: int, separation: float, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, 10] of a made network whose probabilities are not calibrated, and true labels."""
    labels = draws.integers(0, 10, images)
    logits = draws.normal(0, 1.6, (images, 10))
    logits[np.arange(images), labels] += separation
    return logits * draws.uniform(0.7, 1.8), labels


def judged(images: int) -> dict[str, int]:
    """Right and wrong files over all made cases, and how many of them were judged wrongly.

    Right: the population loses at most half the limit. Wrong: it loses twice the limit or more.
    """
    limit = GATES["int8"].drop
    counts = {"right": 0, "right refused": 0, "wrong": 0, "wrong accepted": 0, "between": 0}
    for case in range(FILES):
        draws = np.random.default_rng([7, case])
        logits, labels = population(POPULATION, draws.uniform(2.5, 5), draws)
        size = logits.std()
        small = case % 2 == 0
        noise = draws.uniform(0.005, 0.05) if small else draws.uniform(0.05, 0.5)
        received = logits + draws.normal(0, noise * size, logits.shape)
        received[:, draws.integers(10)] += 0 if small else size * draws.uniform(0, 0.8)
        lost = 100 * ((logits.argmax(1) == labels).mean() - (received.argmax(1) == labels).mean())
        passed = accuracy_loss(logits[:images], received[:images], labels[:images]).keeps(limit)
        kind = "right" if lost <= limit / 2 else "wrong" if lost >= 2 * limit else "between"
        counts[kind] += 1
        counts["right refused"] += kind == "right" and not passed
        counts["wrong accepted"] += kind == "wrong" and passed
    return counts


def networks() -> dict[str, Architecture]:
    """Well-known networks and regular draws of the edge space, 5 to 40 million multiply-accumulates."""
    found = {name: PRESETS[name](2) for name in KNOWN}
    space = space_for(SPEC, "edge")
    for slot in itertools.count():
        if len(found) == len(KNOWN) + DRAWS:
            return found
        architecture = space.draw(11, slot)
        macs = cost_of(architecture, SPEC, CLASSES).macs / 1e6
        if 5 <= macs <= 40:
            found[f"draw {slot}, {macs:.0f} MMACs"] = architecture
    raise AssertionError


def speed(architecture: Architecture, runtime: str, folder: Path) -> dict[str, Any]:
    """Processor time of int8 over fp32, 15th percentiles of interleaved runs, and both in milliseconds.

    The int8 file has the form that ``compile`` chooses, with made-up ranges: they do not change the time.
    """
    target = get_target(runtime)
    weights = random_weights(architecture, SPEC, CLASSES)
    with ExitStack() as stack:
        facts: dict[str, Any] = {}
        if target.precision_source == "target":
            sessions = _converted(target, architecture, weights, folder)
        else:
            sessions, facts = _rounded(target, architecture, weights, folder)
        fp32, int8 = interleaved([stack.enter_context(session) for session in sessions])
    ratio = round(int8 / fp32, 3)
    return {"fp32_ms": round(fp32, 4), "int8_ms": round(int8, 4), "ratio": ratio, **facts}


def _rounded(
    target: Target, architecture: Architecture, weights: dict[str, np.ndarray], folder: Path
) -> tuple[list[Session], dict[str, Any]]:
    """Sessions at fp32 and int8 of a runtime that takes Q/DQ graphs, and the form that is the fastest."""
    exact = onnx.load_model_from_string(onnx_from_architecture(architecture, weights, SPEC))
    scheme = scheme_for(target.name, cpu_features())
    forms, times = measured(exact, scheme, target, SIGNATURE)
    graph = forms[0].graph(prepared(exact))
    quantised = quantise_untrained(graph, forms[0].scheme(scheme), forms[0].fp32_nodes(graph))
    models: dict[Precision, onnx.ModelProto] = {"fp32": exact, "int8": quantised}
    sessions = [
        open_graph(target, model.SerializeToString(), SIGNATURE, precision, THREAD, folder / precision)
        for precision, model in models.items()
    ]
    return sessions, {"placement": forms[0].name, "placements_ms": times}


def _converted(
    target: Target, architecture: Architecture, weights: dict[str, np.ndarray], folder: Path
) -> list[Session]:
    """Sessions at fp32 and int8 of a runtime that quantises by itself."""
    folder.mkdir(parents=True)
    source, program = folder / "model.onnx", folder / "model.pt2"
    source.write_bytes(onnx_from_architecture(architecture, weights, SPEC))
    if target.needs_torch_program:
        export_program(FrozenNetwork(architecture, weights).eval(), SIGNATURE, program)
    images = np.random.default_rng(0).standard_normal((64, *SIGNATURE.input_shape)).astype(np.float32)
    sessions = []
    for precision in PRECISIONS:
        destination = folder / precision
        destination.mkdir()
        request = CompileRequest(source, None, SIGNATURE, precision, images, torch_program=program)
        result = target.compile(request, destination)
        sessions.append(target.open(destination / result.main, SIGNATURE, THREAD))
    return sessions


def interleaved(sessions: list[Session], images: list[np.ndarray] | None = None) -> list[float]:
    """Milliseconds of processor time of each session for one image; each has its own, or all a random one."""
    drawn = np.random.default_rng(0).standard_normal((1, *SIGNATURE.input_shape)).astype(np.float32)
    images = images or [drawn] * len(sessions)
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for session, image, found in zip(sessions, images, times, strict=True):
            session.run(image)
            begin = time.process_time()
            for _ in range(3):
                session.run(image)
            found.append((time.process_time() - begin) / 3 * 1e3)
    return [float(np.percentile(found, 15)) for found in times]


def speeds(runtimes: list[str], most: int) -> dict[str, dict[str, Any]]:
    """Per runtime and network: :func:`speed`; of the first networks, at most so many."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        for runtime in runtimes:
            found[runtime] = {}
            for index, (network, architecture) in enumerate(itertools.islice(networks().items(), most)):
                found[runtime][network] = speed(architecture, runtime, Path(name) / runtime / str(index))
                print(runtime, network, found[runtime][network], flush=True)
    return found


def trained(path: Path, data: str, runtimes: list[str], effort: Effort) -> dict[str, Any]:
    """Every CPU runtime's int8 file of a bundle: accuracy lost on all test images, its time.

    Times are processor time as in :func:`speed`, beside frozen TorchScript at fp32; a runtime in a process of
    its own has none.
    """
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(path, Path(name) / "bundle")
        bundle = Bundle.open(Path(name) / "bundle")
        made: dict[str, dict[str, Any]] = {}
        opened = {"torchscript": session_of(compile_bundle(bundle, "torchscript", "fp32"), bundle)}
        for runtime in runtimes:
            try:
                file = compile_bundle(bundle, runtime, "int8", data=data, effort=effort)
            except VerificationError as error:
                made[runtime] = {"refused": str(error)}
                continue
            parity = file.evidence["parity"]
            places = {key: file.notes.get(key) for key in ("placement", "kept_fp32", "network", "tried")}
            facts = {"bytes": file.size, "accuracy": parity["accuracy"], "loss": parity["loss"]}
            made[runtime] = {**facts, **places}
            session = session_of(file, bundle)
            if not isinstance(session, IsolatedSession):  # its time is not this process's
                opened[runtime] = session
        times = dict(zip(opened, interleaved(list(opened.values())), strict=True))
        for runtime in opened:
            if runtime in made:
                made[runtime]["ms"] = round(times[runtime], 4)
        print(path.name, made, flush=True)
        return {"torchscript_ms": round(times["torchscript"], 4), "int8": made}


def kept(folder: Path | None, path: Path, data: str, runtimes: list[str], effort: Effort) -> dict[str, Any]:
    """:func:`trained`, or what an interrupted run measured."""
    if folder is None:
        return trained(path, data, runtimes, effort)
    file = folder / f"{path.name}.json"
    if not file.exists():
        files.write_json(file, trained(path, data, runtimes, effort))
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def session_of(file: CompiledFile, bundle: Bundle) -> Session:
    """A compiled file, opened for one thread."""
    return get_target(file.target).open(file.main, bundle.signature, SessionOptions(threads=1))


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runtimes", nargs="*", help="to time")
    parser.add_argument("--networks", type=int, default=len(KNOWN) + DRAWS, help="how many to time")
    parser.add_argument("--results", default="int8", help="name of the results; gates belong to int8")
    parser.add_argument("--bundle", action="append", type=Path, default=[], help="a trained 3x32x32 network")
    parser.add_argument("--compile-for", action="append", help="a runtime for --bundle")
    parser.add_argument("--effort", choices=("normal", "high"), default="high", help="for --bundle")
    parser.add_argument("--kept", type=Path, help="folder of what was measured of bundles, to go on from")
    parser.add_argument("--data", default="cifar10:data", help="its labelled images, for --bundle")
    arguments = parser.parse_args()
    gates = {str(images): judged(images) for images in SAMPLES} if arguments.results == "int8" else {}
    measured_speeds = speeds(arguments.runtimes, arguments.networks)
    goals: list[dict[str, Any]] = []
    for images, counts in gates.items():
        refused = counts["right refused"] / counts["right"]
        where = f"{FILES} made files judged on {images} images"
        goals += [
            _goal(
                f"{where}: right ones refused", "<= 5 %", f"{refused:.1%}", refused <= 0.05, counts["right"]
            ),
            _goal(
                f"{where}: wrong ones accepted",
                "0",
                counts["wrong accepted"],
                not counts["wrong accepted"],
                counts["wrong"],
            ),
        ]
    for runtime, found in measured_speeds.items():
        ratio = statistics.median(row["ratio"] for row in found.values())
        what = f"{runtime}: int8 over fp32, median of {len(found)} networks of 5 to 40 MMACs"
        limit = LIMITS.get(runtime, 0.5)
        goals.append(_goal(what, f"<= {limit}x", round(ratio, 3), ratio <= limit, None))
    compiled_for = arguments.compile_for or list(TRAINED_ON)
    bundles = {
        path.name: kept(arguments.kept, path, arguments.data, compiled_for, arguments.effort)
        for path in arguments.bundle
    }
    goals += _trained_goals(bundles) + _runtimes_goal(bundles, len(compiled_for))
    parts = {"gates": gates, "speed": measured_speeds, "trained": bundles}
    record(arguments.results, {name: part for name, part in parts.items() if part}, goals)


def _trained_goals(bundles: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    files = [file for bundle in bundles.values() for file in bundle["int8"].values() if "loss" in file]
    if not files:
        return []
    lost = [file["loss"]["points"] for file in files]
    refused = sum("refused" in file for bundle in bundles.values() for file in bundle["int8"].values())
    which = (
        f"{len(files)} int8 files of {len(bundles)} trained networks on all test images, {refused} refused"
    )
    faster = [
        bundle["torchscript_ms"] / min(file["ms"] for file in bundle["int8"].values() if "ms" in file)
        for bundle in bundles.values()
    ]
    times = "times as fast as frozen TorchScript at fp32, fastest int8 file, smallest of the networks"
    median, worst, count = statistics.median(lost), max(lost), len(files)
    return [
        _goal(f"{which}: points lost, median", "<= 0.2", round(median, 3), median <= 0.2, count),
        _goal(f"{which}: points lost, worst", "<= 0.7", round(worst, 3), worst <= 0.7, count),
        _goal(times, ">= 8x", round(min(faster), 2), min(faster) >= 8, None),
    ]


def _runtimes_goal(bundles: dict[str, dict[str, Any]], asked: int) -> list[dict[str, Any]]:
    if asked < WANTED_RUNTIMES or not bundles:
        return []
    fewest = min(sum("loss" in file for file in bundle["int8"].values()) for bundle in bundles.values())
    what = f"runtimes with a verified int8 file of one network, of {asked}"
    goal = f">= {WANTED_RUNTIMES}"
    return [_goal(what, goal, fewest, fewest >= WANTED_RUNTIMES, None) | {"note": "each by its own gate"}]


def _goal(what: str, goal: str, value: float | str, met: bool, files: int | None) -> dict[str, Any]:
    shared = "processor time, interleaved; the machine was shared"
    return {
        "what": what,
        "goal": goal,
        "value": value,
        "met": met,
        "note": f"of {files}" if files else shared,
    }


if __name__ == "__main__":
    main()
