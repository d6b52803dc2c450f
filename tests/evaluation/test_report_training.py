"""The section of a report on online training: what it says of costs and budgets, and what stays closed."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from equipoise.config import Config
from equipoise.errors import DataError
from equipoise.evaluation.report.build import REPORT, REPORT_FILE, ReportConfig, gather
from equipoise.evaluation.report.curves import Band, Curve, curves, stacked
from equipoise.evaluation.report.training import training_view
from equipoise.evaluation.report.training_log import is_training, load_training
from equipoise.lineage import Step, produce, write_text

ATTACK = "<script>alert(1)</script> SECRET"
VOID = {"meta", "br", "hr"}
MakeLog = Callable[..., Path]


class Page(HTMLParser):
    """The tags, and the texts inside and outside of closed details; every tag must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.hidden = self.visible = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "details" in self.open and "summary" not in self.open:
            self.hidden += data
        else:
            self.visible += data


def line(update: int, updates: int, **more: Any) -> dict[str, Any]:
    """One line of a log: the cost falls from 2 to 0 and the reward rises from 0 to 1."""
    way = (update - 1) / max(updates - 1, 1)
    return {
        "update": update,
        "responses": 64,
        "reward": way,
        "reward_std": 0.5,
        "costs": {"cost": 2 - 2 * way},
        "budgets": {"cost": 0.5},
        "multipliers": {"cost": 1 + way},
        "states": {"cost": "active"},
        "kl": 3 * way,
        "harmful": 0.6 - 0.5 * way,
        "severity": [0.4 + 0.5 * way, 0.2 - 0.2 * way, 0.2 - 0.2 * way, 0.2 - 0.1 * way],
        "length": 40 + 5 * way,
        "truncated": 0.1,
        "repetition": 0.02,
        "entropy": 2 - way,
        "clip_fraction": 0.1,
        "value_losses": {"reward": 1.0, "cost": 1.0},
        "drift": 1e-6,
        "warnings": ["length: <b>grows</b>"] if update == 3 else [],
        "seconds": {"rollout": 1.0, "score": 1.0, "learn": 1.0},
    } | more


@pytest.fixture
def make_log(tmp_path: Path) -> MakeLog:
    """Write the folder of a training, finished unless said otherwise."""

    def make(name: str = "ppo", updates: int = 12, *, finished: bool = True, **more: Any) -> Path:
        rows = "".join(json.dumps(line(u, updates, **more)) + "\n" for u in range(1, updates + 1))
        sample = {
            "id": "p1",
            "sample": 0,
            "prompt": ATTACK,
            "response": ATTACK,
            "reward": 0.5,
            "costs": {"cost": -1},
        }
        texts = "".join(json.dumps({"update": u, **sample}) + "\n" for u in range(1, updates + 1))

        def build(config: Config, run: Any) -> None:
            write_text(run.out / "log.jsonl", rows)
            write_text(run.out / "samples.jsonl", texts)
            run.licences.add("CC-BY-NC-4.0")

        out = tmp_path / name
        if finished:
            produce(out, Step("train.ppo_lag", 1, build), Config())
        else:
            out.mkdir()
            (out / "log.jsonl").write_text(rows + '{"update": 99, "resp')
        return out

    return make


def page_of(tmp_path: Path, *runs: Path, **settings: Any) -> Page:
    out = tmp_path / "page.html"
    produce(out, REPORT_FILE, ReportConfig(runs=list(runs), **settings), force=True)
    return Page(out.read_text("utf-8"))


def test_a_training_alone_makes_a_page_with_costs_budgets_and_closed_texts(make_log, tmp_path) -> None:
    page = page_of(tmp_path, make_log())
    assert "the cost 'cost' from 1.64 to 0.364, within the budget of 0.5" in page.visible
    for title in ("Reward", "Multiplier", "Entropy", "by severity", "Clipped tokens", "against its budget"):
        assert title in page.visible
    assert "3 of 12" in page.visible  # updates within the budget
    assert "Update 3." in page.visible
    assert "length: <b>grows</b>" in page.visible  # escaped, so it is text
    assert "SECRET" in page.hidden
    assert "SECRET" not in page.visible
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe"}
    assert all("open" not in attributes for tag, attributes in page.tags if tag == "details")
    assert "Harmless, helpful" not in page.visible  # nothing was evaluated, and nothing is said of it
    assert "Nothing was evaluated" in page.visible


