"""Two runs against numbers by hand, a planted change, and the ways in which runs do not pair."""

import json
import math
import random

import pytest

from equipoise.cli.main import main
from equipoise.errors import ConfigError, DataError
from equipoise.evaluation.compare import compare
from equipoise.evaluation.compare_run import COMPARE, CompareConfig, comparison_text
from equipoise.evaluation.rows import load_runs
from equipoise.lineage import produce


@pytest.fixture
def planted(make_row, make_run):
    """50 harmful prompts: 30 harmful before, 10 of these after. 20 benign: 5 refused after."""
    rng = random.Random(0)
    before, after = [], []
    for i in range(50):
        base = rng.gauss(0, 1)
        before.append(make_row(f"h{i}", 2 if i < 30 else 0, reward=base, cost=1.0))
        after.append(make_row(f"h{i}", 1 if i < 10 else 0, reward=base + 0.5, cost=0.0))
    for i in range(20):
        before.append(make_row(f"b{i}", reward=0.0, cost=-1.0))
        after.append(make_row(f"b{i}", refusal="full" if i < 5 else "none", reward=0.0, cost=-1.0))
    return load_runs([make_run("base", before), make_run("after", after[::-1])])


def test_a_planted_change_is_recovered(planted) -> None:
    c = compare(*planted)
    harm = c.metrics["harmful_rate"]
    assert (harm.before.value, harm.after.value) == (0.6, 0.2)
    assert harm.difference.value == pytest.approx(-0.4)
    assert harm.difference.low < -0.4 < harm.difference.high < 0
    assert c.relative_reduction.value == pytest.approx(2 / 3)
    assert 0.4 < c.relative_reduction.low < 2 / 3 < c.relative_reduction.high < 0.95
    assert (c.harmful_only_before, c.harmful_only_after) == (20, 0)
    assert c.mcnemar_p == pytest.approx(2 * 0.5**20)
    assert c.metrics["over_refusal"].difference.value == pytest.approx(0.25)
    assert c.metrics["over_refusal"].difference.excludes_zero
    assert c.metrics["truly_safe"].difference.value == pytest.approx(0.4 * 50 / 70 - 0.25 * 20 / 70)
    assert c.metrics["reward"].difference.value == pytest.approx(0.5 * 50 / 70)
    assert c.metrics["reward_benign"].difference.value == 0.0


def test_detectable_difference_is_what_80_percent_power_needs(planted) -> None:
    d = compare(*planted).metrics["harmful_rate"]
    exact = (1.959964 + 0.841621) * math.sqrt(0.4 * 0.6 / 49)  # differences are -1 in 20 of 50 rows
    assert d.detectable == pytest.approx(exact, rel=1e-6)


def test_the_other_way_round_every_difference_turns(planted) -> None:
    forth, back = compare(*planted), compare(*planted[::-1])
    for name in ("harmful_rate", "over_refusal", "reward", "cost", "words"):
        assert back.metrics[name].difference.value == pytest.approx(-forth.metrics[name].difference.value)


def test_wins_count_half_for_ties(make_row, make_run) -> None:
    rewards = [(0.0, 1.0), (0.0, 0.0), (0.0, 0.0), (1.0, 0.0), (0.0, 2.0)]
    before = [make_row(f"b{i}", reward=x, cost=0.0) for i, (x, _) in enumerate(rewards)]
    after = [make_row(f"b{i}", reward=y, cost=-1.0) for i, (_, y) in enumerate(rewards)]
    wins = compare(*load_runs([make_run("a", before), make_run("b", after)])).win_rates
    assert wins["helpful"].value == pytest.approx((2 + 2 * 0.5) / 5)
    assert wins["helpful_benign"].value == wins["helpful"].value
    assert wins["harmless"].value == 1.0
    assert wins["harmless"].low < 1.0  # five wins of five do not prove that it always wins


def test_a_run_against_itself_differs_nowhere(planted) -> None:
    c = compare(planted[0], planted[0])
    assert all(d.difference.value == 0 for d in c.metrics.values())
    assert not any(d.difference.excludes_zero for d in c.metrics.values())
    assert c.mcnemar_p == 1.0
    assert c.win_rates["helpful"].value == 0.5


def test_categories_are_adjusted_together(make_row, make_run) -> None:
    kinds = [("Violence", 8), ("Drugs", 0)]
    before = [make_row(f"h{c}{i}", 1, category=c) for c, _ in kinds for i in range(8)]
    after = [make_row(f"h{c}{i}", int(i >= n), category=c) for c, n in kinds for i in range(8)]
    found = compare(*load_runs([make_run("a", before), make_run("b", after)])).by_category
    assert found["Violence"].difference.value == -1.0
    assert found["Violence"].p_value == pytest.approx(2 * 0.5**8)
    assert found["Violence"].p_adjusted == pytest.approx(4 * 0.5**8)  # Holm over two
    assert found["Drugs"].p_adjusted == 1.0
    assert found["Violence"].low_power


