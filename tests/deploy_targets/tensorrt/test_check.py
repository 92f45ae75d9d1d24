"""The verdicts: graphs of searched networks pass; a graph that breaks one rule gets that rule's verdict."""

from __future__ import annotations

import functools
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from smash_base.errors import InvalidInputError, UsageError
from smash_export.device_search.latency import Setting, candidate_graph, random_weights
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.space import space_for
from smash_targets.tensorrt.check import DlaLimits, Verdict, check_onnx
from smash_targets.tensorrt.operators import DLA, REFUSED, SUPPORTED, dla_of, opsets_of, release_of

SPEC = InputSpec(3, (16, 16))
VOXELS = InputSpec(1, (8, 8, 8))


def drawn(spec: InputSpec, slot: int = 0) -> Architecture:
    return space_for(spec).draw(7, slot)


@functools.cache  # quantising takes a second
def made(precision: str, slot: int, spec: InputSpec) -> bytes:
    return candidate_graph(drawn(spec, slot), spec, 10, Setting("tensorrt", precision))


def searched(folder: Path, precision: str, slot: int = 0, spec: InputSpec = SPEC) -> Path:
    path = folder / f"{precision}_{slot}.onnx"
    path.write_bytes(made(precision, slot, spec))
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("release", ["10", "10.3", "11"])
def test_graphs_of_searched_networks_are_right(tmp_path: Path, precision: str, release: str) -> None:
    for slot in range(2):
        verdicts = check_onnx(searched(tmp_path, precision, slot), release)
        wrong = [item for item in verdicts if item.level == "error"]
        assert wrong == []
        assert {item.operator for item in verdicts} >= {"Conv", "Gemm"} | (
            {"QuantizeLinear"} if precision == "int8" else set()
        )
        assert all(item.source for item in verdicts if item.operator not in ("opset", "weight"))


def test_graphs_of_searched_voxel_networks_are_right(tmp_path: Path) -> None:
    assert not [v for v in check_onnx(searched(tmp_path, "fp16", spec=VOXELS), "10") if v.level == "error"]


def test_a_node_is_told_by_its_place_in_the_architecture(tmp_path: Path) -> None:
    nodes = [item.node for item in check_onnx(searched(tmp_path, "fp32"))]
    assert any("(block 0, operation 0" in name for name in nodes)


@pytest.mark.parametrize(
    ("release", "opset", "level", "change"),
    [
        ("10", 20, "", ""),
        ("10.1", 21, "error", "opset 20"),
        ("10.15", 24, "", ""),
        ("10.16", 25, "error", ""),
        ("11", 25, "", ""),
        ("11.4", 26, "error", ""),
        ("10", 8, "error", "opset 20"),
        ("8.6", 17, "", ""),
        ("8.6", 20, "warn", "adopt an ONNX file of opset 17"),
    ],
)
def test_opsets_by_release(tmp_path: Path, release: str, opset: int, level: str, change: str) -> None:
    model = graph([helper.make_node("Relu", ["input"], ["logits"])], opset=opset)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    found = [item for item in check_onnx(tmp_path / "m.onnx", release) if item.operator == "opset"]
    assert [item.level for item in found] == ([level] if level else [])
    assert not found or (change in found[0].change and found[0].source)


def test_unknown_releases_are_refused() -> None:
    for text in ("9", "12", "10.x", "8.5", ""):
        with pytest.raises(UsageError, match="TensorRT release"):
            release_of(text)


def test_the_lists_do_not_contradict_each_other() -> None:
    assert not set(SUPPORTED) & set(REFUSED)
    assert set(SUPPORTED) > DLA
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert set(SUPPORTED) | set(REFUSED) <= known | {"Upsample", "Scatter"}
    assert all(SUPPORTED.values())
    assert all(REFUSED.values())


# --- one rule at a time ------------------------------------------------------------------------------


