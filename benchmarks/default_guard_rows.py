"""The rows that the shipped guard learns from: sources whose licence lets weights made of them be shipped.

Each row keeps its source and licence. Left out for their licence: PKU-SafeRLHF and whatever is made of it
(NC), Do-Not-Answer (NC-SA), ALERT (GPL, NC-SA), S-Eval (NC-SA), Safety-Tuned LLaMAs, Alpaca, AlpacaEval and
LIMA (NC), StrongREJECT, OKTest and LLM-Safeguard (none stated); and for their labels: pyrit_objective, whose
question is another one, and jailjudge_mini, which does not say who labelled.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from equipoise.data.corpus import corpus
from equipoise.data.splits import normalise_prompt
from equipoise.records import Exchange, Pair, Prompt, text_of

Row = Mapping[str, Any]
Fields = Iterator[dict[str, Any]]
Kept = Exchange | Prompt

LONGEST = 700
"""Characters of an answer that are kept: about what a small chat model writes, and one window."""


class Source(NamedTuple):
    """Where rows come from, by which right, and how one of its lines becomes records."""

    licence: str
    owner: str
    """Repository, for attribution."""
    read: Callable[[Row], Fields]
    most: int
    """Rows that are taken at most, the first by a hash of their id; so no source drowns the others."""
    file: str | None = None
    """Where its name is not the source's."""


_SAFE: dict[str, Any] = {"is_safe": True, "severity": 0, "categories": frozenset()}


_ASSUMED = {"label_origin": "assumed"}
"""Of everyday questions and answers, which nobody labelled."""


def _named(row: Row) -> dict[str, Any]:
    """Categories of an unsafe answer: of those that its source tells apart."""
    own = row.get("harm_categories")
    return {"categories": frozenset(own), "rated": frozenset(row["told_apart"])} if own else {}


def _answer(row: Row) -> Fields:
    if row["is_safe"]:
        labels: dict[str, Any] = _SAFE
    else:
        labels = {"is_safe": False, "severity": row.get("severity"), **_named(row)}
    yield {"response": row["response"], **labels}


def _to_harmful_prompt(row: Row) -> Fields:
    yield from ({**found, "prompt_is_harmful": True} for found in _answer(row))


def _refusal(row: Row) -> Fields:
    yield {"response": row["response"], "refusal": "full" if row["is_refusal"] else "none"}


def _graded(row: Row) -> Fields:
    """RBR: what the answer does follows from the propositions that people marked."""
    says = row["propositions"]
    declines = not says["fully_complies"] and not says["partially_complies"]
    refusal = "none" if says["fully_complies"] else "partial" if says["partially_complies"] else "full"
    risky = row["ideal_response_type"] != "Comply"
    if says["disallowed_content"]:
        labels: dict[str, Any] = {"is_safe": False}
    elif declines or not risky:
        labels = _SAFE
    else:
        labels = {}
    clear = not says["illogical_continuation_of_prompt"]
    yield {"response": row["response"], **labels, **({"refusal": refusal} if clear else {})}


def _asked(row: Row) -> Fields:
    """A prompt by itself; those of Do-Not-Answer (NC), and those that need a context, are left out."""
    if row.get("subset") != "do_not_answer" and row.get("functional_category") != "contextual":
        own = row.get("harm_categories")
        yield {"is_harmful": row["is_harmful"], **({"categories": frozenset(own)} if own else {})}


def _harmless(row: Row) -> Fields:
    """Both answers to an everyday question, and the question; nobody labelled them as safe."""
    for side in (0, 1):
        yield {"response": row[f"response_{side}"], **_SAFE, "prompt_is_harmful": False, **_ASSUMED}


def _preference(row: Row) -> Fields:
    """Both answers to a single question, unlabelled; `provenance` says which is the safer."""
    for side in (0, 1) if row["turns"] == 1 else ():
        safer = side == int(row["safer_response_id"])
        yield {"response": row[f"response_{side}"], "provenance": {"preferred": safer}}


SOURCES: dict[str, Source] = {
    "gptfuzz_responses": Source("MIT", "sherdencooper/GPTFuzz", _to_harmful_prompt, 1500),
    "diasafety": Source("Apache-2.0", "thu-coai/DiaSafety", _answer, 800),
    "jbb_artifacts": Source("MIT", "JailbreakBench/artifacts", _to_harmful_prompt, 600),
    "pyrit_severity": Source("MIT", "hannahwestra25/PyRIT", _answer, 573),
    "pyrit_refusal": Source("MIT", "hannahwestra25/PyRIT", _refusal, 165),
    "rbr_gold": Source("MIT", "openai/safety-rbr-code-and-data", _graded, 517),
    "hh_harmless": Source("MIT", "anthropics/hh-rlhf", _preference, 1300, "hh_harmless_test"),
    "openai_moderation": Source("MIT", "openai/moderation-api-release", _asked, 1000),
    "pandalm": Source("Apache-2.0", "WeOpenML/PandaLM", _harmless, 400, "pandalm_test"),
    "qa_feedback": Source("Apache-2.0", "allenai/FineGrainedRLHF", _harmless, 300, "qa_feedback_dev"),
    "catqa": Source("Apache-2.0", "declare-lab/red-instruct", _asked, 300),
    "harmful_qa": Source("Apache-2.0", "declare-lab/red-instruct", _asked, 300),
    "advbench": Source("Apache-2.0", "PKU-Alignment/eval-anything", _asked, 150),
    "harmbench": Source("MIT", "busycalibrating/AdversariaLLM", _asked, 180, "harmbench_behaviors"),
    "simple_safety_tests": Source("CC-BY-4.0", "bertiev/SimpleSafetyTests", _asked, 99),
    "trustllm_misuse": Source("MIT", "HowieHwong/TrustLLM", _asked, 250),
    "ailuminate_demo": Source("CC-BY-4.0", "mlcommons/ailuminate", _asked, 300),
}


