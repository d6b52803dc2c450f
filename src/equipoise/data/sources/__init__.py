"""Public data sets as records: one function per source, in a plain table.

To add one, write `def name(row: Row) -> Record` (or a list of records, where a row holds several) in a
file here and list it in `SOURCES`. An empty id is filled with a hash of the texts, so that the same row
has the same id wherever it is read.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from equipoise.data.identity import content_id
from equipoise.data.rows import LineError, OnBad, Row, fail, plain
from equipoise.data.sources.beavertails import beavertails
from equipoise.data.sources.openai import openai_moderation
from equipoise.data.sources.pku import pku_dual, pku_prompt, pku_qa, pku_single
from equipoise.data.sources.preferences import hh_harmless, hh_helpful, hh_rlhf, reward_bench
from equipoise.data.sources.suites import advbench, do_not_answer, harmbench, strongreject
from equipoise.data.sources.table import table_row
from equipoise.data.sources.xstest import xstest
from equipoise.errors import ConfigError, DataError, MissingExtraError, near
from equipoise.progress import say
from equipoise.records import Exchange, Pair, Prompt, Record


class Source(NamedTuple):
    """How to read a data set, under which licence its owner gives it, and how to cite it."""

    convert: Callable[[Row], Record | Sequence[Record]]
    licence: str
    about: str
    citation: str = ""
    """One line; empty where the rows are the user's own."""


_PKU = (
    "Ji et al., PKU-SafeRLHF: Towards Multi-Level Safety Alignment for LLMs with Human Preference, "
    "ACL 2025, arXiv 2406.15513"
)
_HH = (
    "Bai et al., Training a Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback, "
    "2022, arXiv 2204.05862"
)
SOURCES: dict[str, Source] = {
    "pku-saferlhf": Source(pku_dual, "CC-BY-NC-4.0", "pairs ranked for help and for harm separately", _PKU),
    "pku-saferlhf-single": Source(pku_single, "CC-BY-NC-4.0", "pairs with one overall preference", _PKU),
    "pku-saferlhf-qa": Source(pku_qa, "CC-BY-NC-4.0", "answers with category and severity labels", _PKU),
    "pku-saferlhf-prompt": Source(pku_prompt, "CC-BY-NC-4.0", "prompts without labels", _PKU),
    "beavertails": Source(
        beavertails,
        "CC-BY-NC-4.0",
        "answers with 14 categories; prompts of BeaverTails-Evaluation",
        "Ji et al., BeaverTails: Towards Improved Safety Alignment of LLM via a Human-Preference Dataset, "
        "NeurIPS 2023, arXiv 2307.04657",
    ),
    "hh-rlhf": Source(hh_rlhf, "MIT", "chosen and rejected dialogues; one overall preference", _HH),
    "hh-rlhf-harmless": Source(hh_harmless, "MIT", "its harmless part; the chosen answer is safer", _HH),
    "hh-rlhf-helpful": Source(hh_helpful, "MIT", "its helpful parts; the chosen answer is better", _HH),
    "xstest": Source(
        xstest,
        "CC-BY-4.0",
        "safe prompts that sound unsafe and their look-alikes; answers with refusal labels by people",
        "Röttger et al., XSTest: A Test Suite for Identifying Exaggerated Safety Behaviours in Large "
        "Language Models, NAACL 2024, arXiv 2308.01263",
    ),
    "openai-moderation": Source(
        openai_moderation,
        "MIT",
        "texts with 5 categories, partly labelled",
        "Markov et al., A Holistic Approach to Undesired Content Detection in the Real World, AAAI 2023, "
        "arXiv 2208.03274",
    ),
    "advbench": Source(
        advbench,
        "MIT",
        "harmful behaviours with the beginning of an answer",
        "Zou et al., Universal and Transferable Adversarial Attacks on Aligned Language Models, 2023, "
        "arXiv 2307.15043",
    ),
    "harmbench": Source(
        harmbench,
        "MIT",
        "textual harmful behaviours, some with a context",
        "Mazeika et al., HarmBench: A Standardized Evaluation Framework for Automated Red Teaming and Robust "
        "Refusal, ICML 2024, arXiv 2402.04249",
    ),
    "strongreject": Source(
        strongreject,
        "MIT",
        "forbidden prompts in 6 categories",
        "Souly et al., A StrongREJECT for Empty Jailbreaks, NeurIPS 2024, arXiv 2402.10260",
    ),
    "do-not-answer": Source(
        do_not_answer,
        "CC-BY-NC-SA-4.0",  # of its repository; the card on the hub says Apache-2.0, and the stricter counts
        "questions not to be answered; answers of six models with labels by people",
        "Wang et al., Do-Not-Answer: Evaluating Safeguards in LLMs, EACL 2024 Findings, arXiv 2308.13387",
    ),
    "reward-bench": Source(
        reward_bench,
        "ODC-BY-1.0",
        "pairs of a chosen and a rejected answer",
        "Lambert et al., RewardBench: Evaluating Reward Models for Language Modeling, 2024, arXiv 2403.13787",
    ),
    "jsonl": Source(table_row, "unknown", "rows of prompts, responses or pairs; our own records"),
}


