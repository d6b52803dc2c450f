"""The plot of a front: an SVG that stands by itself, for a page or a README."""

import math
from collections.abc import Callable
from html import escape
from typing import NamedTuple

from equipoise.evaluation.front import Candidate, Front
from equipoise.evaluation.report.plots import limits, ticks

_WIDTH, _HEIGHT = 760, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 76.0, 730.0, 40.0, 450.0
_LINE, _LETTER = 17.0, 7.6
_STYLE = """
text { font: 13px system-ui, "Segoe UI", Roboto, Arial, sans-serif; fill: #1d2326; }
.paper { fill: #ffffff; } .grid { stroke: #e2e0da; } .end { text-anchor: end; } .mid { text-anchor: middle; }
.won { fill: #2f5fc4; fill-opacity: .08; } .front { fill: none; stroke: #2f5fc4; stroke-width: 1.5; }
.whisker { stroke-width: 1.5; stroke-opacity: .45; } circle { stroke-width: 2; }
.on { fill: #2f5fc4; stroke: #2f5fc4; } .off { fill: #98a2a7; stroke: #98a2a7; }
.base { fill: #ffffff; stroke: #1d2326; }
text.name { font-weight: 600; stroke: none; } text.off, .tick { fill: #5d676c; } text.base { fill: #1d2326; }
"""


class _Plane(NamedTuple):
    """Where values stand on the paper."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, value: float) -> float:
        low, high = self.x
        return round(_LEFT + (value - low) / (high - low) * (_RIGHT - _LEFT), 1)

    def up(self, value: float) -> float:
        low, high = self.y
        return round(_BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP), 1)


def front_svg(front: Front, knob: str) -> str:
    """Return the plot: right is more harmless, up is more helpful, lines are 95 % intervals.

    Runs are named by their value of the knob. The shaded steps are what they win over the reference; their
    area is the hypervolume.
    """
    helpful = [each.helpfulness for each in front.candidates]
    harmless = [each.harmlessness for each in front.candidates]
    floor, ceiling = (0.0, 1.0) if front.helpfulness_is_share else (-math.inf, math.inf)
    plane = _Plane(
        _with(limits(harmless, 0, 1), front.reference[1]),
        _with(limits(helpful, floor, ceiling), front.reference[0]),
    )
    knob_told = f'<text class="end" x="{_RIGHT}" y="22">values of {escape(knob)}</text>'
    rows = [knob_told, *_grid(plane, front), *_won(plane, front)]
    for each in front.candidates:
        rows += _mark(plane, each, _css(each, front))
    paper = f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}"/>'
    body = "\n".join([paper, *rows, *_names(plane, front)])
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    title = escape(f"{front.helpfulness} against {front.harmlessness.lower()}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{title}</title>'
        f"<style>{_STYLE}</style>\n{body}\n</svg>\n"
    )


def _with(ends: tuple[float, float], value: float) -> tuple[float, float]:
    return min(*ends, value), max(*ends, value)


def _grid(plane: _Plane, front: Front) -> list[str]:
    rows = []
    for tick in ticks(*plane.x):
        x = plane.across(tick)
        rows.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{_BOTTOM}"/>')
        rows.append(f'<text class="tick mid" x="{x}" y="{_BOTTOM + 20}">{100 * tick:.0f}%</text>')
    for tick in ticks(*plane.y):
        y, text = plane.up(tick), f"{100 * tick:.0f}%" if front.helpfulness_is_share else f"{tick:g}"
        rows.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y}" y2="{y}"/>')
        rows.append(f'<text class="tick end" x="{_LEFT - 8}" y="{y + 4}">{text}</text>')
    rows.append(f'<text class="end" x="{_RIGHT}" y="{_BOTTOM + 48}">{escape(front.harmlessness)} →</text>')
    rows.append(f'<text x="12" y="22">↑ {escape(front.helpfulness)}</text>')
    return rows


def _won(plane: _Plane, front: Front) -> list[str]:
    """The steps of the front, and the area between them and the reference."""
    places = sorted((each.harmlessness.value, each.helpfulness.value) for each in _winners(front))
    if not places:
        return []
    y0, x0 = front.reference
    corners = []
    for x, y in places:  # the second good falls as the first rises
        corners += [(x0, y), (x, y)]
        x0 = x
    corners.append((x0, y0))
    line = " ".join(f"{plane.across(x)},{plane.up(y)}" for x, y in corners)
    origin = f"{plane.across(front.reference[1])},{plane.up(y0)}"
    return [f'<polygon class="won" points="{origin} {line}"/>', f'<polyline class="front" points="{line}"/>']


def _winners(front: Front) -> list[Candidate]:
    """The runs of the front that are better than the reference in both goods."""
    least = front.reference
    return [
        each
        for each in front.candidates
        if each.is_on_front and each.helpfulness.value > least[0] and each.harmlessness.value > least[1]
    ]


def _mark(plane: _Plane, each: Candidate, css: str) -> list[str]:
    """One run with its two intervals."""
    x, y = plane.across(each.harmlessness.value), plane.up(each.helpfulness.value)
    x1, x2 = (_or(value, plane.across, x) for value in (each.harmlessness.low, each.harmlessness.high))
    y1, y2 = (_or(value, plane.up, y) for value in (each.helpfulness.low, each.helpfulness.high))
    told = escape(f"{each.name}: helpfulness {each.helpfulness}, harmlessness {each.harmlessness}")
    return [
        f'<line class="whisker {css}" x1="{x1}" x2="{x2}" y1="{y}" y2="{y}"/>',
        f'<line class="whisker {css}" x1="{x}" x2="{x}" y1="{y1}" y2="{y2}"/>',
        f'<circle class="{css}" cx="{x}" cy="{y}" r="5"><title>{told}</title></circle>',
    ]


def _or(value: float, place: Callable[[float], float], otherwise: float) -> float:
    return otherwise if math.isnan(value) else place(value)


def _css(each: Candidate, front: Front) -> str:
    if each.name == front.reference_run:
        return "base"
    return "on" if each.is_on_front else "off"


def _names(plane: _Plane, front: Front) -> list[str]:
    """Names up and right of their points, where the front leaves room; up until they meet nothing."""
    rows: list[str] = []
    places = [(plane.across(c.harmlessness.value), plane.up(c.helpfulness.value)) for c in front.candidates]
    taken = [(x - 7, x + 7, y + 4) for x, y in places]  # left, right and base line of what stands there
    for each, (x, y) in sorted(zip(front.candidates, places, strict=True), key=lambda pair: -pair[1][1]):
        width, line = _LETTER * len(each.name), y - 9
        left = x + 9 if x + 9 + width <= _WIDTH else x - 9 - width
        while any(
            left < end and start < left + width and abs(line - other) < _LINE for start, end, other in taken
        ):
            line -= _LINE / 2
        taken.append((left, left + width, line))
        css = f"name {_css(each, front)}"
        rows.append(f'<text class="{css}" x="{left:.1f}" y="{line}">{escape(each.name)}</text>')
    return rows
