"""`/contentsafety/text:analyze` as Azure AI Content Safety has it: a severity for each of four categories."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from equipoise.models.windows import TextPair
from equipoise.moderation.server.answers import guarded, judge, read_whole, service_of
from equipoise.moderation.server.bodies import described, parse, read_object
from equipoise.moderation.server.errors import AZURE, RequestError
from equipoise.protocols import Verdict

router = APIRouter()


class AnalyzeRequest(BaseModel):
    """A text to analyse; `policy` is ours."""

    model_config = ConfigDict(alias_generator=to_camel)

    text: Annotated[str, Field(min_length=1)]
    categories: list[Literal["Hate", "SelfHarm", "Sexual", "Violence"]] | None = None
    output_type: Literal["FourSeverityLevels", "EightSeverityLevels"] = "FourSeverityLevels"
    blocklist_names: list[str] = []
    policy: str | None = None


@router.post(AZURE + "text:analyze", openapi_extra=described(AnalyzeRequest))
async def analyze(request: Request) -> JSONResponse:
    """Judge a text by itself; a category that is not flagged has severity 0."""
    service = service_of(request)
    body = parse(AnalyzeRequest, await read_object(request, service.settings.limits))
    if body.blocklist_names:
        raise RequestError(400, "blocklistNames: there are no block lists here", param="blocklistNames")
    if not body.text.strip():
        raise RequestError(400, "text: empty", param="text")
    policy = service.choice(body.policy)
    there = service.ready_engine.azure4
    top = len(service.ready_engine.guard.card.taxonomy.severities) - 1
    (found,) = read_whole(await judge(request, [TextPair(body.text, None)], policy))
    flagged = there.flagged(found.verdict)
    level = (eight if body.output_type == "EightSeverityLevels" else four)(found.verdict, top)
    analysis: list[dict[str, Any]] = [
        {"category": name, "severity": level if name in flagged else 0}
        for name in body.categories or there.targets
    ]
    answer = {"blocklistsMatch": [], "categoriesAnalysis": analysis}
    return JSONResponse({**answer, "guard": guarded(found)})


def four(verdict: Verdict, top: int) -> int:
    """Return a verdict's severity, 0 to `top`, as one of 0, 2, 4, 6; above 0 it never becomes 0."""
    return 2 * -(-3 * verdict.severity // top)


def eight(verdict: Verdict, top: int) -> int:
    """Return a severity from 0 to 7 that says more, and that Azure's rule (halve, round down) makes `four`.

    The expected severity, given that the text is unsafe, decides which of the two steps it is.
    """
    low = four(verdict, top)
    above = verdict.severity_probabilities[1:]
    if not low or not sum(above):
        return low
    expected = sum(k * p for k, p in enumerate(above, start=1)) / sum(above)
    return min(max(round(7 * expected / top), low), low + 1)