def citations(names: Iterable[str]) -> dict[str, str]:
    """Return the citation of each source that has one, by the name that its records carry."""
    return {name: SOURCES[name].citation for name in names if name in SOURCES and SOURCES[name].citation}


def find_source(name: str) -> Source:
    """Return a source by name; an unknown one raises ConfigError with the near name."""
    if name not in SOURCES:
        raise ConfigError(f"no source '{name}'{near(name, SOURCES)}; known: {', '.join(SOURCES)}, builtin")
    return SOURCES[name]


def import_records(
    name: str, rows: Iterable[Row], *, licence: str | None = None, on_bad: OnBad = fail
) -> Iterator[Record]:
    """Yield the records of a source's rows.

    Args:
        name: A key of `SOURCES`.
        rows: Its rows, of one release and one kind.
        licence: Overrides what the source and the rows say.
        on_bad: Called with one error per bad row.

    Raises:
        DataError: the rows are of more than one kind or release; the message names the first that differs.
    """
    source = find_source(name)
    first: Record | None = None
    seen: dict[str, int] = {}
    for row in rows:
        try:
            found = source.convert(row)
        except LineError as error:
            on_bad(error)
            continue
        for record in found if isinstance(found, Sequence) else (found,):
            first = first or record
            _refuse_mixture(row, first, record)
            own = licence or (record.licence if record.licence != "unknown" else source.licence)
            yield record.model_copy(update={"id": record.id or _fresh_id(name, record, seen), "licence": own})


def hub_rows(
    hub_id: str, *, split: str = "train", subset: str | None = None, revision: str | None = None
) -> Iterator[Row]:
    """Yield the rows of a data set on the Hugging Face hub, numbered from 1; needs the extra `hub`."""
    try:
        from datasets import load_dataset
        from huggingface_hub.utils import logging as hub_logging
    except ImportError as exc:
        raise MissingExtraError(f"reading '{hub_id}' from the hub", "hub") from exc
    say(f"{hub_id}: no such file here; asking the hub of data sets")
    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)  # a line per retry where there is no network
    try:
        data = load_dataset(hub_id, subset, split=split, revision=revision)
    except (OSError, ValueError) as exc:  # no network, no such data set, no such split
        reason = str(exc).strip().split("\n")[0][:200]
        raise DataError(
            f"{hub_id}: no such file here, and not to be had from the hub: {reason}"
            " (a file of your own is given by its path, such as ./rows.jsonl)"
        ) from exc
    finally:
        hub_logging.set_verbosity(level)
    for number, values in enumerate(data, start=1):
        yield Row(f"hub:{hub_id}", number, plain(values))


def looks_like_hub_id(text: str) -> bool:
    """Whether a text that is no path here may name a data set on the hub, as `OWNER/NAME`."""
    parts = text.split("/")
    return len(parts) == 2 and all(parts) and not Path(text).suffix and not text.startswith((".", "~"))


def _fresh_id(prefix: str, record: Record, seen: dict[str, int]) -> str:
    """Give the same texts, when they come again, an id of their own."""
    assert isinstance(record, Prompt | Exchange | Pair)
    base = content_id(prefix, record)
    seen[base] = seen.get(base, 0) + 1
    return base if seen[base] == 1 else f"{base}-{seen[base]}"


def _refuse_mixture(row: Row, first: Record, record: Record) -> None:
    where = f"{row.path}:{row.line}"
    if type(record) is not type(first):
        names = f"{type(record).__name__} after {type(first).__name__}"
        raise DataError(f"{where}: line: rows of more than one kind, got {names}; import them one by one")
    ours, theirs = getattr(record, "taxonomy", None), getattr(first, "taxonomy", None)
    if ours != theirs:
        what = f"a row of taxonomy '{ours}' in a file that began with '{theirs}'"
        raise DataError(f"{where}: taxonomy: {what}; the releases are never mixed, import them one by one")
