"""The report's charts: lines with labels at their ends, scores against speed, and mean ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lateprompt.experiments.report.svg import (
    COLOURS,
    DASHES,
    FONT,
    Frame,
    escape,
    inner_ticks,
    marker,
    number,
    shorten,
    spread,
    thousands,
    tick_labels,
    ticks,
    width_of,
)

LINE = 14.0


@dataclass(frozen=True, slots=True)
class Line:
    """A method's curve.

    Args:
        name: the method.
        index: its number, which gives colour and marker.
        points: pairs of x and y, by x.
    """

    name: str
    index: int
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Bubble:
    """A method as a circle.

    Args:
        name: the method.
        index: its number, which gives the colour.
        x: where it lies.
        y: where it lies.
        size: what the circle's area shows, or None.
        note: more to say on hovering.
    """

    name: str
    index: int
    x: float
    y: float
    size: float | None
    note: str


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    width: float = 400,
    height: float = 290,
    categories: Sequence[str] = (),
) -> str:
    """Curves with the method's name at the end of each.

    Args:
        lines: the curves, each with a point or more.
        title: what the chart shows.
        x_label: name of the x axis.
        y_label: name of the y axis.
        width: in user units.
        height: in user units.
        categories: names of x = 0, 1, ... instead of a numeric axis.
    """
    room = min(0.36 * width, max(width_of(line.name) for line in lines) + 22)
    ends = "; ".join(f"{line.name} ends at {line.points[-1][1]:.1f}" for line in lines)
    frame = Frame(width, height, title, f"{x_label} against {y_label}. {ends}.", right=room)
    xs, ys = ([point[axis] for line in lines for point in line.points] for axis in (0, 1))
    y_range, y_ticks = inner_ticks(min(ys), max(ys), 0.05, 7)
    if categories:
        x_ticks = [(float(i), name) for i, name in enumerate(categories)]
        x_range = (-0.15, len(categories) - 1 + 0.08)
    else:
        x_ticks = tick_labels(ticks(0.0, max(xs), 5), thousands)
        x_range = (0.0, max(max(xs), 1e-9))
        x_ticks = [(value, text) for value, text in x_ticks if value <= x_range[1] * 1.001]
    x, y = frame.scales(x_range, y_range)
    frame.axes(x, y, x_ticks, tick_labels(y_ticks), x_label, y_label)
    for line in lines:
        frame.parts.append(_curve(line, [(x(a), y(b)) for a, b in line.points]))
    right = width - room
    places = spread([y(line.points[-1][1]) for line in lines], LINE, frame.top, height - frame.bottom)
    for line, place in zip(lines, places, strict=True):
        end_x, end_y = x(line.points[-1][0]), y(line.points[-1][1])
        # A curve that stops early, or whose label had to move, is tied to its label.
        if abs(place - end_y) > 2 or end_x < right - 4:
            frame.parts.append(f'<path class="leader" d="M{end_x + 5:.1f} {end_y:.1f}L{right + 8:.1f} {place:.1f}"/>')
        frame.parts.append(marker(line.index, right + 12, place, 3))
        frame.text(right + 19, place + 4, shorten(line.name, room - 20))
    return frame.svg()


def _curve(line: Line, points: Sequence[tuple[float, float]]) -> str:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dash = DASHES[line.index // COLOURS % len(DASHES)]
    style = f' stroke-dasharray="{dash}"' if dash else ""
    signs = "".join(marker(line.index, x, y, 2.6) for x, y in points) if len(points) <= 12 else ""
    said = ", ".join(f"{number(a)}: {b:.1f}" for a, b in line.points[:20])
    return (
        f"<g><title>{escape(line.name)} ({said})</title>"
        f'<path class="k{line.index % COLOURS} curve" d="M{path}"{style}/>{signs}</g>'
    )


def bubble_chart(
    bubbles: Sequence[Bubble],
    *,
    title: str,
    x_label: str,
    y_label: str,
    width: float = 720,
    height: float = 400,
) -> str:
    """Labelled circles; a circle's area is proportional to its size."""
    said = "; ".join(f"{bubble.name}: {bubble.note}" for bubble in bubbles)
    frame = Frame(width, height, title, said, right=18)
    x_ticks = ticks(0.0, max(bubble.x for bubble in bubbles) * 1.06, 6)
    y_range, y_ticks = inner_ticks(min(b.y for b in bubbles), max(b.y for b in bubbles), 0.14, 7)
    x, y = frame.scales((0.0, x_ticks[-1]), y_range)
    frame.axes(x, y, tick_labels(x_ticks), tick_labels(y_ticks), x_label, y_label)
    largest = max((bubble.size for bubble in bubbles if bubble.size), default=0.0)
    radius = {b.name: _radius(b.size, largest, min(26.0, width / 22)) for b in bubbles}
    placed: list[_Box] = []
    circles = [_Circle(x(b.x), y(b.y), radius[b.name]) for b in bubbles]
    for bubble, circle in sorted(zip(bubbles, circles, strict=True), key=lambda pair: -pair[1].r):
        frame.parts.append(
            f'<g class="k{bubble.index % COLOURS} bubble"><title>{escape(f"{bubble.name}: {bubble.note}")}</title>'
            f'<circle cx="{circle.x:.1f}" cy="{circle.y:.1f}" r="{circle.r:.1f}"/></g>'
        )
    for bubble, circle in zip(bubbles, circles, strict=True):
        frame.parts.append(marker(bubble.index, circle.x, circle.y, 2.2))
        name = shorten(bubble.name, 0.4 * width)
        box = _place(circle, width_of(name) + 2, circles, placed, frame)
        placed.append(box)
        if box.distance(circle) > 12:
            near = (min(max(circle.x, box.x), box.x + box.w), min(max(circle.y, box.y), box.y + box.h))
            away = math.dist(near, (circle.x, circle.y))
            edge = [c + (n - c) * circle.r / away for c, n in zip((circle.x, circle.y), near, strict=True)]
            frame.parts.append(f'<path class="leader" d="M{edge[0]:.1f} {edge[1]:.1f}L{near[0]:.1f} {near[1]:.1f}"/>')
        # The width is an estimate: the text is tied to the side of the box that faces its circle.
        if box.x > circle.x:
            frame.text(box.x + 1, box.y + box.h - 4, name)
        elif box.x + box.w < circle.x:
            frame.text(box.x + box.w - 1, box.y + box.h - 4, name, anchor="end")
        else:
            frame.text(box.x + box.w / 2, box.y + box.h - 4, name, anchor="middle")
    return frame.svg()


