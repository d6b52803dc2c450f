"""equipoise data: import, check, describe, split and merge records."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from equipoise.cli.common import (
    ForceFlag,
    JsonFlag,
    OutOption,
    SetOption,
    emit,
    fail_on_findings,
    gather,
    listed,
)
from equipoise.errors import ConfigError

if TYPE_CHECKING:
    from equipoise.data.check import Finding

app = typer.Typer(help="Import, check, describe, split and merge data.", no_args_is_help=True)

Files = Annotated[list[Path], typer.Argument(help="Files of records: .jsonl, .jsonl.gz, .parquet or .csv.")]
_SOURCES = (
    "pku-saferlhf, pku-saferlhf-single, pku-saferlhf-qa, pku-saferlhf-prompt, beavertails, hh-rlhf, "
    "hh-rlhf-harmless, hh-rlhf-helpful, xstest, openai-moderation, advbench, harmbench, strongreject, "
    "do-not-answer, reward-bench, jsonl (any format) or builtin."
)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help=_SOURCES)],
    origin: Annotated[
        str, typer.Argument(metavar="PATH|HUB_ID", help="A file, a hub id, or a part of builtin.")
    ],
    *,
    out: OutOption,
    licence: Annotated[str | None, typer.Option(help="Overrides the licence that the source states.")] = None,
    overrides: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Turn a public data set, or a table of your own (.csv, .parquet, .jsonl), into records.

    A column that goes by another name is mapped with `--set columns.THEIRS=OURS`, once for each:
    `--set columns.question=prompt --set columns.answer=response`. What OURS may be is in docs/data.md; a
    column that is no field is kept under provenance. Labels in other words are mapped with
    `--set 'values.OURS={theirs: ours}'`. `--set sample=1000` takes so many rows, drawn at random, and
    `--set on_bad=skip` leaves bad rows out and lists them; `--set split=`, `subset=` and `revision=` choose
    a part of a data set on the hub.
    """
    from equipoise.data.check import FoundError
    from equipoise.data.corpus import corpus_path
    from equipoise.data.sources import find_source, looks_like_hub_id
    from equipoise.data.steps import IMPORT
    from equipoise.lineage import produce

    settings: dict[str, Any] = {"source": source, "licence": licence}
    if source == "builtin":
        settings |= {"source": "jsonl", "path": corpus_path(origin)}
    else:
        find_source(source)
        is_on_hub = not Path(origin).exists() and looks_like_hub_id(origin)
        settings |= {"hub_id": origin} if is_on_hub else {"path": origin}
    config = gather(IMPORT, settings, overrides=overrides)
    try:
        outcome = produce(out, IMPORT, config, force=force)
    except FoundError as error:
        fail_on_findings(error, as_json)
    notes = outcome.manifest.notes
    skipped = _texts(notes["skipped"])
    result = {"out": str(out), "records": notes["records"], "kind": notes["kind"], "skipped": skipped}
    result |= {"licences": outcome.manifest.licences, "was_done": outcome.skipped}
    lines = [*listed("skipped ", skipped), f"{out}: {notes['records']} records ({notes['kind']})"]
    emit(result, as_json, "\n".join(lines))


