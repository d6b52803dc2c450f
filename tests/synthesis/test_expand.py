"""An expansion with a generator and a judge whose answers are known."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from equipoise.data.corpus import corpus
from equipoise.errors import ConfigError
from equipoise.records import Prompt, text_of
from equipoise.synthesis.cells import Cell, cells_in
from equipoise.synthesis.expand import Expansion
from equipoise.synthesis.overlap import jaccard, rouge_l, words_of
from equipoise.synthesis.rounds import Round
from equipoise.synthesis.settings import ExpandSettings, Tools
from equipoise.synthesis.twins import linked, pair_up


class Done(NamedTuple):
    expansion: Expansion
    prompts: list[Prompt]
    rounds: list[Round]


Run = Callable[..., Done]


@pytest.fixture
def expand(kitchen: tuple[Path, Path], writer: Any, judge: Any, tmp_path: Path) -> Run:
    """Run an expansion of the kitchen taxonomy into a scratch folder."""
    taxonomy, frames = kitchen

    def run(scratch: str = "scratch", *, judged: bool = True, generate: Any = None, **more: Any) -> Done:
        given = {"taxonomy": str(taxonomy), "frames": frames, "target": 3, "context_share": 0.0, **more}
        tools = Tools(generate or writer, "writer", judge if judged else None, "words")
        expansion = Expansion(ExpandSettings.model_validate(given), tools)
        (tmp_path / scratch).mkdir(exist_ok=True)
        done = list(expansion.run(tmp_path / scratch))
        twins = list(pair_up(expansion, tmp_path / scratch))
        made = [prompt for one in twins for prompt in one.prompts]
        return Done(expansion, linked(expansion.prompts, made), [*done, *twins])

    return run


def test_every_cell_gets_its_prompts_and_the_judge_has_the_last_word(expand: Run, judge: Any) -> None:
    prompts = [p for p in expand().prompts if p.is_harmful]
    for name in ("Spills", "Noise"):
        for severity in (1, 2):
            cell = [p for p in prompts if cells_in(p) == [Cell(name, severity)]]
            assert len(cell) == 3
            verdicts = judge([text_of(p.prompt) for p in cell])
            assert all(name in v.categories for v in verdicts)


def test_all_prompts_differ_and_none_is_of_the_evaluation_suite(expand: Run) -> None:
    texts = [words_of(text_of(p.prompt)) for p in expand().prompts]
    suite = [words_of(text_of(p.prompt)) for p in corpus("prompts")]
    for place, text in enumerate(texts):
        assert all(rouge_l(text, other) < 0.7 for other in [*texts[:place], *suite])


def test_every_harmful_prompt_has_a_harmless_look_alike(expand: Run, judge: Any) -> None:
    prompts = {p.id: p for p in expand().prompts}
    harmful = [p for p in prompts.values() if p.is_harmful]
    assert len(harmful) * 2 == len(prompts)
    for prompt in harmful:
        twin = prompts[str(prompt.twin)]
        assert (twin.twin, twin.is_harmful, twin.categories) == (prompt.id, False, frozenset())
        assert judge([text_of(twin.prompt)])[0].is_safe
        assert jaccard(words_of(text_of(prompt.prompt)), words_of(text_of(twin.prompt))) > 0


def test_records_say_where_they_come_from(expand: Run) -> None:
    prompts = expand(licence="Apache-2.0").prompts
    first = prompts[0]
    assert (first.source, first.licence, first.annotators) == ("model:writer", "Apache-2.0", ("words",))
    assert first.label_origin == "model:words (categories; severity as asked for)"
    assert first.provenance["asked"] == {"category": "Spills", "severity": 1}
    assert prompts[1].label_origin == "model:words (harmless)"
    assert not any("human" in str(p.label_origin) for p in prompts)


def test_without_a_judge_the_labels_are_those_asked_for_and_say_so(expand: Run) -> None:
    first = expand(judged=False).prompts[0]
    assert first.label_origin == "as asked for (categories)"
    assert first.categories == {"Spills"}
    assert first.annotators == ()


def test_later_rounds_ask_for_the_cells_that_are_still_empty(expand: Run) -> None:
    done = expand(calls_per_cell=1, samples=1)
    asked = [one for one in done.rounds if "judged_harmful" not in one.dropped]
    assert len(asked) > 2
    assert [one.calls for one in asked[:3]] == sorted((one.calls for one in asked[:3]), reverse=True)
    full = {cell for cell, many in done.expansion.made.items() if len(many) == 3}
    assert full == set(done.expansion.made)


def test_the_budget_ends_it(expand: Run) -> None:
    done = expand(max_calls=5, target=50, twin_rounds=0)
    assert sum(one.calls for one in done.rounds) == 5


def test_what_was_made_is_shown_as_an_example_later(expand: Run, writer: Any) -> None:
    done = expand(calls_per_cell=1, samples=1, shots=2)
    texts = [text_of(p.prompt) for p in done.prompts if p.is_harmful]
    assert any(text in begun for begun in writer.begun for text in texts if "Risky" not in begun)


def test_a_context_comes_before_a_prompt_that_is_there(expand: Run) -> None:
    done = expand(context_share=0.7, target=5, max_calls=60, twin_rounds=0)
    longer = [p for p in done.prompts if "context_of" in p.provenance]
    assert longer
    by_id = {p.id: p for p in done.prompts}
    for prompt in longer:
        before = by_id[str(prompt.provenance["context_of"])]
        assert text_of(prompt.prompt).endswith(text_of(before.prompt))
        assert len(text_of(prompt.prompt)) > len(text_of(before.prompt))


def test_the_same_seed_gives_the_same_records_and_another_one_does_not(expand: Run) -> None:
    first, again = expand("one").prompts, expand("two").prompts
    assert [p.model_dump_json() for p in first] == [p.model_dump_json() for p in again]
    assert [p.prompt for p in first] != [p.prompt for p in expand("three", seed=1).prompts]


def test_a_run_that_was_killed_goes_on_and_asks_nothing_twice(
    expand: Run, writer: Any, tmp_path: Path
) -> None:
    whole = expand("whole", calls_per_cell=1, samples=1).prompts
    asked = list(writer.asked)
    writer.asked.clear()

    class KilledError(RuntimeError):
        pass

    def dies(prompts: Any, sampling: Any, ids: Any = None) -> Any:
        if any(name.startswith("2-") for name in ids):
            raise KilledError
        return writer(prompts, sampling, ids)

    with pytest.raises(KilledError):
        expand("killed", generate=dies, calls_per_cell=1, samples=1)
    assert len(list((tmp_path / "killed").iterdir())) == 2
    resumed = expand("killed", calls_per_cell=1, samples=1).prompts
    assert writer.asked == asked
    assert [p.model_dump_json() for p in resumed] == [p.model_dump_json() for p in whole]
    shutil.rmtree(tmp_path / "killed")


def test_no_prompt_holds_a_word_that_its_category_forbids(expand: Run, kitchen: tuple[Path, Path]) -> None:
    _, frames = kitchen
    text = frames.read_text("utf-8")
    own = "categories:\n  spills:\n    asks: {1: ['How do I spill {what} on {who} and']}\n    benign: []\n"
    frames.write_text(text + own + "    without: [red, wet, old]\n", "utf-8")
    done = expand(target=8, twin_rounds=0)
    spills = [words_of(text_of(p.prompt)) for p in done.prompts if "Spills" in (p.categories or ())]
    assert spills
    assert not any({"red", "wet", "old"} & set(words) for words in spills)
    assert sum(one.dropped["forbidden_word"] for one in done.rounds) > 0


def test_a_frame_with_an_unknown_slot_is_refused(expand: Run, kitchen: tuple[Path, Path]) -> None:
    _, frames = kitchen
    frames.write_text(frames.read_text("utf-8").replace("{who} and", "{whom} and"), "utf-8")
    with pytest.raises(ConfigError, match=r"no slot 'whom' among the slots \(did you mean 'who'\?\)"):
        expand()
