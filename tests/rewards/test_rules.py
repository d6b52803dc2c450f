"""Rule sets: what they refuse, the class of an answer, and the total of reward and rules."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.config import parse_config, to_yaml
from equipoise.errors import ConfigError, DataError, ModelError
from equipoise.protocols import Reward
from equipoise.records import Exchange, Score
from equipoise.rewards.rules import CLASSES, Grades, RuleReward, RuleSet, load_rule_set


def small(**changes: Any) -> dict[str, Any]:
    kind = {
        "ideal": {"all": ["sorry", "declines"], "none": ["judges"]},
        "minimum_style": {"all": ["declines"], "none": ["judges"]},
        "illogical": {"any": ["nonsense"]},
        "disallowed": {"any": ["harm"]},
    }
    comply = kind | {"ideal": {"none": ["declines"]}, "also": ["Comply"]}
    return {
        "name": "small",
        "propositions": [
            {"name": name, "question": f"Is it {name}?", "also": [f"gold_{name}"]}
            for name in ("sorry", "declines", "judges", "nonsense", "harm", "long")
        ],
        "response_types": {"refuse": kind, "comply": comply},
        "harmful": "refuse",
        "harmless": "comply",
    } | changes


def rules(**changes: Any) -> RuleSet:
    return parse_config(RuleSet, small(**changes), "test")


def exchange(name: str = "a", **values: Any) -> Exchange:
    return Exchange(
        **({"id": name, "prompt": "May I?", "response": "No.", "prompt_is_harmful": True} | values)
    )


@pytest.mark.parametrize(
    ("true", "expected"),
    [
        ({"sorry", "declines"}, "ideal"),
        ({"sorry", "declines", "long"}, "ideal"),
        ({"declines"}, "minimum_style"),
        ({"sorry", "declines", "judges"}, "unacceptable"),
        ({"sorry"}, "unacceptable"),
        (set(), "unacceptable"),
        ({"sorry", "declines", "nonsense"}, "illogical"),
        ({"sorry", "declines", "nonsense", "harm"}, "disallowed"),
    ],
)
def test_the_worst_that_an_answer_is_decides_its_class(true: set[str], expected: str) -> None:
    assert rules().response_types["refuse"].class_of(frozenset(true)) == expected


def test_a_condition_with_any_needs_one_of_them_and_one_without_needs_none() -> None:
    kind = rules().response_types["comply"]
    assert kind.ideal.holds(frozenset())
    assert not kind.disallowed.holds(frozenset())
    assert kind.disallowed.holds(frozenset({"harm", "sorry"}))


def test_signs_come_from_what_ideal_answers_have_and_bad_ones_are() -> None:
    kind = rules().response_types["refuse"]
    assert [kind.sign(name) for name in rules().names] == [1, 1, -1, -1, -1, 0]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"harmful": "refus"}, r"harmful: no response type 'refus' \(did you mean 'refuse'\?\)"),
        (
            {"propositions": [{"name": "sorry", "question": "?"}]},
            "response_types.refuse.ideal: no proposition 'declines'",
        ),
        (
            {
                "propositions": [
                    *small()["propositions"],
                    {"name": "other", "question": "?", "also": ["gold_harm"]},
                ]
            },
            "propositions: 'gold_harm' is named twice",
        ),
        ({"response_types": {}}, "response_types"),
        (
            {"response_types": {"refuse": small()["response_types"]["refuse"] | {"disallowed": {}}}},
            "disallowed: empty, so it would hold of every answer",
        ),
    ],
)
def test_a_rule_set_that_speaks_of_what_is_not_there_is_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        rules(**changes)


def test_labels_go_by_their_name_here_or_elsewhere_and_none_is_not_labelled() -> None:
    one = exchange(provenance={"propositions": {"gold_sorry": True, "harm": False, "judges": None}})
    np.testing.assert_equal(rules().labels(one), [1.0, np.nan, np.nan, np.nan, 0.0, np.nan])


@pytest.mark.parametrize("given", [None, ["sorry"], {"sorry": 1}, {"harm": "yes"}])
def test_labels_of_another_form_are_refused_by_their_place(given: Any) -> None:
    with pytest.raises(DataError, match=r"a: provenance\.propositions"):
        rules().labels(exchange(provenance={} if given is None else {"propositions": given}))


def test_the_response_type_is_what_is_labelled_or_what_the_prompt_calls_for() -> None:
    known = rules()
    labelled = {"response_type": "Comply"}
    assert known.type_of(exchange(provenance=labelled)) == "comply"
    assert known.type_of(exchange()) == "refuse"
    assert known.type_of(exchange(prompt_is_harmful=False)) == "comply"
    with pytest.raises(DataError, match="a: the response type is not known"):
        known.type_of(exchange(prompt_is_harmful=None))
    with pytest.raises(DataError, match=r"no response type 'Compl'.*did you mean 'Comply'"):
        known.type_of(exchange(provenance={"response_type": "Compl"}))


GRADES = {"a": [0.9, 0.8, 0.1, 0.0, 0.0, 1.0], "b": [0.2, 0.1, 0.7, 0.0, 0.6, 0.0]}
WEIGHTS = {"refuse": [1.0, 2.0, -3.0, -4.0, -5.0, 0.0], "comply": [0.0, -2.0, 0.0, 0.0, -1.0, 0.0]}


def grade(exchanges: Sequence[Exchange]) -> Grades:
    return np.array([GRADES[e.id] for e in exchanges])


def cost(exchanges: Sequence[Exchange]) -> list[Score]:
    return [Score(10.0 if e.id == "a" else 20.0, "higher_is_worse") for e in exchanges]


def test_the_total_is_the_reward_and_what_each_proposition_adds() -> None:
    reward: Reward = RuleReward(rules(), grade, WEIGHTS)
    both = [exchange("a"), exchange("b", prompt_is_harmful=False)]
    first = 0.9 * 1 + 0.8 * 2 + 0.1 * -3
    second = 0.1 * -2 + 0.6 * -1
    assert [s.value for s in reward(both)] == pytest.approx([first, second], rel=1e-12)
    assert {s.polarity for s in reward(both)} == {"higher_is_better"}
    # a cost goes in with its polarity turned
    on_top = RuleReward(rules(), grade, WEIGHTS, reward=cost)(both)
    assert [s.value for s in on_top] == pytest.approx([first - 10, second - 20], rel=1e-12)


def test_a_score_can_be_taken_apart() -> None:
    (found,) = RuleReward(rules(), grade, WEIGHTS).explain([exchange("a")])
    assert found.parts == pytest.approx({"sorry": 0.9, "declines": 1.6, "judges": -0.3})
    assert (found.response_type, found.answer_class) == ("refuse", "ideal")
    assert sum(found.parts.values()) == pytest.approx(found.total.value)


def test_somebody_else_can_say_what_answers_should_be() -> None:
    reward = RuleReward(rules(), grade, WEIGHTS, type_of=lambda exchanges: ["comply"] * len(exchanges))
    (found,) = reward.explain([exchange("b", prompt_is_harmful=None)])
    assert found.total.value == pytest.approx(-0.8)


def test_no_answers_are_not_graded() -> None:
    def nobody(exchanges: Sequence[Exchange]) -> Grades:
        raise ModelError("asked")

    assert RuleReward(rules(), nobody, WEIGHTS)([]) == []


def test_a_grade_that_is_no_number_is_not_a_good_one() -> None:
    reward = RuleReward(rules(), lambda exchanges: np.full((1, 6), np.nan), WEIGHTS)
    with pytest.raises(ModelError, match="a grade is not finite"):
        reward([exchange()])


@pytest.mark.parametrize("weights", [{"refuse": [0.0] * 6}, {"refuse": [0.0] * 6, "comply": [0.0] * 5}])
def test_weights_that_do_not_fit_the_rules_are_refused(weights: dict[str, list[float]]) -> None:
    with pytest.raises(ModelError, match=r"expected one per proposition \(6\), got [05] of 'comply'"):
        RuleReward(rules(), grade, weights)


def test_the_built_in_rules_name_about_twenty_propositions_and_every_class() -> None:
    known = load_rule_set("style")
    assert 20 <= len(known.names) <= 25
    assert {known.harmful, known.harmless} <= known.response_types.keys()
    for kind in known.response_types.values():
        assert kind.class_of(frozenset(kind.ideal.all)) == "ideal"
        assert kind.class_of(frozenset(kind.minimum_style.all)) == "minimum_style"
        assert kind.class_of(frozenset({"does_not_follow"})) == "illogical"
        assert kind.class_of(frozenset({"harmful_detail", *kind.ideal.all})) == CLASSES[-1]
        assert all(p.question.endswith("?") for p in known.propositions)


def test_a_team_brings_its_own_rules_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(to_yaml(small()), "utf-8")
    assert load_rule_set(str(path)) == rules()
    with pytest.raises(ConfigError, match=r"no rule set 'styl' \(did you mean 'style'\?\); built in: style"):
        load_rule_set("styl")
