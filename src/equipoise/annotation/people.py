"""The runs with people: records out to a labelling tool, and what was entered there back as judgements."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from equipoise.annotation.filled import Filled, judgements_of
from equipoise.annotation.label_studio import CONFIG as XML
from equipoise.annotation.label_studio import TASKS, read_label_studio, write_label_studio
from equipoise.annotation.potato import ANSWERS, OWN, read_potato, write_potato
from equipoise.annotation.project import Project, Tool, card_of, make_pages, read_project, write_project
from equipoise.config import Config, InputPath
from equipoise.data.check import FoundError, unreadable
from equipoise.data.io import Placed, read_placed, read_records, record_kind, write_records
from equipoise.data.rows import LineError
from equipoise.errors import ConfigError, DataError, RunStoppedError
from equipoise.lineage import Run, Step, write_text
from equipoise.progress import track
from equipoise.records import Exchange, Judgement, Pair, Prompt


class ExportConfig(Config):
    """Settings of an export to a labelling tool."""

    file: InputPath
    """Exchanges or pairs."""
    to: Tool = "potato"
    card: Literal["dual", "overall"] = "dual"
    """For pairs: labels and both preferences, or the one overall preference."""
    suggestions: tuple[InputPath, ...] = ()
    """Judgements of models that the page shows; without any, people judge blind."""
    people_per_item: Annotated[int, Field(ge=1)] | None = None
    """How many people label each item in Potato, more where several have it open at once; None = everyone."""
    seed: int = 0
    """Draws which answer of a pair is shown first."""


class ImportConfig(Config):
    """Settings of an import from a labelling tool."""

    project: InputPath
    """Folder of the export."""
    answers: InputPath
    """Potato's output folder, or the file that Label Studio exported as JSON; items are the same in both."""
    people: Annotated[int, Field(ge=1)] | None = None
    """How many people must have labelled every item, else the run stops; None = take what is there."""
    on_bad: Literal["error", "skip"] = "error"
    """Whether one bad row stops the import, or is left out and counted."""

    @model_validator(mode="before")
    @classmethod
    def _potato_answers(cls, data: object) -> object:
        """Fill in where Potato's answers lie, so that they are part of the run's identity."""
        if isinstance(data, dict) and data.get("project") is not None and data.get("answers") is None:
            return data | {"answers": Path(data["project"]) / ANSWERS}
        return data


def export_project(config: ExportConfig, run: Run) -> None:
    """Write a folder that a labelling tool serves."""
    placed = _read(config.file)
    if config.people_per_item is not None and config.to != "potato":
        raise ConfigError(f"people_per_item: only Potato takes it, got to={config.to}")
    card = card_of(placed, config.card)
    said = [judgement for path in config.suggestions for judgement in read_records(path, Judgement)]
    records = [item.record for item in placed]
    pages = make_pages(card, records, said, seed=config.seed)
    with_suggestions = sum(bool(page.suggestions) for page in pages)
    if config.suggestions and not with_suggestions:
        raise DataError(
            "suggestions: no judgement is about a record of the file; expected their ids as subject"
        )
    if config.to == "potato":
        write_potato(run.out, card, pages, people_per_item=config.people_per_item)
        (run.out / ANSWERS).mkdir(exist_ok=True)  # empty until somebody enters something
    else:
        write_label_studio(run.out, card, pages)
    write_project(run.out, config.to, card, [page.item for page in pages])
    write_text(run.card, _card_text(config, len(pages), with_suggestions))
    run.licences |= {record.licence for record in records}
    run.notes |= {"items": len(pages), "card": card.kind, "with_suggestions": with_suggestions}


