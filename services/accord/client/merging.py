"""Requests of some of a call's items, and the one reply that the replies of several replicas make. Wire messages in, wire messages out.

What does not belong here: which items go where (`accord.client.dispatch`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from accord.api.common.v1 import common_pb2
from accord.errors import AccordError, FailedPreconditionError
from accord.rpc.status import from_item_status, item_status

_TOKEN_CHARACTERS = 4
_ITEM = re.compile(r"\bitems\[(\d+)\]")


class Answer(NamedTuple):
    """What one replica answered: its name, the positions of the items in the caller's request, the reply."""

    replica: str
    places: tuple[int, ...]
    reply: Any


def item_keys(request: Any, characters: int) -> list[bytes]:
    """The beginning of each item's prompt, with the adapter whose keys and values a prefix cache keeps for it.

    Args:
        request: GenerateRequest, GenerateStreamRequest or ComputeLogprobsRequest.
        characters: how much of a prompt counts; a token id counts as 4.
    """
    adapter = request.adapter.encode()
    return [adapter + b"\0" + _beginning(item.prompt, characters) for item in request.items]


def part_of(request: Any, places: Sequence[int], version: str = "") -> Any:
    """`request` with those of its items; for that version of its adapter, where one is given (what `min_policy_version` waited for is over)."""
    part = type(request)()
    part.CopyFrom(request)
    del part.items[:]
    part.items.extend(request.items[place] for place in places)
    if version:
        part.adapter = version
        part.ClearField("min_policy_version")
    return part


def disagreement(answers: Sequence[Answer]) -> str | None:
    """The newest adapter version of several that answered; None where one did.

    Raises:
        FailedPreconditionError: the models differ; names two replicas and their digests.
    """
    first = answers[0]
    for other in answers[1:]:
        if other.reply.digests != first.reply.digests:
            raise FailedPreconditionError(
                f"replicas of one service serve different models: {first.replica} {_digests(first)}, {other.replica} {_digests(other)}",
                field="expected_digests",
            )
    versions = {str(answer.reply.adapter_version) for answer in answers} if len(answers) > 1 else set()
    return max(versions, key=_number) if len(versions) > 1 else None


def merge(request: Any, answers: Sequence[Answer]) -> Any:
    """One reply for all items of the request: items in its order, their errors in its numbering, usage summed.

    Raises:
        FailedPreconditionError: a replica answered with another number of items than it was asked.
    """
    if len(answers) == 1:
        return answers[0].reply
    merged = type(answers[0].reply)(adapter_version=answers[0].reply.adapter_version, digests=answers[0].reply.digests)
    found: dict[int, Any] = {}
    for answer in answers:
        if len(answer.places) != len(answer.reply.items):
            raise FailedPreconditionError(f"{answer.replica} answered {len(answer.reply.items)} of {len(answer.places)} items")
        for place, item in zip(answer.places, answer.reply.items, strict=True):
            if item.status.code:
                item.status.CopyFrom(item_status(renumber(from_item_status(item.status), answer.places)))
            found[place] = item
    merged.items.extend(found[place] for place in range(len(request.items)))
    merged.usage.CopyFrom(_usage([answer.reply.usage for answer in answers]))
    return merged


def renumber(error: AccordError, places: Sequence[int]) -> AccordError:
    """`error` with ``items[i]`` of a part's numbering in that of the whole request."""

    def whole(text: str) -> str:
        return _ITEM.sub(lambda found: f"items[{places[int(found[1])]}]" if int(found[1]) < len(places) else found[0], text)

    return type(error)(
        whole(error.message),
        field=None if error.field is None else whole(error.field),
        retry_after_seconds=error.retry_after_seconds,
        metadata=error.metadata,
    )


def _beginning(prompt: common_pb2.Prompt, characters: int) -> bytes:
    form = prompt.WhichOneof("form")
    if form == "token_ids":
        return b"ids " + b" ".join(str(token).encode() for token in prompt.token_ids.ids[: -(-characters // _TOKEN_CHARACTERS)])
    if form == "messages":
        return b"messages " + "".join(_first(_pieces(prompt.messages), characters)).encode()
    return f"{form} {prompt.text[:characters]}".encode()


def _pieces(messages: common_pb2.ChatMessages) -> Iterator[str]:
    for message in messages.messages:
        yield f"\0{message.role} "
        yield message.content


def _first(pieces: Iterator[str], characters: int) -> Iterator[str]:
    """The pieces cut to so many characters in all."""
    for piece in pieces:
        if characters <= 0:
            return
        yield piece[:characters]
        characters -= len(piece)


def _usage(parts: Sequence[common_pb2.Usage]) -> common_pb2.Usage:
    return common_pb2.Usage(
        prompt_tokens=sum(part.prompt_tokens for part in parts),
        response_tokens=sum(part.response_tokens for part in parts),
        compute_seconds=sum(part.compute_seconds for part in parts),
    )


def _digests(answer: Answer) -> str:
    digests = answer.reply.digests
    return f"(base model {digests.base_model}, tokenizer {digests.tokenizer}, chat template {digests.chat_template})"


def _number(version: str) -> int:
    number = version.rpartition("/")[2]
    return int(number) if number.isdigit() else -1
