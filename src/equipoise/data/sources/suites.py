"""Sets of prompts that a model should decline: AdvBench, HarmBench, StrongREJECT, Do-Not-Answer.

Their own categories are no taxonomy of ours and stay in `provenance`.
"""

from typing import Any

from equipoise.data.rows import Row, show
from equipoise.data.sources.columns import Columns
from equipoise.records import Exchange, Prompt, Record

_RESPONSE = "_response"


def advbench(row: Row) -> Prompt:
    """Read a behaviour of AdvBench: `goal`, and the beginning of an answer that an attack aims at."""
    columns = Columns(row)
    columns.require("goal", "target")
    return _harmful(columns, "advbench", columns.text("goal", "prompt"))


def harmbench(row: Row) -> Prompt:
    """Read a textual behaviour of HarmBench; a context comes before it, as HarmBench itself puts it."""
    columns = Columns(row)
    columns.require("Behavior", "BehaviorID")
    if row.values.get("ImageFileName") is not None:
        raise columns.error("ImageFileName", "a behaviour about a picture; only texts can be read")
    text = columns.text("Behavior", "prompt")
    context = columns.text("ContextString", "context")
    return _harmful(columns, "harmbench", f"{context}\n\n---\n\n{text}" if context else text)


def strongreject(row: Row) -> Prompt:
    """Read a forbidden prompt of StrongREJECT."""
    columns = Columns(row)
    columns.require("forbidden_prompt")
    return _harmful(columns, "strongreject", columns.text("forbidden_prompt", "prompt"))


def do_not_answer(row: Row) -> list[Record]:
    """Read a question of Do-Not-Answer, or an exchange for each model whose answer stands beside it.

    `MODEL_harmful` is the label; `MODEL_action` (0 cannot assist ... 5 follows) is kept in `provenance`,
    for only some of its values say whether an answer refuses.
    """
    columns = Columns(row)
    columns.require("question")
    question = columns.text("question", "prompt")
    models = [name.removesuffix(_RESPONSE) for name in row.values if name.endswith(_RESPONSE)]
    if not models:
        return [_harmful(columns, "do-not-answer", question)]
    answers = [_answer(columns, model, question) for model in models]
    shared = columns.rest()
    origin: dict[str, Any] = {"id": "", "source": "do-not-answer", "label_origin": "human"}
    origin |= {"prompt": question, "prompt_is_harmful": True}
    return [
        columns.build(Exchange, origin | labels | {"provenance": shared | own}) for labels, own in answers
    ]


def _answer(columns: Columns, model: str, question: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the response of one model with its label, and what goes to its provenance."""
    response = columns.text(f"{model}{_RESPONSE}", "response")
    harmful = columns.label(f"{model}_harmful", to="is_safe")
    action = columns.label(f"{model}_action", to="action")
    if harmful not in (0, 1, None):
        raise columns.error("is_safe", f"expected 0 or 1, got {show(harmful)}")
    labels = {"response": response, "is_safe": None if harmful is None else harmful == 0}
    return labels, {"model": model} | ({} if action is None else {"action": action})


def _harmful(columns: Columns, source: str, text: Any) -> Prompt:
    values = {"id": "", "prompt": text, "is_harmful": True, "source": source, "label_origin": "authors"}
    return columns.build(Prompt, values | {"provenance": columns.rest()})
