"""Small parts of charts as SVG: a frame with axes, ticks, and labels that keep off each other."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

COLOURS = 7
"""Colours of the page's palette (`--c0` to `--c6`); after them they repeat with another dash and marker."""
DASHES = ("", "5 3", "2 2", "7 2 2 2")
FONT = 12.0


def escape(text: str) -> str:
    """Text as it stands, for HTML and SVG; what cannot be shown becomes a replacement sign."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return html.escape("".join(s if s >= " " or s in "\n\t" else "\N{REPLACEMENT CHARACTER}" for s in text))


def number(value: float) -> str:
    """A coordinate or a tick without needless digits."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"


def width_of(text: str, size: float = FONT) -> float:
    """About how wide a text is, in user units; wide scripts count double."""
    return sum(1.0 if ord(sign) > 0x2E80 else 0.56 for sign in text) * size


def shorten(text: str, width: float, size: float = FONT) -> str:
    """The text, cut with an ellipsis where it is wider than `width`."""
    if width_of(text, size) <= width:
        return text
    while text and width_of(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` or less to `high` or more, at most about `most` of them."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / max(1, most - 1)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def inner_ticks(low: float, high: float, share: float, most: int) -> tuple[tuple[float, float], list[float]]:
    """A range that leaves `share` of its width free around the values, and round numbers within it."""
    margin = max(share * (high - low), 0.4)
    low, high = low - margin, high + margin
    return (low, high), [tick for tick in ticks(low, high, most) if low <= tick <= high]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, at least `gap` apart and within `low` and `high` where they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    placed: list[float] = []
    for place, i in enumerate(order):
        floor = low + place * gap
        placed.append(max(wanted[i], floor, placed[-1] + gap if placed else low))
    limit = high
    for place in range(len(placed) - 1, -1, -1):
        placed[place] = min(placed[place], limit)
        limit = placed[place] - gap
    result = [0.0] * len(wanted)
    for place, i in enumerate(order):
        result[i] = placed[place]
    return result


def marker(index: int, x: float, y: float, size: float = 3.5) -> str:
    """The sign of a method: colour and shape together, so that colour is not needed to tell them apart."""
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>',
        f'<rect x="{x - size * 0.9:.1f}" y="{y - size * 0.9:.1f}" width="{size * 1.8:.1f}" height="{size * 1.8:.1f}"/>',
        _polygon(x, y, size * 1.25, 3, -90),
        _polygon(x, y, size * 1.3, 4, -90),
        _polygon(x, y, size * 1.25, 3, 90),
        _polygon(x, y, size * 1.15, 5, -90),
        _polygon(x, y, size * 1.15, 6, 0),
    )
    shape = shapes[(index + index // COLOURS) % len(shapes)]
    return f'<g class="k{index % COLOURS} mark">{shape}</g>'


def _polygon(x: float, y: float, radius: float, corners: int, start: float) -> str:
    angles = [math.radians(start + 360 * i / corners) for i in range(corners)]
    points = " ".join(f"{x + radius * math.cos(a):.1f},{y + radius * math.sin(a):.1f}" for a in angles)
    return f'<polygon points="{points}"/>'


@dataclass(frozen=True, slots=True)
class Scale:
    """From a value to a coordinate."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)


@dataclass(slots=True)
class Frame:
    """A plot with two axes, to be filled with parts.

    Args:
        width: of the whole picture, in user units.
        height: of the whole picture.
        title: read aloud and shown on hovering.
        description: the chart in words, for those who cannot see it.
        right: room for labels at the right.
    """

    width: float
    height: float
    title: str
    description: str
    right: float = 12.0
    left: float = 46.0
    top: float = 14.0
    bottom: float = 42.0
    parts: list[str] = field(default_factory=list)

    def scales(self, x: tuple[float, float], y: tuple[float, float]) -> tuple[Scale, Scale]:
        """Scales over the plot's inner area; y grows upwards."""
        return (
            Scale(*x, self.left, self.width - self.right),
            Scale(*y, self.height - self.bottom, self.top),
        )

    def axes(
        self,
        x: Scale,
        y: Scale,
        x_ticks: Sequence[tuple[float, str]],
        y_ticks: Sequence[tuple[float, str]],
        x_label: str,
        y_label: str,
    ) -> None:
        """Grid lines, tick labels and the names of both axes."""
        right, floor = self.width - self.right, self.height - self.bottom
        for value, text in y_ticks:
            self.parts.append(
                f'<line class="grid" x1="{self.left}" x2="{right:.1f}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
            )
            self.text(self.left - 7, y(value) + 4, text, anchor="end", kind="tick")
        self.parts.append(f'<line class="axis" x1="{self.left}" x2="{right:.1f}" y1="{floor:.1f}" y2="{floor:.1f}"/>')
        for value, text in x_ticks:
            self.parts.append(
                f'<line class="axis" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{floor:.1f}" y2="{floor + 4:.1f}"/>'
            )
            self.text(x(value), floor + 17, text, anchor="middle", kind="tick")
        self.text((self.left + right) / 2, self.height - 6, x_label, anchor="middle", kind="name")
        middle = (self.top + floor) / 2
        self.parts.append(
            f'<text class="name" text-anchor="middle" transform="translate(11 {middle:.1f}) rotate(-90)">'
            f"{escape(y_label)}</text>"
        )

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", kind: str = "label") -> None:
        """A line of text."""
        self.parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def svg(self) -> str:
        """The picture."""
        return (
            f'<svg viewBox="0 0 {self.width:.0f} {self.height:.0f}" role="img" aria-label="{escape(self.title)}">'
            f"<desc>{escape(self.description)}</desc>{''.join(self.parts)}</svg>"
        )


def tick_labels(values: Sequence[float], write: Callable[[float], str] = number) -> list[tuple[float, str]]:
    """Ticks with their texts."""
    return [(value, write(value)) for value in values]


def thousands(value: float) -> str:
    """A tick of steps or seconds: 1000 as 1k."""
    return f"{number(value / 1000)}k" if abs(value) >= 1000 else number(value)
