"""`/v1/guard` and `/v1/policies`: all that the guard knows of a text, and the policies that may decide."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from equipoise.errors import DataError
from equipoise.models.windows import TextPair
from equipoise.moderation.batch import text_pair
from equipoise.moderation.server.answers import judge, native, pair_of, service_of
from equipoise.moderation.server.bodies import described, parse, read_object
from equipoise.moderation.server.errors import RequestError
from equipoise.records import Message

router = APIRouter()

Turns = Annotated[tuple[Message, ...], Field(min_length=1)]


class GuardRequest(BaseModel):
    """A text to judge, and the policy that decides.

    A prompt, a response or both: the response is judged in context. Or messages: the last answer is judged in
    context, and all of it is a prompt where a user speaks last.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: str | Turns | None = None
    response: str | None = None
    messages: Turns | None = None
    policy: str | None = None


@router.post("/v1/guard", openapi_extra=described(GuardRequest))
async def guard(request: Request) -> JSONResponse:
    """Judge one text; the answer has the fields of `equipoise moderate`, and more."""
    service = service_of(request)
    body = parse(GuardRequest, await read_object(request, service.settings.limits))
    text, policy = pair_in(body), service.choice(body.policy)
    engine = service.ready_engine
    (found,) = await judge(request, [text], policy)
    about = {"guard": service.settings.name, "version": engine.version}
    return JSONResponse({**native(text, found, engine), **about})


@router.get("/v1/policies")
async def policies(request: Request) -> JSONResponse:
    """List the policies, with their thresholds; the default one decides where a request names none."""
    engine = service_of(request).ready_engine
    listed: list[dict[str, Any]] = [
        {**policy.model_dump(mode="json"), "enforced": policy.enforced} for policy in engine.policies.values()
    ]
    return JSONResponse({"default": engine.default.name, "policies": listed})


def pair_in(body: GuardRequest) -> TextPair:
    """Return what a request asks to be judged."""
    if body.messages is not None:
        if body.prompt is not None or body.response is not None:
            message = "messages: stand beside prompt or response; expected one or the other"
            raise RequestError(400, message, param="messages")
        return pair_of(body.messages)
    try:
        text = text_pair(body.model_dump(exclude_none=True))
    except DataError as exc:
        raise RequestError(400, str(exc)) from exc
    if text.response is None and not text.prompt.strip():
        raise RequestError(400, "prompt: empty; expected a text", param="prompt")
    return text
