"""A small picture as SVG text: points with intervals and lines over two linear axes.

For pages that a service writes: matplotlib, which draws those of the study, would double the image of the feedback service. What does not belong
here: what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

BROWN, BLUE, GREY = "#b8552b", "#2a6f97", "#6b6b6b"
_WIDTH, _HEIGHT = 520.0, 330.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 16.0, 34.0, 50.0
_FONT = 'font-family="Inter, Segoe UI, Helvetica Neue, Arial, sans-serif"'
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis in data's units, with its ticks and their words."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]


class Chart:
    """A picture that is drawn piece by piece; what comes later lies above. Every text is escaped."""

    def __init__(self, title: str, x: Axis, y: Axis) -> None:
        self._title = title
        self._x = x
        self._y = y
        self._parts: list[str] = []
        self._frame()

    def line(self, points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False, width: float = 1.6) -> None:
        """A line through points."""
        path = " ".join(f"{self._across(x):.1f},{self._down(y):.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>')

    def interval(self, x: float, low: float, high: float, colour: str) -> None:
        """A vertical interval."""
        self.line([(x, low), (x, high)], colour)

    def dot(self, x: float, y: float, colour: str, *, radius: float = 4.5, hint: str = "") -> None:
        """A point; the hint is shown where a pointer rests on it."""
        place = f'cx="{self._across(x):.1f}" cy="{self._down(y):.1f}" r="{radius:.1f}"'
        self._parts.append(f'<circle {place} fill="{colour}"><title>{escape(hint)}</title></circle>')

    def text(self, x: float, y: float, words: str, *, colour: str = GREY, anchor: Anchor = "middle", size: float = 11) -> None:
        """Words at a point."""
        self._write(self._across(x), self._down(y), words, colour, anchor, size)

    def svg(self) -> str:
        """The picture."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{escape(self._title)}">'
        return "\n".join([head, *self._parts, "</svg>"])

    def _across(self, x: float) -> float:
        return _LEFT + (x - self._x.low) / (self._x.high - self._x.low) * (_WIDTH - _LEFT - _RIGHT)

    def _down(self, y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - self._y.low) / (self._y.high - self._y.low) * (_HEIGHT - _TOP - _BOTTOM)

    def _frame(self) -> None:
        bottom = _HEIGHT - _BOTTOM
        self._write(_LEFT, 16, self._title, "#23262b", "start", 13, weight="bold")
        for value, words in self._y.ticks:
            self.line([(self._x.low, value), (self._x.high, value)], "#e3e5e8", width=1)
            self._write(_LEFT - 8, self._down(value) + 4, words, GREY, "end", 11)
        for value, words in self._x.ticks:
            self._write(self._across(value), bottom + 17, words, GREY, "middle", 11)
        self.line([(self._x.low, self._y.low), (self._x.high, self._y.low)], "#888888", width=1)
        self._write((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, self._x.label, "#333333", "middle", 12)
        place = f'transform="translate(14 {(_TOP + bottom) / 2:.1f}) rotate(-90)"'
        self._parts.append(f'<text {place} {_FONT} font-size="12" fill="#333333" text-anchor="middle">{escape(self._y.label)}</text>')

    def _write(self, across: float, down: float, words: str, colour: str, anchor: Anchor, size: float, *, weight: str = "normal") -> None:
        style = f'font-size="{size}" font-weight="{weight}" fill="{colour}" text-anchor="{anchor}"'
        self._parts.append(f'<text x="{across:.1f}" y="{down:.1f}" {_FONT} {style}>{escape(words)}</text>')
