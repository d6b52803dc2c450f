"""The decode loop against transformers' own, against the distribution it samples, and against itself."""

import math
from pathlib import Path

import pytest
import torch
from scipy import stats
from transformers import LlamaForCausalLM

from equipoise.errors import RunStoppedError
from equipoise.generation.decoding import Written, choose, decode, prefill_groups
from equipoise.protocols import Sampling

PROMPTS = [[1, 30, 31], [1, 40, 41, 42, 43, 44, 45, 46, 47], [1], [1, 50, 51, 52, 53], [1, 60, 61, 62, 63]]
KEYS = ["a", "b", "c", "d", "e"]
NEVER: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


def run(
    model: LlamaForCausalLM,
    sampling: Sampling,
    prompts: list[list[int]] = PROMPTS,
    keys: list[str] = KEYS,
    *,
    stop_ids: frozenset[int] = NEVER,
    batch_size: int = 8,
) -> list[list[Written]]:
    return decode(model, prompts, keys, sampling, stop_ids=stop_ids, pad_id=2, batch_size=batch_size)


def reference(model: LlamaForCausalLM, prompt: list[int], new_tokens: int) -> list[int]:
    """Greedy continuation by transformers, one prompt at a time."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=2,
    )
    return out[0, len(prompt) :].tolist()


def test_greedy_equals_transformers_for_ragged_prompts(model: LlamaForCausalLM) -> None:
    expected = [reference(model, prompt, 20) for prompt in PROMPTS]
    assert len({tuple(e) for e in expected}) == len(PROMPTS)  # the prompts do matter
    assert run(model, Sampling(max_new_tokens=20)) == [[Written(e, None)] for e in expected]


def test_a_stop_token_ends_its_row_and_no_other(model: LlamaForCausalLM) -> None:
    free = [reference(model, prompt, 20) for prompt in PROMPTS]
    stop_ids = frozenset({free[0][4], free[3][9]})
    expected = []
    for ids in free:
        end = next((i for i, token in enumerate(ids) if token in stop_ids), None)
        expected.append([Written(ids[:end], None if end is None else ids[end])])
    assert len({len(e[0].ids) for e in expected}) > 2  # rows leave at different steps
    assert run(model, Sampling(max_new_tokens=20), stop_ids=stop_ids) == expected


def test_rows_that_ended_are_not_computed(model: LlamaForCausalLM) -> None:
    stop_ids = frozenset({reference(model, PROMPTS[0], 5)[4]})
    sizes: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    written = run(model, Sampling(max_new_tokens=20), stop_ids=stop_ids)
    hook.remove()
    lengths = [len(w[0].ids) for w in written]
    # the prefill, then one pass per token that is needed to choose the next one
    assert sizes == [5] + [sum(n > step for n in lengths) for step in range(19)]
    assert sizes[-1] < 5


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=16),
        Sampling(max_new_tokens=16, temperature=1.0, samples=4, seed=3),
        Sampling(max_new_tokens=16, temperature=0.7, top_p=0.8, samples=2),
    ],
)
def test_a_response_does_not_depend_on_the_batch(
    model: LlamaForCausalLM, sampling: Sampling, batch_size: int
) -> None:
    stop_ids = frozenset(range(100, 120))
    alone = [
        run(model, sampling, [prompt], [key], stop_ids=stop_ids, batch_size=64)[0]
        for prompt, key in zip(PROMPTS, KEYS, strict=True)
    ]
    assert run(model, sampling, stop_ids=stop_ids, batch_size=batch_size) == alone
    backwards = run(model, sampling, PROMPTS[::-1], KEYS[::-1], stop_ids=stop_ids, batch_size=batch_size)
    assert backwards[::-1] == alone


def test_the_seed_the_key_and_the_sample_each_change_the_response(model: LlamaForCausalLM) -> None:
    def texts(seed: int, key: str) -> list[tuple[int, ...]]:
        sampling = Sampling(max_new_tokens=12, temperature=1.0, samples=3, seed=seed)
        return [tuple(w.ids) for w in run(model, sampling, [PROMPTS[0]], [key])[0]]

    first = texts(0, "a")
    assert texts(0, "a") == first
    assert len({*first, *texts(1, "a"), *texts(0, "b")}) == 9


def test_more_samples_begin_with_the_same_ones(model: LlamaForCausalLM) -> None:
    few = run(model, Sampling(max_new_tokens=8, temperature=1.0, samples=2))
    many = run(model, Sampling(max_new_tokens=8, temperature=1.0, samples=5), batch_size=2)
    assert [responses[:2] for responses in many] == few


def test_the_samples_of_a_prompt_share_its_prefill(model: LlamaForCausalLM) -> None:
    shapes: list[tuple[int, ...]] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    run(model, Sampling(max_new_tokens=3, temperature=1.0, samples=4), [PROMPTS[1]], ["b"])
    hook.remove()
    assert shapes == [(1, 9), (4, 1), (4, 1)]


def exponentials(rows: int, size: int) -> torch.Tensor:
    return torch.empty(rows, size).exponential_(generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_frequencies_match_the_probabilities(temperature: float) -> None:
    logits, draws = [1.0, 0.1, -0.2, -0.5, -1.5], 20_000
    weights = [math.exp(value / temperature) for value in logits]
    expected = [draws * w / sum(weights) for w in weights]
    rows = torch.tensor(logits).expand(draws, -1)
    tokens = choose(rows, Sampling(temperature=temperature), exponentials(draws, 5))
    assert stats.chisquare(tokens.bincount(minlength=5).tolist(), expected).pvalue > 0.001


def test_first_tokens_of_a_model_match_its_probabilities(model: LlamaForCausalLM) -> None:
    draws, prompt = 2000, PROMPTS[1]
    with torch.inference_mode():
        probabilities = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
    sampling = Sampling(max_new_tokens=1, temperature=1.0, samples=draws)
    written = run(model, sampling, [prompt], ["p"], batch_size=draws)
    counts = torch.tensor([w.ids[0] for w in written[0]]).bincount(minlength=len(probabilities))
    groups = torch.arange(len(probabilities)) % 20  # enough in each for the test to hold
    observed = torch.zeros(20, dtype=torch.float64).index_add(0, groups, counts.double())
    expected = torch.zeros(20, dtype=torch.float64).index_add(0, groups, probabilities * draws)
    assert stats.chisquare(observed.tolist(), expected.tolist()).pvalue > 0.001


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.3, [0.6]), (0.59, [0.6]), (0.61, [0.6, 0.25]), (0.84, [0.6, 0.25]), (0.9, [0.6, 0.25, 0.1])],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: list[float]) -> None:
    draws = 20_000
    # in the vocabulary the likeliest tokens stand at 3, 0, 2, 1
    logits = torch.tensor([0.25, 0.05, 0.1, 0.6]).log().expand(draws, -1)
    tokens = choose(logits, Sampling(temperature=1.0, top_p=top_p), exponentials(draws, 4))
    counts = tokens.bincount(minlength=4)[[3, 0, 2, 1]].tolist()
    assert counts[len(kept) :] == [0] * (4 - len(kept))
    shares = [count / draws for count in counts[: len(kept)]]
    assert shares == pytest.approx([p / sum(kept) for p in kept], abs=0.015)  # four standard errors


def test_a_nucleus_wider_than_the_head_is_found_too() -> None:
    draws, size = 4000, 1000
    logits = torch.zeros(draws, size)
    logits[:, 400:500] = -1e4  # never
    logits[1::2, 7] = 30.0  # every other row needs one token, the rest need 810 of 900 equal ones
    tokens = choose(logits, Sampling(temperature=1.0, top_p=0.9), exponentials(draws, size))
    assert tokens[1::2].unique().tolist() == [7]
    # a stable sort keeps the order of equal tokens: the first 810 that can be chosen, and no others
    drawn = set(tokens[::2].tolist())
    assert drawn <= {*range(400), *range(500, 910)}
    assert len(drawn) == pytest.approx(810 * (1 - math.exp(-2000 / 810)), rel=0.05)


def test_prompts_are_read_longest_first_under_a_budget() -> None:
    assert prefill_groups([5, 50, 6, 51], batch_size=3) == [[3, 1, 2], [0]]
    assert prefill_groups([900, 5, 700, 3000, 600], batch_size=8) == [[3], [0, 2], [4, 1]]
    assert prefill_groups([], batch_size=4) == []


def test_the_next_response_takes_the_place_of_one_that_ended(model: LlamaForCausalLM) -> None:
    sampling = Sampling(max_new_tokens=24, temperature=1.0, samples=6, seed=2)
    shapes: list[tuple[int, ...]] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prompts, keys = [PROMPTS[i] for i in (0, 1, 3, 4)], KEYS[:4]
    written = run(model, sampling, prompts, keys, stop_ids=frozenset(range(100, 140)), batch_size=4)
    hook.remove()
    steps = [rows for rows, tokens in shapes if tokens == 1]
    lengths = [len(w.ids) for responses in written for w in responses]
    assert len(set(lengths)) > 4
    assert sum(steps) == sum(n if n < 24 else 23 for n in lengths)  # only what is needed is computed
    # full until nothing waits, and only then ever fewer
    assert steps == sorted(steps, reverse=True)
    assert steps.count(4) >= 0.6 * len(steps)
    assert [shape for shape in shapes if shape[1] > 1] == [(4, 9)]


@pytest.mark.parametrize("batch_size", [2, 16])
def test_log_probabilities_are_those_of_the_model(model: LlamaForCausalLM, batch_size: int) -> None:
    sampling = Sampling(max_new_tokens=16, temperature=0.7, top_p=0.9, samples=3)
    stop_ids = frozenset(range(100, 130))
    written = decode(
        model, PROMPTS, KEYS, sampling, stop_ids=stop_ids, pad_id=2, batch_size=batch_size, with_logps=True
    )
    assert {w.stop is None for responses in written for w in responses} == {True, False}
    for prompt, responses in zip(PROMPTS, written, strict=True):
        for response in responses:
            ids = response.ids + ([] if response.stop is None else [response.stop])
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double()
            expected = logits.log_softmax(-1)[range(len(ids)), ids]
            torch.testing.assert_close(
                torch.tensor(response.logps, dtype=torch.float64), expected, rtol=0, atol=2e-5
            )
    assert [[w._replace(logps=()) for w in many] for many in written] == run(
        model, sampling, stop_ids=stop_ids, batch_size=batch_size
    )


def test_a_broken_model_stops_the_run(tiny_llama: Path) -> None:
    broken = LlamaForCausalLM.from_pretrained(tiny_llama).eval()
    broken.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(RunStoppedError, match="no numbers"):
        run(broken, Sampling(max_new_tokens=2))
