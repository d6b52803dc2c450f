"""Plots as inline SVG: pure functions from numbers to markup. Colours come from the page's CSS classes.

Horizontal positions are percentages, so that a plot stretches with the page and its text does not.
Every text is escaped here; the result is marked safe for the template.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from markupsafe import Markup

from equipoise.stats import Estimate

_LEFT, _RIGHT = 11.0, 95.0
_TOP, _BOTTOM = 16.0, 300.0
_LABEL_WIDTH = 26.0  # percent of the plot


class Point(NamedTuple):
    """One run in the plane; `size` is a share that the circle's area shows."""

    label: str
    x: Estimate
    y: Estimate
    size: float
    css: str


class Part(NamedTuple):
    """One piece of a stacked bar; shares add up to one."""

    label: str
    share: float
    css: str


def interval_strip(series: Sequence[tuple[Estimate, str]], *, low: float = 0, high: float = 1) -> Markup:
    """A dot with its interval for each run, one under the other, on a common scale."""
    rows = []
    height = 14 * len(series) + 4
    for tick in (0, 25, 50, 75, 100):
        rows.append(f'<line class="grid" x1="{tick}%" x2="{tick}%" y1="0" y2="{height}"/>')
    for number, (value, css) in enumerate(series):
        y = 9 + 14 * number
        if math.isnan(value.value):
            continue
        x, x1, x2 = (_percent(v, low, high) for v in (value.value, value.low, value.high))
        if not (math.isnan(value.low) or math.isnan(value.high)):
            rows.append(f'<line class="whisker {css}" x1="{x1}" x2="{x2}" y1="{y}" y2="{y}"/>')
        rows.append(f'<circle class="dot {css}" cx="{x}" cy="{y}" r="4.5"/>')
    return _svg(height, rows, "strip")


def interval_bar(value: Estimate, css: str, *, high: float = 1) -> Markup:
    """A bar from zero to the value, with its interval drawn over it."""
    x, x1, x2 = (_percent(v, 0, high) for v in (value.value, value.low, value.high))
    rows = [
        '<rect class="track" x="0" y="5" width="100%" height="12" rx="3"/>',
        f'<rect class="bar {css}" x="0" y="5" width="{x}" height="12" rx="3"/>',
        f'<line class="over" x1="{x1}" x2="{x2}" y1="11" y2="11"/>',
        *(f'<line class="over" x1="{end}" x2="{end}" y1="7" y2="15"/>' for end in (x1, x2)),
    ]
    return _svg(22, rows, "strip")


def stacked_bar(parts: Sequence[Part]) -> Markup:
    """One bar cut into shares; a share of 9 % or more carries its number."""
    rows, start = [], 0.0
    for part in parts:
        if math.isnan(part.share):
            continue
        rows.append(
            f'<rect class="{part.css}" x="{start:.2f}%" y="0" width="{100 * part.share:.2f}%" height="28">'
            f"<title>{escape(part.label)}: {100 * part.share:.1f}%</title></rect>"
        )
        if part.share >= 0.09:
            middle = start + 50 * part.share
            rows.append(f'<text class="in-bar" x="{middle:.2f}%" y="18.5">{100 * part.share:.0f}%</text>')
        start += 100 * part.share
    return _svg(28, rows, "stack")


