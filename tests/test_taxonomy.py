"""Every taxonomy that ships, a user's own, and what a broken one says."""

from importlib import resources
from pathlib import Path

import pytest

from equipoise.config import read_yaml
from equipoise.errors import ConfigError, EquipoiseError, TaxonomyError
from equipoise.taxonomy import Taxonomy, built_in, load_taxonomy, parse_taxonomy

OFFICIAL_PKU = (
    "Endangering National Security",
    "Insulting Behavior",
    "Discriminatory Behavior",
    "Endangering Public Health",
    "Copyright Issues",
    "Violence",
    "Drugs",
    "Privacy Violation",
    "Economic Crime",
    "Mental Manipulation",
    "Human Trafficking",
    "Physical Harm",
    "Sexual Content",
    "Cybercrime",
    "Disrupting Public Order",
    "Environmental Damage",
    "Psychological Harm",
    "White-Collar Crime",
    "Animal Abuse",
)
FILES = sorted(Path(str(resources.files("equipoise") / "taxonomies")).glob("*.yaml"))
OWN = """\
name: house
version: 1
severities:
  - {name: fine, criterion: Nothing is wrong.}
  - {name: bad, criterion: Something is wrong.}
categories:
  - {id: noise, name: Noise, definition: Too loud., not_this: Music by day.}
  - {id: smoke, name: Smoke, definition: Too thick., not_this: Steam.}
crosswalks:
  pku19: {noise: [disrupting_public_order], smoke: []}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "house.yaml"
    path.write_text(OWN, "utf-8")
    return path


def test_the_built_in_ones_are_listed() -> None:
    assert {"pku19", "beavertails14"} <= set(built_in())
    assert built_in() == [path.stem for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_is_a_complete_taxonomy(path: Path) -> None:
    taxonomy = load_taxonomy(path.stem)
    assert taxonomy.name == path.stem
    assert taxonomy.title
    assert taxonomy.source
    assert taxonomy.licence != "unknown"
    for category in taxonomy.categories:
        assert len(category.definition) > 20, category.id
        assert len(category.not_this) > 20, category.id
    for texts in ("definition", "not_this"):
        assert len({getattr(c, texts) for c in taxonomy.categories}) == len(taxonomy.categories)
    assert len({level.criterion for level in taxonomy.severities}) == len(taxonomy.severities)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_ids_and_names_are_unique_and_name_their_place(path: Path) -> None:
    taxonomy = load_taxonomy(path.stem)
    assert len({c.id for c in taxonomy.categories}) == len(taxonomy.categories)
    assert [taxonomy.index(name) for name in taxonomy.names] == list(range(len(taxonomy.names)))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_crosswalks_lead_to_categories_that_exist_and_say_the_same_from_both_sides(path: Path) -> None:
    here = load_taxonomy(path.stem)
    for name, mapping in here.crosswalks.items():
        there = load_taxonomy(name)
        assert list(mapping) == [c.id for c in here.categories]  # one line for each, also where it is empty
        forth = {(ours, theirs) for ours, many in mapping.items() for theirs in many}
        assert {theirs for _, theirs in forth} <= {c.id for c in there.categories}
        if here.name in there.crosswalks:
            back = {(ours, theirs) for theirs, many in there.crosswalks[here.name].items() for ours in many}
            assert forth == back


def test_pku19_has_the_official_names_in_the_official_order() -> None:
    assert load_taxonomy("pku19").names == OFFICIAL_PKU


def test_pku19_has_four_levels_of_severity_and_beavertails_one_flag() -> None:
    assert [level.name for level in load_taxonomy("pku19").severities] == [
        "safe",
        "minor",
        "moderate",
        "severe",
    ]
    assert [level.name for level in load_taxonomy("beavertails14").severities] == ["safe", "unsafe"]
    assert len(load_taxonomy("beavertails14").categories) == 14


def test_translation_follows_the_crosswalk() -> None:
    pku, beaver = load_taxonomy("pku19"), load_taxonomy("beavertails14")
    assert pku.translate(["Animal Abuse"], beaver) == {"animal_abuse"}
    assert pku.translate(["Environmental Damage"], beaver) == frozenset()
    assert pku.translate([], beaver) == frozenset()
    both = pku.translate(["Economic Crime", "Animal Abuse"], beaver)
    assert both == {"financial_crime,property_crime,theft", "animal_abuse"}


def test_a_users_own_file_works_by_its_path(own: Path) -> None:
    taxonomy = load_taxonomy(str(own))
    assert taxonomy.names == ("Noise", "Smoke")
    assert taxonomy.translate(["Noise"], load_taxonomy("pku19")) == {"Disrupting Public Order"}


def test_a_taxonomy_survives_the_copy_in_a_checkpoint() -> None:
    taxonomy = load_taxonomy("pku19")
    assert Taxonomy.model_validate_json(taxonomy.model_dump_json()) == taxonomy


def test_an_unknown_taxonomy_is_named_with_the_near_one() -> None:
    with pytest.raises(TaxonomyError) as caught:
        load_taxonomy("pku91")
    known = ", ".join(built_in())
    assert str(caught.value) == (
        f"no taxonomy 'pku91' (did you mean 'pku19'?); built in: {known} (or give a path to a .yaml file)"
    )


def test_an_unknown_category_is_named_with_the_near_one() -> None:
    with pytest.raises(
        TaxonomyError, match=r"no category 'Drug' among the 19 .* \(did you mean 'Drugs'\?\)$"
    ):
        load_taxonomy("pku19").index("Drug")
    with pytest.raises(TaxonomyError, match="no category 'drugs'"):
        load_taxonomy("pku19").translate(["drugs"], load_taxonomy("beavertails14"))


def test_a_crosswalk_that_is_not_there_is_named(own: Path) -> None:
    with pytest.raises(TaxonomyError, match="'house' has no crosswalk to 'beavertails14'; it has: pku19"):
        load_taxonomy(str(own)).translate(["Noise"], load_taxonomy("beavertails14"))


def test_a_crosswalk_to_a_category_that_does_not_exist_is_named(own: Path) -> None:
    own.write_text(OWN.replace("disrupting_public_order", "disrupting_publik_order"), "utf-8")
    with pytest.raises(
        TaxonomyError,
        match="crosswalk to 'pku19': no category 'disrupting_publik_order' there"
        r" \(did you mean 'disrupting_public_order'\?\)$",
    ):
        load_taxonomy(str(own)).translate(["Noise"], load_taxonomy("pku19"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("  - {id: smoke, name", "  - {id: noise, name"), "category id 'noise' stands twice"),
        (("name: Smoke", "name: Noise"), "category name 'Noise' stands twice"),
        (("pku19: {noise", "pku19: {nois"), "crosswalk to 'pku19': no category 'nois' here"),
        (("{noise: [dis", "{noise: dis"), None),  # not YAML at all
        (("id: smoke", "id: 9 Smoke"), "categories.1.id: String should match pattern"),
        (
            ("definition: Too thick.", "defintion: Too thick."),
            "categories.1.defintion: no such setting (did you mean 'definition'?) (and 1 more)",
        ),
        (("definition: Too thick., ", ""), "categories.1.definition: missing"),
        (("version: 1", "version: 0"), "version: Input should be greater than or equal to 1, got 0"),
        (("version: 1", "vresion: 1"), "vresion: no such setting (did you mean 'version'?) (and 1 more)"),
        (
            ("  - {name: bad, criterion: Something is wrong.}\n", ""),
            "severities: Tuple should have at least 2",
        ),
    ],
)
def test_a_broken_file_is_one_line_that_names_file_and_key(
    own: Path, change: tuple[str, str], expected: str | None
) -> None:
    own.write_text(OWN.replace(*change), "utf-8")
    with pytest.raises(EquipoiseError) as caught:
        load_taxonomy(str(own))
    text = str(caught.value)
    assert "\n" not in text
    assert "a mapping" not in text
    if expected is None:
        assert text.startswith(f"{own}:10: not YAML")
    else:
        assert text.startswith(f"{own}: {expected}")


def test_a_file_that_is_missing_or_no_mapping_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: No such file or directory$"):
        load_taxonomy(str(tmp_path / "no.yaml"))
    with pytest.raises(TaxonomyError, match=r"^the checkpoint: .*dictionary"):
        parse_taxonomy("text", "the checkpoint")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_misspelt_key_in_any_file_is_found(path: Path) -> None:
    data = read_yaml(path)
    data["categories"][0]["nott_this"] = data["categories"][0].pop("not_this")
    with pytest.raises(TaxonomyError, match=rf"{path.stem}: categories\.0\."):
        parse_taxonomy(data, path.stem)
