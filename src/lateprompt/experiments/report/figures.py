"""The report's figures, drawn by matplotlib: lines with labels at their ends, scores against speed, and mean ranks.

A figure is drawn in points, of which the page makes pixels. Its colours are those of the page in light; in the page
they become the style sheet's variables, so that one drawing serves light and dark.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Affine2D, Bbox

MAKER = "lateprompt report"
"""What PDF and PNG files say made them."""
_CSS = files("lateprompt.experiments.report").joinpath("page.css").read_text(encoding="utf-8")
PALETTE = {name: colour.ljust(7, "f") for name, colour in re.findall(r"--(\w+): (#\w+)", _CSS.partition("}")[0])}
"""Variables of the page's style sheet and their colours in light."""
COLOURS = [PALETTE[f"c{number}"] for number in range(7)]
MARKERS = "os^DvpH"
DASHES: Sequence[Any] = ("-", (0, (5, 3)), (0, (2, 2)), (0, (7, 2, 2, 2)))
"""Of lines, in turn after each round of colours; markers shift then too."""
FONT, LINE = 12.0, 14.0
"""Size of labels, and their least distance from one line to the next."""
LEFT, TOP, BOTTOM = 50.0, 14.0, 42.0
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": FONT,
    "text.color": PALETTE["ink"],
    "text.parse_math": False,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": PALETTE["soft"],
    "axes.labelcolor": PALETTE["soft"],
    "axes.labelsize": 11.5,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": PALETTE["faint"],
    "grid.linewidth": 1.0,
    "xtick.color": PALETTE["soft"],
    "ytick.color": PALETTE["soft"],
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "ytick.major.size": 0,
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "svg.fonttype": "none",  # texts stay texts
    "pdf.fonttype": 42,
}


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure that can be drawn at any width.

    Args:
        name: for its file.
        title: what it shows; read aloud.
        description: the figure in words, for those who cannot see it.
        width: of its file, in points.
        draw: from a width to the figure.
    """

    name: str
    title: str
    description: str
    width: float
    draw: Callable[[float], Figure]

    def svg(self, width: float | None = None) -> str:
        """The figure for the page: texts as text, colours as the style sheet's variables, nothing loaded."""
        width = width or self.width
        text = io.StringIO()
        with _style(f"{self.title} {width}"):  # the salt: ids of two figures in one page differ
            figure = self.draw(width)
            figure.savefig(text, format="svg", metadata={"Date": None})
        _, _, drawing = text.getvalue().partition('<g id="figure_1">')
        drawing = re.sub("<[^>]*>", _for_page, re.sub(r">\s+<", "><", "<g>" + drawing))
        height = figure.get_figheight() * 72
        return (
            f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{_escape(self.title)}">'
            f"<desc>{_escape(self.description)}</desc>{drawing}"
        )

    def file(self, kind: str) -> bytes:
        """The figure as `pdf`, `svg` or `png`, for papers."""
        content = io.BytesIO()
        by_kind: dict[str, dict[str, Any]] = {
            "pdf": {"Creator": MAKER, "CreationDate": None},
            "svg": {"Creator": MAKER, "Date": None},
            "png": {"Software": MAKER},
        }
        with _style(self.title):
            self.draw(self.width).savefig(content, format=kind, dpi=300, facecolor="white", metadata=by_kind[kind])
        return content.getvalue()


@contextmanager
def _style(salt: str) -> Iterator[None]:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a browser has more fonts
        yield


_VARIABLES = {colour: f"var(--{name})" for name, colour in PALETTE.items()}


def _for_page(tag: re.Match[str]) -> str:
    """A tag of matplotlib's SVG as the page has it; `set_gid` says what a group is."""
    text = re.sub(r"\s+", " ", tag[0])
    if text.startswith("<g"):
        if text.endswith("/>"):
            return ""
        if hint := re.match('<g id="hint:(.*)"', text):
            return f"<g><title>{hint[1]}</title>"
        return '<g class="label">' if text == '<g id="label">' else "<g>"
    text = re.sub(r"#[0-9a-f]{6}\b", lambda colour: _VARIABLES.get(colour[0], colour[0]), text)
    text = re.sub(r"font-family: [^;]*; | transform=\"rotate\(-0 [^\"]*\"|xlink:", "", text)
    return re.sub(r"(\.\d\d)\d+", r"\1", text)


def _escape(text: str) -> str:
    return html.escape(clean(text))


