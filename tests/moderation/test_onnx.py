"""An exported guard is the guard: at any size, in any company, and only as long as nothing has changed."""

import copy
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import onnx
import pytest
import torch

from equipoise.errors import MissingExtraError, ModelError
from equipoise.lineage import produce
from equipoise.models.backbone import load_encoder
from equipoise.models.guard import GuardCard, GuardModel, adapt, load_guard_model
from equipoise.models.heads import GuardLogits
from equipoise.models.windows import PROMPT, RESPONSE, PairBatch
from equipoise.moderation.batch import MODERATE, ModerateConfig
from equipoise.moderation.guard import Runtime, load_guard
from equipoise.moderation.onnx import (
    INT8_TOLERANCE,
    TOLERANCE,
    OnnxGuard,
    difference,
    export,
    load_onnx_guard,
)
from equipoise.records import Exchange
from equipoise.taxonomy import load_taxonomy

EXCHANGES = [
    Exchange(id="a", prompt="how do i bake bread", response="mix flour and water"),
    Exchange(id="b", prompt="take a warm coat", response="wait until the dough has doubled " * 30),
    Exchange(id="c", prompt="hi", response=""),
]


class Made(NamedTuple):
    """A guard's folder, the guard and its graphs, which lie in a cache of their own."""

    folder: Path
    cache: Path
    model: GuardModel
    graph: OnnxGuard


def make_guard(encoder: Path, folder: Path, lora_rank: int = 0) -> None:
    """Write a guard with random heads, and random adapters if it is to have any."""
    torch.manual_seed(5)
    card = GuardCard(
        taxonomy=load_taxonomy("pku19"),
        backbone=str(encoder),
        layers=2,
        hidden=8,
        lora_rank=lora_rank,
        targets=("prompt", "response"),
        knows_refusals=True,
    )
    backbone = load_encoder(encoder, device="cpu")
    if lora_rank:
        adapt(backbone.model, lora_rank)
    model = GuardModel(card, backbone)
    for name, parameter in model.trunk.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save(folder)


@pytest.fixture(scope="module", params=["bert", "llama"])
def made(
    request: pytest.FixtureRequest,
    tiny_encoder: Path,
    tiny_llama: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Made]:
    folder, cache = tmp_path_factory.mktemp("guard"), tmp_path_factory.mktemp("cache")
    if request.param == "bert":
        make_guard(tiny_encoder, folder)
    else:
        make_guard(tiny_llama, folder, lora_rank=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUIPOISE_CACHE", str(cache))
        yield Made(folder, cache, load_guard_model(folder, "cpu"), load_onnx_guard(folder))


def windows(model: GuardModel, rows: int, longest: int, seed: int = 0) -> PairBatch:
    """Random windows of different lengths, every third without a response."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.trunk.encoder.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (rows, longest), generator=generator)
    mask, parts = torch.zeros_like(ids), torch.zeros_like(ids)
    for row in range(rows):
        length = longest if row == 0 else int(torch.randint(2, longest + 1, (1,), generator=generator))
        mask[row, :length] = 1
        parts[row, 1:length] = PROMPT
        if row % 3 != 2:
            parts[row, (length + 1) // 2 : length] = RESPONSE
    return PairBatch(ids * mask, mask, parts)


def layer_products(model: GuardModel) -> int:
    """Linear layers of the encoder, less the pooler, which nothing reads."""
    names = [name for name, part in model.trunk.named_modules() if isinstance(part, torch.nn.Linear)]
    return sum("pooler" not in name for name in names)


def apart(one: GuardLogits, other: GuardLogits) -> float:
    return max(float((a - b).abs().max().detach()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("rows", "longest"), [(1, 2), (1, 128), (2, 3), (3, 65), (13, 31)])
def test_a_graph_gives_the_logits_of_the_guard_at_any_size(made: Made, rows: int, longest: int) -> None:
    batch = windows(made.model, rows, longest)
    assert apart(made.model(batch), made.graph(batch)) <= TOLERANCE


def test_the_graph_itself_takes_padded_batches(made: Made) -> None:
    batch = windows(made.model, 7, 40)
    given = {name: part.numpy() for name, part in batch._asdict().items()}
    found = made.graph._session.run(GuardLogits._fields, given)
    assert apart(made.model(batch), GuardLogits(*map(torch.from_numpy, found))) <= TOLERANCE


def test_inputs_and_outputs_have_names_and_free_axes(made: Made) -> None:
    session = made.graph._session
    assert [i.name for i in session.get_inputs()] == ["ids", "mask", "parts"]
    assert all(i.shape == ["rows", "tokens"] for i in session.get_inputs())
    sizes = {"severity": 3, "categories": 19, "refusal": 3}
    assert {o.name: o.shape for o in session.get_outputs()} == {n: ["rows", k] for n, k in sizes.items()}


def test_adapters_are_merged_and_each_layer_is_one_product(made: Made) -> None:
    graph = onnx.load(made.graph.graph, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    assert not any("lora" in name for name in weights)
    products = sum(node.op_type == "MatMul" and node.input[1] in weights for node in graph.node)
    assert products == layer_products(made.model)


def test_verdicts_are_those_of_torch(made: Made) -> None:
    ours, theirs = (
        load_guard(made.folder, "cpu", "onnx")(EXCHANGES),
        load_guard(made.folder, "cpu")(EXCHANGES),
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.severity_probabilities == pytest.approx(b.severity_probabilities, abs=1e-5)
        assert (a.is_safe, a.severity, a.categories) == (b.is_safe, b.severity, b.categories)


@pytest.mark.parametrize("runtime", ["onnx", "onnx-int8"])
def test_a_score_has_nothing_to_do_with_the_company(made: Made, runtime: Runtime) -> None:
    reader = load_guard(made.folder, "cpu", runtime).model
    batch = windows(made.model, 6, 50, seed=1)
    together = reader(batch)
    for row in range(6):
        n = int(batch.mask[row].sum())
        alone = reader(PairBatch(*(part[row : row + 1, :n] for part in batch)))
        assert apart(alone, GuardLogits(*(part[row : row + 1] for part in together))) == 0.0


def test_eight_bits_are_near_and_smaller_and_not_the_same(made: Made) -> None:
    small = load_onnx_guard(made.folder, int8=True)
    found = difference(made.graph, small)
    assert found.unsafe <= INT8_TOLERANCE
    assert found.logit > 1e-5  # far above what fp32 leaves
    kinds = Counter(node.op_type for node in onnx.load(small.graph, load_external_data=False).graph.node)
    assert kinds["MatMulInteger"] == layer_products(made.model)
    assert kinds["Gemm"] + kinds["MatMul"] >= 4  # the heads


def test_weights_in_eight_bits_use_seven(made: Made) -> None:
    """A pair of products of 8 and 7 bits fits 16 with a sign: 2 * 255 * 64 < 2 ** 15."""
    small = load_onnx_guard(made.folder, int8=True)
    whole = onnx.load(small.graph)
    found = [onnx.numpy_helper.to_array(t) for t in whole.graph.initializer if t.name.endswith("_quantized")]
    assert found
    assert all(abs(weights.astype(int)).max() <= 64 for weights in found)


def test_a_guard_is_exported_once(made: Made) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.cache.rglob("*.onnx")}
    again = load_onnx_guard(made.folder)
    assert again.graph == made.graph.graph
    assert {path: path.stat().st_mtime_ns for path in made.cache.rglob("*.onnx")} == before


def test_what_is_not_the_graph_of_this_guard_is_not_taken_for_it(made: Made, tmp_path: Path) -> None:
    copied = tmp_path / "moved"
    shutil.copytree(made.folder, copied)
    (copied / "notes.txt").write_text("calibrated since")
    assert load_onnx_guard(copied).graph == made.graph.graph

    changed = copy.deepcopy(made.model)
    with torch.no_grad():
        changed.heads.severity.bias += 1.0
    assert difference(changed, made.graph).logit == pytest.approx(1.0, abs=1e-4)


class Moody(torch.nn.Module):
    """Features that are no function of the text alone, which no graph can give."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, batch: PairBatch) -> torch.Tensor:
        self.calls += 1
        own = torch.arange(self.width) * self.calls * self.scale
        return torch.sin(batch.ids.sum(1, keepdim=True) + own)


def test_a_graph_that_differs_is_not_kept(tiny_encoder: Path, tmp_path: Path) -> None:
    make_guard(tiny_encoder, tmp_path / "guard")
    model = load_guard_model(tmp_path / "guard", "cpu")
    model.trunk = Moody(model.trunk.width)  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"gives other logits, got a difference of .*at most 1e-04"):
        export(model, tmp_path / "graph")
    assert [path.name for path in tmp_path.iterdir()] == ["guard"]


