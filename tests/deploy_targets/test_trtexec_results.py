"""Logs and JSON after the documented forms, with each variation."""

import numpy as np
import pytest

from deploy_targets import trtexec_results as reader
from smash_base.errors import InvalidInputError

P = "[11/24/2026-19:00:00] [I] "
LOG = f"""&&&& RUNNING TensorRT.trtexec [TensorRT v101600] [b1] # trtexec --loadEngine=e --shapes=input:8x3x32x32
{P}TensorRT version: 10.16.0
{P}Engine deserialized in 0.0123 sec.
{P}=== Performance summary ===
{P}Throughput: 5000.5 qps
{P}Latency: min = 1e-05 ms, max = 0.3 ms, mean = 0.2 ms, median = 0.19 ms, percentile(90%) = 0.25 ms, percentile(99%) = 0.29 ms
{P}GPU Compute Time: min = 0.1 ms, max = 0.3 ms, mean = 0.2 ms, median = 0.19 ms, percentile(99%) = 0.29 ms
&&&& PASSED TensorRT.trtexec [TensorRT v101600] [b1] # trtexec --loadEngine=e --shapes=input:8x3x32x32
"""  # noqa: E501


def test_a_log():
    log = reader.read_log(LOG)
    assert (log.passed, log.version, log.batch) == (True, "10.16.0", 8)
    assert log.images_per_second == pytest.approx(40004)
    assert log.stages["latency"].minimum == 1e-05
    assert log.stages["compute"].percentiles == {99.0: 0.29}


def test_a_failure_without_a_failed_line_has_not_passed():
    log = reader.read_log(
        "\n".join(LOG.splitlines()[:-1]) + "\n[11/24/2026-19:00:00] [E] Unknown option: --fp16\n"
    )
    assert not log.passed
    assert log.errors == ("Unknown option: --fp16",)
    with pytest.raises(InvalidInputError, match="no log"):
        reader.read_log("hello")


def test_names_that_are_not_escaped():
    text = '[\n{ "count" : 3 }\n, { "name" : "a "b" \\ c", "timeMs" : 3, "averageMs" : 1, "medianMs" : 1, "percentage" : 50 }\n]'  # noqa: E501
    (layer,) = reader.read_profile(text)
    assert (layer.name, layer.average_ms) == ('a "b" \\ c', 1.0)


def test_bare_nan_and_inf():
    text = '[ { "name" : "logits", "dimensions" : "1x3", "values" : [ 1, nan, -inf ] } ]'
    np.testing.assert_array_equal(reader.read_outputs(text)["logits"], [[1, np.nan, -np.inf]])
    with pytest.raises(InvalidInputError):
        reader.read_outputs('[ { "name" : "x", "dimensions" : "2x3", "values" : [1] } ]')


@pytest.mark.parametrize(
    ("text", "tensors"),
    [
        (
            '{"Layers": [{"Name": "c", "Outputs": [{"Name": "o", "Format/Datatype": "Channel major FP16 format"}]}],'  # noqa: E501
            ' "Bindings": ["input"]}',
            ("input",),
        ),
        (
            '{"Layers": [{"Name": "c", "Outputs": [{"Name": "o", "Format": "Row major", "Datatype": "Half"}]}],'  # noqa: E501
            ' "I/O Tensors": [{"Name": "input"}]}',
            ("input",),
        ),
    ],
)
def test_both_layouts_of_layer_info(text, tensors):
    info = reader.read_layer_info(text)
    assert info.detailed
    assert info.precisions() == {"fp16": 1}
    assert info.tensors == tensors


def test_names_only_tell_no_types():
    assert not reader.read_layer_info('{"Layers": ["a", "b"], "Bindings": []}').detailed


def test_kinds_and_times():
    row = '{"h2dMs": 0, "computeMs": 0.5, "d2hMs": 0, "latencyMs": 0.5}'
    assert reader.kind_of(f"[ {row} ]") == "times"
    assert reader.kind_of(LOG) == "log"
    assert reader.read_times(f"[ {row}, {row} ]")["computeMs"].tolist() == [0.5, 0.5]
