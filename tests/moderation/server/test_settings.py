"""Policies that the settings name, and how the guard's categories become those of a protocol."""

from pathlib import Path

import pytest

from equipoise.errors import ConfigError, ModelError
from equipoise.moderation.server.crosswalks import translation
from equipoise.moderation.server.engine import load_engine
from equipoise.moderation.server.settings import ServeConfig
from equipoise.protocols import Verdict
from equipoise.taxonomy import load_crosswalk, load_taxonomy


def settings(guard: Path, *policies: str) -> ServeConfig:
    return ServeConfig(guard=guard, device="cpu", policies=policies)


def test_the_first_policy_given_is_the_default_and_the_guards_own_come_after(
    random_guard: Path, tmp_path: Path
) -> None:
    path = tmp_path / "school.yaml"
    path.write_text("name: school\nunsafe: 0.1\n")
    engine = load_engine(settings(random_guard, str(path)))
    assert (list(engine.policies), engine.default.name) == (["school", "default"], "school")
    assert list(load_engine(settings(random_guard)).policies) == ["default"]


def test_a_policy_that_is_not_there_or_stands_twice_is_a_mistake(random_guard: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no policy 'defualt'"):
        load_engine(settings(random_guard, "defualt"))
    with pytest.raises(ConfigError, match="there is a policy 'default' already"):
        load_engine(settings(random_guard, "default", "default"))


def test_the_runtime_is_the_one_that_was_asked_for(random_guard: Path) -> None:
    asked = ServeConfig(guard=random_guard, device="cuda", runtime="onnx")
    with pytest.raises(ModelError, match="runtime onnx computes on the CPU, got cuda"):
        load_engine(asked)


@pytest.mark.parametrize("other", ["openai13", "azure4", "mlcommons"])
def test_the_crosswalk_decides_for_its_own_taxonomy(other: str) -> None:
    taxonomy, crosswalk = load_taxonomy("pku19"), load_crosswalk(f"pku19-{other}")
    found = translation(taxonomy, other)
    assert found.via is None
    assert found.targets == tuple(target.id for target in crosswalk.targets)
    assert found.unreachable == dict(crosswalk.unreachable)
    for name in taxonomy.names:
        probabilities = {n: 0.5 * (n == name) for n in taxonomy.names}
        verdict = Verdict(False, 0.9, 1, (0.1, 0.9, 0, 0), (name,), probabilities, False)
        expected = list(crosswalk.translate([name]))
        assert found.flagged(verdict) == expected
        assert [target for target, score in found.scores(verdict).items() if score] == expected


def test_a_taxonomy_without_a_crosswalk_of_its_own_goes_through_one_that_has_it() -> None:
    beavertails = load_taxonomy("beavertails14")
    found = translation(beavertails, "openai13")
    assert found.via == "pku19"
    assert found.mapping["self_harm"] == {"self-harm", "violence"}  # by physical_harm
    lonely = beavertails.model_copy(update={"crosswalks": {}})
    none = translation(lonely, "openai13")
    assert none.via == "none"
    assert set(none.unreachable) == set(none.targets)


def test_a_target_has_the_score_of_the_likeliest_category_that_leads_to_it() -> None:
    found = translation(load_taxonomy("pku19"), "openai13")
    probabilities = dict.fromkeys(load_taxonomy("pku19").names, 0.0)
    probabilities |= {"Drugs": 0.3, "Cybercrime": 0.7, "Sexual Content": 0.2}
    verdict = Verdict(False, 0.9, 1, (0.1, 0.9, 0, 0), ("Cybercrime",), probabilities, False)
    scores = found.scores(verdict)
    assert (scores["illicit"], scores["sexual"], scores["hate"]) == (0.7, 0.2, 0.0)
    assert found.flagged(verdict) == ["illicit"]
