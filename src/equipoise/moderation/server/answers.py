"""What the guard found, as JSON: the fields of `moderate`, and what a server adds."""

from collections.abc import Sequence
from typing import Any

from fastapi import Request

from equipoise.models.windows import TextPair
from equipoise.moderation.batch import moderation_fields, refusal_fields
from equipoise.moderation.policies import Policy
from equipoise.moderation.server.engine import Engine, Judged
from equipoise.moderation.server.errors import RequestError
from equipoise.moderation.server.service import Service
from equipoise.protocols import Verdict
from equipoise.records import Message, text_of


def service_of(request: Request) -> Service:
    """Return the service behind an app."""
    service: Service = request.app.state.service
    return service


async def judge(request: Request, texts: list[TextPair], policy: Policy | None = None) -> list[Judged]:
    """Judge the texts of a request; how many there were and how many were flagged goes to its log line."""
    found = await service_of(request).judge(texts, policy)
    facts = request.state.facts  # an answer in pieces is judged many times
    facts["policy"] = found[0].verdict.policy
    for name, count in (
        ("texts", len(found)),
        ("flagged", sum(not one.verdict.is_safe for one in found)),
        ("review", sum(one.verdict.review for one in found)),
    ):
        facts[name] = facts.get(name, 0) + count
    for verdict in (verdict for one in found for verdict in one.shadow):
        shadow = facts.setdefault("shadow_flagged", {})
        shadow[verdict.policy] = shadow.get(verdict.policy, 0) + (not verdict.is_safe)
    return found


def read_whole(found: Sequence[Judged], *, together: bool = False) -> Sequence[Judged]:
    """Return what was found, for protocols that cannot say that a text was read in part.

    Args:
        found: Of the texts of a request.
        together: Whether all get one answer: then it is unsafe if any is.

    Raises:
        RequestError: 413, a text that was read in part would pass.
    """
    if together and not all(one.verdict.is_safe for one in found):
        return found
    if any(one.verdict.is_safe and one.verdict.truncated for one in found):
        message = "a text is longer than the guard reads; expected parts of it, or /v1/guard, which says so"
        raise RequestError(413, message)
    return found


class Watch:
    """Judges the parts of one conversation as they come, and keeps the worst that was found of any."""

    def __init__(self, request: Request, policy: Policy) -> None:
        """Begin with nothing judged; the policy goes by its name, since a reload may bring another."""
        self._request, self._policy = request, policy.name
        self._worst: list[Judged] = []

    async def __call__(self, texts: Sequence[TextPair]) -> list[Verdict]:
        """Return one verdict per text."""
        policy = service_of(self._request).policy(self._policy)
        found = await judge(self._request, list(texts), policy)
        self._worst = [worst([*self._worst, *found])]
        return [one.verdict for one in found]

    def told(self) -> dict[str, Any]:
        """Return the policy, and what goes beside a verdict, of all that was judged together."""
        return {"policy": self._policy, **(beside(self._worst[0]) if self._worst else {})}


def native(text: TextPair, found: Judged, engine: Engine) -> dict[str, Any]:
    """Return all that is known of one text."""
    names = engine.guard.card.taxonomy.names
    refusal = {} if found.refusal is None else refusal_fields(found.refusal)
    return {**moderation_fields(text, found.verdict, names), **refusal, **beside(found)}


def beside(found: Judged) -> dict[str, Any]:
    """Return what goes beside a protocol's own answer: review, language, and the policies in shadow."""
    return {
        "review": found.verdict.review,
        "calibrated": found.verdict.calibrated,
        "language": found.language,
        "supported": found.is_supported,
        "shadow": {verdict.policy: brief(verdict) for verdict in found.shadow},
    }


def brief(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict in short."""
    return {
        "is_safe": verdict.is_safe,
        "unsafe_probability": round(verdict.unsafe_probability, 6),
        "severity": verdict.severity,
        "harm_categories": list(verdict.categories),
        "review": verdict.review,
    }


def guarded(found: Judged) -> dict[str, Any]:
    """Return the verdict in short, and what goes beside it, for protocols that have no place for more."""
    return {**brief(found.verdict), "policy": found.verdict.policy, **beside(found)}


def pair_of(messages: tuple[Message, ...], where: str = "messages") -> TextPair:
    """Return what a chat asks to be judged: its last answer in context, or else all of it as a prompt."""
    if not any(turn.content.strip() for turn in messages):
        raise RequestError(400, f"{where}: empty; expected a text in it", param=where)
    *before, last = messages
    if last.role == "assistant" and before:
        return TextPair(text_of(tuple(before)), last.content)
    if last.role == "assistant":
        return TextPair("", last.content)
    return TextPair(text_of(messages), None)


def worst(found: Sequence[Judged]) -> Judged:
    """Return the worst of several judgements of one thing, by the policies in shadow too.

    A person should see it if any says so, and its language is one that the guard does not know if any is.
    """
    one = max(found, key=lambda one: _badness(one.verdict))
    foreign = next((each for each in found if each.is_supported is False), one)
    shadow: dict[str, Verdict] = {}
    for verdict in (verdict for each in found for verdict in each.shadow):
        shadow[verdict.policy] = max(shadow.get(verdict.policy, verdict), verdict, key=_badness)
    return one._replace(
        verdict=one.verdict._replace(review=any(each.verdict.review for each in found)),
        shadow=tuple(shadow.values()),
        language=foreign.language,
        is_supported=foreign.is_supported,
    )


def _badness(verdict: Verdict) -> tuple[bool, int, float]:
    return not verdict.is_safe, verdict.severity, verdict.unsafe_probability
