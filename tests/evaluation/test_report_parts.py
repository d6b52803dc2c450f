"""Plots, the choice of examples, and the chain of manifests."""

from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from equipoise.config import Config, InputPath
from equipoise.evaluation.metrics import METRICS
from equipoise.evaluation.report.examples import choose
from equipoise.evaluation.report.lineage import trace
from equipoise.evaluation.report.plots import (
    Part,
    Point,
    interval_bar,
    interval_strip,
    plane,
    sparkline,
    stacked_bar,
)
from equipoise.evaluation.report.views import SECTIONS
from equipoise.evaluation.rows import load_runs
from equipoise.lineage import Step, produce, write_text
from equipoise.stats import NOTHING, Estimate


def shapes(markup: str, tag: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, name, attrs):
            if name == tag:
                found.append(dict(attrs))

        handle_startendtag = handle_starttag

    Reader().feed(markup)
    return found


def estimate(value: float, half: float = 0.1) -> Estimate:
    return Estimate(value, value - half, value + half, 10, 10)


def test_a_strip_puts_the_dot_and_its_interval_at_their_percentages() -> None:
    drawn = interval_strip([(estimate(0.4), "run0"), (NOTHING, "run1")])
    assert [dot["cx"] for dot in shapes(drawn, "circle")] == ["40.00%"]  # what was not measured is not drawn
    (line,) = [each for each in shapes(drawn, "line") if "whisker" in each["class"]]
    assert (line["x1"], line["x2"]) == ("30.00%", "50.00%")


def test_a_bar_reaches_from_zero_to_its_value() -> None:
    assert shapes(interval_bar(estimate(0.25), "run0"), "rect")[1]["width"] == "25.00%"


def test_a_stacked_bar_fills_its_width_and_escapes_its_labels() -> None:
    drawn = stacked_bar([Part("<a>", 0.2, "x"), Part("b", 0.5, "y"), Part("c", 0.3, "z")])
    rects = shapes(drawn, "rect")
    assert [rect["x"] for rect in rects] == ["0.00%", "20.00%", "70.00%"]
    assert sum(float(rect["width"].rstrip("%")) for rect in rects) == pytest.approx(100)
    assert "<a>" not in drawn


def test_in_the_plane_right_is_more_harmless_and_up_more_helpful() -> None:
    points = [
        Point("<base>", estimate(0.3), estimate(0.0), 0.04, "run0"),
        Point("after", estimate(0.8), estimate(0.5), 0.16, "run1"),
    ]
    drawn = plane(points, x_label="x", y_label="y", y_is_share=False)
    dots = [each for each in shapes(drawn, "circle") if "dot" in each["class"]]
    halos = [float(each["r"]) for each in shapes(drawn, "circle") if "halo" in each["class"]]
    assert float(dots[0]["cx"].rstrip("%")) < float(dots[1]["cx"].rstrip("%"))
    assert float(dots[0]["cy"]) > float(dots[1]["cy"])
    assert halos[1] == pytest.approx(2 * halos[0], abs=0.1)  # four times the area
    assert "<base>" not in drawn


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_plane_of_one_point_without_width_is_drawn(value: float) -> None:
    point = Point("a", estimate(value, 0.0), estimate(value, 0.0), 0.0, "run0")
    assert len(shapes(plane([point], x_label="x", y_label="y", y_is_share=True), "circle")) == 2


def test_names_of_points_that_lie_together_do_not_overlap() -> None:
    points = [Point(f"r{i}", estimate(0.5), estimate(0.5), 0.0, f"run{i}") for i in range(4)]
    drawn = plane(points, x_label="x", y_label="y", y_is_share=True)
    lines = sorted(float(each["y"]) for each in shapes(drawn, "text") if "name" in each["class"])
    assert all(b - a >= 30 for a, b in pairwise(lines))


def test_a_sparkline_falls_from_the_top_left_to_the_bottom_right() -> None:
    (line,) = shapes(sparkline([3.0, 2.0, 1.0]), "polyline")
    assert line["points"] == "0.00,2.00 50.00,20.00 100.00,38.00"


def test_examples_show_every_kind_of_change_before_more_of_one_kind(make_row, make_run) -> None:
    before = [make_row(f"h{i}", 1) for i in range(6)] + [make_row("b1")]
    after = [make_row(f"h{i}", 1 if i == 5 else 0) for i in range(6)] + [make_row("b1", refusal="full")]
    runs = load_runs([make_run("a", before), make_run("b", after)])
    found = choose(runs, 0.5, 4)
    assert [example.change for example in found] == [
        "under-safe → truly safe",
        "truly safe → over-safe",
        "under-safe",
        "under-safe → truly safe",
    ]
    assert [shown.run for shown in found[0].shown] == ["a", "b"]
    assert len(choose(runs, 0.5, 100)) == 7


class _Data(Config):
    rows: int


class _Train(Config):
    data: InputPath
    seed: int = 7


@pytest.fixture
def chain(tmp_path) -> list[Path]:
    data, model, again = tmp_path / "d.jsonl", tmp_path / "model", tmp_path / "again"
    make = Step("data", 1, lambda c, run: write_text(run.out, "x" * c.rows), writes_file=True)
    train = Step("train", 1, lambda c, run: write_text(run.out / "w.json", "{}"))
    produce(data, make, _Data(rows=3))
    produce(model, train, _Train(data=data))
    produce(again, train, _Train(data=model))
    return [data, model, again]


def test_the_chain_is_followed_back_to_the_data_makers_first(chain) -> None:
    nodes = trace(chain[2:])
    assert [node.manifest.step for node in nodes] == ["data", "train", "train"]
    assert [node.place.split("/")[-1] for node in nodes] == ["d.jsonl", "model", "again"]
    assert nodes[1].inputs[0].made_by == nodes[0].manifest.key
    assert nodes[1].seeds == {"seed": "7"}
    assert not any(entry.changed for node in nodes for entry in node.inputs)


def test_the_log_of_a_training_run_is_read(chain) -> None:
    (chain[1] / "log.jsonl").write_text('{"loss": 3.5, "step": 1}\n{"eval": 1}\n{"loss": 1.25, "step": 2}\n')
    assert [node.losses for node in trace(chain[1:2])] == [[], [3.5, 1.25]]


def test_places_named_twice_stand_once(chain) -> None:
    assert len(trace([chain[1], chain[2], chain[1]])) == 3


def test_an_input_that_changed_since_is_marked(chain) -> None:
    chain[0].write_text("other")
    nodes = trace(chain[1:2])
    assert nodes[1].inputs[0].changed


def test_an_input_that_is_gone_ends_its_chain_but_keeps_its_hash(chain) -> None:
    chain[0].unlink()
    (chain[0].with_name("d.jsonl.manifest.json")).unlink()
    (node,) = trace(chain[1:2])
    assert node.inputs[0].made_by == ""
    assert len(node.inputs[0].sha256) == 64


def test_every_metric_stands_in_one_section_of_the_summary() -> None:
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted(METRICS)
