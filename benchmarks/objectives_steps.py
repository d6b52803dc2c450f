"""What `objectives.py` needs beside the library's steps: its pairs."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from pydantic import Field

from equipoise.config import Config, InputPath, ModelRef
from equipoise.data.check import ranked_safer
from equipoise.data.io import read_records, write_records
from equipoise.data.splits import normalise_prompt
from equipoise.errors import DataError
from equipoise.judges.learned import ScorerJudge
from equipoise.lineage import Run, Step, write_text
from equipoise.models.backbone import load_tokenizer
from equipoise.records import Pair, Prompt, text_of
from equipoise.rewards.learned import load_scorer
from equipoise.training.policy_rows import make_row


class ChooseConfig(Config):
    """Settings of the choice of pairs."""

    pairs: tuple[InputPath, ...] = Field(min_length=1)
    scorer: InputPath | None = None
    """Says which answer is better; where None, nobody does."""
    model: ModelRef
    """Its tokens are counted."""
    count: int = Field(ge=1)
    max_tokens: int = Field(ge=8)
    sampled: int = Field(default=0, ge=0)
    """Prompts, the first of them, that the reference is sampled on."""
    seed: int = 0


def choose(config: ChooseConfig, run: Run) -> None:
    """Write `pairs.jsonl` and their `safer`, `prompts` and `answers` (`.jsonl`).

    A second pair of a prompt is chosen only where there is a first one of every prompt.
    `safer` holds the safer answers that are safe, `both` every answer, `answers` such rows for `score`.
    """
    pairs = [pair for path in config.pairs for pair in read_records(path, Pair)]
    run.licences |= {pair.licence for pair in pairs}
    random.Random(config.seed).shuffle(pairs)
    tokenizer = load_tokenizer(config.model)
    turns: dict[str, int] = {}  # how many of a prompt's pairs came before
    ordered = []
    for pair in pairs:
        if fits(pair, tokenizer, config.max_tokens):
            name = normalise_prompt(text_of(pair.prompt))
            turns[name] = turns.get(name, -1) + 1
            ordered.append((turns[name], pair))
    if len(ordered) < config.count:
        raise DataError(
            f"pairs: got {len(ordered)} with all labels and at most {config.max_tokens} tokens;"
            f" expected {config.count}"
        )
    found = [pair for _, pair in sorted(ordered, key=itemgetter(0))[: config.count]]
    if config.scorer is not None:
        found = with_better(found, config.scorer)
    write_records(run.out / "pairs.jsonl", found)
    safer = [pair.exchange(pair.safer) for pair in found if pair.safer in (0, 1)]
    write_records(run.out / "safer.jsonl", [row for row in safer if row.is_safe])
    write_records(run.out / "both.jsonl", [pair.exchange(k) for pair in found for k in (0, 1)])
    firsts: dict[str, Pair] = {}
    for pair in found:
        firsts.setdefault(normalise_prompt(text_of(pair.prompt)), pair)
    prompts = [
        Prompt(id=pair.id, prompt=pair.prompt, source=pair.source, licence=pair.licence)
        for pair in firsts.values()
    ]
    write_records(run.out / "prompts.jsonl", prompts[: config.sampled] or prompts)
    rows = [
        {"id": pair.id, "prompt": text_of(pair.prompt), "response": answer.response, "sample": k}
        for pair in found
        for k, answer in enumerate(pair.answers)
    ]
    _write_rows(run.out / "answers.jsonl", rows)
    safe = Counter(sum(answer.is_safe is True for answer in pair.answers) for pair in found)
    run.notes |= {
        "pairs": len(found),
        "prompts": len(prompts),
        "both_safe": safe[2],
        "mixed": safe[1],
        "both_unsafe": safe[0],
        "better_is_not_safer": sum(pair.better == 1 - int(pair.safer or 0) for pair in found),
    }


def with_better(pairs: Sequence[Pair], scorer: Path) -> list[Pair]:
    """Return pairs whose `better` is what a scorer says, and no person."""
    judge = ScorerJudge(load_scorer(scorer), "reward-scorer")
    said = [found[-1].better for found in judge(list(pairs))]
    return [
        pair.model_copy(
            update={"better": better, "provenance": pair.provenance | {"better": "model:reward-scorer"}}
        )
        for pair, better in zip(pairs, said, strict=True)
    ]


def fits(pair: Pair, tokenizer: Any, max_tokens: int) -> bool:
    """Whether a pair has all labels of harm, without contradiction, two answers, and not too many tokens."""
    texts = [answer.response for answer in pair.answers]
    labelled = pair.safer in (0, 1) and all(answer.is_safe is not None for answer in pair.answers)
    if not labelled or ranked_safer(pair) == 1 - int(pair.safer or 0):
        return False
    if texts[0] == texts[1] or not all(text.strip() for text in texts):
        return False
    return make_row(tokenizer, pair.prompt, texts).length <= max_tokens


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


CHOOSE = Step("objectives.choose", 2, choose, config=ChooseConfig)
