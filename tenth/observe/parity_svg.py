"""Small charts as SVG: no library, no script; values show where the pointer rests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

# told apart by people who see colours otherwise too (Okabe and Ito, 2008)
BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"

_WIDTH, _HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 44
_MARKS = ("circle", "square", "diamond", "triangle", "cross", "ring")
_LABELS = 12  # along an axis


@dataclass(frozen=True, slots=True)
class Series:
    """Values beside each other (None: not measured), with a colour, a mark of its own, and a text for each value."""

    name: str
    colour: str
    values: Sequence[float | None]
    titles: Sequence[str]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


@dataclass(frozen=True, slots=True)
class Axis:
    """How values become heights: from `low` to `high`, by their logarithm where `log` says so."""

    low: float
    high: float
    label: str
    log: bool = False

    @classmethod
    def of(cls, values: Sequence[float], label: str, *, log: bool = False, most: float | None = None) -> Axis:
        """One that holds all values; with `log` at most six powers of ten."""
        if not log:
            return cls(0.0, most or max([*values, 1e-12]) * 1.05, label)
        high = 10.0 ** math.ceil(math.log10(max([*values, 1e-9])) + 1e-9)
        least = min([value for value in values if value > 0], default=high / 10)
        low = 10.0 ** math.floor(math.log10(least))
        return cls(max(low, high / 1e6), high, label, log=True)

    def __call__(self, value: float) -> float:
        """The height of a value in the picture; beyond the axis its end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def ticks(self) -> list[float]:
        """Round values along it."""
        if self.log:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            return [10.0**power for power in range(first, last + 1)]
        step = 10.0 ** math.floor(math.log10(self.high - self.low))
        step *= next(part for part in (0.2, 0.5, 1, 2) if (self.high - self.low) / (step * part) <= 6)
        return [self.low + n * step for n in range(int((self.high - self.low) / step + 1e-9) + 1)]


def bars(series: Series, labels: Sequence[str], axis: Axis, across: str) -> str:
    """A bar a value."""
    at, width = _places(len(labels))

    def body() -> Iterator[str]:
        for n, (value, title) in enumerate(zip(series.values, series.titles, strict=True)):
            if value is None:
                continue
            top = axis(value)
            yield (
                f'<rect x="{at(n) - 0.42 * width:.1f}" y="{top:.1f}" width="{max(0.84 * width, 0.6):.1f}" '
                f'height="{max(axis(axis.low) - top, 0):.1f}" fill="{series.colour}">{_title(title)}</rect>'
            )

    return _picture(body(), labels, axis, across)


def marks(several: Sequence[Series], labels: Sequence[str], axis: Axis, across: str) -> str:
    """A mark a value, of another form for each series, with a legend; joined where a series has an interval."""
    at, _ = _places(len(labels))

    def body() -> Iterator[str]:
        for form, series in zip(_MARKS, several, strict=False):
            yield from _band(series, axis, at)
            for n, (value, title) in enumerate(zip(series.values, series.titles, strict=True)):
                if value is not None:
                    yield _mark(form, at(n), axis(value), series.colour, title)

    picture = _picture(body(), labels, axis, across)
    if len(several) == 1:
        return picture
    items = (
        f'<span><svg width="14" height="14" aria-hidden="true">{_mark(form, 7, 7, one.colour, "")}</svg> '
        f"{escape(one.name)}</span>"
        for form, one in zip(_MARKS, several, strict=False)
    )
    return f'{picture}<div class="legend">{"".join(items)}</div>'


def _places(count: int) -> tuple[Callable[[int], float], float]:
    """Where each of so many values stands, and the room that it has."""
    width = (_WIDTH - _LEFT - _RIGHT) / max(count, 1)
    return lambda n: _LEFT + (n + 0.5) * width, width


def _band(series: Series, axis: Axis, at: Callable[[int], float]) -> Iterator[str]:
    """The interval of a series as an area, and a line through its values."""
    if not series.low:
        return
    edges = [
        (at(n), axis(low), axis(high))
        for n, (low, high) in enumerate(zip(series.low, series.high, strict=True))
        if low is not None and high is not None
    ]
    if edges:
        around = [(x, top) for x, _, top in edges] + [(x, bottom) for x, bottom, _ in reversed(edges)]
        yield f'<polygon points="{_points(around)}" fill="{series.colour}" fill-opacity="0.18"/>'
    line = [(at(n), axis(value)) for n, value in enumerate(series.values) if value is not None]
    yield f'<polyline points="{_points(line)}" fill="none" stroke="{series.colour}" stroke-width="1.5"/>'


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _mark(form: str, x: float, y: float, colour: str, title: str) -> str:
    inside, fill = _title(title), f'fill="{colour}"'
    match form:
        case "circle":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" {fill}>{inside}</circle>'
        case "ring":
            return (
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" fill="white" stroke="{colour}" stroke-width="1.6">'
                f"{inside}</circle>"
            )
        case "square":
            return f'<rect x="{x - 3.2:.1f}" y="{y - 3.2:.1f}" width="6.4" height="6.4" {fill}>{inside}</rect>'
        case "diamond":
            corners = [(x, y - 4.6), (x + 4.6, y), (x, y + 4.6), (x - 4.6, y)]
        case "triangle":
            corners = [(x, y - 4.4), (x + 4.4, y + 3.6), (x - 4.4, y + 3.6)]
        case _:
            path = f"M{x - 3.4:.1f} {y - 3.4:.1f}l6.8 6.8m0 -6.8l-6.8 6.8"
            return f'<path d="{path}" stroke="{colour}" stroke-width="2" fill="none">{inside}</path>'
    return f'<polygon points="{_points(corners)}" {fill}>{inside}</polygon>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _picture(body: Iterator[str], labels: Sequence[str], axis: Axis, across: str) -> str:
    at, _ = _places(len(labels))
    floor, every = _HEIGHT - _BOTTOM, max(-(-len(labels) // _LABELS), 1)
    lines = [
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{axis(tick):.1f}" y2="{axis(tick):.1f}" class="grid"/>'
        f'<text x="{_LEFT - 6}" y="{axis(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
        for tick in axis.ticks()
    ]
    names = [
        f'<text x="{at(n):.1f}" y="{floor + 16}" text-anchor="middle">{escape(label)}</text>'
        for n, label in enumerate(labels)
        if n % every == 0
    ]
    middle = (_TOP + floor) / 2
    titles = (
        f'<text x="{(_LEFT + _WIDTH) / 2:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(across)}</text>'
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
        f"{escape(axis.label)}</text>"
    )
    floor_line = f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{floor}" y2="{floor}" class="floor"/>'
    inside = "".join([*lines, *names, titles, floor_line, *body])
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(axis.label)}">{inside}</svg>'
