"""Recipe files: their form, what `--set` changes in them, and all that is wrong with one before it runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from equipoise.config import Config, apply_override, parse_config, parse_override, read_yaml
from equipoise.errors import ConfigError, near
from equipoise.pipeline.references import mentioned, resolve
from equipoise.pipeline.steps import STEPS

OURS = ("config.yaml", "manifest.json", "card.md", "steps")
"""What a run itself writes into its folder; nothing is published under these names."""


class RecipeStep(Config):
    """One entry under `steps`."""

    run: str
    with_: dict[str, Any] = Field(default={}, alias="with")
    file: str | None = None
    """Name of the output, for steps that write one file."""


class Recipe(Config):
    """A recipe file."""

    name: str
    about: str = ""
    settings: dict[str, Any] = {}
    steps: dict[str, RecipeStep] = Field(min_length=1)
    publish: dict[str, str] = {}
    """File in the output folder -> what is copied there at the end."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply `--set` to its settings, and check all that can be checked without running.

    `--set a.b=1` sets `settings.a.b`, which must exist; `--set steps.guard.hidden=64` sets a step's
    own setting.
    """
    data = read_yaml(path)
    parse_config(Recipe, data, str(path))  # its form, before the overrides look into it
    for item in overrides:
        keys, value = parse_override(item)
        if keys[0] == "steps":
            if len(keys) < 3 or keys[1] not in data["steps"]:
                hint = near(keys[1], data["steps"]) if len(keys) > 1 else ""
                known = ", ".join(data["steps"])
                raise ConfigError(f"--set {item}: expected steps.STEP.SETTING=value{hint}; steps: {known}")
            apply_override(data["steps"][keys[1]].setdefault("with", {}), keys[2:], value)
        else:
            _must_exist(data.get("settings", {}), keys, item)
            apply_override(data["settings"], keys, value)
    recipe = parse_config(Recipe, data, str(path))
    _check(recipe, path)
    return recipe


def built_in_recipe(name: str) -> Path:
    """Return the file of a recipe that ships with the package."""
    package = Path(__file__).parents[1]
    for folder in (package / "recipes", package.parents[1] / "recipes"):  # installed, or a checkout
        if (folder / f"{name}.yaml").exists():
            return folder / f"{name}.yaml"
    raise ConfigError(f"no recipe '{name}' ships with this installation")


def needed_by(recipe: Recipe, name: str) -> set[str]:
    """Return a step and all the steps whose output it reads, directly or not."""
    needed = {name}
    for step in reversed(list(recipe.steps)):
        if step in needed:
            needed |= mentioned(recipe.steps[step].with_)
    return needed


def _check(recipe: Recipe, path: Path) -> None:
    """Refuse steps and references that name nothing, and names that are the run's own."""
    seen: set[str] = set()
    places = {name: Path(name) for name in recipe.steps}
    for name, entry in recipe.steps.items():
        where = f"{path}: step {name}"
        if entry.run not in STEPS:
            known = ", ".join(STEPS)
            raise ConfigError(f"{where}: no step '{entry.run}'{near(entry.run, STEPS)}; known: {known}")
        for other in mentioned(entry.with_) - seen:
            raise ConfigError(f"{where}: '{other}' is no step before it{near(other, seen)}")
        seen.add(name)
        _try(entry.with_, recipe, places, where)
    for target, source in recipe.publish.items():
        where = f"{path}: publish {target}"
        if Path(target).parts[:1] in {(name,) for name in OURS}:
            raise ConfigError(f"{where}: the run writes this itself; expected another name")
        _try(source, recipe, places, where)


def _try(value: Any, recipe: Recipe, places: Mapping[str, Path], where: str) -> None:
    try:
        resolve(value, recipe.settings, places)
    except ConfigError as exc:
        raise ConfigError(f"{where}: {exc}") from exc


def _must_exist(settings: Mapping[str, Any], keys: Sequence[str], item: str) -> None:
    node: Any = settings
    for key in keys:
        if not isinstance(node, dict) or key not in node:
            known = ", ".join(node) if isinstance(node, dict) else "none"
            hint = near(key, node) if isinstance(node, dict) else ""
            raise ConfigError(
                f"--set {item}: no such setting '{key}'{hint}; known: {known or 'none'}, steps.*"
            )
        node = node[key]
