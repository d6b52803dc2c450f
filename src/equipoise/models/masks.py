"""Who may look at whom when several responses share one prompt, and which models can be told so.

transformers (5.23) hands a 4-D mask through to attention as it is: a model with a sliding window then
loses its window, `eager` adds a boolean mask as if it were a number, and flash attention ignores it.
None of these raises. So masks carry the window, measured in positions, have the type that the kernel
reads, and go only to the model types below, each of which a test compares with separate passes.

Shapes: B rows, T tokens of a row.
"""

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from equipoise.models.layout import PackedBatch

Windows = Literal["none", "all layers", "by layer type"]

SHARING: dict[str, Windows] = {
    "llama": "none",
    "olmo2": "none",
    "mistral": "all layers",
    "qwen2": "by layer type",
    "qwen3": "by layer type",
    "smollm3": "by layer type",
    "gemma2": "by layer type",
    "gemma3_text": "by layer type",
}
"""Model types that were verified, and which of their layers have a sliding window.

Their logits, too, are known to be the output embedding of the last hidden state, softcap aside; other
types may scale them (granite, cohere).
"""

SLIDING = "sliding_attention"


def unwrapped(model: Any) -> Any:
    """Return the transformers model inside a peft model, adapters in place, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def shares_prefix(model: Any) -> str | None:
    """Return None if responses can share one prompt in this model, else a short reason why not."""
    config = unwrapped(model).get_decoder().config
    kind = config.model_type
    attention = config._attn_implementation
    if kind not in SHARING:
        return f"model type '{kind}' was not verified (verified: {', '.join(SHARING)})"
    if attention not in ("sdpa", "eager"):
        return f"model type '{kind}' runs with {attention} attention, which takes no mask (sdpa and eager do)"
    if getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True):
        return f"model type '{kind}' is configured to look ahead"
    if unknown := sorted(set(_layer_types(config)) - {"full_attention", SLIDING}):
        return f"model type '{kind}' has layers of type {unknown[0]}"
    return None


def attention_mask(batch: "PackedBatch", config: Any, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """Mask under which a response sees its prompt and itself, and nothing sees a sibling or padding.

    Args:
        batch: Rows as `pack` lays them out.
        config: Of the decoder of a model that `shares_prefix`.
        dtype: Of the attention scores; used by `eager`.

    Returns:
        [B, 1, T, T], True or 0 where a query (third axis) sees a key (fourth); or a dict of them by
        layer type, where the model takes one. A padding position sees itself only: a row of a mask
        that hides everything gives NaN.
    """
    windows = SHARING[config.model_type]
    query, key = batch.segments[:, :, None], batch.segments[:, None, :]
    query_at, key_at = batch.position_ids[:, :, None], batch.position_ids[:, None, :]
    itself = torch.eye(query.shape[1], dtype=torch.bool, device=query.device)
    full = ((query == key) | (key == 0)) & (key_at <= query_at) & (query >= 0) | itself  # [B, T, T]

    def windowed() -> Tensor:
        window: int = config.sliding_window  # that many keys, the query's own among them
        return full & (key_at > query_at - window)

    def finished(mask: Tensor) -> Tensor:
        mask = mask[:, None]
        if config._attn_implementation == "sdpa":
            return mask
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
            ~mask, torch.finfo(dtype).min
        )

    if windows == "by layer type":
        return {name: finished(windowed() if name == SLIDING else full) for name in set(_layer_types(config))}
    is_windowed = windows == "all layers" and config.sliding_window is not None
    return finished(windowed() if is_windowed else full)


def _layer_types(config: Any) -> list[str]:
    return list(getattr(config, "layer_types", None) or [])
