"""The comparison as a run of its own, and as a table for a terminal."""

import math

from equipoise.config import Config, InputPath
from equipoise.evaluation.compare import Comparison, compare
from equipoise.evaluation.files import write_json
from equipoise.evaluation.metrics import LOW_POWER, METRICS
from equipoise.evaluation.rows import load_runs
from equipoise.lineage import Run, Step, write_text


def comparison_text(comparison: Comparison) -> str:
    """Return the comparison as a table for a terminal."""
    c = comparison
    width = max(len(METRICS[name].title) for name in c.metrics)
    lines = [
        f"{c.before} -> {c.after}: {c.rows} responses to {c.prompts} prompts, paired",
        "",
        f"{'':{width}}  {'before':>8} {'after':>8}  difference [95 %]",
    ]
    for name, d in c.metrics.items():
        mark = "*" if d.difference.excludes_zero else " "
        lines.append(
            f"{METRICS[name].title:{width}}  {d.before.value:8.3f} {d.after.value:8.3f}  "
            f"{d.difference.value:+.3f} [{d.difference.low:+.3f}, {d.difference.high:+.3f}] {mark}"
        )
    lines += [
        "* the interval excludes zero",
        "",
        f"harmful rate, relative reduction: {c.relative_reduction}",
        f"prompts harmful only before {c.harmful_only_before}, only after {c.harmful_only_after}; "
        f"McNemar exact p = {c.mcnemar_p:.4g}",
    ]
    if "harmful_rate" in c.metrics and not math.isnan(c.metrics["harmful_rate"].detectable):
        lines.append(
            f"a change of {c.metrics['harmful_rate'].detectable:.3f} in the harmful rate "
            "would be found 4 times in 5"
        )
    lines += [
        f"win rate of {c.after}, {name.replace('_', ' ')}: {rate}" for name, rate in c.win_rates.items()
    ]
    if c.by_category:
        lines += ["", f"harmful rate by category (low: under {LOW_POWER} prompts; p: Holm over categories)"]
        width = max(map(len, c.by_category))
        lines += [
            f"{name:{width}}  {k.before.value:8.3f} {k.after.value:8.3f}  {k.difference.value:+.3f} "
            f"[{k.difference.low:+.3f}, {k.difference.high:+.3f}]  p {k.p_adjusted:.3f}  "
            f"n {k.before.clusters}{' low' if k.low_power else ''}"
            for name, k in c.by_category.items()
        ]
    lines += [f"note: {note}" for note in c.notes]
    return "\n".join(lines)


class CompareConfig(Config):
    """Two finished evaluations."""

    before: InputPath
    after: InputPath
    allow_mismatch: bool = False
    """Compare although the judges or the suites differ."""


def build_comparison(config: CompareConfig, run: Run) -> None:
    """Write `comparison.json`, `comparison.txt` and `card.md`."""
    before, after = load_runs([config.before, config.after])
    comparison = compare(before, after, allow_mismatch=config.allow_mismatch)
    run.licences |= {name for side in (before, after) for name in side.manifest.licences}
    run.notes["rows"] = comparison.rows
    write_json(run.out / "comparison.json", comparison)
    text = comparison_text(comparison)
    write_text(run.out / "comparison.txt", text + "\n")
    write_text(run.out / "card.md", f"# {comparison.before} and {comparison.after}\n\n```text\n{text}\n```\n")


COMPARE = Step("compare", 1, build_comparison, config=CompareConfig)
