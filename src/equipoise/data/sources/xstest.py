"""XSTest (Röttger et al. 2024): prompts that only sound unsafe, their unsafe look-alikes, and answers.

Prompts are unsafe where `label` says so, or where the `type` begins with `contrast_`.
"""

from typing import Any

from equipoise.data.rows import Row, show
from equipoise.data.sources.columns import Columns
from equipoise.records import Exchange, Prompt, Record

_REFUSALS = {"1_full_compliance": "none", "2_full_refusal": "full", "3_partial_refusal": "partial"}
_ANSWERS_LICENCE = "CC-BY-4.0 AND LicenseRef-model-terms"
"""The answers stay under the terms of the models that gave them."""


def xstest(row: Row) -> Record:
    """Read a prompt, or an answer to one with the label that people settled on (`final_label`)."""
    columns = Columns(row)
    columns.require("prompt", "type")
    values: dict[str, Any] = {"id": "", "source": "xstest", "prompt": columns.text("prompt")}
    harmful = _is_harmful(columns)
    if "completion" not in row.values:
        values |= {"is_harmful": harmful, "label_origin": "authors", "provenance": columns.rest()}
        return columns.build(Prompt, values)
    label = columns.label("final_label", to="refusal")
    if label is not None and label not in _REFUSALS:
        raise columns.error("refusal", f"expected one of {', '.join(_REFUSALS)}, got {show(label)}")
    values |= {"response": columns.text("completion", "response"), "prompt_is_harmful": harmful}
    values |= {"refusal": _REFUSALS.get(label), "label_origin": "human" if label else "authors"}
    return columns.build(Exchange, values | {"licence": _ANSWERS_LICENCE, "provenance": columns.rest()})


def _is_harmful(columns: Columns) -> bool:
    label, kind = columns.row.values.get("label"), columns.row.values["type"]
    if not isinstance(kind, str):
        raise columns.error("type", f"expected a text, got {show(kind)}")
    by_type = kind.startswith("contrast_")
    if label is not None and label != ("unsafe" if by_type else "safe"):
        raise columns.error("label", f"type '{kind:.40}' and label disagree, got {show(label)}")
    return by_type
