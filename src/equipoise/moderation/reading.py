"""What a guard's heads say of some texts, as probabilities, and the verdicts that follow by a policy.

A verdict is consistent by construction: severity comes from one ordinal head whose first threshold
is P(unsafe), so P(severity >= k) falls with k, and a text is safe if and only if its severity is 0 and it
has no category.
"""

from collections.abc import Sequence

import torch

from equipoise.models.guard import GuardCard, Target
from equipoise.models.heads import GuardLogits
from equipoise.moderation.calibration import Calibration
from equipoise.moderation.policies import Policy, default_policy
from equipoise.protocols import RefusalVerdict, Verdict
from equipoise.records import REFUSALS, Refusal


class Reading:
    """What the guard's heads say of some texts; each row can be turned into a verdict.

    Shapes: B texts, K severity levels above 0, C categories.
    """

    def __init__(
        self,
        card: GuardCard,
        logits: GuardLogits,
        cut: Sequence[bool],
        *,
        context_cut: Sequence[bool] | None = None,
        targets: Sequence[Target] | None = None,
        calibration: Calibration | None = None,
        policy: Policy | None = None,
    ) -> None:
        """Turn logits into probabilities.

        Args:
            card: Of the guard.
            logits: What its heads said, not calibrated.
            cut: Which texts were too long to be read whole.
            context_cut: Which responses have a prompt that was; none where None.
            targets: Whether each text is a prompt or a response; all are responses where None.
            calibration: Of the guard; without one the probabilities are those that the heads gave.
            policy: Decides where a verdict is asked for without one; the card's threshold where None.
        """
        self.card = card
        self.logits = logits
        self.cut = cut
        self.context_cut: Sequence[bool] = [False] * len(cut) if context_cut is None else context_cut
        self.targets: Sequence[Target] = ["response"] * len(cut) if targets is None else targets
        self.calibration = calibration
        self.policy = policy or default_policy(card)
        said = GuardLogits(*(part.double() for part in logits))
        if calibration is not None:
            said = calibration.apply(said, self.targets, card.taxonomy.names)
        self.at_least = torch.sigmoid(said.severity).cumprod(-1)
        """[B, K] P(severity >= 1), which is P(unsafe), P(severity >= 2), ..."""
        self.given_unsafe = torch.sigmoid(said.categories)
        """[B, C] P(category | unsafe)."""
        self.refusal = torch.softmax(said.refusal, dim=-1)
        """[B, 3] P(none), P(partial), P(full)."""

    @property
    def categories(self) -> torch.Tensor:
        """[B, C] P(unsafe and of the category)."""
        return self.at_least[:, :1] * self.given_unsafe

    def verdict(self, row: int, policy: Policy | None = None) -> Verdict:
        """Return the verdict on one text, by a policy or by the guard's default one.

        Unsafe has the likeliest severity above 0, or the one whose own threshold is reached if that is
        higher. It has the likeliest category, and those over their threshold: the policy's on
        P(unsafe and category), or the card's on P(category | unsafe).
        """
        policy = policy or self.policy
        names, target = self.card.taxonomy.names, self.targets[row]
        at_least: list[float] = self.at_least[row].tolist()
        given: list[float] = self.given_unsafe[row].tolist()
        marginal = {name: at_least[0] * p for name, p in zip(names, given, strict=True)}
        levels = [a - b for a, b in zip([1.0, *at_least], [*at_least, 0.0], strict=True)]
        is_safe = not policy.flags(target, at_least, marginal)
        likeliest = 1 + max(range(len(at_least)), key=levels[1:].__getitem__)
        highest = max(range(len(names)), key=given.__getitem__)
        over = tuple(
            name
            for i, name in enumerate(names)
            if i == highest
            or given[i] >= self.card.category_threshold
            or (name in policy.categories and marginal[name] >= policy.categories[name])
        )
        return Verdict(
            is_safe=is_safe,
            unsafe_probability=at_least[0],
            severity=0 if is_safe else max(likeliest, policy.reached(at_least)),
            severity_probabilities=tuple(levels),
            categories=() if is_safe else over,
            category_probabilities=marginal,
            truncated=self.cut[row],
            context_truncated=self.context_cut[row],
            review=policy.asks(at_least[0]),
            policy=policy.name,
            calibrated=self.calibration is not None and target in self.calibration.unsafe,
        )

    def refusal_verdict(self, row: int) -> RefusalVerdict:
        """Return whether one response declines; how far, only where it declines at all."""
        probabilities = dict(zip(REFUSALS, self.refusal[row].tolist(), strict=True))
        declines = 1.0 - probabilities["none"] >= self.card.refusal_threshold
        degree: Refusal = "full" if probabilities["full"] >= probabilities["partial"] else "partial"
        return RefusalVerdict(degree if declines else "none", probabilities)
