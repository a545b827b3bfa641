"""The page of a card: it stands alone, has the figures, and what responses say is text."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest
from tests.unit.client.test_label_cards import full_card

from accord.client.label_cards import Disagreement, LabelCard
from accord.feedback.card_page import render_cards

HOSTILE = """<script>alert(1)</script><img src=x onerror="alert(2)">{{ 7 * 7 }}{% raw %}</blockquote></svg><style>*{}</style>"'&"""
FACTS = {"job": "labelJobs/j", "source": "sample:x", "dataset_digest": "abc", "rows": 12, "rejected_rows": {"not JSON": 3}}


class Page(HTMLParser):
    """The tags, attributes and texts of a page; fails on a tag that is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.pieces: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "circle", "line", "polyline"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "line", "polyline", "circle") or self._open[-1:] == [tag]:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        self.pieces.append(data)


def page_of(card: LabelCard, **facts: object) -> Page:
    return Page(render_cards([card], {**FACTS, **facts}))


def test_it_has_the_figures() -> None:
    page = page_of(full_card())
    words = " ".join(" ".join(page.pieces).split())
    for found in (
        "agrees with people 1.0 % 0.5 to 2.0 % 101", "same label when asked again", "Cohen’s kappa of judge and people, over either response and tie -0.500 -0.700 to -0.300 40",
        "expected calibration error against people 0.125", "mean agreement within the ensemble 75.0 %", "2.5 cost of 1,000 pairs; 1.25 spent here",
        "1 to 1.5", "3 or more", "empty answer 2", "p , judge 99.0 % sure", "a note", "role tag", "rows left out: not JSON 3", "summarization/detailed/1",
    ):  # fmt: skip
        assert found in words, found
    assert page.tags.count("figure") == 2


def test_what_was_not_measured_is_said_and_not_drawn() -> None:
    empty = LabelCard("m", "likelihood", "", None, 3, None, None, None, None, None, {}, 0, 0, ())
    page = page_of(empty)
    assert page.text.count("not measured") == len(empty.shares)
    assert "figure" not in page.tags
    assert "no price is known" in page.text


@pytest.mark.parametrize("field", ["prompt", "judge_takes", "people_take", "pair_id"])
def test_a_response_is_text_whatever_it_holds(field: str) -> None:
    hostile = replace(Disagreement("p", "prompt", "this", "that", 0.9), **{field: HOSTILE})
    page = page_of(replace(full_card(), disagreements=(hostile,)))
    assert HOSTILE in page.text
    assert_harmless(page)


@pytest.mark.parametrize("field", ["judge", "rubric", "judge_digest"])
def test_so_is_everything_else_that_has_a_name(field: str) -> None:
    page = page_of(replace(full_card(), abstentions={HOSTILE: 1}, notes=(HOSTILE,), **{field: HOSTILE}), job=HOSTILE, source=HOSTILE)
    assert_harmless(page)


def assert_harmless(page: Page) -> None:
    assert not {"script", "img", "iframe", "link", "object"} & set(page.tags)
    assert page.tags.count("style") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    addresses = {value for name, value in page.attributes if name in ("src", "href") or "//" in value}
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
