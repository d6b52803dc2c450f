"""`/v1/moderations` and `/v1/models` as OpenAI has them; the guard's own answer in extra keys."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError

from equipoise.models.windows import TextPair
from equipoise.moderation.policies import Policy
from equipoise.moderation.server.answers import judge, native, pair_of, read_whole, service_of
from equipoise.moderation.server.bodies import described, parse, read_object
from equipoise.moderation.server.engine import Engine, Judged
from equipoise.moderation.server.errors import RequestError
from equipoise.records import Message

router = APIRouter()

Input = str | list[str] | list[dict[str, Any]]


class ModerationRequest(BaseModel):
    """A text, a list of texts (a result for each), or a list of parts of type text (one result).

    Parts of type conversation, `{"type": "conversation", "messages": [...]}`, get a result each: the last
    answer is judged in its context. That and `policy` are ours.
    """

    input: Annotated[Any, Field(json_schema_extra={"anyOf": [{"type": "string"}, {"type": "array"}]})]
    model: str = "omni-moderation-latest"
    policy: str | None = None


@router.post("/v1/moderations", openapi_extra=described(ModerationRequest))
async def moderations(request: Request) -> JSONResponse:
    """Judge texts; a name of another model is taken and echoed, since clients send what they know."""
    service = service_of(request)
    body = parse(ModerationRequest, await read_object(request, service.settings.limits))
    texts = _texts(body.input)
    policy = service.choice(body.policy)
    engine = service.ready_engine
    found = read_whole(await judge(request, texts, policy))
    results = [_result(text, one, engine, policy) for text, one in zip(texts, found, strict=True)]
    answer = {"id": f"modr-{uuid.uuid4().hex}", "model": body.model, "results": results}
    return JSONResponse({**answer, "guard": service.settings.name, "version": engine.version})


@router.get("/v1/models")
async def models(request: Request) -> JSONResponse:
    """List the guard, with what it cannot tell in each of the protocols."""
    return JSONResponse({"object": "list", "data": [_model(request)]})


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> JSONResponse:
    """Describe the guard."""
    if name != service_of(request).settings.name:
        raise RequestError(404, "no such model; GET /v1/models lists what there is", param="model")
    return JSONResponse(_model(request))


def _texts(given: object) -> list[TextPair]:
    """Return what is to be judged; one result for each."""
    if isinstance(given, str):
        return [_alone(given, "input")]
    if not isinstance(given, list) or not given:
        raise RequestError(400, "input: expected a text, or a list that is not empty", param="input")
    if isinstance(given[0], str):
        return [_alone(text, f"input.{i}") for i, text in enumerate(given)]
    kinds = [part.get("type") if isinstance(part, dict) else None for part in given]
    if "image_url" in kinds:
        where = f"input.{kinds.index('image_url')}"
        raise RequestError(400, f"{where}: images are not judged here; expected text", param=where)
    if all(kind == "conversation" for kind in kinds):
        return [_conversation(part, f"input.{i}") for i, part in enumerate(given)]
    if any(kind != "text" for kind in kinds):
        message = "input: expected texts, or parts of type text, or parts of type conversation"
        raise RequestError(400, message, param="input")
    parts = [_alone(part.get("text"), f"input.{i}.text").prompt for i, part in enumerate(given)]
    return [TextPair("\n".join(parts), None)]


def _alone(text: object, where: str) -> TextPair:
    if not isinstance(text, str) or not text.strip():
        got = "empty" if isinstance(text, str) else "expected a text"
        raise RequestError(400, f"{where}: {got}", param=where)
    return TextPair(text, None)


def _conversation(part: dict[str, Any], where: str) -> TextPair:
    given = part.get("messages")
    try:
        messages = tuple(Message.model_validate(one) for one in given) if isinstance(given, list) else ()
    except ValidationError as exc:
        message = f"{where}.messages: expected messages with role and content"
        raise RequestError(400, message, param=f"{where}.messages") from exc
    return pair_of(messages, f"{where}.messages")


def _result(text: TextPair, found: Judged, engine: Engine, policy: Policy) -> dict[str, Any]:
    there, verdict = engine.openai13, found.verdict
    flagged = there.flagged(verdict)
    applied = {t: [] if t in there.unreachable else ["text"] for t in there.targets}
    thresholds = policy.model_dump(mode="json", include={"unsafe", "categories", "severity", "review"})
    own = native(text, found, engine)
    return {
        "flagged": not verdict.is_safe,
        "categories": {target: target in flagged for target in there.targets},
        "category_scores": {target: round(p, 6) for target, p in there.scores(verdict).items()},
        "category_applied_input_types": applied,
        "native_categories": {
            name: {
                "flagged": name in verdict.categories,
                "score": probability,
                "severity": verdict.severity if name in verdict.categories else 0,
            }
            for name, probability in own.pop("category_probabilities").items()
        },
        **own,
        "thresholds": thresholds,
    }


def _model(request: Request) -> dict[str, Any]:
    service = service_of(request)
    engine, settings = service.ready_engine, service.settings
    card = engine.guard.card
    return {
        "id": settings.name,
        "object": "model",
        "created": engine.created,
        "owned_by": "equipoise",
        "version": engine.version,
        "taxonomy": f"{card.taxonomy.name} {card.taxonomy.version}",
        "categories": list(card.taxonomy.names),
        "severities": [level.name for level in card.taxonomy.severities],
        "targets": list(card.targets),
        "knows_refusals": card.knows_refusals,
        "languages": list(settings.languages),
        "backbone": card.backbone,
        "runtime": settings.runtime,
        "openai": engine.openai13.described(),
        "mlcommons": engine.mlcommons.described(),
        "azure": engine.azure4.described(),
    }
