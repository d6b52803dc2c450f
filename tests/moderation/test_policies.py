"""Policies: what a file may say, what is wrong with one, and which one counts where none is named."""

from pathlib import Path
from typing import Any

import pytest

from equipoise.config import to_yaml
from equipoise.errors import ConfigError, ModelError
from equipoise.models.checkpoints import save_card
from equipoise.models.guard import GuardCard
from equipoise.moderation.policies import Policy, find_policy, load_policies, load_policy
from equipoise.taxonomy import load_taxonomy

PKU = load_taxonomy("pku19")
DRUGS, FRAUD = "Drugs", "White-Collar Crime"


def guard_folder(place: Path, *policies: dict[str, Any], threshold: float = 0.3) -> Path:
    """A guard's folder as far as policies go."""
    place.mkdir()
    card = GuardCard(
        taxonomy=PKU,
        backbone="none",
        layers=1,
        hidden=1,
        targets=("response",),
        knows_refusals=False,
        unsafe_threshold=threshold,
    )
    save_card(place, card)
    for number, policy in enumerate(policies):
        (place / "policies").mkdir(exist_ok=True)
        write(place / "policies" / f"{number}.yaml", policy)
    return place


def write(path: Path, policy: dict[str, Any] | str) -> Path:
    path.write_text(policy if isinstance(policy, str) else to_yaml(policy), "utf-8")
    return path


def test_a_file_says_all_that_a_policy_is(tmp_path: Path) -> None:
    text = f"""
name: school
about: for pupils
unsafe: {{prompt: 0.4, response: 0.3}}
categories: {{{DRUGS}: 0.1, {FRAUD}: 1}}
severity: {{3: 0.2}}
review: [0.2, 0.5]
shadow: true
"""
    policy = load_policy(write(tmp_path / "school.yaml", text), PKU)
    assert policy.unsafe is not None
    assert (policy.unsafe.prompt, policy.unsafe.response) == (0.4, 0.3)
    assert policy.categories == {DRUGS: 0.1, FRAUD: 1.0}
    assert policy.severity == {3: 0.2}
    assert policy.review == (0.2, 0.5)
    assert not policy.enforced
    again = write(tmp_path / "again.yaml", to_yaml(policy.model_dump(exclude_defaults=True)))
    assert load_policy(again, PKU) == policy


def test_one_number_is_for_prompts_and_responses() -> None:
    policy = Policy.model_validate({"name": "one", "unsafe": 0.25})
    assert policy == Policy.model_validate({"name": "one", "unsafe": {"prompt": 0.25, "response": 0.25}})
    assert policy.enforced


def flags(
    policy: dict[str, Any], at_least: tuple[float, ...], drugs: float = 0.0, target: str = "prompt"
) -> bool:
    made = Policy.model_validate({"name": "p", **policy})
    return made.flags(target, at_least, {DRUGS: drugs, FRAUD: 0.0})  # type: ignore[arg-type]


def test_a_text_is_flagged_as_soon_as_one_threshold_is_reached() -> None:
    both = {"unsafe": {"prompt": 0.5, "response": 0.7}, "categories": {DRUGS: 0.2}, "severity": {3: 0.1}}
    assert not flags(both, (0.4999, 0.3, 0.0999), 0.1999)
    assert flags(both, (0.5, 0.3, 0.05), 0.1)
    assert not flags(both, (0.5, 0.3, 0.05), 0.1, "response")
    assert flags(both, (0.7, 0.3, 0.05), 0.1, "response")
    assert flags(both, (0.4, 0.3, 0.05), 0.2)
    assert flags(both, (0.4, 0.3, 0.1), 0.1)
    assert not flags({"categories": {DRUGS: 0.2}}, (1.0, 1.0, 1.0), 0.1)
    assert not flags({"severity": {2: 0.5}}, (1.0, 0.4, 0.4))
    assert flags({"unsafe": 0}, (0.0, 0.0, 0.0))


def test_the_highest_severity_whose_threshold_is_reached() -> None:
    policy = Policy(name="p", severity={2: 0.3, 3: 0.3})
    assert [policy.reached(p) for p in ((0.9, 0.2, 0.1), (0.9, 0.3, 0.1), (0.9, 0.3, 0.3))] == [0, 2, 3]