def plane(points: Sequence[Point], *, x_label: str, y_label: str, y_is_share: bool) -> Markup:
    """Runs by two goods, right and up is better; circle area shows a third quantity, an arrow the way."""
    x_low, x_high = limits([p.x for p in points], 0, 1)
    y_low, y_high = limits([p.y for p in points], *((0, 1) if y_is_share else (-math.inf, math.inf)))

    def at(point: Point, x: float | None = None, y: float | None = None) -> tuple[str, float]:
        across = _scale(point.x.value if x is None else x, x_low, x_high)
        up = _scale(point.y.value if y is None else y, y_low, y_high)
        return f"{_LEFT + across * (_RIGHT - _LEFT):.2f}%", round(_BOTTOM - up * (_BOTTOM - _TOP), 1)

    rows = []
    for tick in ticks(x_low, x_high):
        x, _ = at(points[0], x=tick)
        rows.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{_BOTTOM}"/>')
        rows.append(f'<text class="tick mid" x="{x}" y="{_BOTTOM + 18}">{100 * tick:.0f}%</text>')
    for tick in ticks(y_low, y_high):
        _, y = at(points[0], y=tick)
        text = f"{100 * tick:.0f}%" if y_is_share else f"{tick:g}"
        rows.append(f'<line class="grid" x1="{_LEFT}%" x2="{_RIGHT}%" y1="{y}" y2="{y}"/>')
        rows.append(f'<text class="tick end" x="{_LEFT - 1}%" y="{y + 4}">{text}</text>')
    rows.append(f'<text class="axis end" x="{_RIGHT}%" y="{_BOTTOM + 40}">{escape(x_label)} →</text>')
    rows.append(f'<text class="axis" x="{_LEFT + 1}%" y="{_TOP + 14}">↑ {escape(y_label)}</text>')
    base_x, base_y = at(points[0])
    for point in points[1:]:
        x, y = at(point)
        rows.append(f'<line class="way" x1="{base_x}" y1="{base_y}" x2="{x}" y2="{y}"/>')
    for point in points:
        (x, y), (x1, _), (x2, _) = at(point), at(point, x=point.x.low), at(point, x=point.x.high)
        (_, y1), (_, y2) = at(point, y=point.y.low), at(point, y=point.y.high)
        rows.append(f'<line class="whisker {point.css}" x1="{x1}" x2="{x2}" y1="{y}" y2="{y}"/>')
        rows.append(f'<line class="whisker {point.css}" x1="{x}" x2="{x}" y1="{y1}" y2="{y2}"/>')
        rows.append(f'<circle class="halo {point.css}" cx="{x}" cy="{y}" r="{radius(point.size):.1f}"/>')
        rows.append(f'<circle class="dot {point.css}" cx="{x}" cy="{y}" r="4.5"/>')
    rows += _labels([(point, *at(point)) for point in points])
    return _svg(_BOTTOM + 50, rows, "plane")


def sparkline(values: Sequence[float]) -> Markup:
    """A curve of values in order, from the smallest at the bottom to the largest at the top."""
    low, high = min(values), max(values)
    span, last = (high - low) or 1.0, max(len(values) - 1, 1)
    places = [f"{100 * i / last:.2f},{38 - 36 * (v - low) / span:.2f}" for i, v in enumerate(values)]
    line = f'<polyline points="{" ".join(places)}" vector-effect="non-scaling-stroke"/>'
    stretched = 'viewBox="0 0 100 40" preserveAspectRatio="none"'
    return Markup(f'<svg class="spark" width="100%" height="40" {stretched} aria-hidden="true">{line}</svg>')


def radius(share: float) -> float:
    """Radius in pixels of a circle whose area is proportional to a share, 48 at one.

    >>> radius(0.25) / radius(1.0)
    0.5
    """
    return 48 * math.sqrt(max(share, 0.0))


def _labels(places: Sequence[tuple[Point, str, float]]) -> list[str]:
    """Names above their points, on the inner side, moved up where they would meet another."""
    rows: list[str] = []
    used: list[tuple[float, float]] = []
    for point, x, y in sorted(places, key=lambda place: -place[2]):
        across, line = float(x.rstrip("%")), y - 26
        side, shift = ("end", -12) if across > 58 else ("start", 12)
        left = across - _LABEL_WIDTH if side == "end" else across
        while met := [
            top for other, top in used if abs(other - left) < _LABEL_WIDTH and abs(top - line) < 31
        ]:
            line = min(met) - 31
        used.append((left, line))
        name = escape(point.label)
        rows.append(
            f'<text class="name {point.css} {side}" x="{x}" y="{line}" dx="{shift}">{name}</text>'
            f'<text class="tick {side}" x="{x}" y="{line + 15}" dx="{shift}">'
            f"over-refusal {100 * point.size:.0f}%</text>"
        )
    return rows


def _svg(height: float, rows: Sequence[str], css: str) -> Markup:
    body = "".join(rows)
    return Markup(f'<svg class="{css}" width="100%" height="{height:g}" aria-hidden="true">{body}</svg>')


def _scale(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * _scale(value, low, high):.2f}%"


def limits(values: Sequence[Estimate], floor: float, ceiling: float) -> tuple[float, float]:
    """Limits that hold every interval with some air, within the floor and the ceiling."""
    ends = [end for v in values for end in (v.low, v.value, v.high) if not math.isnan(end)]
    low, high = min(ends), max(ends)
    air = 0.12 * (high - low) or 0.5 * abs(high) or 0.5
    low, high = max(floor, low - air), min(ceiling, high + air)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers between two limits.

    >>> ticks(0.13, 0.92)
    [0.2, 0.4, 0.6, 0.8]
    """
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first = math.ceil(low / step)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + i) * step, 10) for i in range(count)]
