"""A guard as one ONNX graph: padded token ids in, the logits of every head out, the pooling inside.

The graph is exported at first use and kept in the cache under a hash of all that makes the logits: the
guard's card and weights, and its encoder. It is kept only if it gives the guard's logits in batches and at
lengths that it was not traced with. It computes on the CPU.
"""

import hashlib
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as errors
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from torch import Tensor, nn

from equipoise.data.corpus import corpus
from equipoise.errors import ModelError
from equipoise.files import only_one
from equipoise.lineage import content_hash, hash_file
from equipoise.models.backbone import load_tokenizer
from equipoise.models.builtin import cache_folder, resolve
from equipoise.models.checkpoints import load_card
from equipoise.models.guard import ENCODER, GuardCard, GuardModel, GuardReader, load_guard_model
from equipoise.models.heads import GuardLogits
from equipoise.models.windows import PairBatch, TextPair, encode_all, pad_pairs
from equipoise.progress import say
from equipoise.records import Exchange, text_of

OPSET = 24
"""Has attention as one operator; at 23 a rotary embedding is written that takes one row only."""
TOLERANCE = 1e-4
"""Largest difference of any logit between a guard and its graph."""
INT8_TOLERANCE = 0.02
"""Largest mean difference of P(unsafe) that eight bits may cost."""

_VERSION = 1
"""Rises when the same guard would give another graph."""
_GRAPH = "guard.onnx"
_MASK = PairBatch._fields.index("mask")
_UNFINISHED = ".exporting-"
_UNABLE = (errors.Fail, errors.RuntimeException, errors.EPFail, errors.EngineError)
_UNREADABLE = (errors.Fail, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoSuchFile)


class OnnxGuard:
    """A guard that was exported (a `models.guard.GuardReader`).

    Every window is computed by itself, as many at once as torch has threads: nothing is spent on padding,
    and no score depends on what else is in the batch, not even in eight bits, where the range of a whole
    product's input sets the steps.
    """

    batch_tokens = 8192
    """Enough for many threads."""

    def __init__(self, card: GuardCard, tokenizer: Any, folder: Path) -> None:
        """Read the graph of a folder; a broken one raises ModelError."""
        self.card, self.tokenizer, self.graph = card, tokenizer, folder / _GRAPH
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # of each window
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(self.graph, options, ["CPUExecutionProvider"])
        except _UNREADABLE as exc:
            raise ModelError(f"{folder}: its graph cannot be read; remove it to make it again") from exc
        self._threads = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="onnx")

    def __call__(self, batch: PairBatch, /) -> GuardLogits:
        """Logits of padded windows."""
        found = self._threads.map(self._read, *(part.numpy() for part in batch))
        return GuardLogits(*(torch.from_numpy(np.concatenate(rows)) for rows in zip(*found, strict=True)))

    def _read(self, *window: np.ndarray) -> list[np.ndarray]:
        """One window, each of its arrays [T]."""
        length = int(window[_MASK].sum())
        given = zip(PairBatch._fields, window, strict=True)
        inputs = {name: part[None, :length] for name, part in given}
        try:
            logits: list[np.ndarray] = self._session.run(GuardLogits._fields, inputs)
        except _UNABLE as exc:
            raise ModelError(f"the ONNX graph gave no answer ({type(exc).__name__})") from exc
        return logits


class Difference(NamedTuple):
    """How far apart two readers of the same guard are on built-in texts."""

    logit: float
    """The largest of any."""
    unsafe: float
    """The mean of P(unsafe)."""


def load_onnx_guard(folder: Path, *, int8: bool = False) -> OnnxGuard:
    """Load a guard that `train guard` wrote as a graph, which is exported if it is not in the cache.

    Args:
        folder: The guard's.
        int8: Compute the matrix products of the encoder in eight bits.

    Raises:
        ModelError: It is no guard, or its graph is not its equal.
    """
    card = load_card(folder, GuardCard)
    source = folder / ENCODER if card.own_encoder else card.backbone
    tokenizer = load_tokenizer(source)
    cache = cache_folder() / "models" / "exported"
    whole = cache / _key(folder, source)
    small = whole.with_name(f"{whole.name}-int8")
    wanted = small if int8 else whole
    if not wanted.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with only_one(cache):
            for left in cache.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(left)
            if not whole.is_dir():
                say(f"{folder}: exporting to ONNX, which is done once")
                export(load_guard_model(folder, "cpu"), whole)
            if not wanted.is_dir():
                quantise(OnnxGuard(card, tokenizer, whole), small)
    return OnnxGuard(card, tokenizer, wanted)


