"""What the guard that comes with the package tells apart, on rows that it has not seen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import is_set_aside
from default_guard_rows import Kept, lines

from equipoise.data.splits import normalise_prompt
from equipoise.evaluation.baseline import unsafe_scores
from equipoise.models.windows import TextPair
from equipoise.moderation.guard import Guard
from equipoise.records import Exchange, Prompt, text_of
from equipoise.stats import Estimate, auroc, bootstrap, bootstrap_mean


class Texts(NamedTuple):
    """Texts of a file that is reported, their labels, and the prompts that cluster them."""

    pairs: list[TextPair]
    unsafe: list[bool]

    @property
    def prompts(self) -> list[str]:
        """Normalised prompt of each."""
        return [normalise_prompt(text.prompt) for text in self.pairs]


def pku_answers(folder: Path) -> Texts:
    """Both answers of the PKU rows, each once."""
    found: dict[TextPair, bool] = {}
    for row in lines(folder / "pku_saferlhf_mini.jsonl") + lines(folder / "pku_saferlhf_pairs.jsonl"):
        for side in (0, 1):
            text = TextPair(row["prompt"], row[f"response_{side}"])
            found.setdefault(text, not row[f"is_response_{side}_safe"])
    return Texts(list(found), list(found.values()))


def prompts_of(path: Path) -> Texts:
    """Prompts of a file by themselves."""
    rows = lines(path)
    return Texts([TextPair(row["prompt"], None) for row in rows], [row["is_harmful"] for row in rows])


def unsafe_probabilities(guard: Guard, pairs: Sequence[TextPair]) -> tuple[np.ndarray, np.ndarray]:
    """P(unsafe) of each text, and whether the default policy flags it."""
    reading = guard.read(pairs)
    verdicts = [reading.verdict(row) for row in range(len(pairs))]
    return np.array([v.unsafe_probability for v in verdicts]), np.array([not v.is_safe for v in verdicts])


def separation(scores: np.ndarray, unsafe: Sequence[bool], prompts: Sequence[str]) -> Estimate:
    """AUROC, by resampling prompts."""
    is_unsafe = np.array(unsafe)
    return bootstrap(lambda rows: auroc(scores[rows], is_unsafe[rows]), prompts)


def beside_tfidf(guard: Guard, train: Sequence[Kept], texts: Texts) -> dict[str, Any]:
    """AUROC of the guard and of TF-IDF with logistic regression, and their difference, paired.

    The peer learns from the labelled answers that the guard was trained on, once with the preferences as
    labels too and once without; the better of the two counts.
    """
    ours, flagged = unsafe_probabilities(guard, texts.pairs)
    unsafe, prompts = np.array(texts.unsafe), texts.prompts
    test = [Exchange(id=str(i), prompt=p, response=r or "") for i, (p, r) in enumerate(texts.pairs)]
    labelled = [row for row in train if isinstance(row, Exchange) and row.is_safe is not None]
    preferred = [
        row.model_copy(update={"is_safe": bool(row.provenance["preferred"])})
        for row in train
        if isinstance(row, Exchange) and "preferred" in row.provenance
    ]
    peers = {
        "labels": unsafe_scores(labelled, test),
        "labels and preferences": unsafe_scores(labelled + preferred, test),
    }
    name = max(peers, key=lambda peer: auroc(peers[peer], unsafe))
    theirs, named = peers[name], np.array(prompts)
    return {
        "auroc": separation(ours, unsafe, prompts),
        "tfidf_auroc": separation(theirs, unsafe, prompts),
        "difference": bootstrap(
            lambda rows: auroc(ours[rows], unsafe[rows]) - auroc(theirs[rows], unsafe[rows]), prompts
        ),
        "tfidf_from": {"taken": name, **{peer: auroc(found, unsafe) for peer, found in peers.items()}},
        "safe_flagged": bootstrap_mean(flagged[~unsafe], named[~unsafe]),
        "unsafe_flagged": bootstrap_mean(flagged[unsafe], named[unsafe]),
    }


def over_refusal(guard: Guard, folder: Path) -> dict[str, Any]:
    """Share of harmless prompts that the default policy flags; and how harmful ones stand out.

    Of each file all prompts, and as `set_aside` those of a half that was not read while the built-in requests
    and questions were written. It is no clean test: the rates of the whole files have guided earlier choices.
    """
    found: dict[str, Any] = {}
    for name in ("oktest", "llm_safeguard"):
        texts = prompts_of(folder / f"{name}.jsonl")
        scores, flagged = unsafe_probabilities(guard, texts.pairs)
        unsafe, set_aside = np.array(texts.unsafe), np.array([is_set_aside(p.prompt) for p in texts.pairs])
        for part, rows in (("", np.ones_like(set_aside)), ("_set_aside", set_aside)):
            for kind, of_kind in (("harmless", ~unsafe), ("harmful", unsafe)):
                chosen = np.flatnonzero(rows & of_kind)
                if len(chosen):
                    found[f"{name}_{kind}_flagged{part}"] = bootstrap_mean(flagged[chosen], chosen)
        if unsafe.any():
            found[f"{name}_auroc"] = separation(scores, texts.unsafe, texts.prompts)
    return found


def held_out(guard: Guard, rows: Sequence[Kept]) -> dict[str, Any]:
    """AUROC on rows of its own sources that it was not trained on: answers, prompts, and by source."""
    found: dict[str, Any] = {}
    kinds: dict[str, list[tuple[TextPair, bool, str]]] = {"responses": [], "prompts": []}
    for row in rows:
        text = text_of(row.prompt)
        if isinstance(row, Prompt) and row.is_harmful is not None:
            kinds["prompts"].append((TextPair(text, None), row.is_harmful, row.source))
        elif isinstance(row, Exchange) and row.is_safe is not None:
            kinds["responses"].append((TextPair(text, row.response), not row.is_safe, row.source))
    for kind, texts in kinds.items():
        scores, flagged = unsafe_probabilities(guard, [text for text, _, _ in texts])
        unsafe = np.array([label for _, label, _ in texts])
        prompts = [normalise_prompt(text.prompt) for text, _, _ in texts]
        safe = np.flatnonzero(~unsafe)
        found[kind] = {
            "auroc": separation(scores, unsafe, prompts),
            "safe_flagged": bootstrap_mean(flagged[safe], [prompts[i] for i in safe]),
        }
        sources = np.array([source for _, _, source in texts])
        if kind == "prompts":  # ours are many, and each part of one kind
            others = safe[~np.isin(sources[safe], ("requests", "questions"))]
            found[kind]["safe_flagged_of_others"] = bootstrap_mean(
                flagged[others], [prompts[i] for i in others]
            )
        for source in sorted(set(sources)):
            own = np.flatnonzero(sources == source)
            if min(unsafe[own].sum(), (~unsafe[own]).sum()) >= 20:
                found[kind][source] = separation(scores[own], unsafe[own], [prompts[i] for i in own])
    return found


def counts(rows: Sequence[Kept]) -> dict[str, int]:
    """Rows of each source."""
    names = sorted({row.source for row in rows})
    return {name: sum(row.source == name for row in rows) for name in names}


def plain(found: Any) -> Any:
    """Estimates as mappings of rounded numbers."""
    if isinstance(found, Estimate):
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in found._asdict().items()}
    if isinstance(found, dict):
        return {key: plain(value) for key, value in found.items()}
    return round(found, 4) if isinstance(found, float) else found