@app.command()
def check(
    files: Files,
    on_contradiction: Annotated[
        Literal["error", "drop", "flip", "keep"],
        typer.Option(help="What becomes of records whose labels contradict each other; needs --out."),
    ] = "error",
    out: Annotated[Path | None, typer.Option("--out", help="Where the records that are left go.")] = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Check that records can be read and that their labels agree.

    Contradictory records: drop leaves them out; flip turns a wrong `safer` to the safe answer and leaves
    the rest out; keep writes them as they are. All of them are listed. The exit code is 1 if anything is
    found that was not to be dropped, flipped or kept; then nothing is written.
    """
    from equipoise.data.check import FoundError
    from equipoise.data.steps import CHECK, check_files
    from equipoise.lineage import produce

    if out is None:
        if on_contradiction != "error":
            raise ConfigError(
                f"--on-contradiction {on_contradiction}: needs a file to write, give --out FILE"
            )
        records, findings = check_files(files)
        _report(findings, records, len(files), as_json)
        raise typer.Exit(1 if findings else 0)
    config = gather(CHECK, {"files": files, "on_contradiction": on_contradiction})
    try:
        outcome = produce(out, CHECK, config, force=force)
    except FoundError as error:
        fail_on_findings(error, as_json)
    notes = outcome.manifest.notes
    lists = {name: _texts(notes[name]) for name in ("findings", "dropped", "flipped", "kept")}
    counts = ", ".join(f"{len(lists[name])} {name}" for name in ("dropped", "flipped", "kept"))
    lines = [*listed("", lists["findings"]), f"{out}: {notes['records']} records, {counts}"]
    emit({"out": str(out), "records": notes["records"], **lists}, as_json, "\n".join(lines))


@app.command()
def stats(
    files: Files,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for a page with plots, and the numbers as JSON.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Count what files of records hold: labels, categories, severity, pairs, licences, lengths.

    Over unsafe responses: which categories go together (phi, and one given another), and which stand
    alone. Over pairs: how often the more helpful answer is not the safer one, by safety and severity.
    """
    from equipoise.data.card import card
    from equipoise.data.statistics import Statistics
    from equipoise.data.steps import STATS, statistics_of
    from equipoise.lineage import produce

    if out is None:
        found = statistics_of(files)
    else:
        produce(out, STATS, gather(STATS, {"files": files, "title": title}), force=force)
        found = Statistics.model_validate_json((out / "statistics.json").read_text("utf-8"))
    name = title or ", ".join(path.name for path in files)
    text = card(found, name) if out is None else str(out / "statistics.html")
    emit(found.model_dump(mode="json"), as_json, text)


@app.command()
def split(
    files: Files,
    *,
    out: OutOption,
    fractions: Annotated[str, typer.Option(help="Parts and their shares.")] = "train=0.8,test=0.2",
    seed: Annotated[int, typer.Option(help="Another seed gives another split.")] = 0,
    overrides: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Split files together so that no prompt is in two parts; writes OUT/PART/FILE.jsonl."""
    from equipoise.data.steps import SPLIT
    from equipoise.lineage import produce

    settings = {"files": files, "fractions": _fractions(fractions), "seed": seed}
    outcome = produce(out, SPLIT, gather(SPLIT, settings, overrides=overrides), force=force)
    notes = outcome.manifest.notes
    parts: Any = notes["parts"]
    lines = [
        f"{out / name}: {sum(counts.values())} records in {len(counts)} files"
        for name, counts in parts.items()
    ]
    result = {"out": str(out), "parts": parts, "records": notes["records"], "was_done": outcome.skipped}
    emit(result, as_json, "\n".join(lines))


@app.command()
def merge(files: Files, *, out: OutOption, force: ForceFlag = False, as_json: JsonFlag = False) -> None:
    """Put files of one kind of record together, without exact duplicates."""
    from equipoise.data.steps import MERGE
    from equipoise.lineage import produce

    outcome = produce(out, MERGE, gather(MERGE, {"files": files}), force=force)
    notes = outcome.manifest.notes
    conflicts, duplicates = _texts(notes["conflicts"]), _texts(notes["duplicates"])
    renamed: Any = notes["renamed"]
    counts = f"{len(duplicates)} duplicates left out, {len(renamed)} ids made unique"
    lines = [*listed("", conflicts), f"{out}: {notes['records']} records, {counts}"]
    result = {"out": str(out), "records": notes["records"], "duplicates": duplicates, "renamed": renamed}
    emit(result | {"conflicts": conflicts}, as_json, "\n".join(lines))


@app.command()
def prompts(
    files: Files,
    *,
    out: OutOption,
    by_answers: Annotated[
        bool, typer.Option("--by-answers", help="Call a prompt harmful that drew an unsafe answer.")
    ] = False,
    overrides: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Take the prompts of records, alike ones once: for `generate`, `evaluate` and online training.

    `--set is_harmful=true` takes those that ask for harm, `--set most=200` so many, drawn at random.
    """
    from equipoise.data.prompts import PROMPTS
    from equipoise.lineage import produce

    settings = {"files": files, "by_answers": by_answers}
    outcome = produce(out, PROMPTS, gather(PROMPTS, settings, overrides=overrides), force=force)
    notes = outcome.manifest.notes
    result = {"out": str(out), **notes, "was_done": outcome.skipped}
    emit(result, as_json, f"{out}: {notes['records']} of {notes['prompts_in_all']} prompts")


@app.command()
def card(
    files: Files,
    *,
    out: OutOption,
    title: Annotated[str, typer.Option(help="Heading of the card.")] = "Data card",
    description: Annotated[str, typer.Option(help="What the data is and is not good for.")] = "",
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a data card in Markdown: contents, licences, labels and where they come from."""
    from equipoise.data.steps import CARD
    from equipoise.lineage import produce

    settings = {"files": files, "title": title, "description": description}
    outcome = produce(out, CARD, gather(CARD, settings), force=force)
    result = {"out": str(out), "licences": outcome.manifest.licences, "was_done": outcome.skipped}
    emit(result, as_json, str(out))


def _fractions(text: str) -> dict[str, float]:
    """Read `train=0.8,test=0.2`."""
    shares: dict[str, float] = {}
    for item in text.split(","):
        name, equals, share = item.strip().partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise ConfigError(
                f"--fractions: expected part=share, for example train=0.8,test=0.2, got '{text}'"
            )
    return shares


def _report(findings: "Sequence[Finding]", records: int, files: int, as_json: bool) -> None:
    lines = listed("", [str(found) for found in findings])
    lines.append(f"{records} records in {files} files, {len(findings)} problems")
    result = {"records": records, "findings": [found._asdict() for found in findings]}
    emit(result, as_json, "\n".join(lines))


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value]
