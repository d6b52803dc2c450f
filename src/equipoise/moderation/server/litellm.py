"""LiteLLM's generic guardrail: texts in, `NONE` or `BLOCKED` out."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from equipoise.models.windows import TextPair
from equipoise.moderation.chat import texts_in
from equipoise.moderation.policies import Policy, Thresholds
from equipoise.moderation.server.answers import guarded, judge, read_whole, service_of, worst
from equipoise.moderation.server.bodies import described, parse, read_object
from equipoise.moderation.server.errors import RequestError

router = APIRouter()


class Params(BaseModel):
    """What a LiteLLM configuration, or a request through it, may ask for."""

    policy: str | None = None
    threshold: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None
    """P(unsafe) from which to block, in place of the policy's."""


class GuardrailRequest(BaseModel):
    """Texts that LiteLLM took out of a request or of its answer.

    The definitions of tools are the application's own and are not judged; the arguments of calls are.
    """

    texts: list[str] | None = None
    structured_messages: list[Any] | None = None
    """The conversation that the texts were taken from; read where there are no texts."""
    images: list[Any] | None = None
    tool_calls: list[Any] | None = None
    input_type: Literal["request", "response"]
    additional_provider_specific_params: Params | None = None


@router.post("/beta/litellm_basic_guardrail_api", openapi_extra=described(GuardrailRequest))
async def guardrail(request: Request) -> JSONResponse:
    """Judge every text; one that is unsafe blocks all. The reason shows nothing of the text."""
    service = service_of(request)
    body = parse(GuardrailRequest, await read_object(request, service.settings.limits))
    if body.images:
        raise RequestError(400, "images: are not judged here", param="images")
    params = body.additional_provider_specific_params or Params()
    if params.threshold is not None:
        service.check_choice("threshold")
    policy = _from(service.choice(params.policy), params.threshold)
    given = [*_texts(body), *_arguments(body.tool_calls or [])]
    is_answer = body.input_type == "response"
    texts = [TextPair("", t) if is_answer else TextPair(t, None) for t in given if t.strip()]
    if not texts:
        return JSONResponse({"action": "NONE", "guard": None})
    one = worst(read_whole(await judge(request, texts, policy), together=True))
    if one.verdict.is_safe:
        return JSONResponse({"action": "NONE", "guard": guarded(one)})
    named = ", ".join(one.verdict.categories)
    reason = f"unsafe, severity {one.verdict.severity}: {named} (policy {policy.name})"
    return JSONResponse({"action": "BLOCKED", "blocked_reason": reason, "guard": guarded(one)})


def _from(policy: Policy, threshold: float | None) -> Policy:
    """Return the policy with another threshold on P(unsafe), where one was asked for."""
    if threshold is None:
        return policy
    return policy.model_copy(update={"unsafe": Thresholds(prompt=threshold, response=threshold)})


def _texts(body: GuardrailRequest) -> list[str]:
    """Return the texts of a request, or those of its messages; one without either raises RequestError."""
    texts = body.texts or []
    if any(text.strip() for text in texts) or (body.texts is not None and not body.structured_messages):
        return texts
    if body.structured_messages is None and not body.tool_calls:
        raise RequestError(400, "texts: expected a list of texts", param="texts")
    found = []
    for i, message in enumerate(body.structured_messages or []):
        where = f"structured_messages.{i}"
        if not isinstance(message, dict):
            raise RequestError(400, f"{where}: expected a message", param=where)
        found += texts_in(where, message.get("content") or [])  # none beside calls of tools
        found += _arguments(message.get("tool_calls") or [])
    return found


def _arguments(calls: list[Any]) -> list[str]:
    """Return the arguments of tool calls; a call in another form raises RequestError."""
    found = []
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        said = function.get("arguments") if isinstance(function, dict) else None
        if not isinstance(said, str):
            where = f"tool_calls.{i}.function.arguments"
            raise RequestError(400, f"{where}: expected a text", param=where)
        found.append(said)
    return found
