"""The plots as markup: well formed, escaped, and drawn to scale."""

from xml.etree import ElementTree

import pytest

from equipoise.data.plots import Bar, Strip, bars, matrix, strips


def elements(markup: str, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(markup).iter(tag))


def test_bars_are_as_long_as_their_shares_and_pieces_follow_each_other() -> None:
    rows = [Bar("one", [0.2, 0.2], "40%"), Bar("two", [0.1, 0.0], "10%")]
    first, second, third, last = elements(bars(rows, ["x", "y"]), "rect")
    widths = [float(rect.get("width") or 0) for rect in (first, second, third, last)]
    assert widths == pytest.approx([widths[0], widths[0], widths[0] / 2, 0], abs=0.2)
    assert float(second.get("x") or 0) == pytest.approx(float(first.get("x") or 0) + widths[0], abs=0.2)
    assert [rect.get("class") for rect in (first, second)] == ["x", "y"]


def test_a_matrix_shows_size_by_opacity_and_sign_by_class_and_leaves_gaps_blank() -> None:
    markup = matrix(["a", "b"], [[1.0, -0.25], [None, 0.5]], "{row} to {column} {value:.2f}")
    cells = elements(markup, "rect")
    assert [(cell.get("class"), cell.get("fill-opacity")) for cell in cells] == [
        ("plus", "1.000"),
        ("minus", "0.250"),
        ("plus", "0.500"),
    ]
    assert [title.text for title in elements(markup, "title")] == [
        "a to a 1.00",
        "a to b -0.25",
        "b to b 0.50",
    ]


def test_strips_have_a_common_scale_and_end_at_its_end() -> None:
    rows = [Strip("one", 5, (2.5, 7.5), (0, 99), ""), Strip("two", None, None, None, "")]
    markup = strips(rows, 10)
    lines = {line.get("class"): line for line in elements(markup, "line") if line.get("class") != "grid"}
    grid = [float(line.get("x1") or 0) for line in elements(markup, "line") if line.get("class") == "grid"]
    (dot,) = elements(markup, "circle")
    assert float(dot.get("cx") or 0) == pytest.approx(grid[2])
    assert float(lines["inner"].get("x1") or 0) == pytest.approx(grid[1])
    assert float(lines["outer"].get("x2") or 0) == pytest.approx(grid[4])


def test_names_are_escaped() -> None:
    name = '<script>"&'
    plots = (
        bars([Bar(name, [1.0], name)], ["x"]),
        matrix([name], [[1.0]], "{row}"),
        strips([Strip(name, 1, None, None, name)], 1),
    )
    for markup in plots:
        assert "<script>" not in markup
        assert name in {text.text for text in elements(markup, "text")}


def test_nothing_to_draw_is_an_empty_plot() -> None:
    for markup in (bars([], ["x"]), strips([], 1), matrix([], [], "")):
        assert elements(markup, "text") == []
