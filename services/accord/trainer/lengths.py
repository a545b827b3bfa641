"""How long the rows of a run's data are, in tokens of its base model, without torch: what memory and time of a run depend on most.

Token for token what `accord.models.encoding` makes, but for texts that spell control tokens, which are rare. What does not belong here:
reading data (`accord.data.readers`), and what lengths cost (`accord.trainer.workload`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.data.records import Demonstration, PreferencePair, Prompt, Record, Text
from accord.text.chat import Message

_SAMPLED_ROWS = 1000
_DRAWN_BATCHES = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """Most tokens of a prompt, of a response, and of both together (the model's context)."""

    prompt: int
    response: int
    context: int


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens of one row: of its prompt, of all its responses together (each with its end; 0 where they are still to be sampled), of its longest."""

    prompt: int
    responses: int
    longest: int

    @property
    def tokens(self) -> int:
        """All, the prompt once."""
        return self.prompt + self.responses


@dataclass(frozen=True, slots=True)
class Lengths:
    """Rows within the limits (a sample of at most a thousand), and the share of all rows that is."""

    rows: tuple[Row, ...]
    kept: float

    def largest(self, count: int, drawn: int) -> tuple[int, int]:
        """Width and response tokens of the largest micro-batch of `count` rows, padded to its longest row, in a run that draws so many rows.

        Where the run sees only a part of the data, its longest row is the one expected: of N rows, n draws leave (N - n) / (n + 1) longer ones.
        """
        longest = sorted(self.rows, key=lambda row: row.tokens, reverse=True)
        first = max(0, len(longest) - drawn) // (drawn + 1)
        members = [longest[(first + index) % len(longest)] for index in range(count)]
        return members[0].tokens, sum(row.responses for row in members)

    def batch(self, size: int, micro: int) -> tuple[float, float, float]:
        """Padded tokens, their mean width and response tokens of a batch, sorted by length and cut into micro-batches; means over draws."""
        draw = random.Random(0)
        tokens = responses = 0.0
        for _ in range(_DRAWN_BATCHES):
            members = sorted((draw.choice(self.rows) for _ in range(min(size, _SAMPLED_ROWS))), key=lambda row: row.tokens)
            parts = [members[start : start + micro] for start in range(0, len(members), micro)]
            tokens += sum(len(part) * part[-1].tokens for part in parts) / len(members)
            responses += sum(row.responses for row in members) / len(members)
        return size * tokens / _DRAWN_BATCHES, tokens / _DRAWN_BATCHES, size * responses / _DRAWN_BATCHES


class TokenCounter:
    """Counts tokens with the tokenizer of a model folder.

    Raises:
        FileNotFoundError: the folder has no tokenizer.json.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(path)
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._render = _template(folder)

    def prompt(self, messages: Sequence[Message]) -> int:
        """Tokens of a conversation with the generation prompt."""
        return self.text(self._render([{"role": message.role, "content": message.content} for message in messages]))

    def text(self, text: str) -> int:
        """Tokens of running text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def measure(records: Sequence[Record], counter: TokenCounter, limits: Limits) -> Lengths:
    """Lengths of the rows that are within the limits; texts are cut to prompt and response together."""
    chosen = records if len(records) <= _SAMPLED_ROWS else [records[index * len(records) // _SAMPLED_ROWS] for index in range(_SAMPLED_ROWS)]
    rows = [_row(record, counter, limits) for record in chosen]
    kept = tuple(row for row in rows if row.prompt <= limits.prompt and row.longest <= limits.response and row.prompt + row.longest <= limits.context)
    return Lengths(kept, len(kept) / len(rows) if rows else 0.0)


def _row(record: Record, counter: TokenCounter, limits: Limits) -> Row:
    if isinstance(record, Text):
        return Row(1, min(counter.text(record.text), limits.prompt + limits.response, limits.context) - 1, 0)
    prompt = counter.prompt(record.messages)
    if isinstance(record, PreferencePair):
        lengths = [counter.text(text) + 1 for text in (record.chosen, record.rejected)]
        return Row(prompt, sum(lengths), max(lengths))
    if isinstance(record, Demonstration):
        length = counter.text(record.response) + 1
        return Row(prompt, length, length)
    assert isinstance(record, Prompt)
    return Row(prompt, 0, limits.response)


def _template(folder: Path) -> Callable[[list[dict[str, str]]], str]:
    """The model's chat template; without one, contents with the heading that Accord's plain template gives them."""
    source = folder / "chat_template.jinja"
    settings: dict[str, Any] = {}
    if (folder / "tokenizer_config.json").is_file():
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    text = source.read_text(encoding="utf-8") if source.is_file() else settings.get("chat_template")
    if not isinstance(text, str):
        return lambda messages: "".join(f"### {each['role']}:\n{each['content']}\n\n" for each in messages) + "### assistant:\n"
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    specials = {name: _content(settings.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}

    def refuse(message: str) -> str:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    template = environment.from_string(text)
    return lambda messages: template.render(messages=messages, add_generation_prompt=True, **specials)


def _content(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")
