"""The protobuf messages of ``inference.GRPCInferenceService``, built when this module is imported.

A table instead of generated code: generated code runs with two major versions of protobuf only, this
with all since 4.22. It is the standard's subset that this server speaks, field for field with the
numbers of KServe's ``open_inference_grpc.proto`` and Triton's ``grpc_service.proto``; the tests compare it
with the descriptors in NVIDIA's client. Fields that a client sends beyond it are skipped, as protobuf
does. The messages live in a pool of their own, so the client can be imported beside them.
"""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

# message -> fields "number kind name"; kinds: scalar, Message, repeated KIND, map KIND, "oneof KIND".
_MESSAGES: dict[str, tuple[str, ...]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("1 bool live",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("1 bool ready",),
    "ModelReadyRequest": ("1 string name", "2 string version"),
    "ModelReadyResponse": ("1 bool ready",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": ("1 string name", "2 string version", "3 repeated string extensions"),
    "ModelMetadataRequest": ("1 string name", "2 string version"),
    "ModelMetadataResponse.TensorMetadata": (
        "1 string name",
        "2 string datatype",
        "3 repeated int64 shape",
    ),
    "ModelMetadataResponse": (
        "1 string name",
        "2 repeated string versions",
        "3 string platform",
        "4 repeated ModelMetadataResponse.TensorMetadata inputs",
        "5 repeated ModelMetadataResponse.TensorMetadata outputs",
    ),
    "InferParameter": (
        "1 oneof bool bool_param",
        "2 oneof int64 int64_param",
        "3 oneof string string_param",
        "4 oneof double double_param",
        "5 oneof uint64 uint64_param",
    ),
    "InferTensorContents": (
        "1 repeated bool bool_contents",
        "2 repeated int32 int_contents",
        "3 repeated int64 int64_contents",
        "4 repeated uint32 uint_contents",
        "5 repeated uint64 uint64_contents",
        "6 repeated float fp32_contents",
        "7 repeated double fp64_contents",
        "8 repeated bytes bytes_contents",
    ),
    "ModelInferRequest.InferInputTensor": (
        "1 string name",
        "2 string datatype",
        "3 repeated int64 shape",
        "4 map InferParameter parameters",
        "5 InferTensorContents contents",
    ),
    "ModelInferRequest.InferRequestedOutputTensor": ("1 string name", "2 map InferParameter parameters"),
    "ModelInferRequest": (
        "1 string model_name",
        "2 string model_version",
        "3 string id",
        "4 map InferParameter parameters",
        "5 repeated ModelInferRequest.InferInputTensor inputs",
        "6 repeated ModelInferRequest.InferRequestedOutputTensor outputs",
        "7 repeated bytes raw_input_contents",
    ),
    "ModelInferResponse.InferOutputTensor": (
        "1 string name",
        "2 string datatype",
        "3 repeated int64 shape",
        "4 map InferParameter parameters",
        "5 InferTensorContents contents",
    ),
    "ModelInferResponse": (
        "1 string model_name",
        "2 string model_version",
        "3 string id",
        "4 map InferParameter parameters",
        "5 repeated ModelInferResponse.InferOutputTensor outputs",
        "6 repeated bytes raw_output_contents",
    ),
    "ModelConfigRequest": ("1 string name", "2 string version"),
    "ModelInput": (
        "1 string name",
        "2 DataType data_type",
        "3 ModelInput.Format format",
        "4 repeated int64 dims",
    ),
    "ModelOutput": (
        "1 string name",
        "2 DataType data_type",
        "3 repeated int64 dims",
        "4 string label_filename",
    ),
    "ModelInstanceGroup": ("1 string name", "2 int32 count", "4 ModelInstanceGroup.Kind kind"),
    "ModelDynamicBatching": (
        "1 repeated int32 preferred_batch_size",
        "2 uint64 max_queue_delay_microseconds",
    ),
    "ModelParameter": ("1 string string_value",),
    "ModelConfig": (
        "1 string name",
        "2 string platform",
        "4 int32 max_batch_size",
        "5 repeated ModelInput input",
        "6 repeated ModelOutput output",
        "7 repeated ModelInstanceGroup instance_group",
        "11 ModelDynamicBatching dynamic_batching",
        "14 map ModelParameter parameters",
        "17 string backend",
    ),
    "ModelConfigResponse": ("1 ModelConfig config",),
    "ModelStatisticsRequest": ("1 string name", "2 string version"),
    "StatisticDuration": ("1 uint64 count", "2 uint64 ns"),
    "InferStatistics": (
        "1 StatisticDuration success",
        "2 StatisticDuration fail",
        "3 StatisticDuration queue",
        "4 StatisticDuration compute_input",
        "5 StatisticDuration compute_infer",
        "6 StatisticDuration compute_output",
    ),
    "ModelStatistics": (
        "1 string name",
        "2 string version",
        "3 uint64 last_inference",
        "4 uint64 inference_count",
        "5 uint64 execution_count",
        "6 InferStatistics inference_stats",
    ),
    "ModelStatisticsResponse": ("1 repeated ModelStatistics model_stats",),
    "ModelRepositoryParameter": (
        "1 oneof bool bool_param",
        "2 oneof int64 int64_param",
        "3 oneof string string_param",
        "4 oneof bytes bytes_param",
    ),
    "RepositoryIndexRequest": ("1 string repository_name", "2 bool ready"),
    "RepositoryIndexResponse.ModelIndex": (
        "1 string name",
        "2 string version",
        "3 string state",
        "4 string reason",
    ),
    "RepositoryIndexResponse": ("1 repeated RepositoryIndexResponse.ModelIndex models",),
    "RepositoryModelLoadRequest": (
        "1 string repository_name",
        "2 string model_name",
        "3 map ModelRepositoryParameter parameters",
    ),
    "RepositoryModelLoadResponse": (),
    "RepositoryModelUnloadRequest": (
        "1 string repository_name",
        "2 string model_name",
        "3 map ModelRepositoryParameter parameters",
    ),
    "RepositoryModelUnloadResponse": (),
}
# enumeration -> its values from 0; those of Triton's model_config.proto that a configuration here can have
_ENUMS: dict[str, tuple[str, ...]] = {
    "DataType": (
        "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8",
        "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING",
        "TYPE_BF16",
    ),
    "ModelInput.Format": ("FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW"),
    "ModelInstanceGroup.Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
}  # fmt: skip
METHODS = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelConfig",
    "ModelInfer",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
)

_Field = descriptor_pb2.FieldDescriptorProto


def _build() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="smash_export/inference.proto", package=PACKAGE, syntax="proto3"
    )
    messages: dict[str, descriptor_pb2.DescriptorProto] = {}
    outer_first = sorted(_MESSAGES, key=lambda name: name.count("."))
    for full_name in outer_first:
        outer, _, inner = full_name.rpartition(".")
        parent = messages[outer].nested_type if outer else file.message_type
        messages[full_name] = parent.add(name=inner)
    for full_name, names in _ENUMS.items():
        outer, _, inner = full_name.rpartition(".")
        enum = (messages[outer] if outer else file).enum_type.add(name=inner)
        for number, name in enumerate(names):
            enum.value.add(name=name, number=number)
    for full_name, fields in _MESSAGES.items():
        for line in fields:
            _add_field(messages[full_name], full_name, line.split())
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _add_field(message: descriptor_pb2.DescriptorProto, full_name: str, words: list[str]) -> None:
    number, name = int(words[0]), words[-1]
    kind, shape = words[-2], words[1] if len(words) == 4 else ""
    field = message.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
    if shape == "repeated":
        field.label = _Field.LABEL_REPEATED
    if shape == "oneof":
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    if shape == "map":  # protobuf's own form of a map: a repeated entry message
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
        entry.field.add(
            name="value",
            number=2,
            label=_Field.LABEL_OPTIONAL,
            type=_Field.TYPE_MESSAGE,
            type_name=f".{PACKAGE}.{kind}",
        )
        field.label = _Field.LABEL_REPEATED
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{full_name}.{entry.name}"
    elif kind in _MESSAGES or kind in _ENUMS:
        field.type = _Field.TYPE_MESSAGE if kind in _MESSAGES else _Field.TYPE_ENUM
        field.type_name = f".{PACKAGE}.{kind}"
    else:
        field.type = _Field.Type.Value(f"TYPE_{kind.upper()}")


_pool = _build()


@functools.cache
def message(name: str) -> Any:
    """The class of a message, for example ``message("ModelInferRequest")``."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