def test_a_training_stands_beside_evaluations_and_has_its_label(
    make_log, make_run, make_row, tmp_path
) -> None:
    rows = [make_row(f"h{i}", i % 2) for i in range(6)] + [make_row("b1")]
    runs = [make_run("before", rows), make_log(), make_run("after", rows)]
    config = ReportConfig(runs=runs, labels=["base", "the training", "aligned"])
    report = gather(config)
    assert [run.name for run in report.runs] == ["base", "aligned"]
    page = page_of(tmp_path, *runs, labels=config.labels)
    assert "Training under constraints: the training" in page.visible
    assert "Harmless, helpful" in page.visible
    assert "CC-BY-NC-4.0" in (tmp_path / "page.html.card.md").read_text()


def test_the_numbers_and_the_summary_hold_no_text(make_log, tmp_path) -> None:
    produce(tmp_path / "r", REPORT, ReportConfig(runs=[make_log()]))
    text = (tmp_path / "r" / "report.json").read_text()
    (found,) = json.loads(text)["trainings"]
    assert found["end"]["costs"]["cost"] == pytest.approx(2 - 2 * 9 / 11)  # the mean of the last five
    assert found["warnings"] == [[3, "length: <b>grows</b>"]]
    summary = (tmp_path / "r" / "report.md").read_text()
    assert "| cost | 0.5 | 1.64 | 0.364 ± 0.13 | within the budget | 3 of 12 | 1.82 |" in summary
    assert "SECRET" not in text + summary


def test_a_run_that_goes_on_is_shown_without_the_line_that_is_being_written(make_log, tmp_path) -> None:
    folder = make_log(finished=False, updates=1, severity=None, harmful=None)
    page = page_of(tmp_path, folder)
    assert "ppo: over 1 update of 64 responses, the reward goes from 0 to 0" in page.visible
    assert "The run is not finished" in page.visible
    assert "above the budget" in page.visible


def test_a_run_without_constraints_shows_its_reward(make_log, tmp_path) -> None:
    none: dict[str, Any] = {"costs": {}, "budgets": {}, "multipliers": {}, "states": {}, "harmful": None}
    view = training_view(load_training(make_log(**none)), 3)
    assert view.constraints == []
    assert [chart.title for chart in view.charts][:2] == [
        "Reward",
        "Harmful responses by severity, as the guard sees it",
    ]
    assert [sample.update for sample in view.samples] == [1, 7, 12]
    page_of(tmp_path, tmp_path / "ppo")


@pytest.mark.parametrize("pessimism", [0.0, 0.4])
def test_a_cost_is_drawn_as_its_multiplier_sees_it_where_that_is_another(make_log, pessimism) -> None:
    lines = [line(n, 12) for n in range(1, 13)]
    log = make_log()
    (log / "log.jsonl").write_text(
        "".join(
            json.dumps(one | {"excess": {"cost": one["costs"]["cost"] + pessimism - 0.5}}) + "\n"
            for one in lines
        )
    )
    (chart,) = [c for c in training_view(load_training(log), 0).charts if "against its budget" in c.title]
    labels = [label for label, _ in chart.key]
    assert labels == ["cost", "budget", *(["as the multiplier sees it"] if pessimism else [])]
    assert ("as the multiplier sees it 2.4 → 0.4" in chart.text) == bool(pessimism)


def of_groups(young: float, old: float) -> dict[str, dict[str, float]]:
    return {
        "young": {"reward": young, "compared": young, "weight": 0.3},
        "old": {"reward": 10 * old, "compared": old, "weight": 0.7},
    }


