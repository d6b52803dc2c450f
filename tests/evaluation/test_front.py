"""The front and its hypervolume against values by hand, a grid of cells, and plain loops."""

import json
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from equipoise.errors import ConfigError, DataError
from equipoise.evaluation.front import hypervolume, measure_front, non_dominated
from equipoise.evaluation.front_plot import front_svg
from equipoise.evaluation.front_run import FRONT, FrontConfig
from equipoise.evaluation.rows import EvaluatedRow, EvaluationRun, load_run
from equipoise.lineage import produce

MakeRow = Callable[..., EvaluatedRow]
MakeRun = Callable[..., Path]


@pytest.mark.parametrize(
    ("points", "reference", "area", "front"),
    [
        ([(1, 3), (2, 2), (3, 1)], (0, 0), 6, [True, True, True]),
        ([(1, 3), (2, 2), (3, 1)], (1, 1), 1, [True, True, True]),
        ([(2, 2), (1, 2), (2, 1)], (0, 0), 4, [True, False, False]),  # as good in one is not enough
        ([(2, 2), (2, 2)], (-1, 0), 6, [True, True]),  # runs that are alike stand beside each other
        ([(-1, 5), (5, -1)], (0, 0), 0, [True, True]),  # better in one good only wins nothing
        ([(0, 0)], (0, 0), 0, [True]),
    ],
)
def test_front_and_area_are_those_found_by_hand(
    points: list[tuple[float, float]], reference: tuple[float, float], area: float, front: list[bool]
) -> None:
    assert non_dominated(points).tolist() == front
    assert hypervolume(points, reference) == pytest.approx(area, rel=1e-12)


def test_the_area_is_the_number_of_cells_that_some_point_covers() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        points, reference = rng.integers(0, 12, size=(rng.integers(1, 7), 2)), rng.integers(0, 5, size=2)
        cells = sum(
            any(x > i and y > j for x, y in points)
            for i in range(reference[0], 12)
            for j in range(reference[1], 12)
        )
        assert hypervolume(points, reference) == cells


def test_the_front_is_what_a_plain_loop_finds_and_carries_all_of_the_area() -> None:
    rng = np.random.default_rng(1)
    clouds = rng.integers(0, 6, size=(40, 7, 2)).astype(float)
    found = non_dominated(clouds)
    for points, is_on in zip(clouds.tolist(), found.tolist(), strict=True):
        beaten = [any(a >= x and b >= y and (a, b) != (x, y) for a, b in points) for x, y in points]
        assert is_on == [not each for each in beaten]
        kept = [point for point, each in zip(points, is_on, strict=True) if each]
        assert hypervolume(kept, [1, 1]) == hypervolume(points, [1, 1])
    origins = rng.integers(0, 3, size=(40, 2))
    one_by_one = [float(hypervolume(p, o)) for p, o in zip(clouds, origins, strict=True)]
    assert hypervolume(clouds, origins).tolist() == one_by_one


@pytest.fixture
def planted(make_row: MakeRow, make_run: MakeRun) -> list[EvaluationRun]:
    """A base, one run that is better in both, one that is safer and less helpful, one behind them all.

    Prompts differ far more from each other than runs do: only a paired analysis can tell these apart.
    """
    rng = np.random.default_rng(2)
    ease = rng.normal(0, 3, size=40)
    runs = []
    for name, gain, harmful in (("base", 0.0, 20), ("both", 0.5, 15), ("safe", -0.5, 5), ("worse", -1.0, 16)):
        rows = [make_row(f"h{i}", 2 * (i < harmful), reward=0.0) for i in range(40)]
        rows += [make_row(f"b{i}", reward=ease[i] + gain, is_harmful=False) for i in range(40)]
        runs.append(load_run(make_run(name, rows)))
    return runs