def _radius(size: float | None, largest: float, most: float) -> float:
    return 5.0 if not size or not largest else max(3.0, most * math.sqrt(size / largest))


@dataclass(frozen=True, slots=True)
class _Circle:
    x: float
    y: float
    r: float


@dataclass(frozen=True, slots=True)
class _Box:
    x: float
    y: float
    w: float
    h: float

    def overlap(self, other: _Box) -> float:
        wide = min(self.x + self.w, other.x + other.w) - max(self.x, other.x)
        high = min(self.y + self.h, other.y + other.h) - max(self.y, other.y)
        return max(0.0, wide) * max(0.0, high)

    def distance(self, circle: _Circle) -> float:
        """From the circle's edge to the box."""
        away_x = max(self.x - circle.x, 0.0, circle.x - self.x - self.w)
        away_y = max(self.y - circle.y, 0.0, circle.y - self.y - self.h)
        return math.hypot(away_x, away_y) - circle.r


def _place(circle: _Circle, wide: float, circles: Sequence[_Circle], placed: Sequence[_Box], frame: Frame) -> _Box:
    """The nearest place for a label that hits no circle, no other label and no edge; else the least bad one."""
    best, lowest = None, math.inf
    for ring in (4, 14, 26, 40, 56, 74):
        for angle in range(0, 360, 30):
            cos, sin = math.cos(math.radians(angle)), -math.sin(math.radians(angle))
            reach = circle.r + ring
            middle_x = circle.x + cos * (reach + wide / 2)
            middle_y = circle.y + sin * (reach + FONT / 2)
            box = _Box(middle_x - wide / 2, middle_y - FONT / 2 - 1, wide, FONT + 3)
            inside = frame.left + 2 <= box.x and box.x + box.w <= frame.width - 4
            inside = inside and frame.top <= box.y and box.y + box.h <= frame.height - frame.bottom
            cost = 0.0 if inside else 1e4
            cost += 20 * sum(box.overlap(other) for other in placed)
            cost += sum(100 * max(0.0, 2 - box.distance(other)) for other in circles)
            cost += ring + (0 if angle == 0 else 2)
            if cost < lowest:
                best, lowest = box, cost
    assert best is not None
    return best


def rank_chart(ranks: Sequence[tuple[str, int, float]], *, title: str, width: float = 720) -> str:
    """Mean ranks as dots on one scale, best at the top.

    Args:
        ranks: name, number and mean rank of each method.
        title: what the chart shows.
        width: in user units.
    """
    left = min(0.4 * width, max(width_of(name) for name, _, _ in ranks) + 14)
    row = 24.0
    said = "; ".join(f"{name} {rank:.2f}" for name, _, rank in ranks)
    frame = Frame(width, row * len(ranks) + 48, title, said, right=40, left=left, top=4)
    x, _ = frame.scales((1.0, float(max(2, len(ranks)))), (0.0, 1.0))
    floor = frame.height - frame.bottom
    for tick in range(1, max(2, len(ranks)) + 1):
        frame.parts.append(
            f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{frame.top}" y2="{floor:.1f}"/>'
        )
        frame.text(x(tick), floor + 15, str(tick), anchor="middle", kind="tick")
    for place, (name, index, rank) in enumerate(ranks):
        y = frame.top + row * (place + 0.5)
        frame.text(left - 12, y + 4, shorten(name, left - 14), anchor="end")
        frame.parts.append(
            f'<path class="k{index % COLOURS} curve" d="M{x(1):.1f} {y:.1f}L{x(rank):.1f} {y:.1f}" opacity="0.45"/>'
        )
        frame.parts.append(marker(index, x(rank), y, 4.5))
        frame.text(x(rank) + 10, y + 4, f"{rank:.2f}", kind="tick halo")
    frame.text(
        (left + width - frame.right) / 2, frame.height - 6, "mean rank (1 is best)", anchor="middle", kind="name"
    )
    return frame.svg()