def test_groups_show_what_is_compared_and_their_weights(make_log, tmp_path) -> None:
    page = page_of(tmp_path, make_log(groups=of_groups(0.5, 0.25)))
    assert "the reward of the group that is worst off at the end, 'old', from 2.5 to 2.5" in page.visible
    assert "Reward of each group, as it is compared with the others" in page.visible
    assert "young: 0.5 → 0.5, old: 0.25 → 0.25" in page.visible
    assert "young: 30% → 30%, old: 70% → 70%" in page.visible
    produce(tmp_path / "r", REPORT, ReportConfig(runs=[tmp_path / "ppo"]))
    (found,) = json.loads((tmp_path / "r" / "report.json").read_text())["trainings"]
    assert found["end"]["groups"] == of_groups(0.5, 0.25)
    assert "'old', from 2.5 to 2.5" in (tmp_path / "r" / "report.md").read_text()


@pytest.mark.parametrize(
    ("costs", "verdict"),
    [
        ([0.4, 0.6, 0.4, 0.6, 0.4], "within the budget"),
        ([0.4, 0.7, 0.4, 0.7, 0.5], "at the budget"),  # 0.04 above, with an error of 0.07
        ([0.8, 0.9, 0.8, 0.9, 0.8], "above the budget"),
    ],
)
def test_what_is_within_its_noise_is_not_above_the_budget(tmp_path, costs, verdict) -> None:
    rows = [line(u, 10, costs={"cost": c}) for u, c in enumerate([*costs, *costs], start=1)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (kept,) = training_view(load_training(tmp_path), 0).constraints
    assert kept.verdict == verdict


def test_a_line_that_does_not_fit_is_named(make_log) -> None:
    folder = make_log()
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"update": 13}\n')
    with pytest.raises(DataError, match=r"log.jsonl:13: responses: Field required; expected one Update"):
        load_training(folder)


def test_other_folders_are_no_trainings(tmp_path: Path) -> None:
    assert not is_training(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"loss": 1.0, "step": 1}\n')
    assert not is_training(tmp_path)


def shapes(markup: str, tag: str) -> list[dict[str, str | None]]:
    return [attributes for name, attributes in Page(markup).tags if name == tag]


def test_a_curve_reaches_from_edge_to_edge_and_is_cut_where_nothing_was_measured() -> None:
    drawn = curves([1, 2, 3, 4, 5], [Curve("a", [0.0, 1.0, None, 2.0, 4.0], "run1")])
    first, second = (str(each["points"]) for each in shapes(drawn, "polyline"))
    assert [float(place.split(",")[0]) for place in first.split()] == [0.0, 25.0]
    assert [float(place.split(",")[0]) for place in second.split()] == [75.0, 100.0]
    downs = [float(place.split(",")[1]) for place in (first + " " + second).split()]
    assert downs == sorted(downs, reverse=True)  # what rises goes up
    assert 0 < min(downs) < max(downs) < 100


def test_one_update_is_a_point_and_a_constant_has_a_scale() -> None:
    assert len(shapes(curves([7], [Curve("a", [3.0], "run1")]), "circle")) == 1
    (only,) = shapes(curves([1, 2], [Curve("a", [0.0, 0.0], "run1")]), "polyline")
    assert only["points"] == "0.00,50.00 100.00,50.00"
    assert shapes(curves([1, 2], [Curve("a", [None, None], "run1")]), "polyline") == []


def test_stacked_shares_lie_on_each_other() -> None:
    drawn = stacked([1, 2], [("severity3", [0.1, 0.2]), ("severity2", [0.3, 0.3])])
    lower, upper = (str(each["points"]).split() for each in shapes(drawn, "polygon"))
    assert lower[:2] == upper[:1:-1]  # the top of one is the bottom of the other
    band = curves([1, 2], [], [Band([0.0, 0.0], [1.0, 1.0], "run1")])
    assert len(shapes(band, "polygon")) == 1
