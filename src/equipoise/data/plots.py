"""Plots of a data set as inline SVG: pure functions from numbers to markup, nothing is loaded.

Colours come from the page's CSS classes. Every text is escaped here; the result is marked safe for the
template. A value that is None is left blank.
"""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from markupsafe import Markup

WIDTH = 960
_LABELS, _NOTES = 236, 132
"""Pixels for the names on the left and the numbers on the right."""
_ROW, _CELL, _TURNED = 24, 31, 168
"""Height of a row, side of a cell, and height of the names above a matrix."""


class Bar(NamedTuple):
    """A row with one bar or several, one behind the other; shares are 0..1."""

    label: str
    shares: Sequence[float]
    note: str


class Strip(NamedTuple):
    """A row with a point within an interval, and maybe within a wider one."""

    label: str
    middle: float | None
    inner: tuple[float, float] | None
    outer: tuple[float, float] | None
    note: str


def bars(rows: Sequence[Bar], classes: Sequence[str]) -> Markup:
    """Return horizontal bars from zero, each piece with its class; the longest row fills the width."""
    high = max((sum(row.shares) for row in rows), default=0) or 1
    drawn = []
    for number, row in enumerate(rows):
        y, start = _ROW * number, 0.0
        drawn += _texts(y, row.label, row.note)
        for share, css in zip(row.shares, classes, strict=True):
            x, width = _across(start, 0, high), _across(share, 0, high) - _LABELS
            title = f"<title>{escape(row.label)}: {share:.1%}</title>"
            drawn.append(
                f'<rect class="{css}" x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="16">{title}</rect>'
            )
            start += share
    return _svg(_ROW * len(rows), drawn)


def strips(rows: Sequence[Strip], high: float) -> Markup:
    """Return a point with its intervals for each row, on a common scale from zero to `high`."""
    height = _ROW * len(rows)
    drawn = [
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>'
        for x in (_across(high * tick / 4, 0, high) for tick in range(5))
    ]
    for number, row in enumerate(rows):
        y = _ROW * number + 12
        drawn += _texts(y - 12, row.label, row.note)
        for css, ends in (("outer", row.outer), ("inner", row.inner)):
            if ends is not None:
                x1, x2 = (_across(min(end, high), 0, high) for end in ends)
                drawn.append(f'<line class="{css}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y}" y2="{y}"/>')
        if row.middle is not None:
            x = _across(min(row.middle, high), 0, high)
            drawn.append(f'<circle class="dot" cx="{x:.1f}" cy="{y}" r="4.5"/>')
    return _svg(height, drawn)


def matrix(names: Sequence[str], values: Sequence[Sequence[float | None]], says: str) -> Markup:
    """Return a square heat map of values from -1 to 1; a cell says its hundredths, its title `says`.

    Args:
        names: Of the rows, from above, and of the columns, from the left.
        values: [row][column].
        says: Format of a cell's title, with `row`, `column` and `value`.
    """
    drawn = []
    for column, name in enumerate(names):
        x, y = _LABELS + _CELL * column + _CELL / 2 + 4, _TURNED - 8
        turn = f'transform="rotate(-48 {x:.1f} {y})"'
        drawn.append(f'<text x="{x:.1f}" y="{y}" {turn}>{escape(name)}</text>')
    for number, (name, row) in enumerate(zip(names, values, strict=True)):
        y = _TURNED + _CELL * number
        drawn.append(f'<text class="end" x="{_LABELS - 10}" y="{y + 20}">{escape(name)}</text>')
        for column, value in enumerate(row):
            if value is not None:
                title = says.format(row=name, column=names[column], value=value)
                drawn.append(_cell(_LABELS + _CELL * column, y, value, title))
    return _svg(_TURNED + _CELL * len(names), drawn)


def _cell(x: float, y: float, value: float, title: str) -> str:
    css = "plus" if value >= 0 else "minus"
    strong = " strong" if abs(value) > 0.55 else ""
    middle = _CELL / 2
    return (
        f'<g><title>{escape(title)}</title><rect class="{css}" x="{x}" y="{y}" width="{_CELL - 1}" '
        f'height="{_CELL - 1}" fill-opacity="{abs(value):.3f}"/>'
        f'<text class="mid{strong}" x="{x + middle}" y="{y + 20}">{round(100 * value)}</text></g>'
    )


def _texts(y: float, label: str, note: str) -> list[str]:
    return [
        f'<text class="end" x="{_LABELS - 10}" y="{y + 17}">{escape(label)}</text>',
        f'<text class="soft" x="{WIDTH - _NOTES + 12}" y="{y + 17}">{escape(note)}</text>',
    ]


def _across(value: float, low: float, high: float) -> float:
    """Return the horizontal place of a value, in pixels."""
    return _LABELS + (value - low) / (high - low) * (WIDTH - _LABELS - _NOTES)


def _svg(height: float, drawn: Sequence[str]) -> Markup:
    box = f'viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
    return Markup(f"<svg {box}>{''.join(drawn)}</svg>")
