"""Prompts as a person types them.

What does not belong here: files of prompts, which are data sets.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from accord.errors import InvalidArgumentError
from accord.text.chat import Message
from accord.text.tasks import Task, summarization_prompt

PromptText = Annotated[str, typer.Argument(help="The prompt; - reads it from stdin.", show_default=False)]
PromptTask = Annotated[Task, typer.Option("--task", help="summarization: the prompt is a post, to be put as the training data puts it.")]
System = Annotated[str, typer.Option("--system", metavar="TEXT", help="A system message before the prompt.", show_default=False)]


def read_text(given: str, field: str) -> str:
    """The text itself, or what stdin holds for ``-``.

    Raises:
        InvalidArgumentError: there is no text, or stdin holds something else.
    """
    try:
        text = sys.stdin.read() if given == "-" else given
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"{field} on stdin is not {error.encoding.upper()} text: byte {error.object[error.start]:#04x} at {error.start}", field=field
        ) from None
    if not text.strip():
        raise InvalidArgumentError(f"{field} is empty; give a text, or - and the text on stdin", field=field)
    return text


def conversation(prompt: str, *, system: str = "", task: Task = Task.CONVERSATION) -> tuple[Message, ...]:
    """The prompt as one user turn, in the words that the task's training data has."""
    text = read_text(prompt, "prompt")
    turns = summarization_prompt(text) if task is Task.SUMMARIZATION else (Message("user", text),)
    return (Message("system", system), *turns) if system else turns
