"""What a recipe may say, and what is said of a mistake in one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.errors import ConfigError
from equipoise.pipeline.recipe import built_in_recipe, load_recipe, needed_by
from equipoise.pipeline.run import check_settings

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
Recipe = dict[str, Any]
Write = Callable[[Recipe], Path]


def test_set_changes_a_setting_or_one_of_a_step(data: Recipe, write: Write) -> None:
    recipe = load_recipe(write(data), ["shares.test=0.25", "shares.train=0.75", "steps.all.files=[]"])
    assert recipe.settings["shares"] == {"train": 0.75, "test": 0.25}
    assert recipe.steps["all"].with_ == {"files": []}
    del data["steps"]["lone"]["with"]
    assert load_recipe(write(data), ["steps.lone.a.b=1"]).steps["lone"].with_ == {"a": {"b": 1}}


def with_(recipe: Recipe, step: str, **values: Any) -> Recipe:
    recipe["steps"][step]["with"] |= values
    return recipe


WRONG: dict[str, tuple[Callable[[Recipe], Any], str]] = {
    "kind of step": (
        lambda r: r["steps"]["all"].update(run="data.merg"),
        r"step all: no step 'data.merg' .did you mean 'data.merge'\?.; known: data.import, ",
    ),
    "key of the recipe": (
        lambda r: r.update(setings={}),
        r"setings: no such setting .did you mean 'settings'",
    ),
    "key of a step": (
        lambda r: r["steps"]["all"].update(wiht={}),
        r"steps.all.wiht: no such setting .did you mean 'with'",
    ),
    "setting": (
        lambda r: with_(r, "parts", seed="${settings.sed}"),
        r"'\$\{settings.sed\}' names no setting",
    ),
    "setting, near": (lambda r: with_(r, "parts", seed="${settings.sed}"), r"did you mean 'settings.seed'"),
    "setting inside one": (
        lambda r: with_(r, "parts", seed="${settings.shares.tran}"),
        r"did you mean 'settings.shares.train'",
    ),
    "word before the dot": (
        lambda r: with_(r, "parts", seed="${step.rows}"),
        r"'\$\{step.rows\}' names no setting and no step .did you mean 'steps.rows'",
    ),
    "step": (
        lambda r: with_(r, "all", files=["${steps.row}"]),
        r"step all: 'row' is no step before it .did you mean 'rows'",
    ),
    "later step": (
        lambda r: with_(r, "rows", files=["${steps.all}"]),
        r"step rows: 'all' is no step before it",
    ),
    "step itself": (
        lambda r: with_(r, "all", files=["${steps.all}"]),
        r"step all: 'all' is no step before it",
    ),
    "corpus": (
        lambda r: with_(r, "all", files=["${builtin.exchange}"]),
        r"no built-in corpus 'exchange' .did you mean 'exchanges'",
    ),
    "step to publish": (
        lambda r: r["publish"].update(a="${steps.part}/a"),
        r"'\$\{steps.part\}' names no setting and no step .did you mean 'steps.parts'",
    ),
    "a name of the run's own": (
        lambda r: r["publish"].update({"card.md": "${steps.parts}/card.md"}),
        r"recipe.yaml: publish card.md: the run writes this itself; expected another name",
    ),
    "a place of the run's own": (
        lambda r: r["publish"].update({"steps/a": "${steps.all}"}),
        "publish steps/a",
    ),
    "no steps": (lambda r: r.update(steps={}), r"steps: "),
    "steps as a list": (lambda r: r.update(steps=["a"]), r"recipe.yaml: steps: .*got \['a'\]"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_in_a_recipe_is_one_line_with_the_near_name(data: Recipe, write: Write, what: str) -> None:
    change, message = WRONG[what]
    change(data)
    with pytest.raises(ConfigError, match=message) as refused:
        load_recipe(write(data), ["seed=4"])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=4", "--set sed=4: no such setting 'sed' .did you mean 'seed'.*; known: seed, stratify, "),
        ("shares.tran=1", "no such setting 'tran' .did you mean 'train'"),
        ("seed.more=1", "no such setting 'more'; known: none"),
        (
            "steps.al.files=[]",
            r"expected steps\.STEP\.SETTING=value .did you mean 'all'.*; steps: rows, lone",
        ),
        ("steps.all=[]", r"expected steps\.STEP\.SETTING=value"),
        ("steps=[]", r"expected steps\.STEP\.SETTING=value"),
        ("seed", "expected key=value"),
    ],
)
def test_an_override_of_nothing_is_refused(data: Recipe, write: Write, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(data), [override])


def test_a_recipe_without_settings_has_none_to_set(data: Recipe, write: Write) -> None:
    recipe = {"name": "bare", "steps": {"rows": data["steps"]["rows"]}}
    with pytest.raises(ConfigError, match="no such setting 'seed'; known: none"):
        load_recipe(write(recipe), ["seed=1"])


def test_a_step_needs_those_whose_output_it_reads(data: Recipe, write: Write) -> None:
    recipe = load_recipe(write(data))
    assert needed_by(recipe, "parts") == {"rows", "all", "parts"}
    assert needed_by(recipe, "lone") == {"lone"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_that_we_publish_loads_and_its_settings_fit(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.about
    check_settings(recipe, recipe.steps)


def test_a_recipe_that_ships_is_found_by_name() -> None:
    assert load_recipe(built_in_recipe("quickstart")).name == "quickstart"
    with pytest.raises(ConfigError, match="no recipe 'quickstrat' ships"):
        built_in_recipe("quickstrat")