def rows_of(name: str, folder: Path) -> list[Kept]:
    """Return a source's records, without repeated ones, at most as many as its table says."""
    source = SOURCES[name]
    found: dict[tuple[str, str], Kept] = {}
    rows = lines(folder / f"{source.file or name}.jsonl")
    told_apart = {category for row in rows for category in row.get("harm_categories", ())}
    for row in rows:
        shared = {
            "source": name,
            "licence": source.licence,
            "label_origin": row.get("label_origin"),
            "prompt": row["prompt"].removeprefix("Human: "),
        }
        for i, fields in enumerate(source.read({**row, "told_apart": told_apart})):
            kind = Exchange if "response" in fields else Prompt
            if kind is Exchange and not fields["response"].strip():
                continue
            if kind is Exchange:
                fields["response"] = fields["response"][:LONGEST]
            record = kind(id=f"{row['id']}#{i}", **{**shared, **fields})
            found.setdefault((text_of(record.prompt), fields.get("response", "")), record)
    groups: dict[str, list[Kept]] = {}
    for record in sorted(found.values(), key=lambda record: _order(record.id.partition("#")[0])):
        groups.setdefault(record.id.partition("#")[0], []).append(record)
    kept: list[Kept] = []
    for group in groups.values():  # both answers of a pair, or neither
        if len(kept) + len(group) <= source.most:
            kept += group
    return kept


def builtin_rows() -> list[Kept]:
    """Return the built-in exchanges, both answers of the pairs, and all prompts but those for evaluation."""
    found: list[Kept] = []
    for record in (*corpus("exchanges"), *corpus("pairs"), *corpus("look_alikes")):
        if isinstance(record, Pair):
            found += [record.exchange(side) for side in (0, 1)]
        elif isinstance(record, Prompt) and record.twin is not None:  # twins stay together
            group = min(record.id, record.twin)
            found.append(record.model_copy(update={"provenance": {"group": group}}))
        else:
            found.append(record)
    found = [record.model_copy(update={"source": "builtin"}) for record in found]
    for name in ("requests", "questions"):
        found += [record.model_copy(update={"source": name}) for record in corpus(name)]
    return found


CARING_FRAMES = (
    "How can I protect my family from {}?",
    "What are the warning signs of {}?",
    "How do investigators find out about {}?",
    "Which laws are there against {}?",
    "How should a teacher talk to teenagers about {}?",
    "Where can people who suffered from {} find help?",
    "How did the public view of {} change in the last century?",
    "How can a newspaper report on {} responsibly?",
    "How can a small company reduce the risk of {}?",
    "Why is {} so harmful to society?",
    "Write an essay on how communities can prevent {}.",
    "What does research say about the causes of {}?",
)
"""Ways to ask about a harm without wishing for it."""


def harmless_prompts(folder: Path, frames: int = 6) -> list[Prompt]:
    """Return prompts of ours: look-alikes of harmful ones, and harms seen with care.

    The latter are asked in some ways each; what is about one harm has the same `group` in its provenance.
    """
    alone = (folder / "harmless_prompts.txt").read_text("utf-8").splitlines()
    asked = [(text, text) for text in alone]
    for about in (folder / "harm_topics.txt").read_text("utf-8").splitlines():
        chosen = sorted(CARING_FRAMES, key=lambda frame: _order(frame + about))[:frames]
        asked += [(about, frame.format(about)) for frame in chosen]
    said = {"source": "harmless_prompts", "licence": "Apache-2.0", "label_origin": "authors"}
    return [
        Prompt(id=f"harmless-{i}", prompt=text, is_harmful=False, provenance={"group": group}, **said)
        for i, (group, text) in enumerate(asked)
    ]


def turns(prompt: str) -> list[str]:
    """Return what was asked in a dialogue, normalised; the whole where it is a single question."""
    said = re.split(r"^(?:user|assistant): ", prompt, flags=re.MULTILINE)
    return [normalise_prompt(turn) for turn in said if turn.strip()] + [normalise_prompt(prompt)]


def lines(path: Path) -> list[Row]:
    """Rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _order(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
