"""What a finished run says of itself: its manifest, which is complete, and its card, which is read."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from equipoise.errors import ConfigError, DataError


class Source(BaseModel):
    """One input of a run: where it was read, and the hash of what was in it."""

    path: str
    sha256: str


class Manifest(BaseModel):
    """The record of one finished run; its presence means that the run is complete."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    equipoise: str
    step: str
    step_version: int
    key: str
    config: dict[str, JsonValue]
    inputs: dict[str, Source]
    outputs: dict[str, str]
    """Relative path -> sha256."""
    licences: list[str]
    notes: dict[str, JsonValue]
    """What the step wants to be known of it: counts, warnings, scores."""
    versions: dict[str, str]
    machine: dict[str, JsonValue]
    finished: str
    attempts: int
    wall_seconds: float
    cpu_seconds: float
    peak_memory_mib: float


def inherited_licences(inputs: Iterable[Source]) -> set[str]:
    """Return the licences that the manifests of inputs name: of a folder, a file, or what lies in a run."""
    found: set[str] = set()
    for path in (Path(source.path) for source in inputs):
        above = [folder / "manifest.json" for folder in (path, *list(path.parents)[:2])]
        places = [place for place in (manifest_of(path, is_file=True), *above) if place.is_file()]
        found |= {name for place in places[:1] for name in read_manifest(place).licences}
    return found


def manifest_of(out: Path, *, is_file: bool) -> Path:
    """Return where the manifest of a folder or file lies; for a file, a place without a name is an error."""
    if is_file and not out.name:
        raise ConfigError(f"{out}: is a folder; expected a file to write")
    return out.with_name(out.name + ".manifest.json") if is_file else out / "manifest.json"


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; one that is not ours raises DataError."""
    try:
        return Manifest.model_validate_json(path.read_text("utf-8"))
    except (ValidationError, UnicodeDecodeError) as exc:
        raise DataError(f"{path}: not a manifest of equipoise") from exc


def card_of(out: Path, *, is_file: bool) -> Path:
    """Return where the card of a folder or file lies."""
    return out.with_name(out.name + ".card.md") if is_file else out / "card.md"


def run_card(
    step: str, notes: Mapping[str, JsonValue], inputs: Mapping[str, Source], licences: Collection[str]
) -> str:
    """Return the card of a run whose step writes none of its own, as Markdown.

    It names no folder and no time, so that the same run gives the same card wherever it is done.
    """
    lines = [f"# {step[0].upper()}{step[1:]}", ""]
    lines += [f"- {name.replace('_', ' ')}: {_short(value)}" for name, value in notes.items()]
    lines += ["", "## Made from", ""]
    lines += [
        f"- {name}: {Path(source.path).name} (sha256 {source.sha256[:12]})" for name, source in inputs.items()
    ]
    lines += [f"- licences: {', '.join(sorted(licences)) or 'none stated'}", ""]
    lines += ["Settings, versions and the inputs' full hashes are in the manifest beside this card.", ""]
    return "\n".join(lines)


def _short(value: JsonValue) -> str:
    """Show a note in a line; what is long stands in the manifest."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list):
        return f"{len(value)}, listed in the manifest" if value else "none"
    return str(value)
