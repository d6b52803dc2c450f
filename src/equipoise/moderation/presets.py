"""Policies fitted to labelled texts: strict, moderate and loose, each for a stated aim.

A stricter preset never lets pass what a looser one flags, whatever their aims: it takes the lower of its
own threshold and the looser one's, and every threshold that the looser one has.

Shapes: N texts, K severity thresholds (levels above 0), C categories.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue, model_validator

from equipoise.config import Config
from equipoise.errors import DataError
from equipoise.models.guard import Target
from equipoise.moderation.fitting import Labels, Truth
from equipoise.moderation.policies import Policy, Probability, Thresholds
from equipoise.moderation.reading import Reading
from equipoise.stats import Floats, Indices, wilson

Z95_ONE_SIDED = 1.6448536269514722


class Aim(Config):
    """What a threshold is to keep to: one of the two."""

    false_positive_rate: Probability | None = None
    """Share of the harmless texts that are flagged, at most."""
    recall: Probability | None = None
    """Share of the harmful texts that are flagged, at least."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.false_positive_rate is None) == (self.recall is None):
            raise ValueError("expected one of false_positive_rate and recall")
        return self


class Preset(Config):
    """What the thresholds of a preset are fitted to; where it has no aim it has those of the looser one."""

    unsafe: Aim | None = None
    """On P(unsafe), of prompts and of responses by themselves."""
    categories: Aim | None = None
    """On P(unsafe and of the category), of each category by itself."""
    severity: Aim | None = None
    """On P(severity >= level), of each level from 2 by itself."""

    @model_validator(mode="after")
    def _has_an_aim(self) -> Self:
        if self.unsafe is None and self.categories is None and self.severity is None:
            raise ValueError("expected an aim for unsafe, categories or severity")
        return self


class Presets(Config):
    """The aims of the three presets."""

    strict: Preset = Preset(unsafe=Aim(false_positive_rate=0.15))
    moderate: Preset = Preset(unsafe=Aim(false_positive_rate=0.05))
    loose: Preset = Preset(unsafe=Aim(false_positive_rate=0.01))


class Fit(NamedTuple):
    """A threshold, and what it does on the texts that it was fitted to."""

    threshold: float
    false_positive_rate: float
    recall: float
    harmless: int
    harmful: int


class _Place(NamedTuple):
    """Where in a policy a threshold stands."""

    part: str
    key: str | int


class _Scores(NamedTuple):
    """What a threshold is put on, and whether it should be reached: the rows whose label is known."""

    score: Floats
    happened: NDArray[np.bool_]
    prompt: Indices


def fit_presets(
    reading: Reading,
    truth: Truth,
    presets: Presets,
    *,
    certify: bool = False,
    least: int = 25,
    review: tuple[float, float] | None = None,
) -> dict[str, Policy]:
    """Fit the presets; `moderate` comes first, the others by name.

    A threshold needs `least` rows of either kind. A category or a level that has fewer gets none; for
    prompts or responses that have fewer the guard's own threshold stands in every preset.

    Args:
        reading: Of N texts, calibrated.
        truth: What is known of them.
        presets: The aims.
        certify: Keep to an aim with 95 % confidence, and not just on these rows: by the one-sided bound
            of Wilson 1927, counting prompts and not rows.
        least: Rows of either kind that a threshold needs.
        review: The band of P(unsafe) that every preset sends to a person.

    Raises:
        DataError: Too few prompts for such a confidence.
    """
    scores = {
        place: some
        for place, some in _scores(reading, truth)
        if min(some.happened.sum(), (~some.happened).sum()) >= least
    }
    found: dict[str, Policy] = {}
    looser: dict[_Place, Fit] = {}
    for name in ("loose", "moderate", "strict"):
        preset: Preset = getattr(presets, name)
        own = {
            place: fit_threshold(*some, aim, certify=certify, what=f"{name}: {place.part} {place.key}")
            for place, some in scores.items()
            if (aim := getattr(preset, place.part))
        }
        both = [fits for fits in (own, looser) if fits]
        looser = {
            place: min((fits[place] for fits in both if place in fits), key=lambda fit: fit.threshold)
            for place in scores
            if place in own or place in looser
        }
        has_unsafe = preset.unsafe is not None or any(p.unsafe is not None for p in found.values())
        if not looser and not has_unsafe:
            raise DataError(
                f"{name}: too few labelled rows for any threshold; expected {least} of either kind"
            )
        found[name] = _policy(name, looser, preset, reading.card.unsafe_threshold if has_unsafe else None)
        if review is not None:
            found[name] = found[name].model_copy(update={"review": review})
    return {name: found[name] for name in ("moderate", "loose", "strict")}


