"""Crosswalks to lists that are no taxonomies here: every line there, nothing invented."""

from pathlib import Path

import pytest

from equipoise.config import read_yaml, to_yaml
from equipoise.errors import TaxonomyError
from equipoise.taxonomy import built_in_crosswalks, load_crosswalk, load_taxonomy

OPENAI13 = [
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent"),
    *("self-harm", "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors"),
    *("violence", "violence/graphic"),
]


def test_the_built_in_ones_are_listed() -> None:
    assert built_in_crosswalks() == ["pku19-azure4", "pku19-mlcommons", "pku19-openai13"]


@pytest.mark.parametrize("name", built_in_crosswalks())
def test_every_category_is_mapped_or_has_no_counterpart_and_every_target_is_accounted_for(name: str) -> None:
    walk = load_crosswalk(name)
    taxonomy = load_taxonomy(walk.taxonomy)
    assert name == f"{walk.taxonomy}-{walk.other}"
    assert list(walk.mapping) == [category.id for category in taxonomy.categories]
    reached = {there for many in walk.mapping.values() for there in many}
    assert reached | walk.unreachable.keys() == {target.id for target in walk.targets}
    assert not reached & walk.unreachable.keys()
    assert all(walk.unreachable.values())
    assert walk.title
    assert walk.source
    assert walk.licence == "Apache-2.0"


def test_the_targets_are_those_of_the_interfaces_in_their_order() -> None:
    ids = {name: [t.id for t in load_crosswalk(name).targets] for name in built_in_crosswalks()}
    assert ids["pku19-openai13"] == OPENAI13
    assert ids["pku19-mlcommons"] == [f"S{n}" for n in range(1, 15)]
    assert ids["pku19-azure4"] == ["Hate", "SelfHarm", "Sexual", "Violence"]


def test_names_become_ids_in_the_order_of_the_targets() -> None:
    walk = load_crosswalk("pku19-mlcommons")
    assert walk.translate(["Physical Harm", "Privacy Violation", "Violence"]) == ("S1", "S7", "S11")
    assert walk.translate(["Insulting Behavior"]) == ()
    assert walk.translate([]) == ()
    with pytest.raises(TaxonomyError, match=r"no category 'Drug' .*did you mean 'Drugs'"):
        walk.translate(["Drug"])


def test_what_the_categories_cannot_tell_is_never_inferred() -> None:
    everything = load_taxonomy("pku19").names
    openai = load_crosswalk("pku19-openai13").translate(everything)
    assert not {"sexual/minors", "self-harm/intent", "violence/graphic", "hate/threatening"} & set(openai)
    assert "S4" not in load_crosswalk("pku19-mlcommons").translate(everything)


def test_a_target_is_found_by_its_id_and_by_the_hazard_id_of_ailuminate() -> None:
    walk = load_crosswalk("pku19-mlcommons")
    assert walk.target("ssh") == walk.target("S11")
    assert walk.target("sxc_prn").name == "Sexual Content"
    with pytest.raises(TaxonomyError, match=r"no target 'vcrr' in 'mlcommons' .*did you mean 'vcr'"):
        walk.target("vcrr")


def test_an_unknown_crosswalk_is_named_with_the_near_one() -> None:
    with pytest.raises(
        TaxonomyError, match=r"no crosswalk 'pku19-azure' \(did you mean 'pku19-azure4'\?\); built"
    ):
        load_crosswalk("pku19-azure")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mapping": {"drugs": ["Violense"]}}, r"no target 'Violense' here \(did you mean 'Violence'\?\)"),
        ({"mapping": {"drug": []}}, r"no category 'drug' in 'pku19' \(did you mean 'drugs'\?\)"),
        ({"unreachable": {"Hate": "why"}}, "target 'Hate' is mapped to and said to be unreachable"),
        (
            {"mapping": {"sexual_content": []}},
            "target 'Sexual' is neither mapped to nor said to be unreachable",
        ),
        ({"targets": [{"id": "Hate", "name": "x", "aliases": ["Hate"]}]}, "target 'Hate' stands twice"),
        ({"versoin": 1}, "versoin: no such setting"),
    ],
)
def test_a_broken_file_of_the_users_own_is_one_line(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    data = load_crosswalk("pku19-azure4").model_dump(mode="json")
    for key, value in change.items():
        data[key] = data[key] | value if isinstance(data.get(key), dict) else value
    path = tmp_path / "own.yaml"
    path.write_text(to_yaml(data), "utf-8")
    with pytest.raises(TaxonomyError, match=message) as caught:
        load_crosswalk(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_category_without_a_line_is_named(tmp_path: Path) -> None:
    data = load_crosswalk("pku19-azure4").model_dump(mode="json")
    del data["mapping"]["drugs"]
    path = tmp_path / "own.yaml"
    path.write_text(to_yaml(data), "utf-8")
    assert read_yaml(path)["other"] == "azure4"
    with pytest.raises(TaxonomyError, match="category 'drugs' has no line"):
        load_crosswalk(str(path))
