"""The card of an evaluation, and its table for a terminal, both written from the numbers."""

from typing import TYPE_CHECKING

from equipoise.evaluation.metrics import METRICS, RunMetrics
from equipoise.evaluation.rows import EvaluatedRow

if TYPE_CHECKING:
    from equipoise.evaluation.run import EvaluateConfig

LIMITS = (
    "Harm, refusal, reward and cost are judged by models, which make mistakes of their own; the intervals "
    "cover the choice of prompts, not the judges' errors.",
    "The prompts are single requests; nothing is said of longer conversations or of attacks.",
    "The built-in guard and prompts are English; other languages are not covered.",
    "Severity is judged on the text, not on what a reader would do with it.",
)

RULES_LIMIT = (
    "What the rules say rests on graders, which make mistakes too; a model that learned from these rules "
    "learned to please the graders."
)


def metrics_text(metrics: RunMetrics) -> str:
    """Return the metrics of one run as a table for a terminal."""
    width = max(len(METRICS[name].title) for name in metrics.values)
    lines = [f"{metrics.responses} responses to {_prompts(metrics)}", ""]
    lines += [f"{METRICS[name].title:{width}}  {value}" for name, value in metrics.values.items()]
    return "\n".join(lines)


def examples_text(rows: list[EvaluatedRow], count: int, *, show_text: bool) -> str:
    """Return the responses judged most unsafe; their texts only where `show_text`."""
    worst = sorted((row for row in rows if not row.is_safe), key=lambda row: -row.unsafe_probability)[:count]
    lines = [] if show_text or not worst else ["most unsafe (--show-text shows the texts):"]
    for row in worst:
        lines.append(
            f"{row.id} #{row.sample}  severity {row.severity}  P(unsafe) {row.unsafe_probability:.2f}  "
            f"{', '.join(row.harm_categories)}"
        )
        if show_text:
            lines += [f"  prompt: {row.prompt}", f"  response: {row.response}"]
    return "\n".join(lines)


def evaluation_card(config: "EvaluateConfig", metrics: RunMetrics, truncated: bool) -> str:
    """Return the card of one evaluation as Markdown."""
    told = (
        "the guard's refusal classifier"
        if config.refusals == "classifier"
        else "the openings of known refusals (prefix match: it misses refusals in other words)"
    )
    told_by_rules = (
        []
        if config.rules is None
        else [f"- rules: {config.rules}; classes by the propositions whose grade is above one half"]
    )
    lines = [
        "# Evaluation",
        "",
        f"- suite: {config.suite} (select {config.select}, seed {config.suite_seed}), {_prompts(metrics)}, "
        f"{config.samples} response(s) each",
        f"- decoding: at most {config.max_new_tokens} tokens, temperature {config.temperature:g}, "
        f"top-p {config.top_p:g}, seed {config.seed}"
        if config.responses is None
        else f"- responses were there before: {config.responses}",
        f"- refusals told by {told}",
        f"- degenerate: more than {metrics.repetition_limit:.3f} of the word 3-grams repeated "
        "(this run's own 95th percentile)",
        *told_by_rules,
        "",
        "| metric | value | 95 % interval | responses | prompts |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {METRICS[name].title} | {v.value:.3f} | {v.low:.3f} to {v.high:.3f} | {v.n} | {v.clusters} |"
        for name, v in metrics.values.items()
    ]
    lines += ["", "## What this does not show", ""]
    lines += [f"- {limit}" for limit in LIMITS]
    if config.rules is not None:
        lines.append(f"- {RULES_LIMIT}")
    if truncated:
        lines.append("- Some texts were longer than the judge reads; the manifest says how many.")
    return "\n".join(lines) + "\n"


def _prompts(metrics: RunMetrics) -> str:
    return f"{metrics.prompts['harmful']} harmful and {metrics.prompts['benign']} benign prompts"
