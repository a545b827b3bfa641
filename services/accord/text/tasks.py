"""The tasks of the study and the prompts that state them.

What does not belong here: judging (`accord.text.judge`) and reading data (`accord.data`).
"""

from __future__ import annotations

from enum import StrEnum

from accord.text.chat import Message


class Task(StrEnum):
    """What a response is meant to do."""

    SUMMARIZATION = "summarization"
    CONVERSATION = "conversation"


def summarization_prompt(post: str, title: str = "") -> tuple[Message, ...]:
    """The request for a short summary of a post, one user turn. Short itself, for models that forget long instructions."""
    heading = f"Title: {title.strip()}\n\n" if title.strip() else ""
    return (Message("user", f"Summarize this post in one or two sentences, as its author.\n\n{heading}{post.strip()}\n\nTL;DR:"),)