def graph(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray] | None = None,
    shape: tuple[int | str, ...] = (1, 8, 8, 8),
    opset: int = 20,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    return helper.make_model(
        helper.make_graph(
            nodes,
            "one",
            [helper.make_tensor_value_info("input", kind, list(shape))],
            [helper.make_tensor_value_info("logits", kind, None)],
            [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("own", 1)],
    )


def f32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def i8(value: int = 0, *shape: int) -> np.ndarray:
    return np.full(shape, value, np.int8)


def conv(**attributes: object) -> list[onnx.NodeProto]:
    return [helper.make_node("Conv", ["input", "w"], ["logits"], **attributes)]


def verdict(
    tmp_path: Path, model: onnx.ModelProto, operator: str, release: str = "10", **options: bool
) -> Verdict:
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    found = [
        item for item in check_onnx(tmp_path / "m.onnx", release, **options) if item.operator == operator
    ]
    assert found
    return max(found, key=lambda item: ("ok", "warn", "error").index(item.level))


def quantise(scale: np.ndarray, zero: np.ndarray | None, source: str = "input") -> tuple[list, dict]:
    names = [source, "s"] + (["z"] if zero is not None else [])
    weights = {"s": scale} | ({"z": zero} if zero is not None else {})
    nodes = [
        helper.make_node("QuantizeLinear", names, ["q"]),
        helper.make_node("DequantizeLinear", ["q", *names[1:]], ["logits"]),
    ]
    return nodes, weights


node = helper.make_node
RULES: list[tuple[str, list, dict, str, str, str]] = [
    (
        "a domain of its own",
        [node("Magic", ["input"], ["logits"], domain="own")],
        {},
        "Magic",
        "error",
        "domain",
    ),
    ("refused", [node("Det", ["input"], ["logits"])], {}, "Det", "error", "the parser refuses Det"),
    (
        "unknown",
        [node("Bernoulli2", ["input"], ["logits"])],
        {},
        "Bernoulli2",
        "warn",
        "unknown: .* not in our list",
    ),
    ("conv of one axis", conv(), {"w": f32(4, 8)}, "Conv", "error", "convolution of 0 axes"),
    (
        "computed weights",
        [node("Relu", ["input"], ["w"]), *conv()],
        {},
        "Conv",
        "warn",
        "weights are computed",
    ),
    (
        "bias",
        [node("Conv", ["input", "w", "b"], ["logits"])],
        {"w": f32(4, 8, 3, 3), "b": f32(1)},
        "Conv",
        "error",
        "the bias is no constant",
    ),
    (
        "pooling",
        [node("MaxPool", ["input"], ["logits"], kernel_shape=[3, 3, 3, 3])],
        {},
        "MaxPool",
        "error",
        "1, 2 or 3 axes",
    ),
    (
        "dilated pooling",
        [node("MaxPool", ["input"], ["logits"], kernel_shape=[3, 3], dilations=[2, 2])],
        {},
        "MaxPool",
        "error",
        "dilated pooling",
    ),
    (
        "axes",
        [node("Shape", ["input"], ["s"]), node("ReduceSum", ["input", "s"], ["logits"])],
        {},
        "ReduceSum",
        "error",
        "input 1 is computed",
    ),
    (
        "types",
        [node("Cast", ["input"], ["i"], to=TensorProto.INT16), node("Relu", ["i"], ["logits"])],
        {},
        "Relu",
        "error",
        "tensors of int16",
    ),
    (
        "reduction",
        [node("ScatterND", ["input", "i", "input"], ["logits"], reduction="add")],
        {"i": np.zeros((1, 8, 8, 8, 4), np.int64)},
        "ScatterND",
        "error",
        "with a reduction",
    ),
    (
        "computed shape",
        [node("Shape", ["input"], ["s"]), node("Reshape", ["input", "s"], ["logits"])],
        {},
        "Reshape",
        "ok",
        "",
    ),
    (
        "training",
        [node("Dropout", ["input", "r", "t"], ["logits"])],
        {"r": np.float32(0.5), "t": np.array(True)},
        "Dropout",
        "error",
        "training mode",
    ),
    ("uint8", *quantise(np.float32(0.1), np.uint8(0)), "QuantizeLinear", "error", "zero point uint8"),
    ("asymmetric", *quantise(np.float32(0.1), np.int8(3)), "QuantizeLinear", "error", "other than 0"),
    ("scale", *quantise(np.float32(0), np.int8(0)), "QuantizeLinear", "error", "not positive"),
    ("per channel", *quantise(f32(8), i8(0, 8)), "QuantizeLinear", "error", "scale per channel"),
    ("sizes", *quantise(np.float32(0.1), i8(0, 2)), "QuantizeLinear", "error", "different sizes"),
    (
        "double",
        [node("Add", ["input", "d"], ["logits"])],
        {"d": np.ones(1)},
        "weight",
        "warn",
        "double is cast",
    ),
    (
        "integers",
        [
            node("Cast", ["input"], ["i"], to=TensorProto.INT64),
            node("Add", ["i", "d"], ["j"]),
            node("Cast", ["j"], ["logits"], to=TensorProto.FLOAT),
        ],
        {"d": np.ones(1, np.int64)},
        "weight",
        "warn",
        "int64",
    ),
]


@pytest.mark.parametrize(("nodes", "weights", "operator", "level", "reason"), [rule[1:] for rule in RULES],
                         ids=[rule[0] for rule in RULES])  # fmt: skip
def test_each_rule_of_the_parser(
    tmp_path: Path, nodes: list, weights: dict, operator: str, level: str, reason: str
) -> None:
    found = verdict(tmp_path, graph(nodes, weights), operator)
    assert found.level == level, found
    assert re.search(reason, found.reason), found
    assert found.change or level == "ok"


def test_int64_is_native_from_10_on(tmp_path: Path) -> None:
    model = graph([node("Add", ["input", "d"], ["logits"])], {"d": np.ones(1, np.int64)})
    assert "int32" in verdict(tmp_path, model, "weight", "8.6").reason
    shapes = graph([node("Reshape", ["input", "d"], ["logits"])], {"d": np.array([1, -1])})
    (tmp_path / "m.onnx").write_bytes(shapes.SerializeToString())
    assert not [v for v in check_onnx(tmp_path / "m.onnx") if v.operator == "weight"]


def test_open_axes_besides_the_batch(tmp_path: Path) -> None:
    relu = [node("Relu", ["input"], ["logits"])]
    assert verdict(tmp_path, graph(relu, shape=("batch", 8, "h", 8)), "input").level == "error"
    (tmp_path / "m.onnx").write_bytes(graph(relu, shape=("batch", 8, 8, 8)).SerializeToString())
    assert not [v for v in check_onnx(tmp_path / "m.onnx") if v.operator == "input"]


def int8_conv(units: int, per_group: int, groups: int) -> onnx.ModelProto:
    nodes = [
        node("QuantizeLinear", ["input", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["x"]),
        node("DequantizeLinear", ["wq", "s", "z"], ["w"]),
        node("Conv", ["x", "w"], ["logits"], group=groups),
    ]
    weights = {"s": np.float32(0.1), "z": np.int8(0), "wq": i8(1, units, per_group, 3, 3)}
    return graph(nodes, weights, (1, per_group * groups, 8, 8))


def test_channels_per_group_in_int8(tmp_path: Path) -> None:
    assert verdict(tmp_path, int8_conv(8, 4, 2), "Conv").level == "ok"
    found = verdict(tmp_path, int8_conv(8, 1, 8), "Conv")
    assert (found.level, "multiples of 4" in found.change) == ("warn", True)


def test_scales_of_a_concat_and_the_other_side_of_a_sum(tmp_path: Path) -> None:
    def q(name: str, scale: str) -> list[onnx.NodeProto]:
        return [
            node("QuantizeLinear", ["input", scale, "z"], [f"{name}q"]),
            node("DequantizeLinear", [f"{name}q", scale, "z"], [name]),
        ]

    weights = {"s": np.float32(0.1), "t": np.float32(0.2), "z": np.int8(0), "w": f32(8, 8, 1, 1)}
    join = [node("Concat", ["a", "b"], ["logits"], axis=1)]
    assert verdict(tmp_path, graph([*q("a", "s"), *q("b", "s"), *join], weights), "Concat").level == "ok"
    assert verdict(tmp_path, graph([*q("a", "s"), *q("b", "t"), *join], weights), "Concat").level == "warn"
    convolution = [*q("a", "s"), node("Conv", ["a", "w"], ["c"])]
    bare = [*convolution, node("Add", ["c", "input"], ["logits"])]
    assert "not quantised" in verdict(tmp_path, graph(bare, weights), "Add").reason
    whole = [*convolution, *q("b", "t"), node("Add", ["c", "b"], ["logits"])]
    assert verdict(tmp_path, graph(whole, weights), "Add").level == "ok"


# --- DLA ---------------------------------------------------------------------------------------------


def half(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float16)


def on_dla(nodes: list, weights: dict, shape: tuple[int | str, ...] = (1, 8, 8, 8)) -> onnx.ModelProto:
    return graph(nodes, {"half": half(1), **weights}, shape, kind=TensorProto.FLOAT16)


DLA_RULES: list[tuple[list, dict, str, str]] = [
    (conv(kernel_shape=[33, 1]), {"w": half(4, 8, 33, 1)}, "Conv", "kernel 33"),
    (conv(strides=[9, 9]), {"w": half(4, 8, 1, 1)}, "Conv", "stride 9"),
    (conv(dilations=[33, 1]), {"w": half(4, 8, 3, 3)}, "Conv", "dilation 33"),
    (conv(pads=[1, 1, 1, 1]), {"w": half(4, 8, 1, 1)}, "Conv", "padding not below the kernel"),
    (conv(), {"w": half(8193, 8, 1, 1)}, "Conv", "units 8193"),
    (conv(), {"w": half(4, 8, 3, 3, 3)}, "Conv", "convolution of 3 axes"),
    ([node("MaxPool", ["input"], ["logits"], kernel_shape=[9, 9])], {}, "MaxPool", "pooling window 9"),
    (
        [node("MaxPool", ["input"], ["logits"], kernel_shape=[2, 2], strides=[17, 17])],
        {},
        "MaxPool",
        "stride 17",
    ),
    ([node("Concat", ["input", "input"], ["logits"], axis=2)], {}, "Concat", "another axis"),
    ([node("LeakyRelu", ["input"], ["logits"])], {}, "LeakyRelu", "not for a DLA"),
    ([node("Erf", ["input"], ["logits"])], {}, "Erf", "not for a DLA"),
    ([node("PRelu", ["input", "input"], ["logits"])], {}, "PRelu", "slopes are computed"),
]


@pytest.mark.parametrize(("nodes", "weights", "operator", "reason"), DLA_RULES)
def test_each_limit_of_a_dla(tmp_path: Path, nodes: list, weights: dict, operator: str, reason: str) -> None:
    model = on_dla(nodes, weights)
    assert verdict(tmp_path, model, operator).level in ("ok", "warn")
    strict = verdict(tmp_path, model, operator, dla=True)
    assert (strict.level, reason in strict.reason) == ("error", True), strict
    loose = verdict(tmp_path, model, operator, dla=True, gpu_fallback=True)
    assert loose.level == "warn"


def test_what_a_dla_takes(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["input", "w"], ["c"], pads=[1, 1, 1, 1], dilations=[1, 1]),
        node("Sigmoid", ["c"], ["g"]),
        node("Mul", ["c", "g"], ["m"]),
        node("AveragePool", ["m"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Concat", ["p", "p"], ["logits"], axis=1),
    ]
    model = on_dla(nodes, {"w": half(8, 8, 3, 3)})
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    found = check_onnx(tmp_path / "m.onnx", "10.3", dla=True)
    assert [item for item in found if item.level != "ok" and item.operator != "DLA"] == []


def test_a_dla_needs_half_or_int8_and_a_fixed_batch(tmp_path: Path) -> None:
    relu = [node("Relu", ["input"], ["logits"])]
    assert "fp16 and int8 only" in verdict(tmp_path, graph(relu), "graph", dla=True).reason
    open_batch = verdict(tmp_path, graph(relu, shape=("batch", 8, 8, 8)), "input", dla=True)
    assert (open_batch.level, open_batch.reason) == ("warn", "DLA has no dynamic shapes")
    assert verdict(tmp_path, on_dla(relu, {}, (4097, 8, 8, 8)), "input", dla=True).level == "error"


@pytest.mark.parametrize(
    ("release", "there"),
    [
        ("8.6", True),
        ("10", True),
        ("10.7", True),
        ("10.8", False),
        ("11", True),
        ("11.1", False),
        ("11.4", True),
    ],
)
def test_which_releases_have_dla(tmp_path: Path, release: str, there: bool) -> None:
    assert dla_of(release_of(release))[0] == there
    found = verdict(tmp_path, on_dla([node("Relu", ["input"], ["logits"])], {}), "DLA", release, dla=True)
    assert found.level == ("warn" if there else "error")
    if release.startswith("1"):
        assert ("10.7" if release.startswith("10") else "JetPack 7.2.2") in found.reason


def test_the_limits_are_the_documented_ones() -> None:
    assert asdict(DlaLimits()) == {
        "dimensions": 2, "kernel": (1, 32), "stride": (1, 8), "dilation": (1, 32), "padding": (0, 31),
        "units": (1, 8192), "groups": (1, 8192), "pool": (1, 8), "pool_stride": (1, 16), "batch": (1, 4096),
        "dimension": (1, 8192), "softmax": (1, 1024), "activations": ("relu", "sigmoid", "tanh"),
    }  # fmt: skip


# --- files -------------------------------------------------------------------------------------------


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    good = searched(tmp_path, "fp32").read_bytes()
    for content in (b"", b"hello", good[: len(good) // 2]):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(InvalidInputError):
            check_onnx(tmp_path / "bad.onnx")


def test_opset_ranges_name_their_source() -> None:
    assert opsets_of((10, None)) == (9, 20, "operators.md of 10.0 and 10.1")
    assert opsets_of((11, None))[:2] == (9, 25)
    assert random_weights(drawn(SPEC), SPEC, 10)  # the searched graphs above have real weights
