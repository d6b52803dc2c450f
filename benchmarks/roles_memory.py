"""Peak memory of one step of constrained RL: six models that are separate, and all roles on one backbone.

    python benchmarks/roles_memory.py                      2 prompts of 96 tokens, 4 responses of 128 to each
    python benchmarks/roles_memory.py --new 16 --prompt 8  smaller

The six are actor, reference, reward, cost and a critic for each of these. `six full models` trains the actor
and both critics whole, as Safe RLHF does; `six LoRA models` trains an adapter on each of these three. Ours
is one model with two adapters: the actor's, whose hidden states the critics read, and the scorer's. Every
side reads the same random tokens, as a rollout brings them: several responses to each prompt, and those to
one prompt are a micro-batch. Ours reads them as one row, in which the prompt stands once (with its default
of 512 tokens to a pass the loop does so too, since a row is not cut); the peers repeat the prompt. Every
side takes the same clipped losses, and one step of AdamW. Each runs in a process of its own; its memory is
the highest resident size less that after the imports (Linux), in which each model's weights count as its
own, as they are on an accelerator or in six checkpoints, also where models here map one file. The peers
compute logits at all positions, as the public code has it, and go backward through actor and critics one
after another, as Safe RLHF does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import save
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from equipoise.models.backbone import add_lora, load_causal, quiet
from equipoise.models.builtin import resolve
from equipoise.models.layout import Row
from equipoise.models.roles_load import RoleSettings, load_roles
from equipoise.models.scorer import ScorerCard, ScorerModel

FULL, LORA, OURS = "six full models", "six LoRA models", "equipoise"
SIDES = (FULL, LORA, OURS)
RANK = 16


def memory(field: str) -> float:
    """MiB of this process: `VmRSS` now, `VmHWM` at most so far."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def clipped(logps: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    """PPO's loss, a value per token."""
    ratio = (logps - old).exp()
    return -torch.minimum(advantages * ratio, advantages * ratio.clamp(0.8, 1.2))


def policy_loss(logps: Tensor, reference: Tensor, scores: Sequence[Tensor]) -> Tensor:
    """The actor's loss for one micro-batch, [R, T] each; reward and cost are [R]."""
    kl = (logps - reference).detach()
    reward, cost = (score[:, None] for score in scores)
    return clipped(logps, logps.detach(), (reward - cost) / 2 - 0.1 * kl).mean()


def critic_loss(value: Tensor, score: Tensor) -> Tensor:
    """The loss of one critic, [R, T] and [R]."""
    return (0.5 * (value - score[:, None].expand_as(value)) ** 2).mean()