def test_a_planted_front_is_found(planted: list[EvaluationRun]) -> None:
    front = measure_front(planted)
    assert front.helpfulness == "Reward, benign prompts"
    assert [each.is_on_front for each in front.candidates] == [False, True, True, False]
    assert front.reference_run == "base"
    assert (front.harmful_prompts, front.benign_prompts) == (40, 40)
    base, both, safe, worse = front.candidates
    assert [each.harmlessness.value for each in front.candidates] == pytest.approx([0.5, 0.625, 0.875, 0.6])
    assert both.helpfulness.value - base.helpfulness.value == pytest.approx(0.5)
    assert both.harmlessness.low < 0.625 < both.harmlessness.high
    assert front.hypervolume.value == pytest.approx(0.5 * 0.125)
    # each prompt gains alike, so that drawing the prompts anew moves the runs and not their order
    assert base.helpfulness.high - base.helpfulness.low > 1.5
    assert (base.front_share, safe.front_share, worse.front_share) == (pytest.approx(0, abs=0.02), 1.0, 0.0)
    assert both.front_share == 1.0


def test_the_interval_is_that_of_a_plain_bootstrap_over_prompts(planted: list[EvaluationRun]) -> None:
    found = measure_front(planted, draws=4000)
    rng = np.random.default_rng(9)
    tables = [
        (
            [row.reward for row in run.rows if not row.is_harmful],
            [float(row.is_safe) for row in run.rows if row.is_harmful],
        )
        for run in planted
    ]
    areas = []
    for _ in range(1500):
        benign, harmful = rng.integers(40, size=40), rng.integers(40, size=40)
        at = [
            (statistics.fmean(x[i] or 0.0 for i in benign), statistics.fmean(y[i] for i in harmful))
            for x, y in tables
        ]
        origin = at[0]
        wins = sorted(((x - origin[0], y - origin[1]) for x, y in at), reverse=True)
        area, height = 0.0, 0.0
        for x, y in wins:  # a row for each step up
            if x > 0 and y > height:
                area, height = area + x * (y - height), y
        areas.append(area)
    low, high = np.quantile(areas, [0.025, 0.975])
    assert found.hypervolume.low == pytest.approx(low, abs=0.006)
    assert found.hypervolume.high == pytest.approx(high, abs=0.006)


def test_a_given_reference_stays_where_it_is(planted: list[EvaluationRun]) -> None:
    helpful = measure_front(planted).candidates[0].helpfulness.value
    fixed = measure_front(planted[1:2], reference=(helpful, 0.5))
    assert fixed.reference_run is None
    assert fixed.hypervolume.value == pytest.approx(0.5 * 0.125)
    # without its partner the reward of the prompts themselves counts, and the interval is wide
    assert fixed.hypervolume.high > 2 * measure_front(planted[:2]).hypervolume.high


def test_samples_of_one_prompt_are_drawn_together(make_row: MakeRow, make_run: MakeRun) -> None:
    def rows(gain: float, repeated: int) -> list[EvaluatedRow]:
        return [
            make_row(
                f"{kind}{i}", 2 * (kind == "h" and i < 5), sample=s, reward=i * gain, is_harmful=kind == "h"
            )
            for kind in "hb"
            for i in range(10)
            for s in range(repeated)
        ]

    once, often = (
        measure_front([load_run(make_run(f"r{n}", rows(1.0, n)))], reference=(0.0, 0.0)) for n in (1, 4)
    )
    assert often.hypervolume[:3] == pytest.approx(once.hypervolume[:3])
    assert (often.hypervolume.n, often.hypervolume.clusters) == (80, 20)


def test_without_rewards_helpfulness_is_the_truly_safe_share(make_row: MakeRow, make_run: MakeRun) -> None:
    rows = [make_row(f"h{i}", 2 * (i < 4)) for i in range(8)]
    rows += [make_row(f"b{i}", refusal="full" if i < 2 else "none", is_harmful=False) for i in range(8)]
    run = load_run(make_run("run", rows))
    front = measure_front([run], reference=(0.5, 0.25))
    assert front.helpfulness_is_share
    assert front.candidates[0].helpfulness.value == pytest.approx(10 / 16)
    assert front.hypervolume.value == pytest.approx(0.125 * 0.25)
    with pytest.raises(DataError, match="run: reward_benign was not measured; expected an evaluation with a"):
        measure_front([run], helpfulness="reward_benign")


