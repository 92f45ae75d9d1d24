"""The protocol's bytes, right and wrong: whatever comes is a checked request or one sentence."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smash_base.errors import InvalidInputError
from smash_export.server.protocol import InferRequest, Wanted, encode_infer, parse_infer
from smash_targets.base import ModelSignature

SIGNATURE = ModelSignature("input", "logits", (2, 3), 4, (1, 1, 32))
LABELS = ("cat", "dog", "a:b", "žába")
RAW = np.arange(6, dtype="<f4").tobytes()


def entry(**changes: Any) -> dict[str, Any]:
    made = {"name": "input", "datatype": "FP32", "shape": [1, 2, 3], "data": [0, 1, 2, 3, 4, 5], **changes}
    return {key: value for key, value in made.items() if value is not ...}


def parse(request: Any, raw: bytes | None = None) -> InferRequest:
    head = request if isinstance(request, bytes) else json.dumps(request).encode()
    if raw is None:
        return parse_infer(head, None, SIGNATURE, 8)
    return parse_infer(head + raw, str(len(head)), SIGNATURE, 8)


def test_flat_and_nested_json_and_binary_agree() -> None:
    flat = parse({"inputs": [entry()]}).tensor
    nested = parse({"inputs": [entry(data=[[[0, 1, 2], [3, 4, 5]]])]}).tensor
    binary = parse({"inputs": [entry(data=..., parameters={"binary_data_size": 24})]}, RAW).tensor
    assert flat.dtype == np.float32
    assert flat.shape == (1, 2, 3)
    assert np.array_equal(flat, nested)
    assert np.array_equal(flat, binary)


def test_outputs_default_to_the_logits_and_follow_the_request_s_wish() -> None:
    assert parse({"inputs": [entry()]}).outputs == (Wanted(),)
    binary = {"inputs": [entry()], "parameters": {"binary_data_output": True}}
    assert parse(binary).outputs == (Wanted(binary=True),)
    chosen = {
        **binary,
        "outputs": [
            {"name": "logits", "parameters": {"binary_data": False, "classification": 99}},
            {"name": "logits"},
        ],
    }
    assert parse(chosen).outputs == (Wanted(False, 4), Wanted(True))


def test_an_answer_carries_json_then_raw_tensors() -> None:
    request = InferRequest(np.zeros((1, 2, 3), np.float32), "7", (Wanted(True, 2), Wanted(True), Wanted()))
    logits = np.array([[0.5, 3, 2, 1]], np.float32)
    body, length = encode_infer(request, logits, LABELS, output_name="logits", model="m", version="2")
    assert length is not None
    head, raw = json.loads(body[:length]), body[length:]
    assert (head["id"], head["model_name"], head["model_version"]) == ("7", "m", "2")
    sizes = [output.get("parameters", {}).get("binary_data_size") for output in head["outputs"]]
    assert sizes == [len(raw) - 16, 16, None]
    first = struct.unpack("<I", raw[:4])[0]
    assert raw[4 : 4 + first].decode() == "3.000000:1:dog"
    assert np.array_equal(np.frombuffer(raw[-16:], "<f4"), logits[0])
    assert head["outputs"][2]["data"] == [0.5, 3, 2, 1]


WRONG: dict[str, tuple[Any, bytes | None, str]] = {
    "empty": (b"", None, "not valid JSON"),
    "not json": (b"{", None, "not valid JSON"),
    "not utf-8": (b"\xff\xfe", None, "not UTF-8"),
    "a list": ([], None, "not a JSON object"),
    "deep": (b"[" * 60_000, None, "nested too deeply"),
    "deep object": (b'{"a":' * 12_000, None, "nested too deeply"),
    "deep data": (
        b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1,2,3],"data":'
        + b"[" * 300
        + b"]" * 300
        + b"}]}",
        None,
        "data of the input",
    ),
    "nan literal": (b'{"inputs": NaN}', None, "NaN is not a JSON number"),
    "no inputs": ({}, None, "inputs; expected a list of one object"),
    "inputs of text": ({"inputs": ["x"]}, None, "inputs"),
    "two inputs": ({"inputs": [entry(), entry()]}, None, "2 of them"),
    "other name": ({"inputs": [entry(name="x")]}, None, "unknown input; expected 'input'; received 'x'"),
    "no name": ({"inputs": [entry(name=...)]}, None, "unknown input"),
    "unknown type": ({"inputs": [entry(datatype="FP31")]}, None, "unknown datatype"),
    "other type": ({"inputs": [entry(datatype="INT8")]}, None, "another datatype than the model"),
    "type of a list": ({"inputs": [entry(datatype=[])]}, None, "unknown datatype"),
    "negative shape": ({"inputs": [entry(shape=[-1, 2, 3])]}, None, "shape of the input"),
    "zero batch": ({"inputs": [entry(shape=[0, 2, 3])]}, None, "shape of the input"),
    "large batch": ({"inputs": [entry(shape=[9, 2, 3])]}, None, "with B from 1 to 8"),
    "float shape": ({"inputs": [entry(shape=[1.0, 2, 3])]}, None, "shape of the input"),
    "boolean shape": ({"inputs": [entry(shape=[True, 2, 3])]}, None, "shape of the input"),
    "overflowing shape": ({"inputs": [entry(shape=[2**63, 2**63, 3])]}, None, "shape of the input"),
    "no shape": ({"inputs": [entry(shape=...)]}, None, "shape of the input"),
    "no data": ({"inputs": [entry(data=...)]}, None, "data of the input"),
    "few data": ({"inputs": [entry(data=[1, 2])]}, None, "expected 6 numbers"),
    "ragged": ({"inputs": [entry(data=[[1, 2], [3]])]}, None, "ragged"),
    "texts": ({"inputs": [entry(data=["1"] * 6)]}, None, "numbers only"),
    "booleans": ({"inputs": [entry(data=[True] * 6)]}, None, "numbers only"),
    "nulls": ({"inputs": [entry(data=[None] * 6)]}, None, "data of the input"),
    "beyond fp32": ({"inputs": [entry(data=[1e39, 0, 0, 0, 0, 0])]}, None, "NaN or infinity"),
    "beyond fp64": (
        b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1,2,3],"data":[1e999,0,0,0,0,0]}]}',
        None,
        "NaN or infinity",
    ),
    "huge integer": ({"inputs": [entry(data=[10**400, 0, 0, 0, 0, 0])]}, None, "data of the input"),
    "wrongly nested": ({"inputs": [entry(data=[[0, 1], [2, 3], [4, 5]])]}, None, "data of the input"),
    "short binary": ({"inputs": [entry(data=..., parameters={"binary_data_size": 24})]}, RAW[:23], "23"),
    "claims less": ({"inputs": [entry(data=..., parameters={"binary_data_size": 20})]}, RAW, "expected 24"),
    "claims 2 GB": (
        {"inputs": [entry(data=..., parameters={"binary_data_size": 2**31})]},
        RAW,
        "binary_data_size; expected 24",
    ),
    "negative size": (
        {"inputs": [entry(data=..., parameters={"binary_data_size": -24})]},
        RAW,
        "expected 24",
    ),
    "wrong length": (
        {"inputs": [entry(data=..., parameters={"binary_data_size": 4})]},
        b"abcd",
        "24 bytes for FP32",
    ),
    "both": ({"inputs": [entry(parameters={"binary_data_size": 24})]}, RAW, "both data and"),
    "unclaimed bytes": ({"inputs": [entry()]}, RAW, "no input claims them"),
    "nan binary": (
        {"inputs": [entry(data=..., parameters={"binary_data_size": 24})]},
        np.full(6, np.nan, "<f4").tobytes(),
        "NaN or infinity",
    ),
    "parameters of text": ({"inputs": [entry(parameters="x")]}, None, "parameters; expected an object"),
    "number as id": ({"id": 7, "inputs": [entry()]}, None, "id of the request"),
    "half a character": (b'{"id":"\\ud800","inputs":[%s]}' % json.dumps(entry()).encode(), None, "id of the"),
    "unknown output": ({"inputs": [entry()], "outputs": [{"name": "x"}]}, None, "unknown output"),
    "many outputs": ({"inputs": [entry()], "outputs": [{"name": "logits"}] * 5}, None, "5 of them"),
    "no classes": (
        {"inputs": [entry()], "outputs": [{"name": "logits", "parameters": {"classification": 0}}]},
        None,
        "classification",
    ),
    "flag of text": (
        {"inputs": [entry()], "parameters": {"binary_data_output": "yes"}},
        None,
        "true or false",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_sentence(case: str) -> None:
    request, raw, words = WRONG[case]
    with pytest.raises(InvalidInputError) as caught:
        parse(request, raw)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("length", ["", "-1", "+3", "1e3", "999999", "٣", "9" * 40, "0x10", " 5"])
def test_a_header_length_that_is_none_is_refused(length: str) -> None:
    with pytest.raises(InvalidInputError, match="Inference-Header-Content-Length"):
        parse_infer(json.dumps({"inputs": [entry()]}).encode(), length, SIGNATURE, 8)


@pytest.mark.parametrize(
    ("written", "instead"),
    [(b"[[[1.", b"[[1.[,"), (b"],[", b"] 5,["), (b"]]]", b"]]7]"), (b",[1.", b",1.[,")],
)
def test_brackets_of_long_lists_stand_where_they_belong(written: bytes, instead: bytes) -> None:
    """Lists that are parsed by slices: the brackets are counted first, and looked at where numbers are."""
    numbers = [[[1 + 10.0**-15 * place for place in range(row, row + 3)] for row in (0, 3)] for _ in range(8)]
    request = {"id": "i" * 200, "inputs": [entry(shape=[8, 2, 3], data=numbers)]}
    text = json.dumps(request, separators=(",", ":")).encode()
    assert len(text) > 1024
    parsed = parse_infer(text, None, SIGNATURE, 8)
    assert np.array_equal(parsed.tensor, np.array(numbers, np.float32))
    spaced = text.replace(b",", b" ,\n").replace(b"]", b" ]")
    assert np.array_equal(parse_infer(spaced, None, SIGNATURE, 8).tensor, parsed.tensor)
    assert written in text
    with pytest.raises(InvalidInputError):
        parse_infer(text.replace(written, instead, 1), None, SIGNATURE, 8)


def test_images_in_json_are_whole_numbers_of_a_byte() -> None:
    flat = {"name": "input", "datatype": "UINT8", "shape": [1, 3, 2, 1], "data": [0, 255, 1, 2, 3, 4]}
    signature = ModelSignature("input", "logits", (1, 2, 2), 4, (1, 1, 8))
    tensor = parse_infer(json.dumps({"inputs": [flat]}).encode(), None, signature, 8).tensor
    assert (tensor.dtype, tensor.shape, tensor.ravel().tolist()) == (np.uint8, (1, 3, 2, 1), flat["data"])
    first = {**flat, "shape": [1, 1, 3, 2]}
    tensor = parse_infer(json.dumps({"inputs": [first]}).encode(), None, signature, 8).tensor
    assert tensor.shape == (1, 3, 2, 1)
    for wrong in ([0, 256, 1, 2, 3, 4], [0, 1.5, 1, 2, 3, 4], [-1, 1, 1, 2, 3, 4]):
        text = json.dumps({"inputs": [{**flat, "data": wrong}]}).encode()
        with pytest.raises(InvalidInputError, match="0 to 255"):
            parse_infer(text, None, signature, 8)
    for shape in ([1, 3, 2], [1, 3, 2, 2], [9, 3, 2, 1], [1, 0, 2, 1], "x", [1, 3, 2, True]):
        text = json.dumps({"inputs": [{**flat, "shape": shape}]}).encode()
        with pytest.raises(InvalidInputError, match="shape of the images"):
            parse_infer(text, None, signature, 8)


def test_a_claim_of_gigabytes_allocates_nothing() -> None:
    tracemalloc.start()
    for shape in ([2**29, 2, 3], [1, 2, 2**31 - 1], [8, 2, 3]):
        with pytest.raises(InvalidInputError):
            parse({"inputs": [entry(shape=shape, data=..., parameters={"binary_data_size": 2**31})]}, RAW)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["input", "FP32", "logits"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def nearly_right(draw: st.DrawFn) -> tuple[bytes, str | None]:
    """A request in which a few things were replaced by anything."""
    request: dict[str, Any] = {"inputs": [entry()]}
    raw = b""
    if draw(st.booleans()):
        raw = draw(st.binary(max_size=60) | st.just(RAW))
        request["inputs"][0] = entry(data=..., parameters={"binary_data_size": len(raw)})
    for _ in range(draw(st.integers(0, 3))):
        holder = draw(st.sampled_from([request, request["inputs"][0]]))
        keys = ["id", "inputs", "outputs", "parameters", "name", "shape", "datatype", "data"]
        holder[draw(st.sampled_from(keys))] = draw(json_values)
        if not isinstance(request["inputs"], list) or not request["inputs"]:
            break
        if not isinstance(request["inputs"][0], dict):
            break
    head = json.dumps(request).encode()
    length = draw(
        st.sampled_from([None, str(len(head))]) | st.integers(-5, 400).map(str) | st.text(max_size=5)
    )
    return head + raw, length


@settings(max_examples=300, deadline=None)
@given(nearly_right())
def test_nearly_right_requests_are_parsed_or_refused(case: tuple[bytes, str | None]) -> None:
    try:
        request = parse_infer(*case, SIGNATURE, 8)
    except InvalidInputError:
        return
    assert request.tensor.shape[1:] == (2, 3)
    assert 1 <= len(request.tensor) <= 8
    assert np.isfinite(request.tensor).all()
    logits = np.zeros((len(request.tensor), 4), np.float32)
    encode_infer(request, logits, LABELS, output_name="logits", model="m", version="1")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.none() | st.integers(0, 200).map(str))
def test_any_bytes_are_parsed_or_refused(body: bytes, length: str | None) -> None:
    with pytest.raises(InvalidInputError):
        parse_infer(body, length, SIGNATURE, 8)