def import_answers(config: ImportConfig, run: Run) -> None:
    """Turn what people entered into judgements; what cannot be used is named.

    Raises:
        DataError: nobody has entered anything.
        RunStoppedError: fewer people than wanted have labelled every item.
    """
    project = read_project(config.project)
    tool = _tool(project, config.answers)
    bad: list[LineError] = []
    judgements: list[Judgement] = []
    cards: Counter[str] = Counter()
    incomplete: list[str] = []
    skipped: list[str] = []
    seen: set[tuple[str, str]] = set()
    finished: Counter[str] = Counter()  # people who are done with an item, by its key
    for filled in track(_filled(project, tool, config.answers, bad), "reading cards"):
        item = project.items.get(filled.key)
        name = f"{item.id} by {filled.annotator}" if item else ""
        try:
            if item is None:
                raise DataError(f"key: '{filled.key:.60}' is no item of {config.project}")
            if (filled.annotator, filled.key) in seen:
                raise DataError(f"annotator: '{filled.annotator}' has filled this card already")
            seen.add((filled.annotator, filled.key))
            found = judgements_of(project.card, item, filled, tool)
        except DataError as exc:
            field, _, what = str(exc).partition(": ")
            bad.append(LineError(filled.path, filled.row, field, what, item.id if item else None))
            continue
        has_gaps = any("missing" in judgement.provenance for judgement in found)
        finished[filled.key] += filled.is_skipped or not has_gaps
        if filled.is_skipped or not filled.answers:
            skipped.append(name)
            continue
        if has_gaps:
            incomplete.append(name)
        cards[filled.annotator] += 1
        judgements += found
    if bad and config.on_bad == "error":
        raise FoundError("nothing was imported", [unreadable(error) for error in bad])
    if config.people is not None:
        _expect_people(config, tool, [finished[key] for key in project.items])
    if not seen and not bad:
        raise DataError(f"{config.answers}: nobody has entered anything")
    answered = {key for _, key in seen}
    run.notes |= {
        "judgements": write_records(run.out, judgements),
        "cards": dict(sorted(cards.items())),
        "incomplete": list(incomplete),
        "skipped": list(skipped),
        "unanswered": [item.id for key, item in project.items.items() if key not in answered],
        "bad": [str(error) for error in bad],
    }
    run.licences |= {judgement.licence for judgement in judgements}


def _read(path: Path) -> list[Placed[Exchange | Pair]]:
    kind = record_kind(path)
    if kind is Prompt:
        raise DataError(f"{path}: prompts have no answer to judge; expected exchanges or pairs")
    placed: list[Placed[Exchange | Pair]] = list(read_placed(path, Pair if kind is Pair else Exchange))
    return placed


def _tool(project: Project, answers: Path) -> Tool:
    """Tell where the answers come from; the items have the same keys in both tools."""
    if answers.is_file():
        return "label-studio"
    if project.tool == "label-studio":
        raise DataError(f"{answers}: is a folder; expected the file that Label Studio exported as JSON")
    return "potato"


def _filled(project: Project, tool: Tool, answers: Path, bad: list[LineError]) -> Iterator[Filled]:
    if tool == "potato":
        return read_potato(answers, bad.append)
    return read_label_studio(project.card, answers, bad.append)


def _expect_people(config: ImportConfig, tool: Tool, done: Sequence[int]) -> None:
    """Stop until every item has its people; `done` is how many each has."""
    assert config.people is not None
    if min(done) >= config.people:
        return
    ready = sum(count >= config.people for count in done)
    so_far = f"{ready} of {len(done)} items are labelled by {config.people} people"
    advice = f"; `equipoise annotate serve {config.project}` shows the pages" if tool == "potato" else ""
    raise RunStoppedError(f"{config.answers}: {so_far}{advice}")


def _card_text(config: ExportConfig, items: int, with_suggestions: int) -> str:
    blind = (
        f"{with_suggestions} of them with what models said" if with_suggestions else "blind: no model's label"
    )
    how = (
        "Serve it with `equipoise annotate serve DIR`; then `equipoise annotate import DIR --out FILE`."
        if config.to == "potato"
        else f"Make a project in Label Studio, paste {XML} as its labelling configuration and import {TASKS};"
        " then `equipoise annotate import DIR --answers EXPORT.json --out FILE`."
    )
    return (
        f"# Items to label\n\n{items} items of {config.file.name}, card `{config.card}`, {blind}.\n\n{how}\n"
    )


EXPORT = Step("annotate export", 1, export_project, config=ExportConfig, others=OWN)
IMPORT = Step("annotate import", 1, import_answers, writes_file=True, config=ImportConfig)
