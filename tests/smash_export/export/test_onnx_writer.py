"""The ONNX graph written from an architecture equals the eager network, whatever the architecture."""

from __future__ import annotations

import io
import json
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smash_base.preprocess import Preprocessing
from smash_export.export.onnx_writer import onnx_from_architecture, regroup
from smash_search.model.interpreter import FrozenNetwork, Network, fold
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.known import PRESETS
from tests.search.legal import EVERY_FORM, RICH, VOXELS, drawn, hand_written
from tests.search.model.test_interpreter import trained_like

SPEC = InputSpec(2, (9, 7))


def run(model: bytes, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


def check(architecture: Architecture, spec: InputSpec) -> None:
    weights = fold(trained_like(Network(architecture, spec, 5)))
    model = onnx_from_architecture(architecture, weights, spec)
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    for batch in (1, 3):
        x = torch.randn(batch, spec.channels, *spec.size, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            eager = FrozenNetwork(architecture, weights)(x).numpy()
        difference = np.abs(run(model, x.numpy()) - eager).max() / max(1, np.abs(eager).max())
        assert difference <= 1e-5


@given(drawn(RICH) | drawn(EVERY_FORM))
@settings(max_examples=40, deadline=None)
def test_drawn_networks(architecture: Architecture) -> None:
    check(architecture, SPEC)


@given(hand_written())
@settings(max_examples=60, deadline=None)
def test_hand_written_networks_with_empty_banks_and_unread_inputs(architecture: Architecture) -> None:
    check(architecture, SPEC)


@given(drawn(VOXELS) | hand_written(dims=3))
@settings(max_examples=15, deadline=None)
def test_voxel_networks(architecture: Architecture) -> None:
    check(architecture, InputSpec(1, (5, 4, 6)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("slot", range(4))
def test_the_written_graph_equals_the_traced_one(slot: int) -> None:
    architecture = RICH.draw(11, slot)
    weights = fold(trained_like(Network(architecture, SPEC, 5)))
    x = torch.randn(4, 2, 9, 7)
    traced = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            FrozenNetwork(architecture, weights).eval(),
            (x,),
            traced,
            dynamo=False,
            opset_version=20,
            input_names=["input"],
            output_names=["logits"],
        )
    written = onnx_from_architecture(architecture, weights, SPEC)
    expected = run(traced.getvalue(), x.numpy())
    assert np.abs(run(written, x.numpy()) - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    assert len(onnx.load_from_string(written).graph.node) < len(
        onnx.load_from_string(traced.getvalue()).graph.node
    )


def test_the_same_inputs_give_the_same_bytes() -> None:
    architecture = RICH.draw(0, 0)
    weights = fold(Network(architecture, SPEC, 5))
    assert onnx_from_architecture(architecture, weights, SPEC) == onnx_from_architecture(
        Architecture.from_json(architecture.to_json()), dict(reversed(weights.items())), SPEC
    )


def test_labels_preprocessing_and_the_batch_axis_are_in_the_file() -> None:
    architecture = RICH.draw(0, 0)
    weights = fold(Network(architecture, SPEC, 2))
    preprocessing = Preprocessing(9, 7, 2, (0.5, 0.5), (0.1, 0.2))
    model = onnx.load_from_string(
        onnx_from_architecture(
            architecture, weights, SPEC, labels=["Straße", "dog"], preprocessing=preprocessing
        )
    )
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(props["labels"]) == ["Straße", "dog"]
    assert Preprocessing.from_json(json.loads(props["preprocessing"])) == preprocessing
    assert props["architecture"] == architecture.key
    assert model.opset_import[0].version == 20
    (value,) = model.graph.input
    assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == ["batch", 2, 9, 7]
    fixed = onnx.load_from_string(onnx_from_architecture(architecture, weights, SPEC, batch=4))
    assert fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4


@given(st.sampled_from([1, 2, 3, 4, 6, 8]), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=40, deadline=None)
def test_regrouped_convolutions_do_the_same(groups: int, rows: int, columns: int) -> None:
    weight = np.random.default_rng(0).standard_normal((groups * rows, columns, 3, 3)).astype(np.float32)
    x = torch.randn(1, groups * columns, 6, 6, dtype=torch.float64)
    joined, fewer = regroup(weight, groups)
    assert groups % fewer == 0
    before = torch.conv2d(x, torch.from_numpy(weight).double(), padding=1, groups=groups)
    after = torch.conv2d(x, torch.from_numpy(joined).double(), padding=1, groups=fewer)
    assert torch.allclose(before, after, atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "groups", "fewer"),
    [
        (8, 4, 1),
        (16, 8, 1),
        (16, 16, 16),
        (24, 2, 1),
        (24, 8, 4),
        (32, 8, 2),
        (48, 16, 8),
        (64, 8, 4),
        (64, 2, 2),
    ],
)
def test_groups_become_whole_vectors_where_that_adds_few_zeros(
    channels: int, groups: int, fewer: int
) -> None:
    weight = np.ones((channels, channels // groups, 3, 3), np.float32)
    assert regroup(weight, groups)[1] == fewer


@pytest.mark.parametrize(("name", "sums"), [("resnet-8", 3), ("resnet-20", 9), ("mobilenetv2", 9)])
def test_a_residual_network_has_no_additions_but_its_own(name: str, sums: int) -> None:
    spec = InputSpec(3, (16, 16))
    architecture = PRESETS[name](2)
    weights = fold(trained_like(Network(architecture, spec, 5)))
    weights |= {key: np.abs(value) + 0.1 for key, value in weights.items() if key.endswith(".scale")}
    graph = onnx.load_from_string(onnx_from_architecture(architecture, weights, spec)).graph
    assert sum(node.op_type == "Add" for node in graph.node) == sums


def test_what_was_rectified_is_not_rectified_again() -> None:
    architecture = PRESETS["resnet-8"](2)
    model = onnx.load_from_string(
        onnx_from_architecture(architecture, fold(Network(architecture, SPEC, 5)), SPEC)
    )
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    rectified = [makers.get(node.input[0]) for node in model.graph.node if node.op_type == "Relu"]
    assert "Relu" not in rectified
    assert len(rectified) == 9  # the stem, one inside each op, two between blocks, three ends
