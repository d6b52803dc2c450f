"""What the guard found, as JSON: the fields of `moderate`, and what a server adds."""

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
    return found


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


def worst(found: list[Judged]) -> Judged:
    """Return the worst of several judgements of one thing; a person should see it if any says so."""
    one = max(found, key=lambda one: _badness(one.verdict))
    return one._replace(verdict=one.verdict._replace(review=any(each.verdict.review for each in found)))


def _badness(verdict: Verdict) -> tuple[bool, int, float]:
    return not verdict.is_safe, verdict.severity, verdict.unsafe_probability
