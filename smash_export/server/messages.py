"""The protobuf messages of ``inference.GRPCInferenceService`` and of ``grpc.health.v1.Health``.

The standard's subset that this server speaks, field for field with the numbers of KServe's
``open_inference_grpc.proto`` and Triton's ``grpc_service.proto``; the tests compare it with the descriptors
in NVIDIA's client. Fields that a client sends beyond it are skipped, as protobuf does.
"""

from __future__ import annotations

from typing import Any

from smash_export.server.protobuf import ProtoFile

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

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
# Those of Triton's model_config.proto that a configuration here can have.
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

INFERENCE = ProtoFile(
    PACKAGE,
    _MESSAGES,
    _ENUMS,
    "GRPCInferenceService",
    {name: (f"{name}Request", f"{name}Response") for name in METHODS},
)
HEALTH = ProtoFile(
    "grpc.health.v1",
    {
        "HealthCheckRequest": ("1 string service",),
        "HealthCheckResponse": ("1 HealthCheckResponse.ServingStatus status",),
    },
    {"HealthCheckResponse.ServingStatus": ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")},
    "Health",
    {"Check": ("HealthCheckRequest", "HealthCheckResponse")},
)


def message(name: str) -> Any:
    """The class of a message, for example ``message("ModelInferRequest")``."""
    return INFERENCE.message(name)
