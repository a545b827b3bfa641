"""Prompts and responses of wire requests to token ids, with the checks that the schema cannot make.

Shared by the services that hold weights. What does not belong here: tokenizing itself (`accord.models.encoding`) and anything that only
one service knows.
"""

from __future__ import annotations

from collections.abc import Sequence

from accord.api.common.v1 import common_pb2
from accord.client.messages import EmptyPrompt, ModelDigests, TokenIds, prompt_from_proto, response_from_proto
from accord.errors import FailedPreconditionError, InvalidArgumentError
from accord.models.encoding import PromptEncoder


class SequenceReader:
    """Reads prompts and responses for one served model.

    Args:
        encoder: of the served model.
        vocabulary_size: token ids below this are known.
        max_bytes: longest text of one prompt or response.
    """

    def __init__(self, encoder: PromptEncoder, *, vocabulary_size: int, max_bytes: int) -> None:
        self._encoder = encoder
        self._vocabulary = vocabulary_size
        self._max_bytes = max_bytes

    def prompt(self, wire: common_pb2.Prompt, field: str, *, allow_empty: bool) -> list[int]:
        """Returns the token ids of a prompt, at least one.

        Raises:
            InvalidArgumentError: an empty prompt where none is allowed, a conversation that does not end with the user's turn, text that is too
                long or cannot be tokenized, an unknown token id.
        """
        prompt = prompt_from_proto(wire)
        if isinstance(prompt, EmptyPrompt):
            if not allow_empty:
                raise InvalidArgumentError("an empty prompt cannot be answered; give messages, text or token_ids", field=field)
            return self._encoder.encode_empty_prompt()
        if isinstance(prompt, TokenIds):
            return self.token_ids(prompt.ids, f"{field}.token_ids.ids")
        if isinstance(prompt, str):
            self._check_bytes(prompt, f"{field}.text")
            return _at_least_one(_named(lambda: self._encoder.encode_text(prompt), f"{field}.text"), f"{field}.text")
        if prompt[-1].role != "user":
            raise InvalidArgumentError(
                f"the conversation ends with the {prompt[-1].role}'s turn; it must end with the user's, which is answered", field=f"{field}.messages"
            )
        self._check_bytes("".join(message.content for message in prompt), f"{field}.messages")
        try:
            return self._encoder.encode_prompt(prompt)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(error.message, field=f"{field}.{error.field or 'messages'}") from error

    def response(self, wire: common_pb2.Response, field: str, *, append_eos: bool) -> list[int]:
        """Returns the token ids of a response, at least one; text may get the end-of-turn token appended.

        Raises:
            InvalidArgumentError: as `prompt`.
        """
        response = response_from_proto(wire)
        if isinstance(response, TokenIds):
            return self.token_ids(response.ids, f"{field}.token_ids.ids")
        self._check_bytes(response, f"{field}.text")
        ids = _named(lambda: self._encoder.encode_response(response, append_eos=append_eos), f"{field}.text")
        return _at_least_one(ids, f"{field}.text")

    def token_ids(self, ids: Sequence[int], field: str) -> list[int]:
        """Returns token ids that are all in the vocabulary, at least one.

        Raises:
            InvalidArgumentError: there is none, or one is not in the vocabulary.
        """
        for index, token in enumerate(ids):
            if token >= self._vocabulary:
                raise InvalidArgumentError(f"token id {token} is not in the vocabulary of {self._vocabulary}", field=f"{field}[{index}]")
        return _at_least_one(list(ids), field)

    def _check_bytes(self, text: str, field: str) -> None:
        size = len(text.encode("utf-8", errors="replace"))
        if size > self._max_bytes:
            raise InvalidArgumentError(f"the text has {size} bytes; at most {self._max_bytes} are allowed", field=field)


def check_digests(expected: common_pb2.ModelDigests, served: ModelDigests) -> None:
    """Raises FailedPreconditionError naming both sides where a digest that the caller sent differs from the served one."""
    for name in ("base_model", "tokenizer", "chat_template"):
        wanted, here = getattr(expected, name), getattr(served, name)
        if wanted and wanted != here:
            raise FailedPreconditionError(
                f"the caller expects {name} {wanted}, this service has {here}",
                field=f"expected_digests.{name}",
                metadata={"expected": wanted, "served": here},
            )


def check_adapter_base(version: str, adapter_base: str, served_base: str) -> None:
    """Raises FailedPreconditionError naming both digests where an adapter was trained on another base model."""
    if adapter_base != served_base:
        raise FailedPreconditionError(
            f"{version} was trained on base model {adapter_base or '(not recorded)'}, this service serves {served_base}",
            field="adapter",
            metadata={"adapter_base_model": adapter_base, "served_base_model": served_base},
        )


def check_policy(version: str, kind: str) -> None:
    """Raises FailedPreconditionError where an adapter is no policy: a reward model's would answer prompts too, with nonsense."""
    if kind != "policy":
        raise FailedPreconditionError(f"{version} is of kind {kind}; the policy service answers by adapters of kind policy", field="adapter")


def digests_to_wire(values: ModelDigests) -> common_pb2.ModelDigests:
    """Returns the wire form of the served digests."""
    return common_pb2.ModelDigests(base_model=values.base_model, tokenizer=values.tokenizer, chat_template=values.chat_template)


def _named(encode, field: str) -> list[int]:  # type: ignore[no-untyped-def]
    try:
        ids: list[int] = encode()
    except InvalidArgumentError as error:
        raise InvalidArgumentError(error.message, field=field) from error
    return ids


def _at_least_one(ids: list[int], field: str) -> list[int]:
    if not ids:
        raise InvalidArgumentError("there are no tokens in it; at least one is needed", field=field)
    return ids
