"""The verdict in one sentence, made from the numbers and nothing else."""

from typing import Literal, NamedTuple

from equipoise.evaluation.compare import Comparison, Difference
from equipoise.evaluation.metrics import RunMetrics

Tone = Literal["better", "mixed", "unchanged", "worse", "single"]

LABELS: dict[Tone, str] = {
    "better": "Safer",
    "mixed": "Safer, at a price",
    "unchanged": "No clear change in harm",
    "worse": "Worse",
    "single": "One run",
}


class Headline(NamedTuple):
    """What changed, and whether that is good."""

    tone: Tone
    sentence: str

    @property
    def label(self) -> str:
        """Return the tone in a few words."""
        return LABELS[self.tone]


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal where it has one.

    >>> percent(0.2561), percent(0.4)
    ('25.6%', '40%')
    """
    return f"{tenths(100 * share)}%"


def tenths(value: float) -> str:
    """Return a number with one decimal, without an empty one; a fall has a true minus sign.

    >>> tenths(12.04), tenths(-0.26)
    ('12', '\u22120.3')
    """
    return f"{value:.1f}".removesuffix(".0").replace("-", "\u2212")


def points(difference: Difference) -> str:
    """Return the size of a difference of shares in percentage points, with its interval.

    Both ends are turned alike, so that a fall reads as a positive number of points fewer.
    """
    d = difference.difference
    low, high = sorted((abs(d.low), abs(d.high)))
    return f"{tenths(100 * abs(d.value))} points (95% interval {tenths(100 * low)} to {tenths(100 * high)})"


def headline_of(name: str, metrics: RunMetrics) -> Headline:
    """Return the verdict on a run without a base: its two error rates."""
    parts = []
    if "harmful_rate" in metrics.values:
        rate = metrics.values["harmful_rate"]
        parts.append(f"responds harmfully to {percent(rate.value)} of {rate.clusters} harmful prompts")
    if "over_refusal" in metrics.values:
        rate = metrics.values["over_refusal"]
        parts.append(f"refuses {percent(rate.value)} of {rate.clusters} benign ones")
    return Headline("single", f"{name} {' and '.join(parts)}; there is no base run to compare with.")


def headline(comparison: Comparison) -> Headline:
    """Return the verdict of a comparison: the harm first, then what it cost."""
    harm = comparison.metrics.get("harmful_rate")
    if harm is None:
        return Headline("unchanged", "No harmful prompts were evaluated, so nothing is said about harm.")
    prices = _prices(comparison)
    n = harm.before.clusters
    rates = f"{percent(harm.before.value)} before, {percent(harm.after.value)} after on {n} harmful prompts"
    if harm.difference.excludes_zero and harm.difference.value > 0:
        lead = f"{comparison.after} is more harmful than {comparison.before}: {rates}, up {points(harm)}"
        return Headline("worse", f"{lead}{_joined(prices)}.")
    if not harm.difference.excludes_zero:
        d = harm.difference
        lead = (
            f"The harmful rate of {comparison.after} is not clearly different from that of "
            f"{comparison.before}: {rates}, a difference of {tenths(100 * d.value)} points "
            f"(95% interval {tenths(100 * d.low)} to {tenths(100 * d.high)})"
        )
        return Headline("worse" if prices else "unchanged", f"{lead}{_joined(prices)}.")
    lead = f"{comparison.after} is less harmful than {comparison.before}: {rates}, down {points(harm)}"
    return Headline("mixed" if prices else "better", f"{lead}{_joined(prices) or _gain(comparison)}.")


def _prices(comparison: Comparison) -> list[str]:
    """What got worse with an interval that excludes zero."""
    kinds = (
        ("truly_safe", -1, "truly safe responses fall by {}"),
        ("over_refusal", 1, "refusals of benign prompts rise by {}"),
        ("flagged_benign", 1, "harmful responses to benign prompts rise by {}"),
    )
    found = [
        text.format(points(d))
        for name, sign, text in kinds
        if (d := comparison.metrics.get(name))
        and d.difference.excludes_zero
        and d.difference.value * sign > 0
    ]
    reward = comparison.metrics.get("reward_benign")
    if reward and reward.difference.excludes_zero and reward.difference.value < 0:
        found.append(f"the reward on benign prompts falls by {-reward.difference.value:.2f}")
    return found


def _joined(prices: list[str]) -> str:
    return f", but {', and '.join(prices)}" if prices else ""


def _gain(comparison: Comparison) -> str:
    """The truly safe share and over-refusal where neither got clearly worse."""
    safe, refused = comparison.metrics["truly_safe"], comparison.metrics.get("over_refusal")
    text = (
        f"; truly safe responses rise by {points(safe)}"
        if safe.difference.excludes_zero
        else f"; truly safe responses do not clearly change (by {tenths(100 * safe.difference.value)} points)"
    )
    if refused is None:
        return f"{text}; over-refusal was not measured"
    rates = f"({percent(refused.before.value)} before, {percent(refused.after.value)} after)"
    fell = refused.difference.excludes_zero
    return f"{text}, and over-refusal {'falls' if fell else 'shows no clear rise'} {rates}"
