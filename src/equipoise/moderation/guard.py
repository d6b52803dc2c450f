"""Judge prompts, and responses in their context, with a trained guard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch

from equipoise.errors import DataError, ModelError, near
from equipoise.extras import require
from equipoise.models.features import length_batches
from equipoise.models.guard import GuardModel, GuardReader, Target, load_guard_model
from equipoise.models.heads import GuardLogits
from equipoise.models.windows import PairIds, TextPair, encode_all, pad_pairs, pool_windows
from equipoise.moderation.calibration import Calibration, load_calibration
from equipoise.moderation.default import guard_folder
from equipoise.moderation.policies import Policy, default_policy, load_policies
from equipoise.moderation.reading import Reading
from equipoise.progress import bar
from equipoise.protocols import RefusalVerdict, Verdict
from equipoise.records import REFUSALS, Exchange, text_of

Runtime = Literal["torch", "torch-bf16", "torch-compiled", "onnx", "onnx-int8"]
"""What computes a guard's logits, see `load_guard`."""


class Guard:
    """A trained guard; calling it judges the responses of exchanges (a `protocols.Judge`)."""

    def __init__(
        self,
        model: GuardReader,
        calibration: Calibration | None = None,
        policies: Mapping[str, Policy] | None = None,
    ) -> None:
        """Use a loaded model, or anything else that reads token ids as it does.

        The first of the policies decides where none is named; without any the card's threshold does.
        """
        self.model = model
        self.card = model.card
        self.calibration = calibration
        self._policies = dict(policies or {})

    @property
    def policies(self) -> dict[str, Policy]:
        """The guard's policies by name, the default one first."""
        own = default_policy(self.card)
        return self._policies or {own.name: own}

    @property
    def policy(self) -> Policy:
        """The policy that decides where none is named."""
        return next(iter(self.policies.values()))

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Judge each response in the context of its prompt."""
        reading = self.read([TextPair(text_of(e.prompt), e.response) for e in exchanges])
        return [reading.verdict(row) for row in range(len(exchanges))]

    def judge_prompts(self, prompts: Sequence[str]) -> list[Verdict]:
        """Judge prompts by themselves; a guard that was not trained on any raises DataError."""
        reading = self.read([TextPair(prompt, None) for prompt in prompts])
        return [reading.verdict(row) for row in range(len(prompts))]

    def refusals(self, exchanges: Sequence[Exchange]) -> list[RefusalVerdict]:
        """Say whether each response declines (a `protocols.RefusalJudge`)."""
        if not self.card.knows_refusals:
            raise ModelError(
                "this guard was trained without refusal labels; expected some exchanges with `refusal`"
            )
        reading = self.read([TextPair(text_of(e.prompt), e.response) for e in exchanges])
        return [reading.refusal_verdict(row) for row in range(len(exchanges))]

    def require(self, target: Target) -> None:
        """Raise DataError for a kind of text that this guard was not trained to judge."""
        if target not in self.card.targets:
            known = ", ".join(self.card.targets)
            raise DataError(f"{target}: this guard was not trained to judge it; it judges: {known}")

    @torch.no_grad()
    def read(self, texts: Sequence[TextPair]) -> Reading:
        """Run encoder and heads over all windows of texts; all verdicts come from this one pass."""
        for text in texts:
            self.require("prompt" if text.response is None else "response")
        rows = encode_all(self.model.tokenizer, texts, self.card.max_windows)
        logits = self._logits([window for windows in rows for window in windows])
        if not all(torch.isfinite(part).all() for part in logits):
            raise ModelError("the guard's answer is not finite; a text without a judgement is never safe")
        pooled = pool_windows(logits, [len(windows) for windows in rows])
        return Reading(
            self.card,
            pooled,
            [windows[0].truncated for windows in rows],
            context_cut=[windows[0].context_truncated for windows in rows],
            targets=["prompt" if text.response is None else "response" for text in texts],
            calibration=self.calibration,
            policy=self.policy,
        )

    def _logits(self, pairs: Sequence[PairIds]) -> GuardLogits:
        """Logits of windows, in order."""
        taxonomy = self.card.taxonomy
        sizes = (len(taxonomy.severities) - 1, len(taxonomy.names), len(REFUSALS))
        out = GuardLogits(*(torch.zeros(len(pairs), size) for size in sizes))
        with bar("judging", len(pairs)) as advance:
            for rows in length_batches([len(pair.ids) for pair in pairs], self.model.batch_tokens):
                found = self.model(pad_pairs([pairs[i] for i in rows]))
                for whole, part in zip(out, found, strict=True):
                    whole[rows] = part.float().cpu()
                for _ in rows:
                    advance()
        return out


def load_guard(folder: str | Path, device: str = "auto", runtime: Runtime = "torch") -> Guard:
    """Load a guard folder written by `equipoise train guard`, or the shipped guard.

    Args:
        folder: The guard's; `default` is the one that comes with the package.
        device: Where torch computes.
        runtime: What computes: torch, or on the CPU an ONNX graph, which is exported at first use. torch-bf16
            has the encoder in 16 bits, onnx-int8 its matrix products in eight; both are quicker, on
            processors that compute in so few bits, and not quite the same. torch-compiled is for
            accelerators, where torch has 16 bits anyway: it takes a minute to load, and needs a C++ compiler.
    """
    folder = guard_folder(folder)
    return Guard(_load_reader(folder, device, runtime), load_calibration(folder), load_policies(folder))


def _load_reader(folder: Path, device: str, runtime: Runtime) -> GuardReader:
    if runtime not in get_args(Runtime):
        known = ", ".join(get_args(Runtime))
        raise ModelError(f"no runtime '{runtime}'{near(runtime, get_args(Runtime))}; known: {known}")
    if runtime.startswith("torch"):
        model = load_guard_model(folder, device)
        if runtime == "torch-bf16":
            model.trunk.to(torch.bfloat16)  # the heads read what it gives in 32 bits
        elif runtime == "torch-compiled":
            _compile(model)
        return model
    if device not in ("auto", "cpu"):
        raise ModelError(f"device: runtime {runtime} computes on the CPU, got {device}; expected auto or cpu")
    require(f"runtime {runtime}", "onnx")
    from equipoise.moderation.onnx import load_onnx_guard

    return load_onnx_guard(folder, int8=runtime == "onnx-int8")


def _compile(model: GuardModel) -> None:
    """Compile the encoder once for batches of any shape, now: the first request does not wait for it."""
    from torch._dynamo.exc import TorchDynamoException  # a second to load

    model.trunk.encoder.compile(dynamic=True)
    texts = [TextPair("a", None), TextPair("some words", "and more of them"), TextPair("b", "c")]
    pairs = [window for windows in encode_all(model.tokenizer, texts, 1) for window in windows]
    try:
        with torch.no_grad():
            for count in (2, 3):
                model(pad_pairs(pairs[:count]))
    except TorchDynamoException as exc:
        said = str(exc).strip().splitlines()[0]
        raise ModelError(f"runtime torch-compiled: this encoder was not compiled here: {said}") from exc
