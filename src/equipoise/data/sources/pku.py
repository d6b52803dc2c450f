"""The releases of PKU-SafeRLHF: dual preferences, single preference, question with answer, prompts.

The old 10K and 30K releases are labelled by 14 categories, or by none, and the later ones by 19; the
keys of the category columns tell which. Columns that are no field of a record go to `provenance`.
"""

from typing import Any

from equipoise.data.rows import Row, show
from equipoise.data.sources.columns import Columns, Flags
from equipoise.records import Exchange, Pair, Prompt
from equipoise.taxonomy import load_taxonomy

_SINGLE = "pku-saferlhf-single"
_DUAL = "pku-saferlhf"


def pku_dual(row: Row) -> Pair:
    """Read a pair of the dual-preference release: help and harm are ranked separately."""
    columns = Columns(row)
    if "safer_response_id" not in row.values:
        what = f"no such column; a file with one overall preference is read by the source {_SINGLE}"
        raise columns.error("safer_response_id", what)
    columns.require("prompt", "response_0", "response_1", "better_response_id")
    values = pair_values(columns)
    values["better"] = columns.label("better_response_id", to="better")
    values["safer"] = columns.label("safer_response_id", to="safer")
    return columns.build(Pair, values | _origin(columns, _DUAL))


def pku_single(row: Row) -> Pair:
    """Read a pair of the single-preference release: `better_response_id` weighs help and harm in one."""
    columns = Columns(row)
    columns.require("prompt", "response_0", "response_1", "better_response_id")
    for name in ("safer_response_id", "is_response_0_safe"):
        if name in row.values:
            what = f"a column of the dual-preference release, which is read by the source {_DUAL}"
            raise columns.error(name, what)
    values: dict[str, Any] = {"prompt": columns.text("prompt"), "id": ""}
    values["answers"] = [{"response": columns.text(f"response_{k}", f"answers.{k}.response")} for k in (0, 1)]
    values["overall"] = columns.label("better_response_id", to="overall")
    return columns.build(Pair, values | _origin(columns, _SINGLE))


def pku_qa(row: Row) -> Exchange:
    """Read one answer with its labels, by the older or the newer column names.

    The older release numbers the categories S1 to S19, taken here to be the official order from 1, and
    has no `is_safe`; what it does not say stays unlabelled.
    """
    columns = Columns(row)
    columns.require("prompt", "response")
    values: dict[str, Any] = {
        "id": "",
        "prompt": columns.text("prompt"),
        "response": columns.text("response"),
    }
    values["is_safe"] = columns.label("is_safe", to="is_safe")
    values["severity"] = columns.label("severity_level", "severity_category", to="severity")
    if row.values.get("safety_category") is not None:
        flags = _numbered(columns)
    else:
        flags = columns.flags("harm_category", "category", to="categories")
    values |= {"categories": flags.categories, "rated": flags.rated, "taxonomy": flags.taxonomy}
    return columns.build(Exchange, values | _origin(columns, "pku-saferlhf-qa"))


def pku_prompt(row: Row) -> Prompt:
    """Read a prompt of the release of prompts; nothing says whether it asks for harm."""
    columns = Columns(row)
    columns.require("prompt")
    for name, source in (("response", "pku-saferlhf-qa"), ("response_0", _DUAL)):
        if name in row.values:
            raise columns.error(name, f"a column of another release, which is read by the source {source}")
    values = {"id": "", "prompt": columns.text("prompt"), "source": "pku-saferlhf-prompt"}
    return columns.build(Prompt, values | {"provenance": columns.rest()})


def pair_values(columns: Columns) -> dict[str, Any]:
    """Return the prompt and the two answers of a row in the PKU schema, with the labels it has.

    Raises:
        LineError: the two answers are labelled by different taxonomies.
    """
    answers: list[dict[str, Any]] = []
    taxonomies: list[str] = []
    for k in (0, 1):
        answer: dict[str, Any] = {"response": columns.text(f"response_{k}", f"answers.{k}.response")}
        answer["is_safe"] = columns.label(f"is_response_{k}_safe", to=f"answers.{k}.is_safe")
        grades = (f"response_{k}_severity_level", f"response_{k}_severity")
        answer["severity"] = columns.label(*grades, to=f"answers.{k}.severity")
        names = (f"response_{k}_harm_category", f"response_{k}_category")
        flags = columns.flags(*names, to=f"answers.{k}.categories")
        answer |= {"categories": flags.categories, "rated": flags.rated}
        answers.append({name: value for name, value in answer.items() if value is not None})
        taxonomies += [flags.taxonomy] if flags.taxonomy else []
    if len(set(taxonomies)) > 1:
        raise columns.error("answers.1.categories", f"one pair, two taxonomies: {' and '.join(taxonomies)}")
    prompt = columns.text("prompt")
    return {"id": "", "prompt": prompt, "answers": answers, "taxonomy": next(iter(taxonomies), None)}


def _numbered(columns: Columns) -> Flags:
    """Turn a list of category numbers, 1 to 19, into names."""
    value = columns.label("safety_category", to="categories")
    names = load_taxonomy("pku19").names
    if not isinstance(value, list):
        raise columns.error("categories", f"expected a list of category numbers, got {show(value)}")
    for number in value:
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= len(names):
            raise columns.error(
                "categories", f"expected category numbers 1 to {len(names)}, got {show(number)}"
            )
    return Flags([names[number - 1] for number in sorted(set(value))], None, "pku19")


def _origin(columns: Columns, source: str) -> dict[str, Any]:
    return {"source": source, "label_origin": "human", "provenance": columns.rest()}
