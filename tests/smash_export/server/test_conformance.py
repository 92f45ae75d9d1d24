"""NVIDIA's own client, over HTTP and gRPC, against the real server."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import DOUBT_BELOW

http = pytest.importorskip("tritonclient.http")
grpc = pytest.importorskip("tritonclient.grpc")
utils = pytest.importorskip("tritonclient.utils")
rpc = pytest.importorskip("grpc")


@pytest.fixture(scope="module", params=["http", "grpc"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def client(kind: str, server: Any) -> Iterator[Any]:
    if kind == "http":
        made = http.InferenceServerClient(f"{server.host}:{server.port}")
    else:
        made = grpc.InferenceServerClient(server.addresses["grpc"])
    yield made
    made.close()


def as_dict(kind: str, value: Any) -> Any:
    if kind == "http":
        return value
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(value, preserving_proto_field_name=True)


def inputs(kind: str, tensor: np.ndarray, **keywords: Any) -> list[Any]:
    module = http if kind == "http" else grpc
    made = module.InferInput("input", list(tensor.shape), "FP32")
    made.set_data_from_numpy(tensor, **keywords)
    return [made]


def test_health_and_metadata(client: Any, kind: str) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "2")
    about = as_dict(kind, client.get_server_metadata())
    assert about["name"] == "smash-export"
    assert {"binary_tensor_data", "classification", "model_configuration"} <= set(about["extensions"])
    model = as_dict(kind, client.get_model_metadata("digits"))
    assert (model["name"], model["versions"], model["platform"]) == ("digits", ["1", "2"], "onnx_onnxv1")
    assert [int(size) for size in model["inputs"][0]["shape"]] == [-1, 1, 8, 8]
    assert (model["outputs"][0]["name"], model["outputs"][0]["datatype"]) == ("logits", "FP32")
    if kind != "grpc":  # whose answer has no place for them
        assert model["parameters"]["outputs"] == "logits"


@pytest.mark.parametrize("batch", [1, 7, 16])
def test_logits_are_those_of_the_network(
    client: Any, kind: str, tensor: np.ndarray, logits: np.ndarray, batch: int
) -> None:
    result = client.infer("digits", inputs(kind, tensor[:batch]), request_id="mine", model_version="1")
    np.testing.assert_allclose(result.as_numpy("logits"), logits[:batch], atol=1e-4)
    answer = as_dict(kind, result.get_response())
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("mine", "digits", "1")


@pytest.mark.parametrize("binary_input", [False, True])
@pytest.mark.parametrize("binary_output", [False, True])
def test_json_and_binary_tensors_over_http(
    server: Any, tensor: np.ndarray, logits: np.ndarray, binary_input: bool, binary_output: bool
) -> None:
    client = http.InferenceServerClient(f"{server.host}:{server.port}")
    wanted = [http.InferRequestedOutput("logits", binary_data=binary_output)]
    result = client.infer("digits", inputs("http", tensor, binary_data=binary_input), outputs=wanted)
    np.testing.assert_allclose(result.as_numpy("logits"), logits, atol=1e-4)
    client.close()


@pytest.mark.parametrize("binary", [False, True])
def test_classification_gives_labels(
    client: Any, kind: str, tensor: np.ndarray, logits: np.ndarray, binary: bool
) -> None:
    if kind == "http":
        wanted = http.InferRequestedOutput("logits", binary_data=binary, class_count=3)
    else:
        wanted = grpc.InferRequestedOutput("logits", class_count=3)
    result = client.infer("digits", inputs(kind, tensor), outputs=[wanted]).as_numpy("logits")
    assert result.shape == (16, 3)
    for row, reference in zip(result, logits, strict=True):
        texts = [value.decode() if isinstance(value, bytes) else value for value in row]
        value, index, label = texts[0].split(":")
        assert int(index) == reference.argmax()
        assert label == str(reference.argmax())
        assert float(value) == pytest.approx(reference.max(), abs=1e-3)


def test_grpc_takes_typed_contents_too(server: Any, tensor: np.ndarray, logits: np.ndarray) -> None:
    import grpc as plain
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    with plain.insecure_channel(server.addresses["grpc"]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="digits", id="x")
        entry = request.inputs.add(name="input", datatype="FP32", shape=[1, 1, 8, 8])
        entry.contents.fp32_contents.extend(tensor[0].ravel().tolist())
        answer = stub.ModelInfer(request)
        values = np.frombuffer(answer.raw_output_contents[0], "<f4")
        np.testing.assert_allclose(values, logits[0], atol=1e-4)
        entry.shape[1] = 3
        with pytest.raises(plain.RpcError) as caught:
            stub.ModelInfer(request)
        assert caught.value.code() is plain.StatusCode.INVALID_ARGUMENT
        assert "expected [B, 1, 8, 8]" in caught.value.details()


@pytest.mark.parametrize(("model", "version"), [("nothing", ""), ("digits", "9")])
def test_an_unknown_model_or_version_is_named(
    client: Any, kind: str, tensor: np.ndarray, model: str, version: str
) -> None:
    with pytest.raises(utils.InferenceServerException, match="is served here; expected digits") as caught:
        client.infer(model, inputs(kind, tensor), model_version=version)
    assert "404" in caught.value.status() or "NOT_FOUND" in caught.value.status()


def test_a_wrong_name_and_shape_are_said(client: Any, kind: str, tensor: np.ndarray) -> None:
    module = http if kind == "http" else grpc
    wrong = module.InferInput("pixels", [1, 1, 8, 8], "FP32")
    wrong.set_data_from_numpy(tensor[:1])
    with pytest.raises(utils.InferenceServerException, match="unknown input; expected 'input'"):
        client.infer("digits", [wrong])
    with pytest.raises(utils.InferenceServerException, match="shape of the input; expected"):
        client.infer("digits", inputs(kind, tensor.reshape(16, 64)))


def test_the_repository_extension(client: Any, kind: str, tensor: np.ndarray) -> None:
    index = as_dict(kind, client.get_model_repository_index())
    rows = index if kind == "http" else index["models"]
    assert {(row["name"], row["version"], row["state"]) for row in rows} == {
        ("digits", "1", "READY"),
        ("digits", "2", "READY"),
        ("other", "1", "READY"),
    }
    client.unload_model("other")
    with pytest.raises(utils.InferenceServerException):
        client.infer("other", inputs(kind, tensor))
    assert not client.is_model_ready("other")
    assert client.is_server_ready(), "the other model is served"
    client.load_model("other")
    assert client.is_model_ready("other")
    assert client.infer("other", inputs(kind, tensor)).as_numpy("logits").shape == (16, 10)


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_are_preprocessed_by_the_server(
    client: Any, kind: str, digits_images: Any, logits: np.ndarray, channels_last: bool
) -> None:
    """UINT8 in either layout, as the metadata says, gives the logits of the network."""
    module = http if kind == "http" else grpc
    images = digits_images[0][:16]
    images = images if channels_last else np.ascontiguousarray(np.moveaxis(images, -1, 1))
    given = module.InferInput("input", list(images.shape), "UINT8")
    given.set_data_from_numpy(images)
    answer = client.infer("digits", [given]).as_numpy("logits")
    np.testing.assert_allclose(answer, logits, atol=1e-4)
    config = as_dict(kind, client.get_model_config("digits"))
    config = config["config"] if kind == "grpc" else config
    about = json.loads(config["parameters"]["image_input"]["string_value"])
    assert about == {"datatype": "UINT8", "shape": [-1, -1, -1, 1], "channels_first": [-1, 1, -1, -1]}
    assert json.loads(config["parameters"]["doubt_below"]["string_value"]) == DOUBT_BELOW
    assert config["parameters"]["outputs"]["string_value"] == "logits"


def test_images_of_another_size_are_resized_as_files_are(
    client: Any, kind: str, server: Any, digits_images: Any
) -> None:
    module = http if kind == "http" else grpc
    large = digits_images[0][:2].repeat(40, axis=1).repeat(30, axis=2)  # [2, 320, 240, 1]
    given = module.InferInput("input", list(large.shape), "UINT8")
    given.set_data_from_numpy(large)
    wanted = module.InferRequestedOutput("logits", class_count=1)
    rows = client.infer("digits", [given], outputs=[wanted]).as_numpy("logits")
    for row, image in zip(rows, large, strict=True):
        stream = io.BytesIO()
        Image.fromarray(image[:, :, 0]).save(stream, "PNG")
        answer = json.loads(server.call("POST", "/v1/predict?model=digits", stream.getvalue())[2])
        assert row[0].decode().split(":")[2] == answer["predictions"][0]["label"]
    given = module.InferInput("input", [2, 320, 240, 3], "UINT8")
    given.set_data_from_numpy(large.repeat(3, axis=3))
    with pytest.raises(utils.InferenceServerException, match=r"\[B, H, W, 1\] or \[B, 1, H, W\]"):
        client.infer("digits", [given])


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_bodies_are_compressed_both_ways(
    client: Any, kind: str, tensor: np.ndarray, logits: np.ndarray, algorithm: str
) -> None:
    tensors = np.concatenate([tensor] * 4)
    if kind == "grpc":
        keywords = {"compression_algorithm": algorithm}
    else:
        keywords = {
            "request_compression_algorithm": algorithm,
            "response_compression_algorithm": algorithm,
        }
    answer = client.infer("digits", inputs(kind, tensors), **keywords)
    np.testing.assert_allclose(answer.as_numpy("logits"), np.concatenate([logits] * 4), atol=1e-4)


def test_the_configuration_is_triton_s(client: Any, kind: str) -> None:
    config = as_dict(kind, client.get_model_config("digits", "1"))
    config = config["config"] if kind == "grpc" else config
    assert (config["name"], config["max_batch_size"]) == ("digits", 256)
    (given,) = config["input"]
    assert (given["name"], given["data_type"], given["format"]) == ("input", "TYPE_FP32", "FORMAT_NCHW")
    assert [int(size) for size in given["dims"]] == [1, 8, 8]
    assert [int(size) for size in config["output"][0]["dims"]] == [10]
    assert config["dynamic_batching"]["preferred_batch_size"][0] >= 1
    with pytest.raises(utils.InferenceServerException, match="no model 'letters'"):
        client.get_model_config("letters")


def test_our_messages_are_the_standard_s() -> None:
    from tritonclient.grpc import service_pb2

    from smash_export.server import messages

    for name, lines in messages.INFERENCE.messages.items():
        ours = messages.INFERENCE.pool.FindMessageTypeByName(f"inference.{name}")
        theirs = service_pb2.DESCRIPTOR.pool.FindMessageTypeByName(f"inference.{name}")
        assert len(ours.fields) == len(lines)
        for field in ours.fields:
            other = theirs.fields_by_number[field.number]
            assert (field.name, field.type, field.is_repeated) == (
                other.name,
                other.type,
                other.is_repeated,
            ), (name, field.name)
            if field.enum_type:
                values = {name: value.number for name, value in field.enum_type.values_by_name.items()}
                known = {name: value.number for name, value in other.enum_type.values_by_name.items()}
                assert values.items() <= known.items()
            if field.message_type:
                assert field.message_type.full_name == other.message_type.full_name
    methods = {
        method.name for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    }
    assert set(messages.METHODS) <= methods


def test_what_grpcurl_asks_is_told(server: Any) -> None:
    """By the reflection client of grpcio: every service, and messages enough to make a call from them."""
    reflection = pytest.importorskip("grpc_reflection.v1alpha.proto_reflection_descriptor_database")
    from google.protobuf import descriptor_pool, message_factory

    with rpc.insecure_channel(server.addresses["grpc"]) as channel:
        database = reflection.ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            "inference.GRPCInferenceService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
        }
        pool = descriptor_pool.DescriptorPool(database)
        method = pool.FindMethodByName("inference.GRPCInferenceService.ModelReady")
        asked = message_factory.GetMessageClass(method.input_type)(name="digits")
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelReady")
        answer = message_factory.GetMessageClass(method.output_type).FromString(
            call(asked.SerializeToString())
        )
        assert answer.ready
        with pytest.raises(KeyError):
            pool.FindMessageTypeByName("inference.NoSuchMessage")


def test_health_of_grpc_as_orchestrators_ask_it(server: Any) -> None:
    health = pytest.importorskip("grpc_health.v1.health_pb2")
    from grpc_health.v1.health_pb2_grpc import HealthStub

    with rpc.insecure_channel(server.addresses["grpc"]) as channel:
        for service in ("", "digits", "inference.GRPCInferenceService"):
            answer = HealthStub(channel).Check(health.HealthCheckRequest(service=service))
            assert answer.status == health.HealthCheckResponse.SERVING


def test_the_guide_s_client_works(
    server: Any, digits_bundle: Any, digits_images: Any, tmp_path: Any, capsys: Any
) -> None:
    import re
    from pathlib import Path

    from PIL import Image

    image = tmp_path / "image.png"
    Image.fromarray(digits_images[0][0, :, :, 0]).save(image)
    guide = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "serve.md"
    (script,) = re.findall(r"```py\n(.*?)```", guide.read_text(), re.DOTALL)
    for written, real in (
        ('open("digits-bundle")', f"open({str(digits_bundle)!r})"),
        ('"image.png"', repr(str(image))),
        ("127.0.0.1:8000", f"{server.host}:{server.port}"),
        ('"digits-bundle"', '"digits"'),
    ):
        assert written in script
        script = script.replace(written, real)
    exec(compile(script, str(guide), "exec"), {})
    assert f":{digits_images[1][0]}:{digits_images[1][0]}" in capsys.readouterr().out


def test_statistics_count_what_ran(client: Any, kind: str, tensor: np.ndarray) -> None:
    def read() -> Any:
        (row,) = as_dict(kind, client.get_inference_statistics("other"))["model_stats"]
        return row

    client.infer("other", inputs(kind, tensor))
    before = read()
    for _ in range(3):
        client.infer("other", inputs(kind, tensor))
    after = read()
    assert int(after["inference_count"]) - int(before["inference_count"]) == 3 * len(tensor)
    assert int(after["execution_count"]) - int(before["execution_count"]) == 3
    assert int(after["inference_stats"]["compute_infer"]["ns"]) > int(
        before["inference_stats"]["compute_infer"]["ns"]
    )
    everything = as_dict(kind, client.get_inference_statistics())["model_stats"]
    assert {(row["name"], row["version"]) for row in everything} >= {("digits", "2"), ("other", "1")}
