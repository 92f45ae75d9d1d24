"""NVIDIA's own builder and parser, without a GPU: ``make target-tensorrt-rtx`` brings them.

Engines are built, not opened: that needs a card. Without the environment all of it is skipped with the
command.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from smash_base.errors import InvalidInputError, MissingRuntimeError, SmashError
from smash_export.device_search.latency import Setting, candidate_graph
from smash_search.space.architecture import InputSpec
from smash_search.space.space import space_for
from smash_targets.base import CompileRequest, ModelSignature, SessionOptions, get_target
from smash_targets.tensorrt import builder as building
from smash_targets.tensorrt.check import check_onnx
from smash_targets.tensorrt.cuda import Gpu
from smash_targets.tensorrt.logs import create, listen
from smash_targets.tensorrt.operators import ASKED, REFUSED, SUPPORTED
from smash_targets.tensorrt.rtx import build_without_gpu, import_tensorrt_rtx
from smash_targets.tensorrt.settings import BuildSettings
from tests.deploy_targets.tensorrt.test_check import RULES, graph

ROOT = Path(__file__).resolve().parents[3]
GPU = Gpu("none", "0.0", "12.9", "none")
# Images and voxels, in the space that their size chooses and in that for edge devices.
SPACES = ((InputSpec(1, (8, 8)), None), (InputSpec(3, (12, 12)), "edge"), (InputSpec(1, (4, 6, 6)), None))
NETWORKS = 40
# Cases of ONNX's own tests whose shapes alone decide, which check does not weigh.
SHAPES_DECIDE = {"test_matmul_1d_3d"}


@pytest.fixture(scope="session")
def trt() -> Iterator[Any]:
    folders = sorted(ROOT.glob(".venv-tensorrt-rtx/lib/python*/site-packages"))
    path = list(sys.path)
    sys.path += map(str, folders)  # behind what is installed here: the wheels need nothing else of theirs
    try:
        yield import_tensorrt_rtx()
    except MissingRuntimeError:
        pytest.skip("TensorRT for RTX is not here: make target-tensorrt-rtx")
    finally:
        sys.path[:] = path


def signature_of(spec: InputSpec) -> ModelSignature:
    return ModelSignature("input", "logits", (spec.channels, *spec.size), 10, (1, 8, 32))


def settings(**values: Any) -> BuildSettings:
    return BuildSettings(**{"batch": (1, 8, 32), "timing_cache": False, **values})


def request_for(path: Path, precision: str = "fp32", spec: InputSpec = SPACES[0][0]) -> CompileRequest:
    return CompileRequest(path, None, signature_of(spec), precision)  # type: ignore[arg-type]


def write(folder: Path, slot: int, precision: str) -> CompileRequest:
    spec, name = SPACES[slot % len(SPACES)]
    path = folder / f"{slot}-{precision}.onnx"
    path.write_bytes(
        candidate_graph(space_for(spec, name).draw(19, slot), spec, 10, Setting("tensorrt", precision))
    )
    return request_for(path, precision, spec)


@pytest.mark.slow
@pytest.mark.parametrize("slot", range(NETWORKS))
def test_random_networks_are_built_at_each_precision(trt: Any, tmp_path: Path, slot: int) -> None:
    """And no node of them is refused, or unknown, to ``check``."""
    for precision in ("fp32", "fp16", "int8"):
        request = write(tmp_path, slot, precision)
        plan, notes = building.build(trt, request, settings(), GPU)
        assert len(plan) > 100_000
        assert notes["profile"] == "batch 1 to 32, tuned for 8"
        verdicts = check_onnx(request.onnx, "rtx")
        assert [v for v in verdicts if v.level == "error" or "unknown" in v.reason] == []


def test_progress_is_told_to_the_last_step(trt: Any, tmp_path: Path) -> None:
    request = write(tmp_path, 0, "fp16")
    told: list[tuple[str, int, int]] = []
    building.build(trt, request, settings(), GPU, lambda *step: told.append(step))
    assert told[0][1] == 0
    assert told[-1][1] == told[-1][2] > 1


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_timings_are_kept_and_a_cache_that_is_none_is_replaced(
    trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    request = write(tmp_path, 0, "fp32")
    building.build(trt, request, settings(timing_cache=True), GPU)
    (cache,) = (tmp_path / "cache").rglob("*.timing")
    assert cache.stat().st_size > 0
    cache.write_bytes(b"no cache")
    building.build(trt, request, settings(timing_cache=True), GPU)
    assert cache.stat().st_size > len(b"no cache")


def test_every_refused_node_is_named_with_its_place_and_reason(trt: Any, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["input"], ["a"], name="blocks.0.ops.1.convs.0"),
        helper.make_node("Det", ["a"], ["b"], name="blocks.1.ops.2.convs.0"),
        helper.make_node("MaxPool", ["a"], ["logits"], name="p", kernel_shape=[2, 2], dilations=[2, 2]),
    ]
    path = tmp_path / "bad.onnx"
    path.write_bytes(graph(nodes, shape=("batch", 1, 8, 8)).SerializeToString())
    for _ in range(2):  # the first logger of the process serves the second build too
        with pytest.raises(InvalidInputError, match="parser refuses") as caught:
            building.build(trt, request_for(path), settings(), GPU)
        text = str(caught.value)
        assert "Det blocks.1.ops.2.convs.0 (block 1, operation 2, convolution 0): the parser does not" in text
        assert "MaxPool p: " in text
        assert "does not support dilations other than 1" in text
    path.write_bytes(b"no network")
    with pytest.raises(InvalidInputError, match="parse the ONNX model"):
        building.build(trt, request_for(path), settings(), GPU)


def test_profiles_that_do_not_fit_the_network_are_refused(trt: Any, tmp_path: Path) -> None:
    request = write(tmp_path, 0, "fp32")
    with pytest.raises(SmashError, match="profile"):
        building.build(trt, request, settings(batch=(8, 4, 2)), GPU)
    for change, text in (
        ({"input_shape": (1, 9, 9)}, "shape of the input"),
        ({"input_name": "image"}, "inputs of the network"),
    ):
        other = dataclasses.replace(request, signature=dataclasses.replace(request.signature, **change))
        with pytest.raises(InvalidInputError, match=text):
            building.build(trt, other, settings(), GPU)
    fixed = tmp_path / "fixed.onnx"
    fixed.write_bytes(
        graph([helper.make_node("Relu", ["input"], ["logits"])], shape=(4, 1, 8, 8)).SerializeToString()
    )
    with pytest.raises(SmashError, match="fixed batch"):
        building.build(trt, request_for(fixed), settings(), GPU)
    assert building.build(trt, request_for(fixed), settings(batch=(4, 4, 4)), GPU)[1]["profile"].startswith(
        "fixed shape"
    )


def test_one_logger_serves_every_log_that_is_in_use(trt: Any) -> None:
    first, one = listen(trt)
    second, two = listen(trt)
    assert first is second
    first.log(trt.ILogger.Severity.ERROR, "[file.cpp::f::1] Error Code 4: API Usage Error (first)")
    first.log(trt.ILogger.Severity.ERROR, "IRuntime::x: Error Code 1: second")
    assert one.errors == two.errors
    assert one.reason() == "Error Code 4: API Usage Error (first); Error Code 1: second"
    assert listen(trt)[1].reason() == "no reason given"


def test_an_engine_is_not_opened_without_a_driver(trt: Any, tmp_path: Path) -> None:
    target = get_target("tensorrt_rtx")
    if target.availability().available:
        pytest.skip("there is a GPU")
    assert target.installed().available  # type: ignore[attr-defined]
    assert "no NVIDIA GPU" in target.availability().reason
    request = write(tmp_path, 0, "fp32")
    with pytest.raises(MissingRuntimeError, match="no NVIDIA GPU"):
        target.compile(request, tmp_path)
    plan, _ = building.build(trt, request, settings(), GPU)
    with pytest.raises(InvalidInputError, match="CUDA driver version is insufficient"):
        building.inspect(trt, plan, settings(), request.signature)
    with pytest.raises(InvalidInputError):  # nothing describes that file
        target.open(request.onnx, request.signature, SessionOptions())


def test_check_builds_where_the_builder_is_installed(trt: Any, tmp_path: Path) -> None:
    request = write(tmp_path, 0, "int8")
    assert (build_without_gpu(request) or 0) > 100_000
    request.onnx.write_bytes(graph([helper.make_node("Det", ["input"], ["logits"])]).SerializeToString())
    with pytest.raises(InvalidInputError, match="the parser does not read it"):
        build_without_gpu(request)


# --- check's tables against the parser ----------------------------------------------------------------


def reads(trt: Any, model: onnx.ModelProto, folder: Path) -> bool:
    """Whether the parser takes a graph."""
    path = folder / "case.onnx"
    path.write_bytes(model.SerializeToString())
    builder, log = create(trt, trt.Builder)
    try:
        building.parse(trt, builder, path, log)
    except InvalidInputError:
        return False
    return True


def test_every_operator_of_onnx_is_in_the_table_that_the_parser_says(trt: Any) -> None:
    builder, _ = create(trt, trt.Builder)
    parser = trt.OnnxParser(builder.create_network(), builder.logger)
    names = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain in ("", "ai.onnx")}
    assert len(names) > 190
    read = {name for name in names if parser.supports_operator(name)}
    assert read == names & set(SUPPORTED)
    assert names - read == names & set(REFUSED)
    assert sum(source == ASKED for source in SUPPORTED.values()) == 29


@functools.cache
def operator_cases() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    return [
        case
        for case in collect_testcases(None)  # type: ignore[arg-type]
        if case.model is not None
        and "_expanded" not in case.name
        and all(node.domain in ("", "ai.onnx") for node in case.model.graph.node)
    ]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the cases' own numbers
def test_verdicts_on_onnx_own_operator_tests_are_those_of_the_parser(trt: Any, tmp_path: Path) -> None:
    """Several cases of every operator: types, modes, computed inputs. A warning leaves it open."""
    different, judged = [], Counter[str]()
    for case in operator_cases():
        parsed = reads(trt, case.model, tmp_path)
        found = check_onnx(tmp_path / "case.onnx", "rtx")
        levels = {item.level for item in found if item.operator not in ("opset", "input", "weight")}
        if "error" not in levels and "warn" in levels:
            continue
        judged[case.model.graph.node[-1].op_type] += 1
        if ("error" not in levels) != parsed:
            different.append(case.name)
    assert set(different) == SHAPES_DECIDE
    assert len(judged) > 150
    assert judged.total() > 1000


@pytest.mark.parametrize("rule", RULES, ids=[rule[0] for rule in RULES])
def test_each_rule_of_check_is_one_of_the_parser(trt: Any, tmp_path: Path, rule: Any) -> None:
    _, nodes, weights, operator, level, _ = rule
    model = graph(nodes, weights)
    parsed = reads(trt, model, tmp_path)
    found = check_onnx(tmp_path / "case.onnx", "rtx")
    errors = [item for item in found if item.operator == operator and item.level == "error"]
    if level == "error":
        assert parsed == (not errors)
    elif operator != "Bernoulli2":  # no operator at all
        assert parsed


def test_operations_of_efficient_networks_are_known_and_built(trt: Any, tmp_path: Path) -> None:
    """Squeeze and excitation, ReLU6, hard swish, strides: also where no space draws them yet."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((8, 1, 3, 3)).astype(np.float32),
        "s": rng.standard_normal((2, 8, 1, 1)).astype(np.float32),
        "e": rng.standard_normal((8, 2, 1, 1)).astype(np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
        "k": rng.standard_normal((8, 10)).astype(np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["input", "w"], ["c"], group=8, strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Clip", ["c", "low", "high"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Conv", ["p", "s"], ["q"]),
        node("Relu", ["q"], ["t"]),
        node("Conv", ["t", "e"], ["u"]),
        node("Sigmoid", ["u"], ["g"]),
        node("Mul", ["r", "g"], ["m"]),
        node("HardSwish", ["m"], ["h"]),
        node("GlobalAveragePool", ["h"], ["v"]),
        node("Flatten", ["v"], ["f"]),
        node("Gemm", ["f", "k"], ["logits"]),
    ]
    model = graph(nodes, weights, ("batch", 8, 8, 8), kind=TensorProto.FLOAT)
    path = tmp_path / "efficient.onnx"
    path.write_bytes(model.SerializeToString())
    for release in ("10", "11", "rtx"):
        assert {item.level for item in check_onnx(path, release)} == {"ok"}
    request = CompileRequest(path, None, ModelSignature("input", "logits", (8, 8, 8), 10, (1, 8, 32)))
    assert building.build(trt, request, settings(), GPU)[0]
