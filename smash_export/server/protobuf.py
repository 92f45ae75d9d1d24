"""Protobuf messages and services from tables, built when a module is imported.

Tables instead of generated code: generated code runs with two major versions of protobuf only, this with all
since 4.22. Each file has a pool of its own, so the clients' generated code can be imported beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto


class ProtoFile:
    """One ``.proto`` file.

    Args:
        package: Package of all names.
        messages: name -> fields "number kind name"; kinds: scalar, message or enumeration of this file,
            "repeated KIND", "map KIND" (of text to it), "oneof KIND" (all of a message exclude each other).
        enums: name -> its values, from 0.
        service: its name.
        methods: method -> request and response.
        streams: methods that are streams both ways.
    """

    def __init__(
        self,
        package: str,
        messages: Mapping[str, tuple[str, ...]],
        enums: Mapping[str, tuple[str, ...]],
        service: str,
        methods: Mapping[str, tuple[str, str]],
        streams: tuple[str, ...] = (),
    ) -> None:
        self.package, self.messages, self.enums = package, messages, enums
        self.service = f"{package}.{service}"
        self.proto = descriptor_pb2.FileDescriptorProto(
            name=f"{package.replace('.', '/')}.proto", package=package, syntax="proto3"
        )
        self._add_types()
        described = self.proto.service.add(name=service)
        for name, (request, response) in methods.items():
            method = described.method.add(name=name)
            method.input_type, method.output_type = f".{package}.{request}", f".{package}.{response}"
            method.client_streaming = method.server_streaming = name in streams
        self.pool = descriptor_pool.DescriptorPool()
        self.pool.AddSerializedFile(self.proto.SerializeToString())
        self._classes: dict[str, Any] = {}

    def message(self, name: str) -> Any:
        """The class of a message."""
        if name not in self._classes:
            descriptor = self.pool.FindMessageTypeByName(f"{self.package}.{name}")
            self._classes[name] = message_factory.GetMessageClass(descriptor)
        return self._classes[name]

    def _add_types(self) -> None:
        made: dict[str, descriptor_pb2.DescriptorProto] = {}
        for full_name in sorted(self.messages, key=lambda name: name.count(".")):  # the outer ones first
            outer, _, inner = full_name.rpartition(".")
            parent = made[outer].nested_type if outer else self.proto.message_type
            made[full_name] = parent.add(name=inner)
        for full_name, values in self.enums.items():
            outer, _, inner = full_name.rpartition(".")
            enum = (made[outer] if outer else self.proto).enum_type.add(name=inner)
            for number, name in enumerate(values):
                enum.value.add(name=name, number=number)
        for full_name, fields in self.messages.items():
            for line in fields:
                self._add_field(made[full_name], full_name, line.split())

    def _add_field(self, message: descriptor_pb2.DescriptorProto, full_name: str, words: list[str]) -> None:
        number, name = int(words[0]), words[-1]
        kind, shape = words[-2], words[1] if len(words) == 4 else ""
        field = message.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
        if shape == "repeated":
            field.label = _Field.LABEL_REPEATED
        if shape == "oneof":
            if not message.oneof_decl:
                message.oneof_decl.add(
                    name="parameter_choice" if full_name.endswith("Parameter") else "choice"
                )
            field.oneof_index = 0
        if shape == "map":
            entry = self._add_entry(message, name, kind)
            field.label, field.type = _Field.LABEL_REPEATED, _Field.TYPE_MESSAGE
            field.type_name = f".{self.package}.{full_name}.{entry}"
        elif kind in self.messages or kind in self.enums:
            field.type = _Field.TYPE_MESSAGE if kind in self.messages else _Field.TYPE_ENUM
            field.type_name = f".{self.package}.{kind}"
        else:
            field.type = _Field.Type.Value(f"TYPE_{kind.upper()}")

    def _add_entry(self, message: descriptor_pb2.DescriptorProto, field: str, kind: str) -> str:
        """Protobuf's own form of a map: a repeated message of key and value. Its name."""
        name = f"{field.title().replace('_', '')}Entry"
        entry = message.nested_type.add(name=name)
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
        entry.field.add(
            name="value",
            number=2,
            label=_Field.LABEL_OPTIONAL,
            type=_Field.TYPE_MESSAGE,
            type_name=f".{self.package}.{kind}",
        )
        return name