class Scored(nn.Module):
    """A model with a linear head on every hidden state: reward, cost or critic."""

    def __init__(self, place: Any, lora: bool) -> None:
        """Load the model, with an adapter if one is wanted."""
        super().__init__()
        with quiet():
            model = AutoModel.from_pretrained(place, dtype=torch.float32)
        self.model = add_lora(model, rank=RANK) if lora else model
        self.head = nn.Linear(model.config.hidden_size, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """[R, T] -> [R, T]."""
        return self.head(self.model(input_ids=ids, use_cache=False).last_hidden_state).squeeze(-1)


def six(place: Any, batches: Sequence[Tensor], prompt: int, *, lora: bool) -> float:
    """One step of six models; the loss."""
    with quiet():
        actor, reference = (AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32) for _ in "ar")
    tuned: nn.Module = add_lora(actor, rank=RANK) if lora else actor
    reward, cost = (Scored(place, False).requires_grad_(False) for _ in "rc")
    critics = [Scored(place, lora) for _ in "rc"]
    reference.requires_grad_(False)
    parameters = [p for m in (tuned, *critics) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    targets = slice(prompt, None)

    def logps(model: nn.Module, ids: Tensor) -> Tensor:
        logits = model(input_ids=ids, use_cache=False).logits[:, prompt - 1 : -1]
        return logits.log_softmax(-1).gather(-1, ids[:, targets, None]).squeeze(-1)

    total = 0.0
    for ids in batches:
        with torch.no_grad():
            base, scores = logps(reference, ids), [m(ids)[:, -1] for m in (reward, cost)]
        loss = policy_loss(logps(tuned, ids), base, scores) / len(batches)
        loss.backward()
        total += loss.item()
        for critic, score in zip(critics, scores, strict=True):
            loss = critic_loss(critic(ids)[:, prompt - 1 : -1], score) / len(batches)
            loss.backward()
            total += loss.item()
    optimizer.step()
    return total


def ours(ref: str, batches: Sequence[Tensor], prompt: int, scorer: Path) -> float:
    """The same step with all roles on one backbone; the loss."""
    roles = load_roles(RoleSettings(policy=ref, scorer=scorer, rank=RANK, dtype="float32", device="cpu"))
    optimizer = torch.optim.AdamW([p for p in roles.parameters() if p.requires_grad], lr=1e-5)
    total = 0.0
    for ids in batches:
        rows = [Row(ids[0, :prompt].tolist(), ids[:, prompt:].tolist())]
        with roles.use("reference") as role:
            base = role.read(rows).logps.tokens.view(len(ids), -1)
        with roles.use("scorer") as role:
            scores = role.score(rows)[:2]
        with roles.use("actor") as role:
            said = role.read(rows)
            assert said.values is not None
            values = said.values.view(len(ids), -1, 2).unbind(-1)
            logps = said.logps.tokens.view(len(ids), -1)
            critics = sum(critic_loss(value, score) for value, score in zip(values, scores, strict=True))
            loss = (policy_loss(logps, base, scores) + critics) / len(batches)
            loss.backward()
        total += loss.item()
        del said, values, logps, critics, loss
    optimizer.step()
    return total


def make_scorer(ref: str, folder: Path) -> None:
    """Write a scorer on this model with a fresh adapter."""
    card = ScorerCard(
        backbone=ref, trunk="last", layers=1, hidden=0, lora_rank=RANK, trained=("reward", "cost")
    )
    ScorerModel(card, load_causal(ref, dtype="float32", device="cpu", merge=True)).save(folder)


def run_side(side: str, args: argparse.Namespace) -> None:
    """Take the step in this process, whose imports are done, and print its peak."""
    torch.manual_seed(0)
    batches = []
    for _ in range(args.prompts):
        start = torch.randint(10, 300, (1, args.prompt)).expand(args.samples, -1)
        batches.append(torch.cat([start, torch.randint(10, 300, (args.samples, args.new))], dim=1))
    imports = memory("VmRSS")
    if side == OURS:
        loss = ours(args.model, batches, args.prompt, args.scorer)
    else:
        loss = six(resolve(args.model), batches, args.prompt, lora=side == LORA)
    print(json.dumps({"own_mib": memory("VmHWM") - imports, "loss": loss}))


def child(*more: str) -> dict[str, Any]:
    """Run this script in a process of its own; return what it printed last."""
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], *more],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(more)}: failed\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4, help="responses to a prompt, a micro-batch")
    parser.add_argument("--prompt", type=int, default=96, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens of a response")
    parser.add_argument("--side", choices=[*SIDES, "scorer"], help=argparse.SUPPRESS)
    parser.add_argument("--scorer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--no-save", action="store_true", help="do not write the result file")
    args = parser.parse_args()
    if args.side == "scorer":
        make_scorer(args.model, args.scorer)
        return
    if args.side:
        run_side(args.side, args)
        return
    with tempfile.TemporaryDirectory() as folder:
        child("--side", "scorer", "--scorer", folder)
        found = {side: child("--side", side, "--scorer", folder) for side in SIDES}
    result = {
        "model": args.model,
        "prompts": args.prompts,
        "samples": args.samples,
        "prompt_tokens": args.prompt,
        "response_tokens": args.new,
        "own_mib": {side: round(one["own_mib"], 1) for side, one in found.items()},
        "of_six_full": round(found[OURS]["own_mib"] / found[FULL]["own_mib"], 3),
        "of_six_lora": round(found[OURS]["own_mib"] / found[LORA]["own_mib"], 3),
    }
    if not args.no_save:
        save("roles_memory", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
