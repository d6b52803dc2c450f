"""The part of a guard's card that tells of its calibration and its policies."""

from collections.abc import Mapping

from equipoise.evaluation.calibration import CalibrationResult
from equipoise.moderation.policies import Policy
from equipoise.stats import Estimate

HEADING = "## Calibration"

_BINS_OF = ("unsafe responses", "unsafe prompts")


def calibration_text(found: CalibrationResult, policies: Mapping[str, Policy], about: list[str]) -> str:
    """Return the part of the card as Markdown.

    Args:
        found: What was measured.
        policies: The presets, as they were fitted to all of the rows.
        about: Lines on what it was fitted to.
    """
    has_band = any(policy.review is not None for policy in policies.values())
    parts = [HEADING, "\n".join(f"- {line}" for line in about), _heads(found)]
    parts += [_bins(found, name) for name in _BINS_OF if name in found.heads]
    parts += ["## Policies", _thresholds(policies), _rates(found, has_band=has_band)]
    if found.strictness:
        parts.append(_strictness(found))
    return "\n\n".join(parts) + "\n"


def _heads(found: CalibrationResult) -> str:
    lines = [
        "| probability | ECE before | after | corrected before | after | upper 95 % bound"
        " | mean squared gap | n | prompts |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (before, after) in found.heads.items():
        numbers = (before.naive, after.naive, before.corrected, after.corrected, after.upper)
        gap = after.squared
        cells = [f"{number:.3f}" for number in numbers]
        cells += [f"{gap.value:.4f} [{gap.low:.4f}, {gap.high:.4f}]", str(gap.n), str(gap.clusters)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _bins(found: CalibrationResult, name: str) -> str:
    lines = [f"| {name}: P from | to | mean | observed | n |", "|---|---|---|---|---|"]
    lines += [
        f"| {one.low:.3f} | {one.high:.3f} | {one.predicted:.3f} | {one.observed:.3f} | {one.n} |"
        for one in found.heads[name].after.bins
    ]
    return "\n".join(lines)


def _thresholds(policies: Mapping[str, Policy]) -> str:
    lines = ["| policy | fitted to | prompts flagged from P(unsafe) | responses | others |"]
    lines += ["|---|---|---|---|---|"]
    for policy in policies.values():
        own = ["", ""] if policy.unsafe is None else [f"{p:.3f}" for p in dict(policy.unsafe).values()]
        others = [f"{name} {p:.3f}" for name, p in policy.categories.items()]
        others += [f"severity {level} {p:.3f}" for level, p in policy.severity.items()]
        lines.append(f"| {policy.name} | {policy.about} | {' | '.join(own)} | {', '.join(others)} |")
    return "\n".join(lines)


def _rates(found: CalibrationResult, *, has_band: bool) -> str:
    head = ["policy", "on", "flagged", "of the harmless", "of the harmful"]
    head += ["to a person", "wrong among the others"] if has_band else ["wrong"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, by_target in found.policies.items():
        for target, rates in by_target.items():
            numbers = [rates.flagged, rates.false_positive_rate, rates.recall]
            numbers += [rates.review, rates.wrong] if has_band else [rates.wrong]
            lines.append(f"| {name} | {target}s | {' | '.join(map(_told, numbers))} |")
    return "\n".join(lines)


def _strictness(found: CalibrationResult) -> str:
    levels = len(next(iter(found.strictness.values())).f1)
    floors = "".join(f" F1, severity {level} and above |" for level in range(1, levels + 1))
    lines = [f"| policy |{floors} average | worst |", "|---" * (levels + 3) + "|"]
    for name, row in found.strictness.items():
        each = " | ".join(f"{f1:.3f}" for f1 in row.f1)
        lines.append(f"| {name} | {each} | {_told(row.average)} | {_told(row.worst)} |")
    return "\n".join(lines)


def _told(estimate: Estimate) -> str:
    return str(estimate) if estimate.n else ""
