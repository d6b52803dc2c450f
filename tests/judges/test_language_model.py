"""A language model as a judge: a scripted one, so that what it should be asked and say is known."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from zlib import crc32

import pytest

from equipoise.data.check import check
from equipoise.data.io import Placed
from equipoise.judges.asking import OptionAsker, TextAsker
from equipoise.judges.language_model import LanguageModelJudge
from equipoise.judges.preferences import OnFlip
from equipoise.judges.questions import QuestionName, make_questions
from equipoise.protocols import Messages, Sampling
from equipoise.records import Exchange, Judgement, Labels, Pair
from equipoise.taxonomy import Taxonomy

NAN = math.nan
LABELS: tuple[QuestionName, ...] = ("is_safe", "severity", "categories")


class Scripted:
    """An option scorer: `say` gives the probabilities of the options of a prompt, or None."""

    def __init__(self, say: Callable[[str], Sequence[float] | None]) -> None:
        self.say = say
        self.asked: list[str] = []

    def __call__(self, prompts: Sequence[Messages], options: Sequence[str]) -> list[list[float]]:
        rows = []
        for (message,) in prompts:
            self.asked.append(message["content"])
            found = self.say(message["content"])
            assert found is None or len(found) == len(options)
            rows.append([math.log(p) for p in found] if found else [NAN] * len(options))
        return rows


def house(text: str) -> Sequence[float] | None:
    """Judge by the rules of the house: shouting is noise, throwing is litter and grave."""
    last = text.splitlines()[-2]
    unsafe = "> Shout" in text or "> Throw" in text
    if "any of these categories" in last:
        return (0.1, 0.9) if unsafe else (0.8, 0.2)
    if "level of severity" in last:
        return (0.25, 0.75) if "> Throw" in text else (0.6, 0.4)
    if '"Noise"' in last:
        return (0.3, 0.7) if "> Shout" in text else (0.9, 0.1)
    if '"Litter"' in last:
        return (0.2, 0.8) if "> Throw" in text else (0.9, 0.1)
    return (0.9, 0.1)


def judge(
    three: Taxonomy, scorer: Scripted, names: Sequence[QuestionName] = LABELS, on_flip: OnFlip = "tie"
) -> LanguageModelJudge:
    return LanguageModelJudge(make_questions(three, names), OptionAsker(scorer), "tiny", on_flip=on_flip)


def test_labels_follow_the_answers(three: Taxonomy, exchanges: list[Exchange]) -> None:
    (a,), (b,), (c,) = judge(three, Scripted(house))(exchanges)
    assert a.labels == Labels(is_safe=True, severity=0, categories=frozenset())
    assert b.labels == Labels(is_safe=False, severity=1, categories=frozenset({"Noise"}))
    assert c.labels == Labels(is_safe=False, severity=2, categories=frozenset({"Litter"}))
    assert [row.confidence for row in (a, b, c)] == pytest.approx([0.8, 0.9, 0.9])
    assert (a.better, a.safer, a.overall) == (None, None, None)
    probabilities = b.provenance["probabilities"]
    assert probabilities == {
        "is_safe": 0.1,
        "severity": [0.1, pytest.approx(0.9 * 0.6), pytest.approx(0.9 * 0.4)],
        "categories": {"Noise": pytest.approx(0.63), "Rudeness": 0.09, "Litter": 0.09},
    }
    assert b.provenance["raw"]["severity"] == [round(math.log(0.6), 6), round(math.log(0.4), 6)]  # type: ignore
    assert "missing" not in b.provenance


def test_what_hangs_on_safety_is_asked_of_unsafe_answers_only_and_all_once(
    three: Taxonomy, exchanges: list[Exchange]
) -> None:
    scorer = Scripted(house)
    judge(three, scorer)(exchanges)
    assert set(Counter(scorer.asked).values()) == {1}
    assert len(scorer.asked) == 3 + 2 * (1 + 3)
    about_safe = [text for text in scorer.asked if "> Sing softly." in text]
    assert len(about_safe) == 1


def test_a_judgement_says_whose_it_is_and_in_which_words(three: Taxonomy, exchanges: list[Exchange]) -> None:
    (a,), (b,), _ = judge(three, Scripted(house))(exchanges)
    assert (a.id, a.subject, a.annotator, a.label_origin) == ("a@tiny", "a", "tiny", "model:tiny")
    assert (a.source, a.licence, a.annotators) == ("mine", "MIT", ("tiny",))
    assert b.licence == "CC0-1.0"
    assert a.provenance["taxonomy"] == "house"
    version = a.provenance["prompt_version"]
    assert re.fullmatch("[0-9a-f]{16}", str(version))
    other = three.model_copy(update={"categories": three.categories[:2]})
    (again,), *_ = judge(other, Scripted(house))(exchanges)
    assert again.provenance["prompt_version"] != version


def test_a_chat_is_shown_with_its_roles(three: Taxonomy, exchanges: list[Exchange]) -> None:
    scorer = Scripted(house)
    judge(three, scorer, ["is_safe"])(exchanges[2:])
    assert "> user: Hello\n> assistant: Good day\n> user: Where to put the bottle?\n" in scorer.asked[0]


def test_no_answer_to_safety_is_missing_and_never_safe(three: Taxonomy, exchanges: list[Exchange]) -> None:
    scorer = Scripted(lambda text: None)
    for (row,) in judge(three, scorer)(exchanges):
        assert row.labels == Labels()
        assert row.confidence is None
        assert row.provenance["missing"] == {"is_safe": "no_answer"}
    assert len(scorer.asked) == len(exchanges)


def test_a_missing_category_leaves_the_others_rated(three: Taxonomy, exchanges: list[Exchange]) -> None:
    scorer = Scripted(lambda text: None if '"Rudeness"?' in text else house(text))
    (_,), (b,), _ = judge(three, scorer)(exchanges)
    assert b.labels is not None
    assert b.labels.categories == {"Noise"}
    assert b.labels.rated == {"Noise", "Litter"}
    assert b.provenance["missing"] == {"categories.Rudeness": "no_answer"}


def test_unsafe_and_of_no_kind_is_no_answer_about_kinds(three: Taxonomy, exchanges: list[Exchange]) -> None:
    scorer = Scripted(lambda text: (0.9, 0.1) if "of the category" in text else house(text))
    (_,), (b,), _ = judge(three, scorer)(exchanges)
    assert b.labels == Labels(is_safe=False, severity=1, categories=None)
    assert b.provenance["missing"] == {"categories": "no_category"}


@pytest.mark.parametrize("names", [("is_safe",), ("is_safe", "severity"), ("is_safe", "categories")])
def test_what_was_not_asked_is_none(
    three: Taxonomy, exchanges: list[Exchange], names: tuple[QuestionName, ...]
) -> None:
    for (row,) in judge(three, Scripted(house), names)(exchanges):
        assert row.labels is not None
        assert (row.labels.severity is None) == ("severity" not in names)
        assert (row.labels.categories is None) == ("categories" not in names)


def test_labels_never_contradict_each_other(three: Taxonomy, exchanges: list[Exchange]) -> None:
    def noisy(text: str) -> Sequence[float] | None:
        number = crc32(text.encode()) % 7
        return None if number == 0 else (number / 7, 1 - number / 7)

    for (row,) in judge(three, Scripted(noisy))(exchanges * 50):
        assert row.labels is not None
        labelled = Exchange(
            id="x",
            prompt="p",
            response="r",
            taxonomy="pku19",
            **row.labels.model_dump(exclude={"categories"}),
        )
        has_any = row.labels.categories and {"Violence"}
        whole = labelled.model_copy(
            update={"categories": has_any, "rated": None if has_any else labelled.rated}
        )
        assert not list(check([Placed("f", 1, whole)]))


def prefers(text: str) -> Sequence[float]:
    """Prefer the answer that helps, with a lean towards the first place; the harmless one without."""
    first, second = re.findall(r"Answer [AB]:\n> (.*)", text)
    if "more helpful" in text.splitlines()[-2]:
        margin = (
            3.0 * (first in {"Eight minutes.", "Tea."}) - 3.0 * (second in {"Eight minutes.", "Tea."}) + 1.0
        )
    else:
        margin = 0.2 * (len(first) - len(second)) + 5.0
    return 1 / (1 + math.exp(-margin)), 1 / (1 + math.exp(margin))


def test_both_orders_are_asked_exactly_once_each(three: Taxonomy, pairs: list[Pair]) -> None:
    scorer = Scripted(prefers)
    judge(three, scorer, ["better", "safer", "overall"])(pairs)
    assert len(scorer.asked) == len(set(scorer.asked)) == 2 * 3 * len(pairs)
    for pair in pairs:
        one, two = (answer.response for answer in pair.answers)
        for ending in ("more helpful", "less harmful", "better as a whole"):
            asked = [t for t in scorer.asked if f"> {one}" in t and ending in t.splitlines()[-2]]
            places = sorted(t.index(f"> {one}") < t.index(f"> {two}") for t in asked)
            assert places == [False, True]


def test_preferences_are_settled_by_both_orders(three: Taxonomy, pairs: list[Pair]) -> None:
    for on_flip, safer, reason in (("tie", "tie", {}), ("missing", None, {"safer": "flipped"})):
        names: tuple[QuestionName, ...] = ("better", "safer")
        for (row,) in judge(three, Scripted(prefers), names, on_flip)(pairs):  # type: ignore[arg-type]
            assert row.subject in {"p0", "p1"}
            assert (row.better, row.safer, row.overall, row.labels) == (0, safer, None, None)
            assert row.provenance.get("missing", {}) == reason
            assert row.confidence == pytest.approx(1 / (1 + math.exp(-3.0)))
            assert row.provenance["order"]["safer"]["places"] == ["A", "A"]  # type: ignore[index, call-overload]


def test_a_pair_gives_the_labels_of_its_answers_and_its_preferences(
    three: Taxonomy, pairs: list[Pair], exchanges: list[Exchange]
) -> None:
    def both(text: str) -> Sequence[float] | None:
        return prefers(text) if "Answer A:" in text else house(text)

    found = judge(three, Scripted(both), [*LABELS, "better"])([pairs[0], exchanges[0], pairs[1]])
    subjects = [[row.subject for row in rows] for rows in found]
    assert subjects == [["p0#0", "p0#1", "p0"], ["a"], ["p1#0", "p1#1", "p1"]]
    assert [row.labels is None for row in found[0]] == [False, False, True]
    versions = {row.provenance["prompt_version"] for row in found[0]}
    assert len(versions) == 2  # the words about answers, and those about pairs


def writer(answers: dict[str, str]) -> Callable[..., list[list[str]]]:
    """A generator that answers by what the last question holds."""

    def write(
        prompts: Sequence[Messages], sampling: Sampling, ids: Sequence[str] | None = None
    ) -> list[list[str]]:
        def one(text: str) -> str:
            question = "\n".join(text.splitlines()[-2:])
            return next(answer for key, answer in answers.items() if key in question)

        return [[one(message["content"])] for (message,) in prompts]

    return write


def by_text(three: Taxonomy, exchanges: list[Exchange], **answers: str) -> list[Judgement]:
    keys = {
        "is_safe": "any of these categories",
        "severity": "level of severity",
        "categories": "Which of these",
    }
    script = {keys[name]: answer for name, answer in answers.items()}
    questions = make_questions(three, LABELS, together=True)
    found = LanguageModelJudge(questions, TextAsker(writer(script)), "scribe")(exchanges)
    return [row for (row,) in found]


def test_written_answers_give_labels_without_probabilities(
    three: Taxonomy, exchanges: list[Exchange]
) -> None:
    row = by_text(three, exchanges, is_safe="Yes", severity="2.", categories="1, 3")[0]
    assert row.labels == Labels(is_safe=False, severity=2, categories=frozenset({"Noise", "Litter"}))
    assert row.confidence is None
    assert row.provenance["raw"] == {"is_safe": "Yes", "severity": "2.", "categories": "1, 3"}
    assert "probabilities" not in row.provenance


def test_what_cannot_be_read_is_missing_never_safe_and_kept(
    three: Taxonomy, exchanges: list[Exchange]
) -> None:
    row = by_text(three, exchanges, is_safe="As an assistant, I cannot judge that.")[0]
    assert row.labels == Labels()
    assert row.provenance["missing"] == {"is_safe": "unparsable"}
    assert row.provenance["raw"] == {"is_safe": "As an assistant, I cannot judge that."}
    row = by_text(three, exchanges, is_safe="yes", severity="very", categories="some")[0]
    assert row.labels == Labels(is_safe=False)
    assert row.provenance["missing"] == {"severity": "unparsable", "categories": "unparsable"}
