"""What `objectives.py` needs beside the library's steps: its pairs, implicit scores, masked fine-tuning."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from equipoise.config import Config, InputPath, ModelRef
from equipoise.data.check import ranked_safer
from equipoise.data.io import read_records, write_records
from equipoise.data.rows import read_rows
from equipoise.data.splits import normalise_prompt
from equipoise.errors import DataError
from equipoise.judges.learned import ScorerJudge
from equipoise.lineage import Run, Step, write_text
from equipoise.models.backbone import load_causal, load_tokenizer
from equipoise.models.layout import Row, response_logps
from equipoise.objectives.message_wise import best_of_n, best_of_n_mask, masked_sft
from equipoise.objectives.multi_objective import implicit_rewards
from equipoise.records import Pair, Prompt, text_of
from equipoise.rewards.learned import load_scorer
from equipoise.training.cards import model_card
from equipoise.training.messages import MessageSettings, message_scores
from equipoise.training.policy import LoraSettings, prepare, save_policy
from equipoise.training.policy_rows import PolicyBatch, make_row
from equipoise.training.reference import reference_logps
from equipoise.training.sft import SftOptim
from equipoise.training.trainer import Task, fit


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
    `safer` holds the safer answers that are safe, `answers` every answer as a row of `id`, prompt, response.
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
    firsts: dict[str, Pair] = {}
    for pair in found:
        firsts.setdefault(normalise_prompt(text_of(pair.prompt)), pair)
    prompts = [
        Prompt(id=pair.id, prompt=pair.prompt, source=pair.source, licence=pair.licence)
        for pair in firsts.values()
    ]
    write_records(run.out / "prompts.jsonl", prompts[: config.sampled] or prompts)
    rows = [
        {"id": pair.id, "prompt": text_of(pair.prompt), "response": answer.response}
        for pair in found
        for answer in pair.answers
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


class ImplicitConfig(Config):
    """Settings of the implicit scores."""

    rows: InputPath
    """JSON Lines of id, prompt, response."""
    model: ModelRef
    """The reference of both policies."""
    helpful: ModelRef
    safe: ModelRef
    beta: float = Field(default=0.1, gt=0)
    """Of both policies' training."""
    bf16: bool = False


def implicit(config: ImplicitConfig, run: Run) -> None:
    """Write the rows as `score` does: reward and cost are implicit in two policies (PeCAN)."""
    rows = [row.values for row in read_rows(config.rows)]
    grouped: dict[str, list[dict[str, Any]]] = {}
    for values in rows:
        grouped.setdefault(str(values["id"]), []).append(values)
    logps = []
    for number, ref in enumerate((config.model, config.helpful, config.safe)):
        backbone = load_causal(ref, merge=True)
        asked = [
            make_row(backbone.tokenizer, group[0]["prompt"], [str(row["response"]) for row in group])
            for group in grouped.values()
        ]
        path = run.scratch / f"logps-{number}.safetensors"
        device = backbone.model.device.type
        with torch.autocast(device, torch.bfloat16, enabled=config.bf16):
            logps.append(torch.cat(reference_logps(backbone.model, asked, path, tokens_per_batch=2048)))
    reward, safety = (implicit_rewards(found, logps[0], beta=config.beta) for found in logps[1:])
    flat = [row for group in grouped.values() for row in group]
    both = zip(flat, reward.tolist(), safety.tolist(), strict=True)
    _write_rows(run.out, [{**row, "reward": r, "cost": -s} for row, r, s in both])


class BestOfNConfig(Config):
    """Settings of best-of-n fine-tuning with a mask."""

    pairs: tuple[InputPath, ...] = Field(min_length=1)
    """The best of both answers is imitated, so n is 2."""
    model: ModelRef
    scorer: InputPath
    """Says which is best: reward less cost."""
    messages: MessageSettings
    """Which of its tokens are imitated."""
    lora: LoraSettings = LoraSettings()
    optim: SftOptim = SftOptim()


class _Losses(nn.Module):
    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: PolicyBatch) -> Tensor:
        return masked_sft(response_logps(self.policy, batch.rows).tokens, batch.extras[0])


def best_of_n_sft(config: BestOfNConfig, run: Run) -> None:
    """Imitate the good messages of the best answer to each prompt (Equilibrate RLHF, ARJ)."""
    pairs = [pair for path in config.pairs for pair in read_records(path, Pair)]
    run.licences |= {pair.licence for pair in pairs}
    scorer = load_scorer(config.scorer)
    found = scorer([pair.exchange(k) for pair in pairs for k in (0, 1)])
    totals = torch.tensor([-sum(s.harm for s in (one.reward, one.cost) if s is not None) for one in found])
    backbone = load_causal(config.model, merge=True)
    rows = [make_row(backbone.tokenizer, p.prompt, [a.response for a in p.answers]) for p in pairs]
    scores = message_scores(
        config.messages,
        rows,
        run.scratch / "scores.safetensors",
        tokenizer=backbone.tokenizer,
        tokens_per_batch=config.optim.micro_tokens,
    )
    lengths = torch.tensor([len(response) for row in rows for response in row.responses])
    slots = torch.arange(len(lengths)).repeat_interleave(lengths)
    asked = torch.arange(len(rows)).repeat_interleave(2)
    kept = best_of_n_mask(torch.cat(scores), slots, totals, asked, threshold=config.messages.threshold)
    masks = torch.split(kept, lengths.tolist())
    best = [int(i) for i in best_of_n(totals, asked).nonzero()]
    singles = [Row(rows[i // 2].prompt, [rows[i // 2].responses[i % 2]]) for i in best]
    policy = prepare(backbone, "lora", config.lora, config.optim.seed)

    def collate(chosen: Sequence[int]) -> PolicyBatch:
        mask = torch.cat([masks[best[i]] for i in chosen])
        return PolicyBatch(tuple(singles[i] for i in chosen), (mask,))

    items = [int(masks[i].sum()) for i in best]
    task = Task(_Losses(policy), [row.length for row in singles], items, collate)
    fit(task, config.optim, run, label="fine-tuning (best of n)")
    save_policy(backbone, policy, run.out)
    run.notes |= {"rows": len(singles), "kept_tokens": sum(items), "tokens": sum(r.length for r in singles)}
    model_card(run, "Policy", config.model, f"fine-tuned on good messages of {len(singles)} responses")


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


CHOOSE = Step("objectives.choose", 1, choose, config=ChooseConfig)
IMPLICIT = Step("objectives.implicit", 1, implicit, writes_file=True, config=ImplicitConfig)
BEST_OF_N = Step("objectives.best-of-n", 1, best_of_n_sft, config=BestOfNConfig)
