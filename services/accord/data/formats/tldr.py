"""OpenAI's TL;DR: comparisons (`info`, `summaries`, `choice`) and summaries (Stiennon et al. 2020, arXiv:2009.01325)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.data.formats.row import BadRow, Format, Row, checked, optional_text, text
from accord.text.tasks import Task, summarization_prompt

_KEPT = ("worker", "batch", "subreddit")


def _parse(row: Mapping[str, Any]) -> Row:
    info = row.get("info")
    if not isinstance(info, Mapping):
        raise BadRow("info is missing")
    post = info.get("post") or info.get("article")
    if not post:
        raise BadRow("info.post is missing")
    prompt = summarization_prompt(checked(post, "info.post"), optional_text(info, "title") or "")
    post_id = str(info.get("id") or "")
    base: dict[str, Any] = {"task": Task.SUMMARIZATION, "split": optional_text(row, "split"), "group": post_id}
    if "summaries" in row:
        return _comparison(row, prompt, base)  # a post has many comparisons: its id is their group, not their own id
    summary = text(row, "summary").strip()
    return Row(prompt, post_id, response=summary, reference=summary, **base)


def _comparison(row: Mapping[str, Any], prompt: Any, base: dict[str, Any]) -> Row:
    summaries, choice = row["summaries"], row.get("choice")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(item, Mapping) for item in summaries):
        raise BadRow("summaries are not two")
    if choice not in (0, 1):
        raise BadRow("choice is not 0 or 1")
    choice = int(choice)
    texts = [checked(item.get("text"), "summaries text").strip() for item in summaries]
    facts = {key: str(row[key]) for key in _KEPT if row.get(key) is not None}
    extra = row.get("extra")
    if isinstance(extra, Mapping) and extra.get("confidence") is not None:
        facts["confidence"] = str(extra["confidence"])
    best, other = texts[choice], texts[1 - choice]
    return Row(prompt, chosen=best, rejected=other, response=best, human_preference=1.0, metadata=facts, **base)


FORMAT = Format("tldr", lambda row: isinstance(row.get("info"), Mapping) and ("summaries" in row or "summary" in row), _parse)
