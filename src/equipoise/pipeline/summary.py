"""What the whole run was: the files it publishes, its card, and last its manifest."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from equipoise import __version__
from equipoise.config import to_yaml
from equipoise.errors import ConfigError
from equipoise.files import hash_file, only_one, remove_leftovers, replacing, write_text
from equipoise.manifests import Manifest, Source, card_of, read_manifest
from equipoise.pipeline.recipe import Recipe
from equipoise.pipeline.references import resolve

_VERSION = 1
_LONGEST_NOTE = 200


class Finished(NamedTuple):
    """One step of a run that is done."""

    name: str
    place: Path
    manifest: Manifest
    skipped: bool
    inputs: Mapping[str, Source]
    """What it read that no other step of the run made, by setting."""


def complete(recipe: Recipe, out: Path, done: Sequence[Finished]) -> None:
    """Publish the recipe's files and write `card.md` and `manifest.json`; leave what stands there already.

    Raises:
        ConfigError: a file to publish was not made.
    """
    sources = _sources(recipe, done)
    for target, source in sources.items():
        if not source.is_file():
            raise ConfigError(f"recipe '{recipe.name}': publish {target}: {source}: no such file")
    card = recipe_card(recipe, out, done)
    outputs = {target: hash_file(source) for target, source in sources.items()}
    outputs["card.md"] = hashlib.sha256(card.encode()).hexdigest()
    manifest, path = recipe_manifest(recipe, out, done, outputs), out / "manifest.json"
    if path.exists():
        before = read_manifest(path)
        is_same = (before.key, before.outputs) == (manifest.key, manifest.outputs)
        if is_same and all((out / name).is_file() for name in outputs):
            return
    with only_one(out):  # another process may complete the same folder under other settings
        path.unlink(missing_ok=True)
        for target, source in sources.items():
            remove_leftovers(out / target)
            with replacing(out / target) as part:
                shutil.copyfile(source, part)
        for place, text in {
            out / "config.yaml": to_yaml(manifest.config),
            out / "card.md": card,
            path: manifest.model_dump_json(indent=2),
        }.items():
            remove_leftovers(place)
            write_text(place, text)


def recipe_manifest(
    recipe: Recipe, out: Path, done: Sequence[Finished], outputs: Mapping[str, str]
) -> Manifest:
    """Return the record of a whole run: its steps with what they made, and what they took together.

    The key is that of the steps: the same recipe on the same content has it wherever it runs. Seconds are
    the sum and memory is the highest of the steps, each as it was when the step was done.
    """
    steps = {
        step.name: {
            "run": recipe.steps[step.name].run,
            "place": str(step.place.relative_to(out)),
            "key": step.manifest.key,
            "outputs": dict(step.manifest.outputs),
        }
        for step in done
    }
    inside = {step.name: step.place.relative_to(out) for step in done}
    identity = {
        "step": "run",
        "version": _VERSION,
        "recipe": recipe.name,
        "steps": {name: step["key"] for name, step in steps.items()},
        "publish": resolve(recipe.publish, recipe.settings, inside),
    }
    manifests = [step.manifest for step in done]
    return Manifest(
        equipoise=__version__,
        step="run",
        step_version=_VERSION,
        key=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        config=recipe.model_dump(mode="json", by_alias=True),
        inputs={f"{step.name}.{at}": source for step in done for at, source in step.inputs.items()},
        outputs=dict(outputs),
        licences=sorted({licence for manifest in manifests for licence in manifest.licences}),
        notes={"steps": steps},
        versions={name: version for manifest in manifests for name, version in manifest.versions.items()},
        machine=manifests[-1].machine,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        attempts=max(manifest.attempts for manifest in manifests),
        wall_seconds=round(sum(manifest.wall_seconds for manifest in manifests), 3),
        cpu_seconds=round(sum(manifest.cpu_seconds for manifest in manifests), 3),
        peak_memory_mib=max(manifest.peak_memory_mib for manifest in manifests),
    )


def recipe_card(recipe: Recipe, out: Path, done: Sequence[Finished]) -> str:
    """Return what a person wants to know of a run, in Markdown.

    It holds no time, so that a run that was interrupted has the same card as one that was not.
    """
    lines = [f"# {recipe.name}", "", *([recipe.about, ""] if recipe.about else [])]
    lines += ["`config.yaml` holds the settings; `manifest.json` the hashes, versions, time and memory.", ""]
    lines += ["| step | what it is | where it lies | what it ended with |", "| --- | --- | --- | --- |"]
    for step in done:
        card = card_of(step.place, is_file=step.place.is_file())
        shown = card if card.is_file() else step.place
        link = f"[{step.place.relative_to(out)}]({shown.relative_to(out)})"
        ended = "; ".join(_told(name, value) for name, value in step.manifest.notes.items())
        lines.append(f"| {step.name} | {recipe.steps[step.name].run} | {link} | {ended.replace('|', '/')} |")
    if recipe.publish:
        lines += ["", "## Published", "", *(f"- [{name}]({name})" for name in recipe.publish)]
    licences = sorted({licence for step in done for licence in step.manifest.licences})
    lines += ["", "## Licences of what it was made from", "", *(f"- {name}" for name in licences or ["none"])]
    return "\n".join([*lines, ""])


def _sources(recipe: Recipe, done: Sequence[Finished]) -> dict[str, Path]:
    places = {step.name: step.place for step in done}
    return {
        target: Path(str(resolve(text, recipe.settings, places))) for target, text in recipe.publish.items()
    }


def _told(name: str, value: Any) -> str:
    """Say one note of a step in a few words; of what is long or nested, how much there is."""
    if isinstance(value, dict) and all(isinstance(item, int | float) for item in value.values()):
        return f"{name}: " + (", ".join(f"{key} {item}" for key, item in value.items()) or "none")
    if isinstance(value, dict | list):
        return f"{name}: {len(value)}"
    text = " ".join(str(value).split())
    return f"{name}: {text if len(text) <= _LONGEST_NOTE else text[: _LONGEST_NOTE - 3] + '...'}"