def clean(text: str) -> str:
    """Text without what cannot be shown: a replacement sign stands for it."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(sign if sign >= " " or sign in "\n\t" else "\N{REPLACEMENT CHARACTER}" for sign in text)


# -- the figures ---------------------------------------------------------------------------------------------------


def line_chart(
    lines: Mapping[str, pd.Series],
    numbers: Mapping[str, int],
    *,
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    categories: Sequence[str] = (),
    by_layer: bool = False,
    digits: str = ".1f",
    width: float = 400,
    height: float = 290,
) -> Chart:
    """Curves with the method's name at the end of each.

    Args:
        lines: method to its values by x.
        numbers: method to the number that gives its colour and marker.
        name: for its file.
        title: what the chart shows.
        x_label: name of the x axis.
        y_label: name of the y axis.
        categories: names of x = 0, 1, ... instead of a numeric axis.
        by_layer: x are whole numbers, and the axis begins where they do.
        digits: format of values in words.
        width: in points.
        height: in points.
    """

    def draw(width: float) -> Figure:
        room = min(0.36 * width, max(map(width_of, lines)) + 24)
        figure, axes = _frame(width, height, right=room, x_label=x_label, y_label=y_label)
        values = np.concatenate([line.to_numpy() for line in lines.values()])
        _scale_y(axes, values, margin=0.05, least=0.02 * float(np.abs(values).max() or 1) if by_layer else 0.4)
        if by_layer:
            axes.set_xlim(
                min(min(line.index) for line in lines.values()) - 0.1,
                max(max(line.index) for line in lines.values()) + 0.1,
            )
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        elif categories:
            axes.set_xlim(-0.15, len(categories) - 0.92)
            axes.set_xticks(range(len(categories)), categories)
        else:
            axes.set_xlim(0, max(max(line.index) for line in lines.values()) or 1)
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
            axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        for method, line in lines.items():
            said = ", ".join(f"{x:g}: {y:{digits}}" for x, y in line.head(20).items())
            dashes, marker, colour = _look(numbers[method])
            style: dict[str, Any] = {
                "ls": dashes,
                "color": colour,
                "clip_on": False,
                "gid": f"hint:{clean(method)} ({said})",
            }
            if len(line) <= 12:
                style |= {"marker": marker, "ms": 6, "mec": PALETTE["paper"], "mew": 0.8}
            axes.plot(line.index, line, **style)
        ends = [axes.transData.transform((line.index[-1], line.iloc[-1])) for line in lines.values()]
        edge = width - room
        places = spread([y for _, y in ends], LINE, BOTTOM, height - TOP)
        for method, (x, y), place in zip(lines, ends, places, strict=True):
            # A curve that stops early, or whose label had to move, is tied to its label.
            if abs(place - y) > 2 or x < edge - 4:
                _leader(figure, (x + 5, y), (edge + 7, place))
            _mark(figure, (edge + 12, place), numbers[method], 6.5)
            _label(figure, edge + 19, place, shorten(method, room - 20))
        return figure

    ends = "; ".join(f"{method} ends at {line.iloc[-1]:{digits}}" for method, line in lines.items())
    return Chart(name, title, f"{x_label} against {y_label}. {ends}.", width, draw)


def bubble_chart(
    bubbles: pd.DataFrame,
    numbers: Mapping[str, int],
    *,
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    width: float = 720,
) -> Chart:
    """Labelled circles.

    Args:
        bubbles: method × `x`, `y`, `size` (the circle's area; may be NaN) and `note`, shown on hovering.
        numbers: method to the number that gives its colour and marker.
        name: for its file.
        title: what the chart shows.
        x_label: name of the x axis.
        y_label: name of the y axis.
        width: in points.
    """

    def draw(width: float) -> Figure:
        height = 400 if width > 500 else 340
        figure, axes = _frame(width, height, right=18, x_label=x_label, y_label=y_label)
        _scale_y(axes, bubbles["y"].to_numpy(), margin=0.14)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlim(0, axes.xaxis.get_major_locator().tick_values(0, 1.06 * bubbles["x"].max())[-1])
        radii = min(26.0, width / 22) * np.sqrt(bubbles["size"] / bubbles["size"].max())
        radii = radii.clip(lower=3.0).where(bubbles["size"] > 0, 5.0)
        circles = [
            _Circle(np.array(axes.transData.transform((bubble.x, bubble.y))), float(radii[bubble.Index]))
            for bubble in bubbles.itertuples()
        ]
        for method, circle in sorted(zip(bubbles.index, circles, strict=True), key=lambda pair: -pair[1].radius):
            colour = _look(numbers[method])[2]
            shape: dict[str, Any] = {"marker": "o", "ms": 2 * circle.radius, "mfc": (colour, 0.22), "mec": colour}
            hint = f"hint:{clean(f'{method}: {bubbles.note[method]}')}"
            _draw(figure, [circle.centre], **shape, mew=1.4, gid=hint)
        area = Bbox.from_extents(LEFT + 2, BOTTOM, width - 4, height - TOP)
        taken: list[Bbox] = []
        for method, circle in zip(bubbles.index, circles, strict=True):
            _mark(figure, circle.centre, numbers[method], 4.4)
            text = shorten(method, 0.4 * width)
            box = _free_box(circle, width_of(text) + 2, circles, taken, area)
            taken.append(box)
            near = np.clip(circle.centre, box.min, box.max)
            if circle.gap(box.min, box.max) > 12:
                away = (near - circle.centre) / math.dist(near, circle.centre)
                _leader(figure, circle.centre + circle.radius * away, near - 3 * away)
            # A browser's font may be narrower: the text is tied to the side of the box that faces its circle.
            side = "left" if near[0] > circle.centre[0] else "right" if near[0] < circle.centre[0] else "center"
            x = {"left": box.x0 + 1, "right": box.x1 - 1, "center": (box.x0 + box.x1) / 2}[side]
            _label(figure, x, (box.y0 + box.y1) / 2, text, ha=side)
        return figure

    said = "; ".join(f"{bubble.Index}: {bubble.note}" for bubble in bubbles.itertuples())
    return Chart(name, title, said, width, draw)


def rank_chart(
    ranks: Mapping[str, float], numbers: Mapping[str, int], *, name: str, title: str, width: float = 720
) -> Chart:
    """Mean ranks as dots on one scale, in their order from top to bottom.

    Args:
        ranks: method to mean rank.
        numbers: method to the number that gives its colour and marker.
        name: for its file.
        title: what the chart shows.
        width: in points.
    """
    last = max(2, len(ranks))

    def draw(width: float) -> Figure:
        left = min(0.4 * width, max(map(width_of, ranks)) + 22)
        figure, axes = _frame(
            width, 24.0 * len(ranks) + TOP + BOTTOM, left=left, right=40, x_label="mean rank (1 is best)", grid="x"
        )
        axes.set_xlim(1, last)
        axes.set_xticks(range(1, last + 1))
        axes.set_ylim(len(ranks) - 0.5, -0.5)
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)
        for place, (method, rank) in enumerate(ranks.items()):
            _, marker, colour = _look(numbers[method])
            axes.plot([1, rank], [place, place], color=colour, alpha=0.45, clip_on=False)
            axes.plot(rank, place, marker, color=colour, ms=9, mec=PALETTE["paper"], mew=0.8, clip_on=False)
            x, y = axes.transData.transform((rank, place))
            _label(figure, left - 12, y, shorten(method, left - 14), ha="right")
            _label(figure, x + 9, y, f"{rank:.2f}", gid="rank", size=11, color=PALETTE["soft"])
        return figure

    said = "; ".join(f"{method} {rank:.2f}" for method, rank in ranks.items())
    return Chart(name, title, said, width, draw)


def scatter_chart(
    points: pd.DataFrame,
    *,
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    width: float = 560,
    height: float = 400,
) -> Chart:
    """Points in a plane, coloured by group, with the groups' names beside them.

    Args:
        points: `x`, `y` and `group`, a row a point.
        name: for its file.
        title: what the chart shows.
        x_label: name of the x axis.
        y_label: name of the y axis.
        width: in points.
        height: in points.
    """
    groups = [str(group) for group in points["group"].value_counts(sort=True).index]
    fitting = int((height - TOP - BOTTOM) // LINE)
    named = groups if len(groups) <= fitting else groups[: fitting - 1]
    rest = f"{len(groups) - len(named)} more"

    def draw(width: float) -> Figure:
        shown = [*named, rest] if len(named) < len(groups) else named
        room = min(0.36 * width, max(map(width_of, shown)) + 24)
        figure, axes = _frame(width, height, right=room, x_label=x_label, y_label=y_label, grid="both")
        axes.margins(0.04)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        for number, group in enumerate(shown):
            others = number == len(named)
            own = points[~points["group"].astype(str).isin(named) if others else points["group"].astype(str) == group]
            _, marker, colour = _look(number)
            style = {"color": PALETTE["soft"], "marker": "."} if others else {"color": colour, "marker": marker}
            axes.plot(own["x"], own["y"], ls="", ms=4.2, mew=0, alpha=0.75, gid=f"hint:{clean(group)}", **style)
            place = height - TOP - LINE * (number + 0.5)
            _draw(figure, [(width - room + 12, place)], ms=6.5, mew=0.8, mec=PALETTE["paper"], **style)
            _label(figure, width - room + 19, place, shorten(group, room - 20))
        return figure

    counts = points["group"].astype(str).value_counts()
    said = "; ".join(f"{group}: {counts[group]} points" for group in named)
    return Chart(name, title, f"{x_label} against {y_label}. {said}.", width, draw)


# -- their parts: all places in points from the lower left corner --------------------------------------------------


def _frame(
    width: float, height: float, *, left: float = LEFT, right: float, x_label: str, y_label: str = "", grid: str = "y"
) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    size = (width - left - right, height - BOTTOM - TOP)
    axes = figure.add_axes((left / width, BOTTOM / height, size[0] / width, size[1] / height))
    axes.grid(axis=grid, clip_on=False)  # type: ignore[arg-type]
    axes.set_xlabel(x_label)
    axes.set_ylabel(clean(y_label))
    return figure, axes


def _scale_y(axes: Axes, values: np.ndarray, margin: float, least: float = 0.4) -> None:
    """A range with round numbers in it that leaves a share of its height free around the values, or `least`."""
    free = max(margin * (values.max() - values.min()), least)
    axes.set_ylim(values.min() - free, values.max() + free)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _thousands(value: float, _: object) -> str:
    """Steps or seconds: 1000 as 1k."""
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def _look(number: int) -> tuple[Any, str, str]:
    """Line style, marker and colour: colour is not needed to tell methods apart."""
    turn = number // len(COLOURS)
    return DASHES[turn % len(DASHES)], MARKERS[(number + turn) % len(MARKERS)], COLOURS[number % len(COLOURS)]


def _label(figure: Figure, x: float, y: float, text: str, *, gid: str = "label", **style: Any) -> None:
    figure.text(x, y, clean(text), transform=_points(figure), va="center_baseline", gid=gid, **style)


def _mark(figure: Figure, place: Sequence[float] | np.ndarray, number: int, size: float) -> None:
    _, marker, colour = _look(number)
    _draw(figure, [place], marker=marker, color=colour, ms=size, mec=PALETTE["paper"], mew=0.8)


def _leader(figure: Figure, start: Sequence[float] | np.ndarray, end: Sequence[float] | np.ndarray) -> None:
    _draw(figure, [start, end], lw=0.7, alpha=0.6, color=PALETTE["soft"])


def _draw(figure: Figure, places: Sequence[Sequence[float] | np.ndarray], **style: Any) -> None:
    x, y = np.array(places).T
    figure.add_artist(Line2D(x, y, transform=_points(figure), **style))


def _points(figure: Figure) -> Any:
    return Affine2D().scale(1 / 72) + figure.dpi_scale_trans


def width_of(text: str) -> float:
    """How wide a label is in matplotlib's own font, wider than most; wide scripts, which it lacks, are square."""
    wide = sum(ord(sign) > 0x2E80 for sign in text)
    known = "".join(sign for sign in clean(text) if ord(sign) <= 0x2E80)
    return FONT * wide + text_to_path.get_text_width_height_descent(known, FontProperties(size=FONT), False)[0]


def shorten(text: str, width: float) -> str:
    """The text, cut with an ellipsis where it is wider than `width`."""
    if width_of(text) <= width:
        return text
    while text and width_of(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, at least `gap` apart and within `low` and `high` where they fit."""
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    order = np.argsort(wanted, kind="stable")
    offsets = gap * np.arange(len(wanted))  # less its offset, no position may be below the one before it
    places = np.maximum.accumulate(np.asarray(wanted, dtype=float)[order] - offsets)
    places = np.clip(places, low, high - offsets[-1]) + offsets
    return [float(place) for place in places[np.argsort(order)]]


@dataclass(frozen=True, slots=True)
class _Circle:
    centre: np.ndarray
    radius: float

    def gap(self, low: Any, high: Any) -> Any:
        """From the circle's edge to boxes, whose corners are `(..., 2)`."""
        return np.linalg.norm(self.centre - np.clip(self.centre, low, high), axis=-1) - self.radius


def _free_box(circle: _Circle, wide: float, circles: Sequence[_Circle], taken: Sequence[Bbox], area: Bbox) -> Bbox:
    """The nearest place for a label that hits no circle, no other label and no edge; else the least bad one."""
    ring, angle = map(np.ravel, np.meshgrid([4, 14, 26, 40, 56, 74], np.arange(0, 360, 30), indexing="ij"))
    away = np.stack([np.cos(np.radians(angle)), np.sin(np.radians(angle))], axis=1)
    half = np.array([wide, LINE]) / 2
    middle = circle.centre + away * ((circle.radius + ring)[:, None] + half)
    low, high = middle - half, middle + half  # corners of the boxes (places, 2)
    cost = ring + 2.0 * (angle != 0) + 1e4 * ((low < area.min) | (high > area.max)).any(axis=1)
    path = circle.centre + np.linspace(0, 1, 20)[:, None, None] * (np.clip(circle.centre, low, high) - circle.centre)
    for box in taken:
        cost += 20 * (np.minimum(high, box.max) - np.maximum(low, box.min)).clip(min=0).prod(axis=1)
        cost += 60 * ((path > box.min) & (path < box.max)).all(axis=2).any(axis=0)  # a leader through a label
    for other in circles:
        cost += 100 * (2 - other.gap(low, high)).clip(min=0)
    best = np.argmin(cost)
    return Bbox([low[best], high[best]])