def test_what_a_killed_export_left_is_removed(made: Made) -> None:
    exported = made.graph.graph.parents[1]
    shutil.rmtree(exported / f"{made.graph.graph.parent.name}-int8", ignore_errors=True)
    (exported / ".exporting-killed").mkdir()
    small = load_onnx_guard(made.folder, int8=True).graph.parent
    assert sorted(path.name for path in exported.iterdir()) == [small.name[:-5], small.name]


def test_a_broken_graph_is_said(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made.cache, tmp_path / "cache")
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "cache"))
    load_onnx_guard(made.folder).graph.write_bytes(b"no graph")
    with pytest.raises(ModelError, match="its graph cannot be read; remove it to make it again"):
        load_onnx_guard(made.folder)


def test_a_file_is_judged_by_the_runtime_that_is_asked_for(made: Made, tmp_path: Path) -> None:
    rows = [{"id": e.id, "prompt": e.prompt, "response": e.response} for e in EXCHANGES]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = {}
    for runtime in set(get_args(Runtime)) - {"torch-compiled"}:  # which takes a minute
        config = ModerateConfig(file=tmp_path / "in.jsonl", guard=made.folder, runtime=runtime)
        produce(tmp_path / f"{runtime}.jsonl", MODERATE, config)
        lines = (tmp_path / f"{runtime}.jsonl").read_text("utf-8").splitlines()
        found[runtime] = torch.tensor([json.loads(line)["severity_probabilities"] for line in lines])
    away = {name: float((scores - found["torch"]).abs().max()) for name, scores in found.items()}
    assert away["onnx"] <= 1e-5 < away["torch-bf16"] < 0.02
    assert 0 < away["onnx-int8"] < 0.05


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own, once compiled
def test_a_compiled_encoder_says_the_same_of_batches_of_any_shape(made: Made) -> None:
    plain, compiled = (load_guard(made.folder, "cpu", name) for name in ("torch", "torch-compiled"))
    for count in (1, 2, len(EXCHANGES)):
        for one, other in zip(plain(EXCHANGES[:count]), compiled(EXCHANGES[:count]), strict=True):
            assert other.severity_probabilities == pytest.approx(one.severity_probabilities, abs=1e-5)


def test_what_cannot_be_had_is_one_line(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no runtime 'onx' \(did you mean 'onnx'\?\); known: torch,"):
        load_guard(made.folder, "cpu", "onx")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="runtime onnx computes on the CPU, got cuda; expected auto or cpu"):
        load_guard(made.folder, "cuda", "onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"^runtime onnx needs the extra 'onnx': pip install"):
        load_guard(made.folder, "cpu", "onnx")
