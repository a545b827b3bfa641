"""The protobuf schema of the tests' echo service, built at run time: the contract suite's first patient needs no generated stubs."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from accord.api import validate_pb2  # noqa: F401 - registers buf.validate.field with the default pool

PACKAGE = "accord.test.echo.v1"
SERVICE = f"{PACKAGE}.EchoService"
_Field = descriptor_pb2.FieldDescriptorProto


def _build() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.Default()
    rules_class: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName("buf.validate.FieldRules"))
    prompts, steps = rules_class(), rules_class()
    prompts.repeated.min_items, prompts.repeated.max_items = 1, 1000
    prompts.repeated.items.string.min_len = 1
    steps.uint32.lte = 1_000_000
    file = descriptor_pb2.FileDescriptorProto(
        name="accord/test/echo/v1/echo.proto", package=PACKAGE, syntax="proto3", dependency=["buf/validate/validate.proto"]
    )
    request, reply = file.message_type.add(name="EchoRequest"), file.message_type.add(name="EchoReply")
    repeated, single = _Field.LABEL_REPEATED, _Field.LABEL_OPTIONAL
    rule: Any = pool.FindExtensionByName("buf.validate.field")
    request.field.add(name="prompts", number=1, type=_Field.TYPE_STRING, label=repeated).options.Extensions[rule].CopyFrom(prompts)
    request.field.add(name="steps", number=2, type=_Field.TYPE_UINT32, label=single).options.Extensions[rule].CopyFrom(steps)
    request.field.add(name="raise_error", number=3, type=_Field.TYPE_STRING, label=single)
    request.field.add(name="reply_bytes", number=4, type=_Field.TYPE_UINT32, label=single)
    reply.field.add(name="prompts", number=1, type=_Field.TYPE_STRING, label=repeated)
    reply.field.add(name="time_remaining", number=2, type=_Field.TYPE_DOUBLE, label=single)
    reply.field.add(name="request_id", number=3, type=_Field.TYPE_STRING, label=single)
    service = file.service.add(name="EchoService")
    for name, client_streaming, server_streaming in METHODS:
        service.method.add(
            name=name,
            input_type=f".{PACKAGE}.EchoRequest",
            output_type=f".{PACKAGE}.EchoReply",
            client_streaming=client_streaming,
            server_streaming=server_streaming,
        )
    pool.Add(file)  # type: ignore[no-untyped-call]
    return pool


METHODS = (("Echo", False, False), ("Stream", False, True), ("Collect", True, False), ("Chat", True, True), ("Watch", False, True))
_POOL = _build()
EchoRequest: Any = message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.EchoRequest"))
EchoReply: Any = message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.EchoReply"))


class EchoStub:
    """What protoc would have generated; works with sync and aio channels."""

    def __init__(self, channel: Any) -> None:
        kinds = {(False, False): channel.unary_unary, (False, True): channel.unary_stream}
        kinds |= {(True, False): channel.stream_unary, (True, True): channel.stream_stream}
        for name, client_streaming, server_streaming in METHODS:
            method = kinds[client_streaming, server_streaming](
                f"/{SERVICE}/{name}", request_serializer=EchoRequest.SerializeToString, response_deserializer=EchoReply.FromString
            )
            setattr(self, name, method)

    Echo: Any
    Stream: Any
    Collect: Any
    Chat: Any
    Watch: Any