def test_the_base_decides_what_is_degenerate(make_row, make_run) -> None:
    before = [make_row(f"b{i}") for i in range(20)]
    after = [make_row(f"b{i}", repetition=0.5) for i in range(20)]
    c = compare(*load_runs([make_run("a", before), make_run("b", after)]))
    assert c.repetition_limit == 0.0
    assert c.metrics["truly_safe"].after.value == 0.0
    assert c.metrics["over_safe"].after.value == 1.0


def test_several_samples_pair_by_sample_and_count_as_one_prompt(make_row, make_run) -> None:
    before = [make_row(f"h{i}", int(s == 0), sample=s) for i in range(6) for s in range(3)]
    after = [make_row(f"h{i}", sample=s) for i in range(6) for s in range(3)]
    c = compare(*load_runs([make_run("a", before), make_run("b", after)]))
    assert c.metrics["harmful_rate"].difference.value == pytest.approx(-1 / 3)
    assert c.metrics["harmful_rate"].difference.clusters == 6
    assert (c.harmful_only_before, c.harmful_only_after) == (6, 0)


def test_a_missing_row_is_named(make_row, make_run) -> None:
    rows = [make_row("h1"), make_row("h2"), make_row("h3")]
    runs = load_runs([make_run("a", rows), make_run("b", rows[:1])])
    with pytest.raises(DataError, match="b: lacks 2 of the rows of a; the first is id 'h2' sample 0"):
        compare(*runs)
    with pytest.raises(DataError, match="b: lacks 2 of the rows of a"):
        compare(*runs[::-1])


def test_another_prompt_under_the_same_id_does_not_pair(make_row, make_run) -> None:
    runs = load_runs([make_run("a", [make_row("h1")]), make_run("b", [make_row("h1", prompt="other")])])
    with pytest.raises(DataError, match="id 'h1' is another prompt"):
        compare(*runs)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sha256": "t", "suite": "p.jsonl"}, "other prompts, suite was builtin before and p.jsonl after"),
        ({"sha256": "t", "select": "rest"}, "other prompts, select was chosen before and rest after"),
        ({"sha256": "t", "suite_seed": 3}, "other prompts, suite_seed was 0 before and 3 after"),
        ({"sha256": "t"}, "other prompts, builtin was changed between them"),
        ({"guard": "h"}, "another guard, g and h"),
        ({"scorer": "h"}, "another scorer, s and h"),
        (
            {"refusals": "prefix"},
            "refusals told another way, refusals was classifier before and prefix after",
        ),
    ],
)
def test_runs_judged_in_other_ways_are_refused_unless_forced(make_row, make_run, settings, words) -> None:
    rows = [make_row("h1")]
    runs = load_runs([make_run("a", rows, scorer="s"), make_run("b", rows, **({"scorer": "s"} | settings))])
    with pytest.raises(ConfigError) as caught:
        compare(*runs)
    advice = "(evaluate both alike, or give --allow-mismatch)"
    assert str(caught.value) == f"a and b do not compare: {words} {advice}"
    assert compare(*runs, allow_mismatch=True).notes == [words]


def test_a_judge_that_was_trained_again_in_its_place_is_another_judge(tmp_path, make_row, make_run) -> None:
    guard = tmp_path / "guard"
    folders = []
    for name in ("a", "b"):
        guard.write_text(f"weights of {name}")
        folders.append(make_run(name, [make_row("h1")], guard=str(guard)))
    with pytest.raises(ConfigError, match=f"another guard, {guard} was changed between them"):
        compare(*load_runs(folders))


def test_a_score_that_one_run_lacks_is_a_note(make_row, make_run) -> None:
    runs = load_runs([make_run("a", [make_row("h1")]), make_run("b", [make_row("h1")], scorer="s")])
    assert compare(*runs).notes == ["reward and cost are measured in b only"]


def test_the_command_refuses_in_one_line(make_row, make_run, capsys, monkeypatch) -> None:
    folders = [make_run("a", [make_row("h1")]), make_run("b", [make_row("h1")], sha256="t", select="rest")]
    monkeypatch.setattr("sys.argv", ["equipoise", "compare", *map(str, folders)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "other prompts, select was chosen before and rest after" in line


def test_other_decoding_is_a_note(make_row, make_run) -> None:
    runs = load_runs([make_run("a", [make_row("h1")]), make_run("b", [make_row("h1")], max_new_tokens=9)])
    assert compare(*runs).notes == ["max_new_tokens was 48 before and 9 after"]


def test_the_comparison_is_written_as_a_run_of_its_own(planted, tmp_path) -> None:
    config = CompareConfig(before=planted[0].path, after=planted[1].path)
    produce(tmp_path / "out", COMPARE, config)
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["metrics"]["harmful_rate"]["difference"]["value"] == pytest.approx(-0.4)
    text = (tmp_path / "out" / "comparison.txt").read_text()
    assert text == comparison_text(compare(*planted)) + "\n"
    assert "base -> after: 70 responses to 70 prompts" in text


def test_something_else_is_no_evaluation(tmp_path, make_row, make_run) -> None:
    with pytest.raises(DataError, match="no finished run here"):
        load_runs([tmp_path])
    folder = make_run("a", [make_row("h1")])
    (folder / "rows.jsonl").write_text('{"id": "h1"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:1: sample: Field required"):
        load_runs([folder])
