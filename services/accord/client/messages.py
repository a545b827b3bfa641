"""Python forms of the messages that several services share, and their conversion to and from the wire.

What does not belong here: calls (`policy`, `reward`, `feedback`, `trainer` beside this file).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as WireMessage
from google.rpc import status_pb2

from accord.api.common.v1 import common_pb2
from accord.errors import AccordError, InvalidArgumentError
from accord.rpc.status import from_item_status
from accord.text.chat import Message

_ROLES = {
    "system": common_pb2.ROLE_SYSTEM,
    "user": common_pb2.ROLE_USER,
    "assistant": common_pb2.ROLE_ASSISTANT,
}
_ROLE_NAMES = {number: name for name, number in _ROLES.items()}
_UNSIGNED_BITS = {FieldDescriptor.CPPTYPE_UINT32: 32, FieldDescriptor.CPPTYPE_UINT64: 64}


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A sequence of token ids, used by the service as it is."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EmptyPrompt:
    """The chat template with an empty user turn, for mutual information."""


@dataclass(frozen=True, slots=True)
class ModelDigests:
    """sha256 digests of the model that answered, or that a caller believes to be served; an empty one is not compared."""

    base_model: str = ""
    tokenizer: str = ""
    chat_template: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost: tokens read, tokens written or scored, seconds from its arrival to its answer (added up over its parts, see `merging`)."""

    prompt_tokens: int = 0
    response_tokens: int = 0
    compute_seconds: float = 0.0


PromptForm = Sequence[Message] | str | TokenIds | EmptyPrompt
"""A conversation, raw text, token ids, or nothing."""
ResponseForm = str | TokenIds
"""Text or token ids."""


def messages_to_proto(messages: Sequence[Message]) -> common_pb2.ChatMessages:
    """Returns the wire form of a conversation.

    Raises:
        InvalidArgumentError: a role is not system, user or assistant.
    """
    wire = common_pb2.ChatMessages()
    for index, message in enumerate(messages):
        if message.role not in _ROLES:
            raise InvalidArgumentError(f"role {message.role!r} is not one of {', '.join(_ROLES)}", field=f"messages[{index}].role")
        with encodable(f"messages[{index}].content"):
            wire.messages.add(role=_ROLES[message.role], content=message.content)
    return wire


def messages_from_proto(wire: common_pb2.ChatMessages) -> tuple[Message, ...]:
    """Returns the conversation of a wire message; an unspecified role was refused by validation before."""
    return tuple(Message(_ROLE_NAMES[item.role], item.content) for item in wire.messages)  # type: ignore[arg-type]


def prompt_to_proto(prompt: PromptForm) -> common_pb2.Prompt:
    """Returns the wire form of a prompt.

    Raises:
        InvalidArgumentError: a role, a text or a token id that the wire cannot carry.
    """
    if isinstance(prompt, str):
        with encodable("prompt.text"):
            return common_pb2.Prompt(text=prompt)
    if isinstance(prompt, TokenIds):
        return common_pb2.Prompt(token_ids=_token_ids(prompt, "prompt.token_ids.ids"))
    if isinstance(prompt, EmptyPrompt):
        return common_pb2.Prompt(empty=common_pb2.EmptyPrompt())
    return common_pb2.Prompt(messages=messages_to_proto(prompt))


def prompt_from_proto(wire: common_pb2.Prompt) -> PromptForm:
    """Returns the prompt of a wire message that validation has let through."""
    form = wire.WhichOneof("form")
    if form == "messages":
        return messages_from_proto(wire.messages)
    if form == "token_ids":
        return TokenIds(tuple(wire.token_ids.ids))
    if form == "empty":
        return EmptyPrompt()
    return wire.text


def response_to_proto(response: ResponseForm) -> common_pb2.Response:
    """Returns the wire form of a response.

    Raises:
        InvalidArgumentError: a text or a token id that the wire cannot carry.
    """
    if isinstance(response, TokenIds):
        return common_pb2.Response(token_ids=_token_ids(response, "response.token_ids.ids"))
    with encodable("response.text"):
        return common_pb2.Response(text=response)


def response_from_proto(wire: common_pb2.Response) -> ResponseForm:
    """Returns the response of a wire message."""
    return TokenIds(tuple(wire.token_ids.ids)) if wire.WhichOneof("form") == "token_ids" else wire.text


def digests_to_proto(digests: ModelDigests | None) -> common_pb2.ModelDigests | None:
    """Returns the wire form of digests; None stays None."""
    if digests is None:
        return None
    return common_pb2.ModelDigests(base_model=digests.base_model, tokenizer=digests.tokenizer, chat_template=digests.chat_template)


def digests_from_proto(wire: common_pb2.ModelDigests) -> ModelDigests:
    """Returns the digests of a wire message."""
    return ModelDigests(wire.base_model, wire.tokenizer, wire.chat_template)


def usage_from_proto(wire: common_pb2.Usage) -> Usage:
    """Returns the usage of a wire message."""
    return Usage(wire.prompt_tokens, wire.response_tokens, wire.compute_seconds)


def set_numbers(wire: WireMessage, values: Mapping[str, float | None], field: str) -> None:
    """Sets fields of a message by name; None leaves one unset.

    Raises:
        InvalidArgumentError: the field's type cannot hold the number; rules within the type are the service's to check.
    """
    for name, value in values.items():
        if value is None:
            continue
        try:
            setattr(wire, name, value)
        except (TypeError, ValueError):
            unsigned = _UNSIGNED_BITS.get(wire.DESCRIPTOR.fields_by_name[name].cpp_type)
            allowed = "a number" if unsigned is None else f"a whole number from 0 to {2**unsigned - 1}"
            raise InvalidArgumentError(f"{name} is {value!r}; it must be {allowed}", field=f"{field}.{name}" if field else name) from None


@contextlib.contextmanager
def encodable(field: str) -> Iterator[None]:
    """Within the block, text that is no Unicode is an InvalidArgumentError that names the field."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"the text holds a lone surrogate at position {error.start}", field=field) from None


def _token_ids(tokens: TokenIds, field: str) -> common_pb2.TokenIds:
    try:
        return common_pb2.TokenIds(ids=tokens.ids)
    except (TypeError, ValueError):
        raise InvalidArgumentError("a token id is not a whole number from 0 to 4294967295", field=field) from None


def error_or_none(status: status_pb2.Status) -> AccordError | None:
    """Returns the error of an item's status, or None where it is OK."""
    return from_item_status(status) if status.code else None
