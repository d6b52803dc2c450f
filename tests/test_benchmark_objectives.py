"""The table of objectives and the comparison of dual and single preference, with tiny models and few rows."""

import importlib
import importlib.util
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from equipoise.config import parse_config
from equipoise.data.io import read_records, write_records
from equipoise.evaluation.suites import load_suite
from equipoise.lineage import Run
from equipoise.models.backbone import load_tokenizer
from equipoise.pipeline.steps import STEPS
from equipoise.records import Answer, Pair, Prompt
from equipoise.training.policy_rows import make_row

ROOT = Path(__file__).parents[1]
NAMES = ("objectives", "objectives_cells", "objectives_steps", "dual_against_single", "side_rows", "common")
SOME = ["sft", "dpo", "mocan"]
WORDS = ["bread", "water", "salt", "flour", "coat", "tides", "mountain", "weather", "kind", "short", "safe"]


@pytest.fixture(scope="module")
def scripts(load_scripts: Any) -> Iterator[Any]:
    """The modules by name; results go to a folder of the test's own."""
    yield load_scripts(*NAMES)
    for name in [name for name in STEPS if name.startswith("objectives.")]:
        del STEPS[name]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of our own in the four files, shaped as the recipes read them, and a suite of prompts."""
    place = tmp_path_factory.mktemp("data")
    draw = random.Random(0)
    for name, count in (("pku_saferlhf_mini", 40), ("pku_saferlhf_pairs", 40), ("pandalm_test", 24)):
        lines = []
        for i in range(count):
            texts = [" ".join(draw.sample(WORDS, 3)) for _ in range(2)]
            row = {"id": f"{name}-{i}", "prompt": f"{name[:9]} {i}?", "label_origin": "human"}
            row |= {f"response_{k}": text for k, text in enumerate(texts)}
            if name.startswith("pku"):
                safe = [i % 4 != 1, i % 4 != 2]
                row |= {f"is_response_{k}_safe": safe[k] for k in (0, 1)}
                row["safer_response_id"] = i % 2 if safe[0] == safe[1] else int(safe[1])
            else:
                row["better_response_id"] = i % 2
            lines.append(json.dumps(row) + "\n")
        (place / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    text = (place / "pandalm_test.jsonl").read_text("utf-8").replace("pandalm_t", "alpaca_ev")
    (place / "alpaca_eval_gpt4.jsonl").write_text(text, "utf-8")
    prompts = [Prompt(id=f"q{i}", prompt=f"question {i}", is_harmful=i % 2 == 0) for i in range(12)]
    write_records(place / "suite.jsonl", prompts)
    return place


@pytest.fixture(scope="module")
def settings(scripts: Any, data: Path, tiny_llama: Path, tiny_encoder: Path) -> Any:
    return scripts["objectives_cells"].Settings(
        data=str(data),
        model=str(tiny_llama),
        encoder=str(tiny_encoder),
        heads={"layers": 1, "hidden": 4, "optim": {"epochs": 1}},
        pairs=8,
        max_tokens=150,
        sampled=4,
        samples=2,
        suite=str(data / "suite.jsonl"),
        reported={"harmful": 4, "benign": 4},
        dev={"harmful": 5, "benign": 5, "select": "rest"},
        new_tokens=3,
        optim={"lr": 0.01, "epochs": 1, "batch_size": 4},
    )


@pytest.fixture(scope="module")
def docs() -> Any:
    """What writes the tables of the page."""
    spec = importlib.util.spec_from_file_location("objective_tables", ROOT / "docs" / "objective_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")  # what the script imports lies beside it
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def tables(scripts: Any, docs: Any) -> tuple[Any, Any]:
    return scripts, docs


def test_the_dev_prompts_are_none_of_the_reported_ones(scripts: Any) -> None:
    told = scripts["objectives_cells"].Settings(data="here")
    reported, dev = ({p.id for p in load_suite("builtin", **kind)} for kind in (told.reported, told.dev))
    assert (len(reported), len(dev)) == (100, 40)
    assert not reported & dev


def test_a_recipe_names_every_cell_of_every_seed(scripts: Any, settings: Any) -> None:
    module = scripts["objectives_cells"]
    known = {"mocan": 1.0} | {f"{name}-{s}": 2.0 for name in ("pecan", "constrained_dpo") for s in (0, 1)}
    steps = module.recipe(settings, 2, known).steps
    for name in module.CELLS:
        for seed in (0, 1):
            assert {f"{name}-{seed}", f"{name}-{seed}-reported", f"{name}-{seed}-dev"} <= steps.keys()
    assert set(module.CELLS) - {n.rpartition("-")[0] for n in module.recipe(settings, 1, {}).steps} == (
        module.NEEDS_MULTIPLIER
    )


@pytest.mark.parametrize("names", [SOME, pytest.param(None, marks=pytest.mark.slow)], ids=["some", "all"])
def test_the_table_is_filled_cell_by_cell_and_not_done_twice(
    names: list[str] | None, tables: Any, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts, docs = tables
    module = scripts["objectives"]
    names = names or list(module.CELLS)
    monkeypatch.setattr(scripts["common"], "RESULTS", tmp_path / "results")
    file = tmp_path / "results" / "objectives.json"
    table = module.Table(settings, tmp_path / "runs", seeds=2)
    saved: list[int] = []
    keep = table.save
    monkeypatch.setattr(table, "save", lambda: (keep(), saved.append(len(table.found["cells"]))))
    module.fill(table, names)
    found = json.loads(file.read_text("utf-8"))
    assert not found["failed"]
    assert saved[: len(names)] == list(range(len(names)))  # after the base, and after each cell

    by_seed = {s: [each["name"] for each in found["cells"] if each["seed"] == s] for s in (0, 1)}
    assert by_seed[0] == names
    assert by_seed[1] == [name for name in ("dpo", "safe_dpo", *found["best_on_dev"]) if name in names]
    assert not {"dpo", "safe_dpo"} & set(found["best_on_dev"])
    assert len(found["best_on_dev"]) == 2
    shares = {
        each["name"]: each["dev"]["truly_safe"]["value"]["value"] for each in found["cells"] if "dev" in each
    }
    others = [value for name, value in shares.items() if name not in module.ALWAYS]
    assert [shares[name] for name in found["best_on_dev"]] == sorted(others, reverse=True)[:2]

    cells = {each["name"]: each for each in found["cells"] if each["seed"] == 0}
    assert (cells["dpo"]["rows"], found["pairs"]["pairs"]) == (8, 8)
    for kind in ("reported", "dev"):
        one = cells["dpo"][kind]["reward"]
        moved = one["value"]["value"] - found["base"][kind]["reward"]["value"]
        assert one["difference"]["value"] == pytest.approx(moved, abs=1e-9)
    assert found["multipliers"]["mocan"]["multiplier"] >= 0
    if "safe_dpo" in names:
        assert cells["safe_dpo"]["rows"] == 8 - found["pairs"]["both_unsafe"]
        told = found["multipliers"]["constrained_dpo-0"]
        rise = told["cost_of_first_policy"] - told["budget"]
        assert told["multiplier"] == pytest.approx(max(0.0, 1 + rise))

    page = "\n\n".join(docs.objective_tables(found))
    assert all(f"| {cell.title} | {cell.learns} |" in page for cell in map(module.CELLS.get, names))
    assert "of a pair" in page
    assert page.count("<br>(") == len(by_seed[1]) * len(docs.COLUMNS)

    steps = sorted(path.stat().st_mtime_ns for path in (tmp_path / "runs" / "steps").rglob("manifest.json"))
    again = module.Table(settings, tmp_path / "runs", seeds=1)
    module.fill(again, ["dpo", "mocan"])
    assert steps == sorted(
        path.stat().st_mtime_ns for path in (tmp_path / "runs" / "steps").rglob("manifest.json")
    )
    expected = [{**cells[name]} for name in ("dpo", "mocan")]
    for cell in expected:
        del cell["dev"]  # which is not asked where there is one seed
    for cell in (*expected, *again.found["cells"]):
        del cell["minutes"]  # those of dev among them
    assert again.found["cells"] == expected


def test_a_cell_that_fails_is_told_and_the_others_go_on(
    scripts: Any, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts["common"], "RESULTS", tmp_path / "results")
    hot = settings.model_copy(update={"optim": {"lr": 1e30, "epochs": 1, "batch_size": 4}})
    table = scripts["objectives"].Table(hot, tmp_path / "runs", seeds=1)
    table.start()
    table.cell("dpo", seed=0)
    assert "the step was not taken" in table.found["failed"]["dpo-0"]
    assert table.found["cells"] == []
    assert json.loads((tmp_path / "results" / "objectives.json").read_text("utf-8"))["failed"]


def test_pairs_have_all_labels_and_few_tokens_and_first_one_to_a_prompt(
    scripts: Any, tmp_path: Path, tiny_llama: Path
) -> None:
    module = scripts["objectives_steps"]

    def pair(name: str, prompt: str, safe: tuple[bool | None, bool | None], safer: Any) -> Pair:
        texts = ("good bread", "long " * (60 if name == "long" else 1))
        answers = tuple(Answer(response=t, is_safe=s) for t, s in zip(texts, safe, strict=True))
        return Pair(id=name, prompt=prompt, answers=answers, safer=safer)  # type: ignore[arg-type]

    good = [pair(f"p{i}", f"ask {i}", (True, i % 2 == 0), 0) for i in range(4)]
    bad = [
        pair("twin", "ASK 0", (True, False), 0),
        pair("unlabelled", "ask a", (None, True), 1),
        pair("tie", "ask b", (True, True), "tie"),
        pair("against", "ask c", (True, False), 1),
        pair("long", "ask d", (True, False), 0),
    ]
    write_records(tmp_path / "pairs.jsonl", [*good, *bad])
    given = {"pairs": [tmp_path / "pairs.jsonl"], "model": str(tiny_llama), "max_tokens": 80, "count": 4}
    (tmp_path / "out" / "scratch").mkdir(parents=True)
    run = Run(tmp_path / "out", tmp_path / "out" / "scratch")
    module.choose(parse_config(module.ChooseConfig, given, "test"), run)
    kept = list(read_records(tmp_path / "out" / "pairs.jsonl", Pair))
    assert len({p.prompt.lower() for p in kept}) == 4  # type: ignore[union-attr]
    assert {p.id for p in kept} <= {"p0", "p1", "p2", "p3", "twin"}
    tokenizer = load_tokenizer(tiny_llama)
    assert all(make_row(tokenizer, p.prompt, [a.response for a in p.answers]).length <= 80 for p in kept)
    assert run.notes["both_unsafe"] == 0
    with pytest.raises(module.DataError, match=r"got 5 with all labels and at most 80 tokens; expected 6"):
        module.choose(parse_config(module.ChooseConfig, {**given, "count": 6}, "test"), run)
    module.choose(parse_config(module.ChooseConfig, {**given, "count": 5}, "test"), run)
    assert len(list(read_records(tmp_path / "out" / "pairs.jsonl", Pair))) == 5  # now the twin too
    assert len(list(read_records(tmp_path / "out" / "prompts.jsonl", Prompt))) == 4


def test_the_multiplier_keeps_a_budget_half_way_to_the_cheapest(scripts: Any, tmp_path: Path) -> None:
    rows = [
        {"id": f"p{i}", "prompt": f"ask {i}", "response": f"r{k}", "reward": 0.2 * k, "cost": 0.3 * k}
        for i in range(3)
        for k in range(2)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    multiplier, budget, told = scripts["objectives"].one_shot(tmp_path / "rows.jsonl")
    # cost .3 with chance p = s((.2 - .3 k) / .1); its mean is the budget where p is a quarter
    assert budget == pytest.approx(0.075)
    assert multiplier == pytest.approx((0.2 + 0.1 * 1.0986122886681098) / 0.3, abs=1e-6)
    assert told["constraint"] == "active"
    assert told["cost_expected"] == pytest.approx(budget, abs=1e-6)


def test_the_page_says_plainly_what_helps_and_what_does_not(docs: Any) -> None:
    def cell(title: str, **changes: tuple[float, float]) -> dict[str, Any]:
        told = {name: {"difference": {"low": low, "high": high}} for name, (low, high) in changes.items()}
        return {"title": title, "reported": told}

    cells = [
        cell("A", truly_safe=(0.1, 0.3), harmful_rate=(-0.2, -0.1), over_refusal=(-0.1, 0.1)),
        cell("B", truly_safe=(-0.1, 0.2), harmful_rate=(0.1, 0.2), over_refusal=(0.0, 0.1)),
        cell("C", truly_safe=(-0.3, -0.1), harmful_rate=(-0.2, 0.0), over_refusal=(-0.3, -0.1)),
    ]
    lines = docs.verdicts(cells)[0].splitlines()
    assert lines == [
        "- Truly safe answers against the base:",
        "    - **better**: A.",
        "    - **no clear difference**: B.",
        "    - **worse**: C.",
        "- Harmful answers to harmful prompts against the base:",
        "    - **better**: A.",
        "    - **no clear difference**: C.",
        "    - **worse**: B.",
        "- Refused benign prompts against the base:",
        "    - **better**: C.",
        "    - **no clear difference**: A; B.",
        "    - **worse**: none.",
    ]


def test_dual_is_said_to_be_ahead_only_where_the_interval_says_so(docs: Any) -> None:
    def told(low: float, high: float) -> dict[str, Any]:
        return {"difference": {"low": low, "high": high}}

    assert docs.dual_verdict("truly_safe", told(0.1, 0.2)) == "In truly safe the dual one is ahead."
    assert docs.dual_verdict("truly_safe", told(-0.2, -0.1)) == "In truly safe the single one is ahead."
    assert docs.dual_verdict("harmful_rate", told(-0.2, -0.1)) == "In harmful answers the dual one is ahead."
    assert docs.dual_verdict("harmful_rate", told(0.0, 0.1)) == "In harmful answers they are not told apart."


def test_simulated_raters_say_what_they_see_and_weigh_it_their_own_way(scripts: Any) -> None:
    module = scripts["dual_against_single"]
    answers = (Answer(response="a", is_safe=True), Answer(response="b", is_safe=False))
    conflict = Pair(id="p", prompt="ask", answers=answers, better=1, safer=0)
    for weights, overall in (([0.9, 0.8, 0.1], 1), ([0.2, 0.1, 0.9], 0)):
        dual, single = module.ask(conflict, weights, 50.0, random.Random(0))
        assert (dual.better, dual.safer, dual.overall) == (1, 0, None)
        assert [answer.is_safe for answer in dual.answers] == [True, False]
        assert (single.better, single.safer, single.overall) == (overall, None, overall)
        assert [answer.is_safe for answer in single.answers] == [None, None]
    # one rater who sees through noise: right in s(2) = .881 of the answers about one thing, and of two that
    # speak against each other at equal weights in half
    draw = random.Random(1)
    both = [module.ask(conflict, [0.5], 2.0, draw) for _ in range(2000)]
    told = module.agreement([conflict] * 2000, both)
    assert told["better_is_right"] == pytest.approx(0.881, abs=0.03)
    assert told["overall_is_safer_in_conflict"] == pytest.approx(0.5, abs=0.04)
    assert told["overall_is_better"] == 1 - told["overall_is_safer"]
    assert told["in_conflict"] == 1


def test_dual_and_single_are_measured_on_the_same_rows(
    scripts: Any, docs: Any, settings: Any, tmp_path: Path
) -> None:
    module = scripts["dual_against_single"]
    given = {"data.dir": settings.data, **settings.model_dump(include={"model", "encoder", "suite"})}
    given |= {"harmful": 4, "benign": 4, "max_new_tokens": 3, "max_tokens": 150}
    overrides = [f"{name}={value}" for name, value in given.items()]
    for scorer in ("guard", "scorer", "teacher", "dual_scorer", "single_scorer"):
        small = {"layers": 1, "hidden": 4, "optim": {"epochs": 1}}
        overrides += [f"steps.{scorer}.{name}={json.dumps(value)}" for name, value in small.items()]
    recipe = ROOT / "recipes" / "dual-against-single.yaml"
    votes = {"policy_pairs": 8, "max_tokens": 150}
    found = module.measure(recipe, tmp_path, overrides, votes)
    for told in (*found["scorers"].values(), *found["policies"].values()):
        moved = told["dual"]["value"] - told["single"]["value"]
        assert told["difference"]["value"] == pytest.approx(moved, abs=1e-9)
    assert found["policies"]["harmful_rate"]["difference"]["n"] == 4
    assert found["rows"]["single"] == 8
    pairs = {
        side: list(read_records(tmp_path / "dual-against-single-votes" / f"{side}.jsonl", Pair))
        for side in ("dual", "single", "dual-policy", "single-policy")
    }
    assert [p.id for p in pairs["dual"]] == [p.id for p in pairs["single"]]
    assert [p.id for p in pairs["dual-policy"]] == [p.id for p in pairs["single-policy"]]
    assert (tmp_path / "dual-against-single" / "report.html").is_file()
    page = "\n\n".join(docs.dual_tables({"machine": {"cores": 2, "processor": "one"}, **found}))
    assert "**The raters are simulated.**" in page
    assert "| unsafe answers, AUROC |" in page
    assert module.measure(recipe, tmp_path, overrides, votes) == found
