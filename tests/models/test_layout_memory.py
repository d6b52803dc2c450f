"""What a step over shared prompts holds in memory: logits where they are needed, batches within a budget."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from equipoise.models.layout import Row, pack, response_logps, token_budget_batches

HIDDEN, VOCABULARY = 16, 4000


class Largest(TorchDispatchMode):
    """Remember the size of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_logits_are_computed_at_response_positions_only() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 24}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **layers)).train()
    prompts = [list(range(1, 30)), list(range(1, 20))]  # all their logits are more than the weight
    batch = pack([Row(prompt, [[7, 11, 40], [50, 3, 9, 2]]) for prompt in prompts])
    positions, tokens = batch.input_ids.numel(), len(batch.targets)
    with Largest() as ours:
        response_logps(model, batch).sums.sum().backward()
    with Largest() as plain:
        model(input_ids=batch.input_ids)
    assert plain.elements == positions * VOCABULARY
    assert ours.elements == max(tokens, HIDDEN) * VOCABULARY < plain.elements


def test_batches_stay_within_the_budget_and_hold_every_row_once() -> None:
    lengths = torch.randint(1, 60, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = token_budget_batches(lengths, 128)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 128 for batch in batches)
    assert batches == token_budget_batches(lengths, 128)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)
    assert token_budget_batches([500, 3], 128) == [[1], [0]]
    assert token_budget_batches([], 128) == []
