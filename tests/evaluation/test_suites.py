"""The prompts of an evaluation: the built-in suite, files, and subsets that spread over categories."""

from collections import Counter

import pytest

from equipoise.errors import DataError
from equipoise.evaluation.files import write_lines
from equipoise.evaluation.suites import load_suite, suite_hash
from equipoise.records import Prompt
from equipoise.taxonomy import load_taxonomy


def prompts(count: int = 12) -> list[Prompt]:
    """Half of the harmful ones are about violence; each has a benign twin."""
    kinds = ["Violence", "Drugs", "Violence", "Cybercrime"]
    harmful = [
        Prompt(
            id=f"h{i}",
            prompt=f"question {i}",
            is_harmful=True,
            categories=frozenset({kinds[i % 4]}),
            severity=1 + i % 3,
            twin=f"b{i}",
        )
        for i in range(count)
    ]
    benign = [Prompt(id=f"b{i}", prompt=f"ask {i}", is_harmful=False, twin=f"h{i}") for i in range(count)]
    return [prompt for both in zip(harmful, benign, strict=True) for prompt in both]


def test_the_built_in_suite_has_60_harmful_and_40_benign_prompts_over_all_categories() -> None:
    suite = load_suite("builtin")
    assert Counter(prompt.is_harmful for prompt in suite) == {True: 60, False: 40}
    covered = Counter(name for prompt in suite for name in prompt.categories or ())
    assert covered.keys() == set(load_taxonomy("pku19").names)
    assert min(covered.values()) >= 2


def test_the_built_in_subset_depends_on_its_seed_only() -> None:
    ids = [[prompt.id for prompt in load_suite("builtin", seed=seed)] for seed in (0, 0, 1)]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]


@pytest.mark.parametrize("seed", [0, 7])
def test_chosen_and_rest_are_disjoint_and_together_are_the_suite(seed) -> None:
    chosen, rest, whole = (
        [prompt.id for prompt in load_suite("builtin", seed=seed, select=select)]
        for select in ("chosen", "rest", "all")
    )
    assert chosen == [prompt.id for prompt in load_suite("builtin", seed=seed)]
    assert not set(chosen) & set(rest)
    assert sorted(chosen + rest) == sorted(whole)
    assert len(whole) == 200
    harmful = [prompt.is_harmful for prompt in load_suite("builtin", seed=seed, select="rest")]
    assert Counter(harmful) == {True: 40, False: 60}


def test_the_rest_of_a_file_that_is_taken_whole_is_nothing_and_said(tmp_path) -> None:
    write_lines(tmp_path / "p.jsonl", prompts())
    with pytest.raises(DataError, match=r"no prompts to evaluate on \(select=rest, 'chosen' takes them all"):
        load_suite(str(tmp_path / "p.jsonl"), select="rest")


def test_a_file_is_taken_whole_and_in_order(tmp_path) -> None:
    write_lines(tmp_path / "p.jsonl", prompts())
    assert load_suite(str(tmp_path / "p.jsonl")) == prompts()


def test_a_subset_spreads_over_categories_also_of_the_twins(tmp_path) -> None:
    write_lines(tmp_path / "p.jsonl", prompts())
    chosen = load_suite(str(tmp_path / "p.jsonl"), harmful=6, benign=3)
    names = Counter(name for prompt in chosen for name in prompt.categories or ())
    assert names == {"Violence": 2, "Drugs": 2, "Cybercrime": 2}  # though violence has half of the pool
    twins = {prompt.id: prompt for prompt in prompts()}
    spread = Counter(
        name for prompt in chosen if not prompt.is_harmful for name in twins[prompt.twin].categories
    )
    assert spread == {"Violence": 1, "Drugs": 1, "Cybercrime": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"is_harmful": None}, "2: is_harmful: missing; expected true or false"),
        ({"id": "h0"}, "2: id: 'h0' stands on line 1 already"),
        ({"prompt": " \n"}, "2: prompt: empty; expected a text to respond to"),
    ],
)
def test_what_cannot_be_measured_is_named_with_its_line(tmp_path, change, words) -> None:
    first, second, *rest = prompts()
    write_lines(tmp_path / "p.jsonl", [first, second.model_copy(update=change), *rest])
    with pytest.raises(DataError, match=f"p.jsonl:{words}$"):
        load_suite(str(tmp_path / "p.jsonl"))


RESPONSE = '{"id": "a", "prompt": "p", "response": "r", "is_safe": true}'
ANSWERS = '{"id": "a", "prompt": "p", "answers": [{"response": "r"}, {"response": "s"}], "better": 0}'


@pytest.mark.parametrize("select", ["chosen", "all"])
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl", "", "x.jsonl: holds no prompts; expected one per line, with id, prompt and is_harmful$"),
        ("x.csv", "id,prompt,is_harmful\n", "x.csv: holds no prompts; expected one per line"),
        ("x.jsonl", RESPONSE, r"x.jsonl:1: line: is an exchange \(prompt and response\); expected a prompt"),
        ("x.jsonl", ANSWERS, r"x.jsonl:1: line: is a pair \(prompt and two answers\); expected a prompt"),
        ("x.jsonl", '{"goal": "p"}', r"x.jsonl:1: .*`equipoise data import` makes records"),
        (
            "x.jsonl",
            '{"id": "a", "prompt": "p", "is_harmful": tr',
            "x.jsonl:1: is_harmful: the line is cut off",
        ),
        ("x.csv", "id,prompt,is_harmful\na,p,yes\n", "x.csv:2: is_harmful: input should be a valid boolean"),
        ("x.parquet", "abc", "x.parquet:1: line: not a Parquet file"),
        ("x.txt", "hello", "got suffix '.txt'; expected .jsonl"),
    ],
)
def test_a_file_that_is_no_suite_is_one_line(tmp_path, name, content, words, select) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words) as caught:
        load_suite(str(tmp_path / name), select=select)
    assert len(str(caught.value).splitlines()) == 1


def test_too_few_prompts_and_a_missing_file_are_said(tmp_path) -> None:
    write_lines(tmp_path / "p.jsonl", prompts(3))
    with pytest.raises(DataError, match="has 3 harmful prompts, got harmful=4"):
        load_suite(str(tmp_path / "p.jsonl"), harmful=4)
    with pytest.raises(DataError, match="no file 'bultin'; built in: builtin"):
        load_suite("bultin")
    with pytest.raises(DataError, match="no prompts to evaluate on"):
        load_suite(str(tmp_path / "p.jsonl"), harmful=0, benign=0)


def test_the_hash_of_a_suite_follows_its_texts() -> None:
    first, *rest = prompts()
    assert suite_hash([first, *rest]) == suite_hash(prompts())
    assert suite_hash([first.model_copy(update={"prompt": "other"}), *rest]) != suite_hash(prompts())
