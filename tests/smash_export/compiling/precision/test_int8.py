"""int8: it keeps the labels, puts Q/DQ where runtimes want them, and gives up layers that do not bear it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from smash_base.errors import InvalidInputError, UsageError, VerificationError
from smash_export.bundle.bundle import Bundle
from smash_export.compiling.compile import compile_bundle
from smash_export.compiling.precision import prepare_onnx
from smash_export.compiling.precision.calibration import (
    calibration_tensors,
    check_classes,
    tensor_ranges,
)
from smash_export.compiling.precision.int8 import (
    TENSORRT,
    WHOLE,
    Scheme,
    quantise,
    scheme_for,
)
from smash_export.compiling.precision.noise import noise_by_node
from smash_export.export.onnx_graphs import logits_of, prepared
from smash_export.measure.gates import margin_costs
from smash_targets.base import get_target
from tests.smash_export.compiling.precision.banks import images, labelled, memory_bank

U8 = Scheme("u8", reduce_range=True)


def scales(model: onnx.ModelProto, tensor: str) -> tuple[float, int] | None:
    """Scale and zero point of the QuantizeLinear that reads a tensor."""
    values = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] == tensor:
            return float(values[node.input[1]]), int(values[node.input[2]])
    return None


@pytest.fixture(scope="module")
def bank() -> tuple[onnx.ModelProto, dict]:
    return quantise(memory_bank(3), images(300), U8, method="minmax", boundary="int8", max_drop=5)


def test_digits_keep_their_labels_on_the_runtime(digits_bundle_copy: Path) -> None:
    file = compile_bundle(digits_bundle_copy, "onnxruntime", "int8")
    parity = file.evidence["parity"]
    assert parity["agreement"] >= 0.985
    assert parity["drop"] <= 0.5
    assert file.size < 0.5 * Bundle.open(digits_bundle_copy).onnx.stat().st_size
    assert file.notes["calibration_images"] == 640
    assert {row["node"] for row in file.notes["noise_by_node"]} >= {"Conv_0", "Conv_2", "Gemm_8"}


def test_memory_bank_keeps_its_labels(bank: tuple[onnx.ModelProto, dict]) -> None:
    model, notes = bank
    x, labels = labelled(300, seed=5)
    exact, received = logits_of(memory_bank(3), x), logits_of(model, x)
    assert (exact.argmax(1) == labels).mean() > 0.9
    assert (exact.argmax(1) == received.argmax(1)).mean() >= 0.97
    assert notes["kept_fp32"] == []
    onnx.checker.check_model(model, full_check=True)


def test_weights_are_int8_symmetric_per_output_channel_and_narrow_without_vnni(
    bank: tuple[onnx.ModelProto, dict],
) -> None:
    values = {item.name: numpy_helper.to_array(item) for item in bank[0].graph.initializer}
    weight = values["op0.a.w_quantized"]
    assert weight.dtype == np.int8
    assert values["op0.a.w_scale"].shape == (weight.shape[0],)
    assert not values["op0.a.w_zero_point"].any()
    assert np.abs(weight.astype(int)).max() <= 64


def test_inputs_of_a_concatenation_share_one_scale(bank: tuple[onnx.ModelProto, dict]) -> None:
    model = bank[0]
    producers = {name: node for node in model.graph.node for name in node.output}
    reads = [node for node in model.graph.node if node.op_type == "Concat"]
    assert len(reads) == 2
    for node in reads:
        found = set()
        for name in node.input:
            dequantise = producers[name]
            assert dequantise.op_type == "DequantizeLinear"
            values = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
            found.add((float(values[dequantise.input[1]]), int(values[dequantise.input[2]])))
        assert len(found) == 1


def test_a_relu_stays_when_its_range_is_tied_to_one_below_zero(bank: tuple[onnx.ModelProto, dict]) -> None:
    # bank0 is rectified and concatenated with banks that go below zero: rounding alone would not clip it.
    model = bank[0]
    kept = [node for node in model.graph.node if node.op_type == "Relu"]
    assert [node.output[0] for node in kept] == ["bank0"]
    scale = scales(model, "bank0")
    assert scale is not None
    assert scale[1] > 0
    # The others are merged into the rounding of a range that begins at zero.
    merged = scales(model, "op0.relu")
    assert merged is not None
    assert merged[1] == 0


def test_additions_are_rounded_on_both_sides_and_logits_never(bank: tuple[onnx.ModelProto, dict]) -> None:
    model = bank[0]
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Add":
            assert [producers[name] for name in node.input] == ["DequantizeLinear"] * 2
    assert producers["logits"] == "Gemm"


def test_runtime_fuses_the_whole_graph_into_integer_kernels(
    bank: tuple[onnx.ModelProto, dict], tmp_path: Path
) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(bank[0].SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert operators["QLinearConv"] == 7
    assert operators["QLinearAdd"] == 3
    assert operators["QLinearConcat"] == 2
    assert operators["Conv"] == operators["Add"] == operators["Concat"] == 0


def test_tensorrt_gets_zero_points_of_zero_and_a_free_convolution_side() -> None:
    model, _ = quantise(memory_bank(3), images(128), TENSORRT, method="minmax", max_drop=100)
    values = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = values[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
            assert (values[node.input[1]] > 0).all()
        if node.op_type == "Add":
            sides = sorted(producers[name].op_type for name in node.input)
            if any(kind == "Conv" for kind in sides):
                assert sides == ["Conv", "DequantizeLinear"]
    biases = [node.input[2] for node in model.graph.node if node.op_type == "Conv"]
    assert all(values[name].dtype == np.float32 for name in biases)
    assert {producers[node.input[0]].op_type for node in model.graph.node if node.op_type == "Conv"} == {
        "DequantizeLinear"
    }
    onnx.checker.check_model(model, full_check=True)


def test_loop_puts_back_the_layers_that_do_not_bear_it() -> None:
    hard = memory_bank(3, ridge=1e-6)  # large weights that cancel each other in the last layer
    x = images(300)
    everything, _ = quantise(hard, x, U8, method="minmax", boundary="int8", max_drop=100)
    before = (logits_of(hard, x).argmax(1) != logits_of(everything, x).argmax(1)).mean()
    assert before > 0.02
    held, notes = quantise(hard, x, U8, method="minmax", boundary="int8", max_drop=2)
    exact = logits_of(hard, x)
    after = (exact.argmax(1) != logits_of(held, x).argmax(1)).mean()
    assert after < before
    assert margin_costs(exact, logits_of(held, x).argmax(1), 1.0).mean() <= 0.02
    assert notes["labels_changed_percent"] == pytest.approx(100 * after, abs=1e-3)
    kept = {row["node"] for row in notes["kept_fp32"]}
    worst = [row["node"] for row in notes["noise_by_node"]][: len(kept)]
    assert kept == set(worst)
    assert "logits" in kept
    assert {row["node"] for row in notes["noise_by_node"] if row["precision"] == "fp32"} == kept
    last = next(node for node in held.graph.node if node.name == "logits")
    assert last.input[1] == "fc.w"  # its weights are the fp32 ones


def test_loop_gives_up_with_a_reason_when_nothing_would_be_left() -> None:
    model = memory_bank(3, ridge=1e-9)
    noise = np.random.default_rng(0).standard_normal((200, 1, 12, 12)).astype(np.float32) * 1e-3
    with pytest.raises(VerificationError, match="max-drop"):
        quantise(model, np.concatenate([noise, images(40)]), U8, method="minmax", max_drop=0)


def test_noise_of_a_node_is_its_own() -> None:
    model = prepared(memory_bank(3))
    x = images(64)
    spoiled = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in spoiled.graph.initializer:
        if tensor.name == "op0.a.w":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.1, tensor.name))
    rows = noise_by_node(model, spoiled, x, ("Conv", "Gemm"))
    # Without Q/DQ nodes errors pass on; what stands before the spoiled node is exact.
    table = {row.node: row.sqnr_db for row in rows}
    assert table["stem"] == table["op0.reduce"] == 200.0
    assert table["op0.a"] == pytest.approx(20, abs=1.5)


def test_first_and_last_layer_follow_the_wish() -> None:
    _, notes = quantise(memory_bank(3), images(128), U8, method="minmax", boundary="fp32", max_drop=100)
    assert [row["node"] for row in notes["kept_fp32"]] == ["stem", "logits"]
    assert {row["reason"] for row in notes["kept_fp32"]} == {"first or last layer"}


@pytest.mark.parametrize("method", ["entropy", "percentile", "mse"])
def test_every_calibration_method_gives_a_file_that_works(method: str) -> None:
    x = images(128)
    model, notes = quantise(memory_bank(1), x, U8, method=method, max_drop=10)  # type: ignore[arg-type]
    assert notes["calibration_method"] == method
    assert (logits_of(model, x).argmax(1) == logits_of(memory_bank(1), x).argmax(1)).mean() >= 0.9


def test_ranges_of_least_error_round_the_images_better_than_the_widest() -> None:
    x = np.random.default_rng(0).laplace(size=(64, 1, 12, 12)).astype(np.float32)
    model = prepared(memory_bank(1))
    widest = tensor_ranges(model, x, "minmax", ["Conv"])
    best = tensor_ranges(model, x, "mse", ["Conv"])
    assert set(best) == set(widest)
    assert best["input"][1] < widest["input"][1]

    def error(limits: tuple[float, float]) -> float:
        step = (limits[1] - limits[0]) / 255
        return float(np.square(x - (np.rint((x - limits[0]) / step).clip(0, 255) * step + limits[0])).mean())

    assert error(best["input"]) < error(widest["input"])


def test_a_fixed_batch_is_calibrated_in_that_batch() -> None:
    x = images(130)
    model, _ = quantise(memory_bank(3, batch=4), x, U8, method="minmax", max_drop=10)
    assert logits_of(model, x).shape == (130, 5)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4


def test_norms_are_folded_before_rounding() -> None:
    model = memory_bank(3)
    norm = onnx.helper.make_node(
        "BatchNormalization", ["stem", "n.s", "n.b", "n.m", "n.v"], ["normed"], name="norm"
    )
    for name, value in (("n.s", 1.5), ("n.b", 0.1), ("n.m", 0.2), ("n.v", 0.8)):
        model.graph.initializer.append(numpy_helper.from_array(np.full(8, value, np.float32), name))
    for node in model.graph.node:
        node.input[:] = ["normed" if name == "stem" else name for name in node.input]
    model.graph.node.insert(1, norm)
    folded = prepared(model)
    assert "BatchNormalization" not in {node.op_type for node in folded.graph.node}
    x = images(32)
    np.testing.assert_allclose(logits_of(folded, x), logits_of(model, x), atol=1e-4)


def test_same_bytes_for_the_same_network(digits_bundle: Path, tmp_path: Path) -> None:
    bundle, target = Bundle.open(digits_bundle), get_target("onnxruntime")
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        options = {"calibration_method": "minmax", "placement": "clipped"}  # "auto" measures
        path, _ = prepare_onnx(bundle, "int8", target=target, destination=tmp_path / name, options=options)
        made.append(path.read_bytes())
    assert made[0] == made[1]


def test_scheme_follows_target_and_processor() -> None:
    avx2, vnni = {"AVX2": True, "VNNI": False}, {"AVX2": True, "VNNI": True}
    assert scheme_for("onnxruntime", avx2) == Scheme("u8", reduce_range=True)
    assert scheme_for("onnxruntime", vnni) == Scheme("u8")
    assert scheme_for("openvino", {"dot product": True}) == Scheme("s8", symmetric=True)
    assert scheme_for("tensorrt", vnni) == scheme_for("trtexec", vnni) == TENSORRT
    assert scheme_for("litert", avx2) == scheme_for("litert", {"dot product": True}) == WHOLE


def test_unfit_calibration_images_are_refused(digits_bundle: Path) -> None:
    bundle = Bundle.open(digits_bundle)
    good = bundle.calibration()
    with pytest.raises(InvalidInputError, match="calibration_minimum=511"):
        calibration_tensors(good[:511], bundle.preprocessing)
    assert len(calibration_tensors(good[:40], bundle.preprocessing, minimum=40)) == 40
    with pytest.raises(InvalidInputError, match="uint8"):
        calibration_tensors(good[:, :7], bundle.preprocessing)
    with pytest.raises(InvalidInputError, match="same image"):
        calibration_tensors(np.repeat(good[:1], 600, axis=0), bundle.preprocessing)


def test_images_of_one_class_are_refused(digits_bundle: Path) -> None:
    samples = Bundle.open(digits_bundle).samples()
    check_classes(samples.logits)
    with pytest.raises(InvalidInputError, match="class 3 only"):
        check_classes(samples.logits[samples.logits.argmax(1) == 3])


def test_a_class_that_every_image_has_is_no_reason_to_refuse_where_images_have_several() -> None:
    model = memory_bank(3)
    ends = model.graph.output[0].name
    values = {item.name: item for item in model.graph.initializer}
    last = next(node for node in model.graph.node if ends in node.output)
    bias = numpy_helper.to_array(values[last.input[2]]).copy()
    bias += (20, -5, -5, -5, -5)  # classes are apart by 10, half of it is even
    values[last.input[2]].CopyFrom(numpy_helper.from_array(bias, last.input[2]))
    with pytest.raises(InvalidInputError, match="class 0 only"):
        quantise(model, images(64), U8, method="minmax", max_drop=5)
    last.output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Sigmoid", ["before"], [ends]))
    quantised, _ = quantise(model, images(64), U8, method="minmax", max_drop=5, outputs="sigmoid")
    exact, received = (logits_of(each, images(64)) > 0.5 for each in (model, quantised))
    assert exact[:, 0].all()
    assert (exact == received).mean() > 0.9
    with pytest.raises(InvalidInputError, match="class 0 only"):
        check_classes(np.array([[0.9, 0.2], [0.8, 0.1]]), "sigmoid")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_dorp": 1}, "no option 'max_dorp'"),
        ({"max_drop": -1}, "0 to 100"),
        ({"calibration_method": "best"}, "entropy"),
        ({"activations": "u16"}, "u8"),
    ],
)
def test_wrong_options_are_usage_errors(
    digits_bundle: Path, tmp_path: Path, options: dict, words: str
) -> None:
    bundle = Bundle.open(digits_bundle)
    with pytest.raises(UsageError, match=words):
        prepare_onnx(bundle, "int8", target=get_target("onnxruntime"), destination=tmp_path, options=options)
    assert not list(tmp_path.iterdir())


def test_no_node_stays_in_fp32_that_may_be_in_int8() -> None:
    hard, x = memory_bank(3, ridge=1e-6), images(300)
    _, notes = quantise(hard, x, U8, method="minmax", boundary="int8", max_drop=4)
    kept = {row["node"] for row in notes["kept_fp32"]}
    assert kept
    assert notes["most_points_lost"] <= 4
    for name in kept:
        others = kept - {name}
        _, told = quantise(hard, x, U8, method="minmax", boundary="int8", max_drop=100, faster_fp32=others)
        assert told["most_points_lost"] > 4