def export(model: GuardModel, folder: Path) -> None:
    """Write a guard that lies on the CPU in 32 bits as `guard.onnx` with its weights beside it.

    Inputs are `ids`, `mask` and `parts`, int64 [rows, tokens]; outputs are named as in `GuardLogits`,
    float [rows, ...].

    Raises:
        ModelError: It cannot be exported, or the graph gives other logits; then nothing is left.
    """
    where = f"the guard on {model.card.backbone}"
    axes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens")}
    with _whole(folder) as fresh:
        try:
            with _quiet(), torch.no_grad():
                torch.onnx.export(
                    _Plain(model),
                    tuple(_texts(model.tokenizer)[0]),
                    fresh / _GRAPH,
                    input_names=PairBatch._fields,
                    output_names=GuardLogits._fields,
                    dynamic_shapes=(axes, axes, axes),
                    opset_version=OPSET,
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as exc:
            raise ModelError(f"{where}: cannot be exported to ONNX; expected runtime torch") from exc
        found = difference(model, OnnxGuard(model.card, model.tokenizer, fresh))
        if not found.logit <= TOLERANCE:
            raise ModelError(
                f"{where}: its ONNX graph gives other logits, got a difference of {found.logit:.1e};"
                f" expected at most {TOLERANCE:.0e}, or runtime torch"
            )


def quantise(guard: OnnxGuard, folder: Path) -> None:
    """Write a graph again with the weights of its matrix products in eight bits, a scale per column.

    Weights take seven of the eight bits, because processors without VNNI add pairs of products in 16.
    The heads stay as they are.

    Raises:
        ModelError: It would judge otherwise; then nothing is left.
    """
    whole = onnx.load(guard.graph)
    products = [node.name for node in whole.graph.node if node.op_type == "MatMul"]
    del whole.graph.value_info[:]  # shapes of before, which the quantiser would hold against its own
    add_pre_process_metadata(whole)  # else it asks for a step that changes nothing here
    with _whole(folder) as fresh:
        quantize_dynamic(
            whole,
            fresh / _GRAPH,
            nodes_to_quantize=products,  # else the heads would be among them
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
        found = difference(guard, OnnxGuard(guard.card, guard.tokenizer, fresh))
        if not found.unsafe <= INT8_TOLERANCE:
            raise ModelError(
                f"the guard on {guard.card.backbone}: eight bits are too few, got a mean difference of"
                f" {found.unsafe:.3f} in P(unsafe); expected at most {INT8_TOLERANCE:g}, or runtime onnx"
            )


def difference(one: GuardReader, other: GuardReader) -> Difference:
    """Compare two readers on built-in texts, short and long, alone and in company."""
    logits, unsafe = [], []
    with torch.no_grad():
        for batch in _texts(one.tokenizer):
            ours, theirs = one(batch), other(batch)
            logits += [(a - b).abs().max() for a, b in zip(ours, theirs, strict=True)]
            unsafe.append(torch.sigmoid(ours.severity[:, 0]) - torch.sigmoid(theirs.severity[:, 0]))
    return Difference(float(torch.stack(logits).max()), float(torch.cat(unsafe).abs().mean()))


class _Plain(nn.Module):
    """A guard with tensors for inputs and outputs, as the exporter names them."""

    def __init__(self, guard: GuardModel) -> None:
        super().__init__()
        self.guard = guard

    def forward(self, ids: Tensor, mask: Tensor, parts: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.guard(PairBatch(ids, mask, parts)))


def _texts(tokenizer: Any) -> list[PairBatch]:
    """Batches of built-in texts, of several sizes; the first is what a graph is traced with."""
    rows = corpus("exchanges")[::6]
    texts = [TextPair(text_of(row.prompt), row.response) for row in rows if isinstance(row, Exchange)]
    long = TextPair(*(" ".join(filter(None, side)) for side in zip(*texts, strict=True)))
    alone = [TextPair(text.prompt, None) for text in texts[:3]]
    found = [windows[0] for windows in encode_all(tokenizer, [*texts, *alone, long])]
    cuts = (slice(1, 3), slice(1), slice(-1, None), slice(None, 9), slice(-4, None), slice(9, -1))
    return [pad_pairs(found[cut]) for cut in cuts]


def _key(folder: Path, source: Path | str) -> str:
    """Name of all that makes the logits of a guard."""
    own = [hash_file(folder / name) for name in ("model.json", "weights.safetensors")]
    parts = [str(_VERSION), *own, content_hash(Path(resolve(source)))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Yield a fresh folder that becomes `folder` at the end, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder.parent) as temporary:
        fresh = Path(temporary) / "fresh"
        fresh.mkdir()
        yield fresh
        fresh.rename(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says of its own workings; errors still raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
