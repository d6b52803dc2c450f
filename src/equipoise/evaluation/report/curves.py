"""Curves over the updates of a training run, as inline SVG that stretches with the page."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from markupsafe import Markup

from equipoise.evaluation.report.plots import ticks

_LEFT, _RIGHT = 13.0, 98.0  # percent
_TOP, _BOTTOM = 8, 150  # pixels


class Curve(NamedTuple):
    """One quantity over the updates; None where it was not measured."""

    label: str
    values: Sequence[float | None]
    css: str
    """Of its colour."""
    is_limit: bool = False
    """Drawn dashed: something that is compared with."""


class Band(NamedTuple):
    """What lies between two quantities."""

    low: Sequence[float]
    high: Sequence[float]
    css: str


def curves(
    updates: Sequence[int],
    shown: Sequence[Curve],
    bands: Sequence[Band] = (),
    *,
    is_share: bool = False,
    from_zero: bool = False,
) -> Markup:
    """Return curves over a common scale, on top of bands.

    Args:
        updates: Number of each point, rising.
        shown: The curves.
        bands: Drawn below them.
        is_share: Write the scale in percent.
        from_zero: Let the scale begin at 0, for what is never less.
    """
    everything = [v for curve in shown for v in curve.values if v is not None and math.isfinite(v)]
    everything += [v for band in bands for v in (*band.low, *band.high) if math.isfinite(v)]
    low, high = _scale(everything, from_zero=from_zero)
    first, last = updates[0], updates[-1]

    def across(update: float) -> float:
        return 100 * (update - first) / (last - first) if last > first else 50.0

    def down(value: float) -> float:
        return 100 * (high - value) / (high - low)

    rows = [*_y_axis(low, high, is_share), *_x_axis(first, last)]
    inner: list[str] = []
    for band in bands:
        there = [(across(u), down(v)) for u, v in zip(updates, band.high, strict=True)]
        back = [(across(u), down(v)) for u, v in zip(updates, band.low, strict=True)]
        inner.append(f'<polygon class="band {band.css}" points="{_points(there + back[::-1])}"/>')
    for curve in shown:
        css = f"curve {curve.css}{' limit' if curve.is_limit else ''}"
        for part in _parts(updates, curve.values):
            if len(part) > 1:
                points = _points([(across(u), down(v)) for u, v in part])
                inner.append(
                    f'<polyline class="{css}" points="{points}" vector-effect="non-scaling-stroke"/>'
                )
            else:  # one point is no line
                (u, v) = part[0]
                x = _LEFT + across(u) * (_RIGHT - _LEFT) / 100
                y = _TOP + down(v) * (_BOTTOM - _TOP) / 100
                rows.append(f'<circle class="dot {curve.css}" cx="{x:.2f}%" cy="{y:.1f}" r="3.5"/>')
    box = f'x="{_LEFT}%" y="{_TOP}" width="{_RIGHT - _LEFT}%" height="{_BOTTOM - _TOP}"'
    rows.append(f'<svg {box} viewBox="0 0 100 100" preserveAspectRatio="none">{"".join(inner)}</svg>')
    body = "".join(rows)
    return Markup(f'<svg class="curves" width="100%" height="{_BOTTOM + 22}" aria-hidden="true">{body}</svg>')


def stacked(updates: Sequence[int], shares: Sequence[tuple[str, Sequence[float]]]) -> Markup:
    """Return shares on top of each other, each as a band of its own colour; the first lies lowest."""
    below = [0.0] * len(updates)
    bands = []
    for css, values in shares:
        above = [b + v for b, v in zip(below, values, strict=True)]
        bands.append(Band(below, above, css))
        below = above
    return curves(updates, [], bands, is_share=True, from_zero=True)


def _scale(values: Sequence[float], *, from_zero: bool) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low = min(0.0, low) if from_zero else low
    air = 0.08 * (high - low) or 0.5 * abs(high) or 0.5
    return (low if from_zero and low >= 0 else low - air), high + air


def _y_axis(low: float, high: float, is_share: bool) -> list[str]:
    rows = []
    for tick in ticks(low, high):
        y = _TOP + (high - tick) / (high - low) * (_BOTTOM - _TOP)
        text = f"{100 * tick:g}%" if is_share else f"{tick:g}"
        rows.append(f'<line class="grid" x1="{_LEFT}%" x2="{_RIGHT}%" y1="{y:.1f}" y2="{y:.1f}"/>')
        label = escape(text.replace("-", "\u2212"))
        rows.append(f'<text class="tick end" x="{_LEFT - 1.5}%" y="{y + 4:.1f}">{label}</text>')
    return rows


def _x_axis(first: int, last: int) -> list[str]:
    marks = (
        [first, *(t for t in ticks(first, last) if t == int(t) and t > first)] if last > first else [first]
    )
    rows = []
    for mark in marks:
        x = _LEFT + ((mark - first) / (last - first) if last > first else 0.5) * (_RIGHT - _LEFT)
        name = f"update {mark}" if mark == first else f"{mark:g}"
        rows.append(f'<text class="tick mid" x="{x:.2f}%" y="{_BOTTOM + 17}">{name}</text>')
    return rows


def _parts(updates: Sequence[int], values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """Return runs of points that follow each other, cut where nothing was measured."""
    parts: list[list[tuple[int, float]]] = [[]]
    for update, value in zip(updates, values, strict=True):
        if value is not None and math.isfinite(value):
            parts[-1].append((update, value))
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in places)
