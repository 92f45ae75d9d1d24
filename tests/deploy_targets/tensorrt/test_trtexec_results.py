"""Logs and JSON after the documented forms, with each variation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from smash_base.errors import InvalidInputError
from smash_targets.tensorrt import trtexec_results as reader

TAIL = "max = 0.3 ms, mean = 0.2 ms, median = 0.19 ms"
P = "[11/24/2026-19:00:00] [I] "
WORDS = "trtexec --loadEngine=e --shapes=input:8x3x32x32"
LOG = f"""&&&& RUNNING TensorRT.trtexec [TensorRT v101600] [b1] # {WORDS}
{P}TensorRT version: 10.16.0
{P}Engine deserialized in 0.0123 sec.
{P}=== Performance summary ===
{P}Throughput: 5000.5 qps
{P}Latency: min = 1e-05 ms, {TAIL}, percentile(90%) = 0.25 ms, percentile(99%) = 0.29 ms
{P}GPU Compute Time: min = 0.1 ms, {TAIL}, percentile(99%) = 0.29 ms
&&&& PASSED TensorRT.trtexec [TensorRT v101600] [b1] # {WORDS}
"""


def test_a_log() -> None:
    log = reader.read_log(LOG)
    assert (log.passed, log.version, log.batch) == (True, "10.16.0", 8)
    assert log.images_per_second == pytest.approx(40004)
    assert log.stages["latency"].minimum == 1e-05
    assert log.stages["compute"].percentiles == {99.0: 0.29}


def test_a_failure_without_a_failed_line_has_not_passed() -> None:
    log = reader.read_log(
        "\n".join(LOG.splitlines()[:-1]) + "\n[11/24/2026-19:00:00] [E] Unknown option: --fp16\n"
    )
    assert not log.passed
    assert log.errors == ("Unknown option: --fp16",)
    with pytest.raises(InvalidInputError, match="no log"):
        reader.read_log("hello")


def test_names_that_are_not_escaped() -> None:
    numbers = '"timeMs" : 3, "averageMs" : 1, "medianMs" : 1, "percentage" : 50'
    text = f'[\n{{ "count" : 3 }}\n, {{ "name" : "a "b" \\ c", {numbers} }}\n]'
    (layer,) = reader.read_profile(text)
    assert (layer.name, layer.average_ms) == ('a "b" \\ c', 1.0)


def test_bare_nan_and_inf() -> None:
    text = '[ { "name" : "logits", "dimensions" : "1x3", "values" : [ 1, nan, -inf ] } ]'
    np.testing.assert_array_equal(reader.read_outputs(text)["logits"], [[1, np.nan, -np.inf]])
    with pytest.raises(InvalidInputError):
        reader.read_outputs('[ { "name" : "x", "dimensions" : "2x3", "values" : [1] } ]')


@pytest.mark.parametrize(
    ("output", "tensors"),
    [
        ({"Format/Datatype": "Channel major FP16 format"}, {"Bindings": ["input"]}),
        ({"Format": "Row major", "Datatype": "Half"}, {"I/O Tensors": [{"Name": "input"}]}),
    ],
)
def test_both_layouts_of_layer_info(output: dict[str, str], tensors: dict[str, object]) -> None:
    text = json.dumps({"Layers": [{"Name": "c", "Outputs": [{"Name": "o", **output}]}], **tensors})
    info = reader.read_layer_info(text)
    assert info.detailed
    assert info.precisions() == {"fp16": 1}
    assert info.tensors == ("input",)


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("v8401", "8.4.1"), ("v8503", "8.5.3"), ("v8601", "8.6.1"), ("v9300", "9.3.0"), ("v100001", "10.0.1"),
        ("v100300", "10.3.0"), ("v101303", "10.13.3"), ("v101600", "10.16.0"), ("v110100", "11.1.0"),
        ("v10.3.0", "10.3.0"),
    ],
)  # fmt: skip
def test_the_version_as_a_number(banner: str, version: str) -> None:
    line = f"&&&& PASSED TensorRT.trtexec [TensorRT {banner}] # trtexec --onnx=m"
    assert reader.read_log(line).version == version
    assert reader.read_log(line.replace("] #", "] [b123] #")).version == version


def test_names_only_tell_no_types() -> None:
    assert not reader.read_layer_info('{"Layers": ["a", "b"], "Bindings": []}').detailed


def test_kinds_and_times() -> None:
    row = '{"h2dMs": 0, "computeMs": 0.5, "d2hMs": 0, "latencyMs": 0.5}'
    assert reader.kind_of(f"[ {row} ]") == "times"
    assert reader.kind_of(LOG) == "log"
    assert reader.read_times(f"[ {row}, {row} ]")["computeMs"].tolist() == [0.5, 0.5]
