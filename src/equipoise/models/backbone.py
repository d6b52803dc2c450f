"""Load a model and its tokenizer from a built-in name, a folder or a hub id; LoRA.

Only safetensors are read and no code of a model repository is run. A folder is never looked up on the
hub. A tokenizer without a pad token gets an existing one, so embeddings keep their size: masks are made
from lengths everywhere, never by comparing ids with the pad id.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from huggingface_hub.utils import logging as hub_logging
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from equipoise.errors import ModelError, near
from equipoise.models.builtin import resolve
from equipoise.models.chat import special_ids
from equipoise.models.wheels import BUILTIN
from equipoise.progress import say

Device = Literal["auto", "cpu", "cuda", "mps"]
"""What a config may name as its device."""

DType = Literal["auto", "float32", "bfloat16"]
"""What a config may name as the number format of weights."""

_UNUSED_WEIGHTS = ("pooler.", "position_ids")
"""Parts of an encoder that nothing here reads; checkpoints may leave them out."""


class Backbone(NamedTuple):
    """A model on its device in evaluation mode, its tokenizer, and the reference it was loaded by."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    ref: str


def pick_device(device: str = "auto") -> torch.device:
    """Return the device to compute on; `auto` takes CUDA, then MPS, then the CPU."""
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, there in has.items() if there))
    if not has.get(device):
        found = ", ".join(name for name, there in has.items() if there)
        raise ModelError(f"device '{device}' is not available here; available: auto, {found}")
    return torch.device(device)


def micro_batch_tokens(asked: int | None, device: str = "auto") -> int:
    """Return the tokens of one pass: as asked, else 4096; on a CPU 512, whose activations fit its caches."""
    return asked or (512 if pick_device(device).type == "cpu" else 4096)


def pick_dtype(dtype: str = "auto", device: torch.device | None = None) -> torch.dtype:
    """Return the number format of the weights; `auto` is bfloat16 where CUDA computes in it."""
    if dtype == "auto":
        on_cuda = device is not None and device.type == "cuda"
        return torch.bfloat16 if on_cuda and torch.cuda.is_bf16_supported() else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise ModelError(f"no number format '{dtype}'{near(dtype, known)}; known: auto, {', '.join(known)}")
    return known[dtype]


def load_causal(
    ref: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    merge: bool = False,
    trainable: bool = False,
) -> Backbone:
    """Load a language model; a folder with `adapter_config.json` is a LoRA adapter on its base.

    Args:
        ref: Built-in name, folder or hub id.
        dtype: Number format of the weights.
        device: Where to compute.
        merge: Fold an adapter into its base: faster, and no longer an adapter.
        trainable: Leave the adapter's weights trainable.
    """
    place = resolve(ref)
    if isinstance(place, Path) and (place / "adapter_config.json").is_file():
        return _load_adapter(place, dtype=dtype, device=device, merge=merge, trainable=trainable)
    return _load(AutoModelForCausalLM, ref, place, dtype=dtype, device=device)


def load_encoder(
    ref: str | Path, *, dtype: str = "auto", device: str = "auto", depth: int | None = None
) -> Backbone:
    """Load a model without a language-model head, whose output is `last_hidden_state` [B, T, hidden].

    `depth` keeps its first layers only, at least 1; more than it has raises ModelError.
    """
    found = _load(AutoModel, ref, resolve(ref), dtype=dtype, device=device, optional=_UNUSED_WEIGHTS)
    if depth is not None:
        _keep_first(found.model, depth, str(ref))
    return found