def test_the_band_for_a_person_holds_its_lower_end() -> None:
    policy = Policy.model_validate({"name": "p", "unsafe": 0.5, "review": (0.2, 0.6)})
    assert [policy.asks(p) for p in (0.1, 0.2, 0.55, 0.6, 0.9)] == [False, True, True, False, False]
    assert not Policy.model_validate({"name": "p", "unsafe": 0.5}).asks(0.5)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ({"unsafe": 0.5, "categories": {"Drug": 0.5}}, r"categories: no category 'Drug' .*'Drugs'\?\)$"),
        ({"unsafe": 0.5, "severity": {4: 0.5}}, r"severity: not on the scale of 'pku19', got 4; .* 1 to 3$"),
        ({"unsafe": 0.5, "severity": {0: 0.5}}, "severity.0"),
        ({"unsafe": 1.5}, "unsafe.prompt: .*, got 1.5"),
        ({"unsafe": True}, "unsafe: .*, got True"),
        ({"unsafe": "0.5"}, "unsafe: .*, got '0.5'"),
        ({"unsafe": {"prompt": 0.5}}, "unsafe.response: missing"),
        ({"unsafe": {"prompt": True, "response": 1}}, "unsafe.prompt: .*, got True"),
        ({"unsafe": float("nan")}, "unsafe.prompt: .*, got nan"),
        ({"unsafe": 0.5, "review": [0.6, 0.5]}, r"review: expected the lower end first, got \[0.6, 0.5\]"),
        ({"unsafe": 0.5, "reveiw": [0.1, 0.2]}, r"reveiw: no such setting \(did you mean 'review'\?\)"),
        ({"unsafe": 0.5, "name": "no spaces"}, "name: "),
        ({"about": "all is well"}, "nothing would be flagged; expected unsafe, categories or severity"),
    ],
)
def test_mistakes_are_one_line_that_names_the_file(tmp_path: Path, policy: dict[str, Any], says: str) -> None:
    path = write(tmp_path / "p.yaml", {"name": "p", **policy})
    with pytest.raises(ConfigError, match=says) as caught:
        load_policy(path, PKU)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_guard_that_was_not_calibrated_has_its_own_threshold(tmp_path: Path) -> None:
    found = load_policies(guard_folder(tmp_path / "guard"))
    assert list(found) == ["default"]
    assert found["default"].unsafe == Policy.model_validate({"name": "x", "unsafe": 0.3}).unsafe


def test_moderate_comes_first_and_files_after_the_folder(tmp_path: Path) -> None:
    own = [{"name": name, "unsafe": 0.5} for name in ("strict", "moderate", "loose")]
    guard = guard_folder(tmp_path / "guard", *own)
    mine = write(tmp_path / "mine.yaml", {"name": "mine", "unsafe": 0.1})
    assert list(load_policies(guard)) == ["moderate", "loose", "strict"]
    assert list(load_policies([guard, mine])) == ["moderate", "loose", "strict", "mine"]
    assert list(load_policies([mine, guard])) == ["mine", "moderate", "loose", "strict"]
    assert list(load_policies([mine])) == ["mine"]


def test_files_are_held_against_the_guard_beside_them_wherever_they_stand(tmp_path: Path) -> None:
    guard = guard_folder(tmp_path / "guard")
    mine = write(tmp_path / "mine.yaml", {"name": "mine", "categories": {"Drugz": 0.1}})
    for places in ([guard, mine], [mine, guard]):
        with pytest.raises(ConfigError, match=r"mine\.yaml: categories: .*did you mean 'Drugs'"):
            load_policies(places)
    with pytest.raises(ConfigError, match="did you mean 'Drugs'"):
        load_policies(mine, PKU)
    assert list(load_policies(mine)) == ["mine"]  # nobody said of which taxonomy


def test_two_policies_of_one_name_are_refused(tmp_path: Path) -> None:
    guard = guard_folder(tmp_path / "guard", {"name": "strict", "unsafe": 0.5})
    mine = write(tmp_path / "mine.yaml", {"name": "strict", "unsafe": 0.1})
    with pytest.raises(ConfigError, match=r"mine\.yaml: name: there is a policy 'strict' already"):
        load_policies([guard, mine])


def test_a_folder_that_is_no_guard_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model\.json"):
        load_policies(tmp_path)


def test_a_policy_is_found_by_name_or_as_a_file(tmp_path: Path) -> None:
    own = {name: Policy.model_validate({"name": name, "unsafe": 0.5}) for name in ("moderate", "strict")}
    mine = write(tmp_path / "mine.yaml", {"name": "strict", "unsafe": 0.1})
    assert find_policy("strict", own, PKU) is own["strict"]
    assert find_policy(str(mine), own, PKU).unsafe != own["strict"].unsafe
    with pytest.raises(ConfigError) as caught:
        find_policy("strickt", own, PKU)
    assert str(caught.value) == (
        "no policy 'strickt' (did you mean 'strict'?); this guard has: moderate, strict"
        " (or give a path to a .yaml file)"
    )
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        find_policy(str(tmp_path / "none.yaml"), own, PKU)
