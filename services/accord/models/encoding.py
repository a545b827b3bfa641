"""Text to token ids and back: the only place where Accord tokenizes, so that policy, reward model and trainer agree to the token.

A prompt is the tokenizer's own chat template with the generation prompt, whatever that template adds (SmolLM2's puts in a default system
message when the conversation has none). A response is its tokens plus the token that ends an assistant turn. Text from outside never
becomes a control token: where a content spells one (`<|im_end|>`), it is tokenized as the characters that it is, and where a tokenizer has no other
way to write those (its own vocabulary has `</s>` as a word), it is refused. Control tokens are those that the tokenizer calls special; others that
it adds (`<think>`) are words of the model, which responses may hold.

What does not belong here: padding and batches (`accord.models.batching`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from accord.errors import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    from accord.text.chat import Message

PLAIN_CHAT_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}{{ '### ' + message['role'] + ':\\n' + message['content'] + '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\\n' }}{% endif %}"
)
_UNKNOWN_CHARACTER = "\U0010fffd"


class PromptEncoder:
    """Encodes prompts and responses with one tokenizer. Safe to share between threads: it keeps no state between calls.

    Args:
        tokenizer: a fast Hugging Face tokenizer. Where it has no chat template, `PLAIN_CHAT_TEMPLATE` is used, and `own_template` is False.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise FailedPreconditionError(f"{type(tokenizer).__name__} has no tokenizer.json; Accord needs a fast tokenizer", field="model")
        from tokenizers import Tokenizer

        self._tokenizer = tokenizer
        self.own_template = bool(tokenizer.chat_template)
        self.chat_template: str = _template(tokenizer)
        # Two private copies: `tokenizer(...)` switches flags on its backend, which other threads would see.
        self._plain = Tokenizer.from_str(backend.to_str())
        self._plain.no_padding()
        self._plain.no_truncation()
        self._control = Tokenizer.from_str(self._plain.to_str())
        self._plain.encode_special_tokens = True
        added = self._plain.get_added_tokens_decoder()
        self._specials = {token.content: (index, token) for index, token in added.items() if token.special}
        self._normalizer = self._plain.normalizer
        unknown = self._plain.encode(_UNKNOWN_CHARACTER, add_special_tokens=False).ids  # many tokenizers call this one special too
        self._control_ids = frozenset(index for index, _ in self._specials.values()).difference(unknown)
        self.end_of_turn_id = self._find_end_of_turn()

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the rendered conversation with the generation prompt.

        On contents without control-token strings this equals `tokenizer.apply_chat_template(..., add_generation_prompt=True)`.

        Raises:
            InvalidArgumentError: no message, text that holds NUL or a lone surrogate, a template that refuses the conversation, or a control
                token that this tokenizer cannot write as text.
        """
        if not messages:
            raise InvalidArgumentError("a prompt needs at least one message", field="messages")
        for index, message in enumerate(messages):
            check_text(message.content, f"messages[{index}].content")
        plain = [{"role": str(message.role), "content": message.content} for message in messages]
        if any(self._spells_control(message["content"]) for message in plain):
            return self._encode_pieces(plain)
        return list(self._control.encode(self._render(plain), add_special_tokens=False).ids)

    def encode_empty_prompt(self) -> list[int]:
        """Token ids of a conversation whose only message is an empty one by the user: the unconditional side of a likelihood ratio."""
        return list(self._control.encode(self._render([{"role": "user", "content": ""}]), add_special_tokens=False).ids)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of running text outside any conversation, with the beginning-of-text token where the tokenizer adds one.

        Raises:
            InvalidArgumentError: the text holds NUL, a lone surrogate, or a control token that this tokenizer cannot write as text.
        """
        check_text(text, "text")
        self._plain_ids(text, "text")
        return list(self._plain.encode(text, add_special_tokens=True).ids)

    def encode_response(self, text: str, *, append_eos: bool) -> list[int]:
        """Token ids of a response, with the end-of-turn token if asked.

        Raises:
            InvalidArgumentError: as `encode_text`.
        """
        check_text(text, "response")
        ids = self._plain_ids(text, "response")
        return [*ids, self.end_of_turn_id] if append_eos else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, control tokens left out."""
        return str(self._control.decode(list(ids), skip_special_tokens=True))

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the template writes it, with the generation prompt: for people and tests, not for tokenizing again."""
        return self._render([{"role": str(message.role), "content": message.content} for message in messages])

    def _render(self, messages: list[dict[str, str]], *, generation_prompt: bool = True) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, chat_template=self.chat_template, tokenize=False, add_generation_prompt=generation_prompt
                )
            )
        except Exception as error:
            import jinja2

            if not isinstance(error, jinja2.TemplateError):
                raise
            raise InvalidArgumentError(f"the model's chat template refuses the conversation: {error}", field="messages") from error

    def _spells_control(self, content: str) -> bool:
        """Whether a content spells a special token, as it is or as the tokenizer would normalize it (full-width letters under NFKC)."""
        read = content if self._normalizer is None else f"{content}\n{self._normalizer.normalize_str(content)}"
        return any(special in read for special in self._specials)

    def _plain_ids(self, text: str, field: str) -> list[int]:
        """Token ids of text in which nothing is a control token."""
        ids = list(self._plain.encode(text, add_special_tokens=False).ids)
        if not self._control_ids.isdisjoint(ids):
            spelt = next(content for content, (index, _) in self._specials.items() if index in ids and index in self._control_ids)
            raise InvalidArgumentError(f"the text spells {spelt}, which this model's tokenizer can only write as a control token", field=field)
        return ids

    def _encode_pieces(self, messages: list[dict[str, str]]) -> list[int]:
        """Only control tokens that the template itself wrote become ids; the text between them is tokenized with specials off."""
        pieces = self._template_pieces(messages)
        ids: list[int] = []
        text, strip_next = "", False
        for piece, from_template in pieces:
            for part in self._split_controls(piece) if from_template else [piece]:
                special = self._specials.get(part) if from_template else None
                if special is None:
                    text += part.lstrip() if strip_next and not text else part
                    continue
                ids += self._plain_ids(text.rstrip() if special[1].lstrip else text, "messages")
                ids.append(special[0])
                text, strip_next = "", special[1].rstrip
        return ids + self._plain_ids(text, "messages")

    def _template_pieces(self, messages: list[dict[str, str]]) -> list[tuple[str, bool]]:
        """The rendering cut into (text, whether the template wrote it)."""
        rendered = self._render(messages)
        for strip in (False, True):
            contents = [message["content"].strip() if strip else message["content"] for message in messages]
            marks = [f"\ue000{hashlib.sha256(f'{index} {content}'.encode()).hexdigest()}\ue001" for index, content in enumerate(contents)]
            marked = self._render([{"role": message["role"], "content": mark} for message, mark in zip(messages, marks, strict=True)])
            pieces: list[tuple[str, bool]] = [(marked, True)]
            for mark, content in zip(marks, contents, strict=True):
                pieces = [cut for piece in pieces for cut in _cut(piece, mark, content)]
            if "".join(text for text, _ in pieces) == rendered:
                return pieces
        raise InvalidArgumentError(
            "a message spells a control token, and this model's chat template rewrites contents: the two cannot be told apart",
            field="messages",
        )

    def _split_controls(self, text: str) -> list[str]:
        parts = [text]
        for special in sorted(self._specials, key=len, reverse=True):
            parts = [cut for part in parts for cut in ([part] if part in self._specials else _keep_separator(part, special))]
        return [part for part in parts if part]

    def _find_end_of_turn(self) -> int:
        """The first control token that the template writes after an assistant's content, else the tokenizer's end-of-text token."""
        mark = "\ue000reply\ue001"
        rendered = self._render([{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}], generation_prompt=False)
        for part in self._split_controls(rendered.partition(mark)[2]):
            if part in self._specials:
                return int(self._specials[part][0])
        if self._tokenizer.eos_token_id is None:
            raise FailedPreconditionError("no token ends a turn: the tokenizer has no eos_token, its chat template none", field="model")
        return int(self._tokenizer.eos_token_id)


def check_text(text: str, field: str) -> None:
    """Raises InvalidArgumentError naming the field where a text holds NUL or a lone surrogate: no tokenizer keeps those."""
    position = text.find("\x00")
    if position >= 0:
        raise InvalidArgumentError(f"the text holds a NUL character at position {position}", field=field)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"the text holds a lone surrogate at position {error.start}", field=field) from error


def _template(tokenizer: Any) -> str:
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several named templates
        template = template.get("default")
    return str(template) if template else PLAIN_CHAT_TEMPLATE


def _cut(piece: tuple[str, bool], mark: str, content: str) -> list[tuple[str, bool]]:
    text, from_template = piece
    if not from_template:
        return [piece]
    cuts: list[tuple[str, bool]] = []
    for index, part in enumerate(text.split(mark)):
        if index:
            cuts.append((content, False))
        cuts.append((part, True))
    return cuts


def _keep_separator(text: str, separator: str) -> list[str]:
    parts: list[str] = []
    for index, part in enumerate(text.split(separator)):
        if index:
            parts.append(separator)
        parts.append(part)
    return parts