def load_tokenizer(ref: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model alone, as it comes with the model."""
    return _load_tokenizer(ref, resolve(ref))


def add_lora(
    model: PreTrainedModel | PeftModel,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
    name: str = "default",
) -> PeftModel:
    """Return the model with LoRA adapters, the only trainable weights. Hu et al. 2021.

    Args:
        model: What to adapt, as loaded here: its reference is stored in the adapter as the base. One that
            has adapters gets another, on the same layers unless told otherwise, which is not switched on.
        rank: Rank of the update.
        alpha: Scale of the update; it is multiplied by alpha / rank.
        dropout: Dropout on the adapters' input, probability 0..1.
        targets: Names of the layers to adapt; all linear layers but the output head where None.
        name: Of the adapter.
    """
    if isinstance(model, PeftModel) and targets is None:
        targets = sorted(next(iter(model.peft_config.values())).target_modules)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets) if targets else "all-linear",
        task_type="CAUSAL_LM" if model.can_generate() else "FEATURE_EXTRACTION",
    )
    try:
        with _peft_on_new_transformers():
            if isinstance(model, PeftModel):
                model.add_adapter(name, config)
                return model
            return get_peft_model(model, config, adapter_name=name)
    except ValueError as exc:
        raise ModelError(f"{model.name_or_path}: cannot add LoRA: {_first_line(exc)}") from exc


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the bars and advice that transformers writes as it loads and saves; errors still raise."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_level = hub_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity(logging.ERROR)  # a line per retry where there is no network
    try:
        yield
    finally:
        hub_logging.set_verbosity(hub_level)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _load(
    auto: Any, ref: str | Path, place: Path | str, *, dtype: str, device: str, optional: tuple[str, ...] = ()
) -> Backbone:
    where = pick_device(device)
    number = pick_dtype(dtype, where)
    tokenizer = _load_tokenizer(ref, place)
    local = isinstance(place, Path)
    options = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    with quiet(), _loading(ref, place):
        model, report = auto.from_pretrained(place, dtype=number, local_files_only=local, **options)
    absent = sorted(k for k in report["missing_keys"] if not any(part in k for part in optional))
    if absent:
        raise ModelError(f"{ref}: {len(absent)} weights are missing, the first is {absent[0]}")
    _check_special_ids(ref, tokenizer, model.get_input_embeddings().num_embeddings)
    # peft stores this name as the base of an adapter: a built-in model is named, since its place in the
    # cache means nothing elsewhere.
    by_name = not isinstance(place, Path) or str(ref) in BUILTIN
    model.name_or_path = str(ref) if by_name else str(cast(Path, place).resolve())
    return Backbone(model.to(where).eval(), tokenizer, str(ref))


def positions_of(model: Any) -> int | None:
    """Return how many tokens a model was made for; None where its config does not say."""
    found: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found


def layer_stack(model: Any) -> nn.ModuleList | None:
    """Return the list of a model's layers, lowest first; None where they are no one list."""
    has = model.config.num_hidden_layers
    stacks = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == has]
    return stacks[0] if len(stacks) == 1 else None


def _keep_first(model: Any, depth: int, ref: str) -> None:
    """Cut the layers above `depth` off."""
    stack = layer_stack(model)
    if stack is None:
        raise ModelError(f"{ref}: depth: got {depth}, but its layers are no one list; expected none")
    if not 1 <= depth <= len(stack):
        raise ModelError(f"{ref}: depth: got {depth}; expected 1 to {len(stack)}")
    del stack[depth:]
    model.config.num_hidden_layers = depth
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:depth]


def _load_adapter(folder: Path, *, dtype: str, device: str, merge: bool, trainable: bool) -> Backbone:
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder}: an adapter without adapter_model.safetensors")
    with _loading(folder, folder):
        base_ref = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base_ref:
        raise ModelError(f"{folder}: adapter_config.json names no base model")
    try:
        base = load_causal(base_ref, dtype=dtype, device=device, merge=True)
    except ModelError as exc:
        raise ModelError(f"{folder}: the base of the adapter: {exc}") from exc
    with quiet(), _loading(folder, folder), _peft_on_new_transformers():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            model = PeftModel.from_pretrained(base.model, str(folder), is_trainable=trainable)
        except (UserWarning, RuntimeError) as exc:
            raise ModelError(f"{folder}: does not fit its base '{base_ref}': {_first_line(exc)}") from exc
    tokenizer = base.tokenizer
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = _load_tokenizer(folder, folder)
        _check_special_ids(folder, tokenizer, model.get_input_embeddings().num_embeddings)
    if merge:
        model = model.merge_and_unload()
        model.name_or_path = str(folder.resolve())  # what is trained on it has to be found from anywhere
    return Backbone(model.eval(), tokenizer, str(folder))


def _load_tokenizer(ref: str | Path, place: Path | str) -> PreTrainedTokenizerBase:
    if not isinstance(place, Path):
        say(f"{ref}: no such folder here; asking the model hub")
    with quiet(), _loading(ref, place):
        tokenizer = AutoTokenizer.from_pretrained(
            place, trust_remote_code=False, local_files_only=isinstance(place, Path)
        )
    if tokenizer.pad_token_id is None:
        substitute = tokenizer.eos_token or tokenizer.unk_token
        if substitute is None:
            raise ModelError(f"{ref}: the tokenizer has no token to pad with (no pad, end or unknown token)")
        tokenizer.pad_token = substitute
    return cast(PreTrainedTokenizerBase, tokenizer)


def _check_special_ids(ref: str | Path, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    outside = sorted(i for i in special_ids(tokenizer) if i >= rows)
    if outside:
        names = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)} = {i}" for i in outside)
        raise ModelError(f"{ref}: special tokens outside the embedding of {rows} rows: {names}")


@contextmanager
def _loading(ref: str | Path, place: Path | str) -> Iterator[None]:
    """Turn what transformers raises for a folder or id it cannot load into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as exc:
        what = "cannot load this folder" if isinstance(place, Path) else "no such folder, and not on the hub"
        raise ModelError(f"{ref}: {what}: {_first_line(exc)}") from exc


@contextmanager
def _peft_on_new_transformers() -> Iterator[None]:
    """Silence one notice: peft asks transformers by a name that is going to change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
