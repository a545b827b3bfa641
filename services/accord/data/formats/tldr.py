"""OpenAI's TL;DR (Stiennon et al. 2020, arXiv:2009.01325): comparisons, ratings along axes, and summaries.

Comparisons have `info`, `summaries`, `choice`; axis rows a `summary` with `axes` from 1 to 7, of which `overall` is its rating. Workers, batches,
policies and confidence are metadata. Its splits valid1 and valid2 are `validation`, as the hub calls them; `part` says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.data.formats.row import BadRow, Format, Row, checked, fact, finite, label_facts, optional_text, text
from accord.data.records import CONFIDENCE
from accord.text.tasks import Task, summarization_prompt

_VALIDATION = "validation"
_OVERALL = "overall"


def _parse(row: Mapping[str, Any]) -> Row:
    info = row.get("info")
    if not isinstance(info, Mapping):
        raise BadRow("info is missing")
    post = info.get("post") or info.get("article")
    if not post:
        raise BadRow("info.post is missing")
    prompt = summarization_prompt(checked(post, "info.post"), optional_text(info, "title") or "")
    post_id = str(info.get("id") or "")
    part = optional_text(row, "split")
    split = _VALIDATION if part is not None and part.startswith("valid") else part
    base: dict[str, Any] = {"task": Task.SUMMARIZATION, "split": split, "group": post_id}
    facts = _facts(row, part if part != split else None)
    if "summaries" in row:
        return _comparison(row, prompt, base, facts)  # a post has many comparisons: its id is their group, not their own id
    if isinstance(row.get("summary"), Mapping):
        return _rated(row["summary"], prompt, base, facts)
    summary = text(row, "summary").strip()
    return Row(prompt, post_id, response=summary, reference=summary, metadata=facts, **base)


def _facts(row: Mapping[str, Any], part: str | None) -> dict[str, str]:
    facts = label_facts(row)
    facts |= {key: fact(holder[key], key) for key, holder in (("batch", row), ("subreddit", row["info"])) if holder.get(key)}
    extra = row.get("extra")
    if isinstance(extra, Mapping) and extra.get("confidence") is not None:
        facts[CONFIDENCE] = fact(extra["confidence"], "extra.confidence")
    return facts if part is None else {**facts, "part": part}


def _comparison(row: Mapping[str, Any], prompt: Any, base: dict[str, Any], facts: dict[str, str]) -> Row:
    summaries, choice = row["summaries"], row.get("choice")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(item, Mapping) for item in summaries):
        raise BadRow("summaries are not two")
    if isinstance(choice, bool) or choice not in (0, 1):
        raise BadRow("choice is not 0 or 1")
    best, other = summaries[int(choice)], summaries[1 - int(choice)]
    chosen, rejected = (checked(item.get("text"), "summaries text").strip() for item in (best, other))
    for name, item in (("policy_chosen", best), ("policy_rejected", other)):
        if item.get("policy"):
            facts[name] = fact(item["policy"], "summaries policy")
    return Row(prompt, chosen=chosen, rejected=rejected, response=chosen, human_preference=1.0, metadata=facts, **base)


def _rated(summary: Mapping[str, Any], prompt: Any, base: dict[str, Any], facts: dict[str, str]) -> Row:
    axes = summary.get("axes")
    if not isinstance(axes, Mapping) or axes.get(_OVERALL) is None:
        raise BadRow("summary.axes.overall is missing")
    facts |= {f"axis_{name}": fact(value, f"axes.{name}") for name, value in axes.items() if value is not None}
    if summary.get("policy"):
        facts["policy"] = fact(summary["policy"], "summary policy")
    response = checked(summary.get("text"), "summary text").strip()
    return Row(prompt, response=response, metadata=facts, rating=finite(axes[_OVERALL], "axes.overall"), **base)


FORMAT = Format("tldr", lambda row: isinstance(row.get("info"), Mapping) and ("summaries" in row or "summary" in row), _parse)