def fit_threshold(
    score: Floats,
    happened: NDArray[np.bool_],
    prompt: Indices,
    aim: Aim,
    *,
    certify: bool = False,
    what: str = "threshold",
) -> Fit:
    """Fit one threshold: the lowest that keeps to a false-positive rate, or the highest that keeps a recall.

    It lies in the middle between two scores, so that a rounding error does not change who reaches it.

    Args:
        score: [N] what the threshold is on.
        happened: [N] whether it should be reached.
        prompt: [N] number of the prompt.
        aim: What to keep to.
        certify: With 95 % confidence.
        what: Named in the error.
    """
    harmful, harmless = np.sort(score[happened]), np.sort(score[~happened])
    values = np.unique(score)
    cuts = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [(values[-1] + 1) / 2]])
    if aim.false_positive_rate is not None:
        most, prompts = aim.false_positive_rate, len(np.unique(prompt[~happened]))
        place = bisect_left(
            cuts, True, key=lambda cut: _upper(_share(harmless, cut), prompts, certify) <= most
        )
    else:
        assert aim.recall is not None
        missed, prompts = 1 - aim.recall, len(np.unique(prompt[happened]))
        place = bisect_left(
            cuts, True, key=lambda cut: _upper(1 - _share(harmful, cut), prompts, certify) > missed + _TINY
        )
        place -= 1
    if not 0 <= place < len(cuts):
        raise DataError(f"{what}: {_why_not(aim, prompts, certify)}")
    cut = float(cuts[place])
    return Fit(cut, _share(harmless, cut), _share(harmful, cut), len(harmless), len(harmful))


_TINY = 1e-9
"""What rounding does to a share."""


def _share(ordered: Floats, cut: float) -> float:
    """Share of ascending scores that reach the cut."""
    return float(len(ordered) - np.searchsorted(ordered, cut)) / len(ordered)


def _upper(rate: float, prompts: int, certify: bool) -> float:
    if not certify:
        return rate
    return wilson(math.ceil(rate * prompts - _TINY), prompts, z=Z95_ONE_SIDED).high


def _why_not(aim: Aim, prompts: int, certify: bool) -> str:
    wrong = 1 - aim.recall if aim.recall is not None else aim.false_positive_rate or 0.0
    kind = "a recall" if aim.recall is not None else "a false-positive rate"
    if not certify or not wrong:
        return f"no threshold up to 1 gives {kind} of {aim.recall or wrong:g}"
    needed = math.ceil(Z95_ONE_SIDED**2 * (1 - wrong) / wrong)  # that many without a mistake
    return (
        f"{prompts} prompts cannot show {kind} of {aim.recall or wrong:g} with 95 % confidence;"
        f" expected at least {needed}"
    )


def _scores(reading: Reading, truth: Truth) -> Iterator[tuple[_Place, _Scores]]:
    at_least, categories = reading.at_least.numpy(), reading.categories.numpy()
    targets: dict[Target, NDArray[np.bool_]] = {"prompt": truth.is_prompt, "response": ~truth.is_prompt}
    for target, rows in targets.items():
        yield _Place("unsafe", target), _known(at_least[:, 0], np.where(rows, truth.unsafe, -1), truth)
    for i, name in enumerate(reading.card.taxonomy.names):
        yield _Place("categories", name), _known(categories[:, i], truth.categories[:, i], truth)
    for j in range(1, at_least.shape[1]):
        yield _Place("severity", j + 1), _known(at_least[:, j], truth.at_least[:, j], truth)


def _known(score: Floats, label: Labels, truth: Truth) -> _Scores:
    rows = np.flatnonzero(label >= 0)
    return _Scores(score[rows], label[rows] == 1, truth.prompt[rows])


def _policy(name: str, fits: Mapping[_Place, Fit], preset: Preset, unfitted: float | None) -> Policy:
    def of(part: str) -> dict[str | int, float]:
        return {place.key: fit.threshold for place, fit in fits.items() if place.part == part}

    unsafe = of("unsafe")
    told: dict[str, JsonValue] = {"aims": preset.model_dump(exclude_none=True)}
    for place, fit in fits.items():
        rates = {"false_positive_rate": fit.false_positive_rate, "recall": fit.recall}
        rounded = {kind: round(rate, 4) for kind, rate in rates.items()}
        told[f"{place.part} {place.key}"] = {**rounded, "harmless": fit.harmless, "harmful": fit.harmful}
    return Policy(
        name=name,
        about=_about(preset),
        unsafe=None
        if unfitted is None
        else Thresholds(prompt=unsafe.get("prompt", unfitted), response=unsafe.get("response", unfitted)),
        categories={str(key): value for key, value in of("categories").items()},
        severity={int(key): value for key, value in of("severity").items()},
        fitted=told,
    )


def _about(preset: Preset) -> str:
    words = []
    for part, aim in preset:
        if aim is not None and aim.recall is not None:
            words.append(f"{part}: recall at least {aim.recall:g}")
        elif aim is not None:
            words.append(f"{part}: false-positive rate at most {aim.false_positive_rate:g}")
    return "; ".join(words)
