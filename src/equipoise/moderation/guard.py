"""Judge prompts, and responses in their context, with a trained guard.

The verdict is consistent by construction: severity comes from one ordinal head whose first threshold
is P(unsafe), so a text is safe if and only if its severity is 0 and it has no category.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from equipoise.errors import DataError, ModelError
from equipoise.models.features import TextPair, embed, encode_pair
from equipoise.models.guard import GuardCard, GuardModel, Target, load_guard_model
from equipoise.models.heads import GuardLogits
from equipoise.objectives.classification import severity_probabilities
from equipoise.protocols import RefusalVerdict, Verdict
from equipoise.records import REFUSALS, Exchange, Refusal, text_of


class Reading:
    """What the guard's heads say of some texts; each row can be turned into a verdict."""

    def __init__(self, card: GuardCard, logits: GuardLogits, cut: list[bool]) -> None:
        """Turn logits into probabilities; `cut` says which texts were too long."""
        self.card = card
        self.severity = severity_probabilities(logits.severity)
        self.categories = torch.sigmoid(logits.categories)
        self.refusal = torch.softmax(logits.refusal, dim=-1)
        self.cut = cut

    def verdict(self, row: int) -> Verdict:
        """Return the verdict on one text."""
        levels = [float(p) for p in self.severity[row]]
        unsafe = 1.0 - levels[0]
        is_safe = unsafe < self.card.unsafe_threshold
        names = self.card.taxonomy.names
        given_unsafe = [float(p) for p in self.categories[row]]
        over = tuple(n for n, p in zip(names, given_unsafe, strict=True) if p >= self.card.category_threshold)
        highest = names[max(range(len(names)), key=given_unsafe.__getitem__)]
        return Verdict(
            is_safe=is_safe,
            unsafe_probability=unsafe,
            severity=0 if is_safe else 1 + max(range(len(levels) - 1), key=levels[1:].__getitem__),
            severity_probabilities=tuple(levels),
            categories=() if is_safe else over or (highest,),
            category_probabilities={n: unsafe * p for n, p in zip(names, given_unsafe, strict=True)},
            truncated=self.cut[row],
        )

    def refusal_verdict(self, row: int) -> RefusalVerdict:
        """Return whether one response declines; how far, only where it declines at all."""
        probabilities = dict(zip(REFUSALS, (float(p) for p in self.refusal[row]), strict=True))
        declines = 1.0 - probabilities["none"] >= self.card.refusal_threshold
        degree: Refusal = "full" if probabilities["full"] >= probabilities["partial"] else "partial"
        return RefusalVerdict(degree if declines else "none", probabilities)


class Guard:
    """A trained guard; calling it judges the responses of exchanges (a `protocols.Judge`)."""

    def __init__(self, model: GuardModel) -> None:
        """Use a loaded model; it is put in evaluation mode."""
        self.model = model.eval()
        self.card = model.card

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Judge each response in the context of its prompt."""
        reading = self.read([TextPair(text_of(e.prompt), e.response) for e in exchanges])
        return [reading.verdict(row) for row in range(len(exchanges))]

    def judge_prompts(self, prompts: Sequence[str]) -> list[Verdict]:
        """Judge prompts by themselves; a guard that was not trained on any raises DataError."""
        reading = self.read([TextPair(prompt, None) for prompt in prompts])
        return [reading.verdict(row) for row in range(len(prompts))]

    def refusals(self, exchanges: Sequence[Exchange]) -> list[RefusalVerdict]:
        """Say whether each response declines (a `protocols.RefusalJudge`)."""
        if not self.card.knows_refusals:
            raise ModelError(
                "this guard was trained without refusal labels; expected some exchanges with `refusal`"
            )
        reading = self.read([TextPair(text_of(e.prompt), e.response) for e in exchanges])
        return [reading.refusal_verdict(row) for row in range(len(exchanges))]

    def require(self, target: Target) -> None:
        """Raise DataError for a kind of text that this guard was not trained to judge."""
        if target not in self.card.targets:
            known = ", ".join(self.card.targets)
            raise DataError(f"{target}: this guard was not trained to judge it; it judges: {known}")

    @torch.no_grad()
    def read(self, texts: Sequence[TextPair]) -> Reading:
        """Run encoder and heads over texts; all verdicts come from this one pass."""
        for text in texts:
            self.require("prompt" if text.response is None else "response")
        pairs = [encode_pair(self.model.tokenizer, text) for text in texts]
        features = embed(self.model.trunk, pairs, label="judging")
        device = next(self.model.heads.parameters()).device
        logits = self.model.heads(features.to(device))
        if not all(torch.isfinite(part).all() for part in logits):
            raise ModelError("the guard's answer is not finite; a text without a judgement is never safe")
        cut = [pair.truncated for pair in pairs]
        return Reading(self.card, GuardLogits(*(part.float().cpu() for part in logits)), cut)


def load_guard(folder: Path, device: str = "auto") -> Guard:
    """Load a guard folder written by `equipoise train guard`."""
    return Guard(load_guard_model(folder, device))
