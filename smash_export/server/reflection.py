"""``grpc.reflection``: grpcurl and its like ask the server which services it has and what their messages are.

Version 1 and its older name v1alpha are the same on the wire (grpc/grpc, doc/server-reflection.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from smash_export.server.protobuf import ProtoFile

SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
METHODS = tuple(f"/{service}/ServerReflectionInfo" for service in SERVICES)
_NOT_FOUND, _UNIMPLEMENTED = 5, 12
FILE = ProtoFile(
    "grpc.reflection.v1",
    {
        "ServerReflectionRequest": (
            "1 string host",
            "3 oneof string file_by_filename",
            "4 oneof string file_containing_symbol",
            "5 oneof ExtensionRequest file_containing_extension",
            "6 oneof string all_extension_numbers_of_type",
            "7 oneof string list_services",
        ),
        "ExtensionRequest": ("1 string containing_type", "2 int32 extension_number"),
        "ServerReflectionResponse": (
            "1 string valid_host",
            "2 ServerReflectionRequest original_request",
            "4 oneof FileDescriptorResponse file_descriptor_response",
            "5 oneof ExtensionNumberResponse all_extension_numbers_response",
            "6 oneof ListServiceResponse list_services_response",
            "7 oneof ErrorResponse error_response",
        ),
        "FileDescriptorResponse": ("1 repeated bytes file_descriptor_proto",),
        "ExtensionNumberResponse": ("1 string base_type_name", "2 repeated int32 extension_number"),
        "ListServiceResponse": ("1 repeated ServiceResponse service",),
        "ServiceResponse": ("1 string name",),
        "ErrorResponse": ("1 int32 error_code", "2 string error_message"),
    },
    {},
    "ServerReflection",
    {"ServerReflectionInfo": ("ServerReflectionRequest", "ServerReflectionResponse")},
    streams=("ServerReflectionInfo",),
)


class Reflection:
    """Answers questions about some files.

    Args:
        files: what is told.
    """

    def __init__(self, files: Iterable[ProtoFile]) -> None:
        self._files = tuple(files)

    def answer(self, request: Any) -> Any:
        """``ServerReflectionRequest`` -> ``ServerReflectionResponse``."""
        response = FILE.message("ServerReflectionResponse")(valid_host=request.host)
        response.original_request.CopyFrom(request)
        asked = request.WhichOneof("choice")
        if asked == "list_services":
            for file in self._files:
                response.list_services_response.service.add(name=file.service)
        elif asked in ("file_by_filename", "file_containing_symbol"):
            found = self._find(asked, getattr(request, asked))
            if found is not None:
                described = response.file_descriptor_response.file_descriptor_proto
                described.append(found.proto.SerializeToString())
            else:
                response.error_response.error_code = _NOT_FOUND
                response.error_response.error_message = "no such file or symbol"
        else:
            response.error_response.error_code = _UNIMPLEMENTED
            response.error_response.error_message = "there are no extensions"
        return response

    def _find(self, asked: str, name: str) -> ProtoFile | None:
        for file in self._files:
            if asked == "file_by_filename":
                known = name == file.proto.name
            else:
                known = _holds(file, name)
            if known:
                return file
        return None


def _holds(file: ProtoFile, symbol: str) -> bool:
    """Whether a message, enumeration, service or method of that full name is in the file."""
    inner = symbol.removeprefix(f"{file.package}.")
    if inner == symbol:
        return False
    if inner in file.messages or inner in file.enums or symbol == file.service:
        return True
    service, _, method = symbol.rpartition(".")
    return service == file.service and any(item.name == method for item in file.proto.service[0].method)