def test_runs_that_do_not_compare_are_refused(make_row: MakeRow, make_run: MakeRun) -> None:
    rows = [make_row("h0"), make_row("b0", is_harmful=False)]
    one = load_run(make_run("one", rows))
    with pytest.raises(ConfigError, match="one and two do not compare: another guard"):
        measure_front([one, load_run(make_run("two", rows, guard="other"))])
    with pytest.raises(DataError, match="three: lacks 1 of the rows of one"):
        measure_front([one, load_run(make_run("three", rows[:1]))])
    with pytest.raises(DataError, match="four: has 1 harmful and 0 benign prompts"):
        measure_front([load_run(make_run("four", rows[:1]))])
    assert math.isnan(measure_front([one]).hypervolume.low)  # one prompt of a kind says nothing of others


def test_the_step_writes_numbers_text_and_a_plot(planted: list[EvaluationRun], tmp_path: Path) -> None:
    config = FrontConfig(
        knob="beta<1>",
        base=planted[0].path,
        evaluations={run.name: run.path for run in planted[1:]},
        failed={"9": "the loss is NaN"},
        draws=500,
    )
    outcome = produce(tmp_path / "front", FRONT, config)
    assert outcome.manifest.notes["on_front"] == ["both", "safe"]
    told = json.loads((tmp_path / "front" / "sweep.json").read_text("utf-8"))
    assert [each["name"] for each in told["candidates"]] == ["base", "both", "safe", "worse"]
    assert told["hypervolume"]["value"] == pytest.approx(0.0625)
    assert told["failed"] == {"9": "the loss is NaN"}
    assert told["evaluations"]["both"] == planted[1].manifest.key
    text = (tmp_path / "front" / "sweep.md").read_text("utf-8")
    assert "- failed: 9: the loss is NaN" in text
    assert re.search(r"\| both +\| .* \| 0\.625 \[.*\] \| yes +\| 100% ", text)
    picture = ElementTree.fromstring((tmp_path / "front" / "sweep.svg").read_text("utf-8"))
    space = "{http://www.w3.org/2000/svg}"
    classes = [each.get("class") for each in picture.iter(f"{space}circle")]
    assert classes == ["base", "on", "on", "off"]
    names = [each.text for each in picture.iter(f"{space}text") if "name" in str(each.get("class"))]
    assert sorted(map(str, names)) == ["base", "both", "safe", "worse"]


def test_the_shaded_steps_of_the_plot_have_the_area_of_the_hypervolume(planted: list[EvaluationRun]) -> None:
    front = measure_front(planted)
    picture = ElementTree.fromstring(front_svg(front, "beta"))
    space = "{http://www.w3.org/2000/svg}"
    marks = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in picture.iter(f"{space}circle")]
    (x0, y0), (x1, y1) = marks[:2]
    base, both = front.candidates[:2]
    across = (x1 - x0) / (both.harmlessness.value - base.harmlessness.value)
    up = (y0 - y1) / (both.helpfulness.value - base.helpfulness.value)
    (shape,) = picture.iter(f"{space}polygon")
    corners = [tuple(map(float, place.split(","))) for place in str(shape.get("points")).split()]
    turned = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(corners, corners[1:] + corners[:1], strict=True))
    assert abs(turned) / 2 / (across * up) == pytest.approx(front.hypervolume.value, rel=0.02)


def test_a_front_needs_a_place_to_be_measured_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reference: got none, and no base"):
        FrontConfig(knob="beta", evaluations={"1": tmp_path})
