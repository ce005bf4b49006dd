"""Nacos' gRPC envelope: the one message that every call carries, either way (``nacos.proto`` shows it).

The messages are described here in protobuf's own terms, and no generated module is checked in, because

- a generated module belongs to the protobuf that generated it: it refuses an older one, and one that is two
  major versions newer. Descriptors made at run time work with all of them, and installing generates nothing;
- a generated module enters its messages into the process-wide pool. These have no package, so they would
  clash with those of the official ``nacos-sdk-python`` in the same process. This pool is our own.

Parsing by hand would save a dependency and add a parser of untrusted bytes to look after.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

FILE: Final = "nacos.proto"


class Unparsable(ValueError):  # noqa: N818  # it is said of what came in
    """What came in is not such an envelope; the text says why."""


class Payload(msgspec.Struct, frozen=True):
    """What the door needs of an envelope.

    Args:
        type: the simple name of the Java class that the body is, such as ``InstanceRequest``.
        body: the object, as UTF-8 JSON.
    """

    type: str
    body: bytes


def describe() -> descriptor_pb2.FileDescriptorProto:
    """Describe the messages of ``nacos.proto``."""
    field = descriptor_pb2.FieldDescriptorProto
    string = {"type": field.TYPE_STRING, "label": field.LABEL_OPTIONAL}
    message = {"type": field.TYPE_MESSAGE, "label": field.LABEL_OPTIONAL}
    file = descriptor_pb2.FileDescriptorProto(
        name=FILE, syntax="proto3", dependency=[any_pb2.DESCRIPTOR.name]
    )
    metadata = file.message_type.add(name="Metadata")
    metadata.field.add(name="type", number=3, **string)
    metadata.field.add(
        name="headers",
        number=7,
        type=field.TYPE_MESSAGE,
        label=field.LABEL_REPEATED,
        type_name=".Metadata.HeadersEntry",
    )
    metadata.field.add(name="clientIp", number=8, **string)
    # A map is written as a repeated message of keys and values, which has this name.
    entry = metadata.nested_type.add(name="HeadersEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, **string)
    entry.field.add(name="value", number=2, **string)
    payload = file.message_type.add(name="Payload")
    payload.field.add(name="metadata", number=2, type_name=".Metadata", **message)
    payload.field.add(name="body", number=3, type_name=".google.protobuf.Any", **message)
    return file


def _message_class() -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(describe().SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Payload"))


_Message: Final = _message_class()


def decode(data: bytes) -> Payload:
    """Read an envelope.

    Raises:
        Unparsable: these bytes are none, or it does not say what is in it.
    """
    try:
        message = _Message.FromString(data)
    except DecodeError:
        raise Unparsable("this is not a Payload message") from None
    if not message.metadata.type:
        raise Unparsable("metadata.type is empty; accepted: the name of a request's class")
    return Payload(message.metadata.type, message.body.value)


def encode(payload: Payload) -> bytes:
    """Write an envelope. Its body's ``type_url`` stays empty, as Nacos leaves it."""
    message = _Message()
    message.metadata.type = payload.type
    message.body.value = payload.body
    data: bytes = message.SerializeToString()
    return data
