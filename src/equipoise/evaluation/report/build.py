"""Build the report of evaluations and trainings: `report.html`, and its numbers as JSON and Markdown."""

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined
from pydantic import Field, model_validator

from equipoise import __version__
from equipoise.config import Config, InputPath
from equipoise.evaluation.card import LIMITS
from equipoise.evaluation.compare import Comparison, compare
from equipoise.evaluation.files import plain, write_json
from equipoise.evaluation.metrics import RunMetrics, limit_of, measure
from equipoise.evaluation.report.examples import choose
from equipoise.evaluation.report.headline import Headline, headline, headline_of
from equipoise.evaluation.report.lineage import Node, trace
from equipoise.evaluation.report.plots import sparkline
from equipoise.evaluation.report.training import (
    training_headline,
    training_numbers,
    training_summary,
    training_view,
)
from equipoise.evaluation.report.training_log import TrainingRun, is_training, load_training
from equipoise.evaluation.report.views import View, view
from equipoise.evaluation.rows import EvaluationRun, load_runs
from equipoise.lineage import Run, Step, write_text


class ReportConfig(Config):
    """What is reported together; of evaluations the first is the base of every comparison."""

    runs: Annotated[list[InputPath], Field(min_length=1)]
    """Evaluations, and trainings under constraints, which need not be finished."""
    labels: list[str] = []
    """Names of the runs in the report, in order; without any, the names of their folders."""
    title: str = "Safety report"
    examples: Annotated[int, Field(ge=0)] = 12
    """Prompts whose responses are shown, collapsed."""
    lineage: list[InputPath] = []
    """More run folders for the lineage section; what the evaluations name is found by itself."""
    allow_mismatch: bool = False
    """Report runs together although their judges or suites differ."""

    @model_validator(mode="after")
    def _one_label_each(self) -> "ReportConfig":
        if self.labels and len(self.labels) != len(self.runs):
            raise ValueError(
                f"labels: {len(self.labels)} for {len(self.runs)} runs; expected one each or none"
            )
        return self


class Report(NamedTuple):
    """Everything that a report says, before it becomes a page."""

    title: str
    headlines: list[Headline]
    """One per comparison, or one for a single run; of each training where nothing was evaluated."""
    runs: list[EvaluationRun]
    trainings: list[TrainingRun]
    metrics: list[RunMetrics]
    """All with the repetition limit of the first run."""
    comparisons: list[Comparison]
    """Of every later run with the first."""
    lineage: list[Node]

    @property
    def headline(self) -> Headline:
        """Return the verdict that stands at the top: the last run against the first."""
        return self.headlines[-1]


def gather(config: ReportConfig) -> Report:
    """Read the runs and compute every number of the report."""
    logged = [is_training(folder) for folder in config.runs]
    runs = load_runs(folder for folder, is_log in zip(config.runs, logged, strict=True) if not is_log)
    trainings = [load_training(folder) for folder, is_log in zip(config.runs, logged, strict=True) if is_log]
    if config.labels:
        labels = list(zip(config.labels, logged, strict=True))
        names = [[label for label, is_log in labels if is_log == kind] for kind in (False, True)]
        runs = [run._replace(name=name) for run, name in zip(runs, names[0], strict=True)]
        trainings = [run._replace(name=name) for run, name in zip(trainings, names[1], strict=True)]
    chain = trace([*config.lineage, *config.runs])
    if not runs:
        return Report(config.title, list(map(training_headline, trainings)), [], trainings, [], [], chain)
    limit = limit_of(runs[0].rows)
    metrics = [measure(run.rows, limit) for run in runs]
    comparisons = [compare(runs[0], run, allow_mismatch=config.allow_mismatch) for run in runs[1:]]
    verdicts = [headline(each) for each in comparisons] or [headline_of(runs[0].name, metrics[0])]
    return Report(config.title, verdicts, runs, trainings, metrics, comparisons, chain)


def render(report: Report, examples: int) -> str:
    """Return the page: one HTML text that loads nothing."""
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = choose(report.runs, report.metrics[0].repetition_limit, examples) if report.runs else []
    return environment.get_template("template.html").render(
        report=report,
        view=_view(report) if report.runs else None,
        trainings=[training_view(run, examples) for run in report.trainings],
        examples=shown,
        limits=LIMITS,
        version=__version__,
        sparkline=sparkline,
    )


def numbers(report: Report) -> dict[str, Any]:
    """Return everything the report says as plain values, without any prompt or response."""
    return {
        "title": report.title,
        "tone": report.headline.tone,
        "headline": report.headline.sentence,
        "runs": [
            {"name": run.name, "key": run.manifest.key, "metrics": plain(metrics)}
            for run, metrics in zip(report.runs, report.metrics, strict=True)
        ],
        "comparisons": plain(report.comparisons),
        "trainings": [plain(training_numbers(run)) for run in report.trainings],
        "lineage": [
            {"place": node.place, "step": node.manifest.step, "key": node.manifest.key}
            for node in report.lineage
        ],
    }


def summary(report: Report) -> str:
    """Return the short report as Markdown."""
    lines = [f"# {report.title}", "", f"**{report.headline.label}.** {report.headline.sentence}", ""]
    lines += _table(_view(report)) if report.runs else []
    lines += [line for run in report.trainings for line in training_summary(run)]
    lines += ["", "What this does not show:", "", *(f"- {limit}" for limit in LIMITS)]
    return "\n".join(lines) + "\n"


def _table(page: View) -> list[str]:
    lines = [f"| | {' | '.join(page.columns)} |", f"|---{'|---' * len(page.columns)}|"]
    for section in page.sections:
        lines.append(f"| **{section.title}** {'| ' * len(page.columns)}|")
        lines += [
            f"| {line.title} | {' | '.join(f'{c.value} {c.interval}'.strip() for c in line.cells)} |"
            for line in section.lines
        ]
    return lines


def build_folder(config: ReportConfig, run: Run) -> None:
    """Write `report.html`, `report.json` and `report.md`."""
    report = _gathered(config, run)
    write_text(run.out / "report.html", render(report, config.examples))
    write_json(run.out / "report.json", numbers(report))
    write_text(run.out / "report.md", summary(report))


def build_file(config: ReportConfig, run: Run) -> None:
    """Write the page alone, to the path that was asked for."""
    write_text(run.out, render(_gathered(config, run), config.examples))


REPORT = Step("report", 1, build_folder, config=ReportConfig)
REPORT_FILE = Step("report", 1, build_file, writes_file=True, config=ReportConfig)


def report_step(out: Path) -> Step:
    """Return the step for a place: a path that ends in `.html` is a page, anything else a folder."""
    return REPORT_FILE if out.suffix == ".html" else REPORT


def _gathered(config: ReportConfig, run: Run) -> Report:
    report = gather(config)
    manifests = [each.manifest for each in report.runs]
    manifests += [each.manifest for each in report.trainings if each.manifest is not None]
    run.licences |= {name for each in manifests for name in each.licences}
    run.notes |= {"tone": report.headline.tone, "headline": report.headline.sentence}
    return report


def _view(report: Report) -> View:
    return view(report.runs, report.metrics, report.comparisons)


def _template(name: str) -> str:
    return (resources.files(__package__) / name).read_text("utf-8")
