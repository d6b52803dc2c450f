"""Message-wise losses: the mask against a walk in plain floats, and what is learned through it."""

import math

import pytest
import torch
from torch import Tensor

from equipoise.objectives.message_wise import (
    MESSAGE_WISE_LOSSES,
    TokenPairs,
    adpo,
    best_of_n,
    best_of_n_mask,
    masked_pairs,
    masked_sft,
    message_mask,
    message_signs,
    score_increments,
)
from equipoise.objectives.preference import PairLogps, dpo


def signs_of(
    responses: list[list[float]], baseline: float | None = None, threshold: float = 0.3
) -> list[list[int]]:
    """The rule as it is told: walk along each response and turn only where the score is clearly beyond."""
    flat = [score for response in responses for score in response]
    mean = sum(flat) / len(flat)
    tau = threshold * math.sqrt(sum((score - mean) ** 2 for score in flat) / len(flat))
    b = mean if baseline is None else baseline
    found = []
    for response in responses:
        state, signs = 0, []
        for number, score in enumerate(response):
            if score > b + tau or (number == 0 and score > b):
                state = 1
            elif score < b - tau or (number == 0 and score < b):
                state = -1
            signs.append(state)
        found.append(signs)
    return found


def flat(responses: list[list[float]]) -> tuple[Tensor, Tensor]:
    scores = torch.tensor([s for response in responses for s in response], dtype=torch.float64)
    slots = torch.tensor([i for i, response in enumerate(responses) for _ in response])
    return scores, slots


def drawn(seed: int, responses: int = 12) -> list[list[float]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (responses,), generator=generator).tolist()
    return [torch.randn(n, generator=generator, dtype=torch.float64).tolist() for n in lengths]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.5])
@pytest.mark.parametrize("baseline", [None, 0.0, -0.4])
def test_signs_are_those_of_a_walk_over_the_tokens(
    seed: int, threshold: float, baseline: float | None
) -> None:
    responses = drawn(seed)
    expected = [sign for row in signs_of(responses, baseline, threshold) for sign in row]
    found = message_signs(*flat(responses), baseline=baseline, threshold=threshold)
    assert found.tolist() == expected


def test_a_small_dip_does_not_end_a_message_and_a_clear_one_does() -> None:
    scores = torch.tensor([1.0, -0.1, 1.0, -1.0, 0.1, -1.0])
    slots = torch.zeros(6, dtype=torch.long)
    assert message_signs(scores, slots, baseline=0.0).tolist() == [1, 1, 1, -1, -1, -1]
    assert message_signs(scores, slots, baseline=0.0, threshold=0.0).tolist() == [1, -1, 1, -1, 1, -1]


def test_a_response_does_not_inherit_the_sign_of_the_one_before() -> None:
    scores, slots = torch.tensor([2.0, 2.0, -0.01, 0.01]), torch.tensor([0, 0, 1, 1])
    assert message_signs(scores, slots, baseline=0.0).tolist() == [1, 1, -1, -1]


def test_equal_scores_have_no_sign_and_no_tokens_are_no_error() -> None:
    assert message_signs(torch.ones(3), torch.tensor([0, 0, 1])).tolist() == [0, 0, 0]
    assert message_signs(torch.empty(0), torch.empty(0, dtype=torch.long)).tolist() == []


def test_chosen_keep_good_messages_and_rejected_bad_ones() -> None:
    scores = torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0, -1.0])
    kept = message_mask(scores, torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([True, False]))
    assert kept.tolist() == [True, True, False, False, True, True]


def test_a_response_of_which_nothing_would_count_counts_whole() -> None:
    scores, slots = torch.tensor([-1.0, -1.0, 1.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1, 2])
    kept = message_mask(scores, slots, torch.tensor([True, False, True]))
    assert kept.all()
    assert message_mask(torch.ones(2), torch.tensor([0, 1]), torch.tensor([True, False])).all()


def test_increments_sum_to_the_score_of_the_whole_response() -> None:
    prefix_scores, slots = flat([[0.5, 0.75, -1.0], [2.0, 4.0]])
    before = torch.tensor([0.25, 1.0], dtype=torch.float64)
    found = score_increments(prefix_scores, slots, before)
    assert found.tolist() == [0.25, 0.25, -1.75, 1.0, 2.0]


def tokens(seed: int, pairs: int = 5, all_kept: bool = False) -> TokenPairs:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (2 * pairs,), generator=generator)
    count = int(lengths.sum())
    logps, ref_logps = -4 * torch.rand(2, count, generator=generator, dtype=torch.float64)
    kept = torch.rand(count, generator=generator) < 0.5
    return TokenPairs(
        logps, ref_logps, torch.arange(2 * pairs).repeat_interleave(lengths), kept | all_kept, pairs
    )


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


@pytest.mark.parametrize("beta", [0.1, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_adpo_matches_formula(seed: int, beta: float) -> None:
    batch = tokens(seed)
    expected = []
    for pair in range(batch.pairs):
        h = 0.0
        for logp, ref, slot, kept in zip(*(column.tolist() for column in batch[:4]), strict=True):
            if kept and slot // 2 == pair:
                h += (logp - ref) * (1 if slot % 2 == 0 else -1)
        expected.append(-log_sigmoid(beta * h))
    found = adpo(batch, beta=beta)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_every_loss_has_a_formula() -> None:
    assert {"adpo": adpo} == MESSAGE_WISE_LOSSES


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_adpo_with_every_token_is_dpo(smoothing: float) -> None:
    batch = tokens(0, all_kept=True)

    def sums(values: Tensor) -> Tensor:
        return torch.stack([values[batch.slots == r].sum() for r in range(2 * batch.pairs)])

    of_policy, of_reference, length = (
        sums(batch.logps),
        sums(batch.ref_logps),
        sums(torch.ones_like(batch.logps)),
    )
    zero = torch.zeros(batch.pairs, dtype=torch.float64)
    whole = PairLogps(
        of_policy[0::2],
        of_policy[1::2],
        of_reference[0::2],
        of_reference[1::2],
        length[0::2],
        length[1::2],
        zero,
        zero,
    )
    found = adpo(batch, label_smoothing=smoothing)
    torch.testing.assert_close(found, dpo(whole, label_smoothing=smoothing), rtol=1e-13, atol=0)
    torch.testing.assert_close(masked_pairs(batch)[:8], whole[:8], rtol=1e-13, atol=0)


def test_a_masked_token_has_a_gradient_of_exactly_zero_even_where_it_is_infinite() -> None:
    batch = tokens(1)
    logps = batch.logps.clone()
    logps[(~batch.kept).nonzero()[0]] = -math.inf
    logps.requires_grad_(True)
    adpo(batch._replace(logps=logps)).sum().backward()
    assert logps.grad is not None
    assert (logps.grad[~batch.kept] == 0).all()
    is_chosen = batch.slots[batch.kept] % 2 == 0
    assert ((logps.grad[batch.kept] < 0) == is_chosen).all()


def test_fine_tuning_has_one_loss_for_each_token_that_counts() -> None:
    logps = torch.tensor([-1.0, -math.inf, -3.0], requires_grad=True)
    losses = masked_sft(logps, torch.tensor([True, False, True]))
    assert losses.tolist() == [1.0, 3.0]
    losses.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [-1.0, 0.0, -1.0]


def test_best_of_n_imitates_the_good_messages_of_the_best_response_only() -> None:
    scores = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0])
    slots = torch.tensor([0, 0, 1, 1, 2, 2])
    rewards, prompts = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([7, 7, 3])
    assert best_of_n(rewards, prompts).tolist() == [True, False, True]
    kept = best_of_n_mask(scores, slots, rewards, prompts)
    assert kept.tolist() == [True, False, False, False, True, True]  # the last has no good one: whole


CLEAN, BAD = 4, 2  # tokens: a clean opening, then a bad end


class Tabular:
    """A policy over two continuations of one prompt, each token with logits of its own: 6 tokens, 8 words."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.words = torch.randint(0, 8, (2, CLEAN + BAD), generator=generator)
        self.words[1, 0] = (self.words[0, 0] + 1) % 8  # they part at the first word
        self.logits = torch.zeros(2, CLEAN + BAD, 8, dtype=torch.float64)

    def logps(self) -> Tensor:
        """Log-probabilities of every token, [2, 6]; the first word of both is drawn from one distribution."""
        logits = torch.cat([self.logits[:1, :1].expand(2, 1, 8), self.logits[:, 1:]], dim=1)
        return logits.log_softmax(-1).gather(-1, self.words[..., None])[..., 0]

    def train(self, kept: Tensor, steps: int = 150) -> Tensor:
        """Log-probabilities after training on the one pair."""
        ref = self.logps().flatten()
        self.logits.requires_grad_(True)
        optimiser = torch.optim.SGD([self.logits], lr=2.0)
        slots = torch.tensor([0, 1]).repeat_interleave(CLEAN + BAD)
        for _ in range(steps):
            optimiser.zero_grad()
            adpo(TokenPairs(self.logps().flatten(), ref, slots, kept, 1), beta=0.5).sum().backward()
            optimiser.step()
        return self.logps().detach() - ref.view(2, -1)


def test_adpo_keeps_the_clean_opening_of_a_rejected_response_where_dpo_does_not() -> None:
    good, bad = [1.0] * CLEAN, [-1.0] * BAD
    scores = torch.tensor([*good, *good[:BAD], *good, *bad])  # the chosen one is good to its end
    slots = torch.tensor([0, 1]).repeat_interleave(CLEAN + BAD)
    kept = message_mask(scores, slots, torch.tensor([True, False]))
    assert kept.tolist() == [True] * (CLEAN + BAD) + [False] * CLEAN + [True] * BAD

    by_dpo = Tabular().train(torch.ones_like(kept))
    by_adpo = Tabular().train(kept)
    opening = slice(1, CLEAN)  # after the first word, where choosing one answer leaves less for the other
    assert (by_adpo[1, opening] == 0).all()
    assert (by_dpo[1, opening] < -0.5).all()
    for moved in (by_dpo, by_adpo):
        assert (moved[1, CLEAN:] < -0.5).all()
        assert (moved[0] > 0.5).all()
    assert by_adpo[1, CLEAN:].sum() < by_dpo[1, CLEAN:].sum()


def test_adpo_does_not_learn_the_bad_end_of_a_chosen_response_where_dpo_does() -> None:
    good, bad = [1.0] * CLEAN, [-1.0] * BAD
    slots = torch.tensor([0, 1]).repeat_interleave(CLEAN + BAD)
    kept = message_mask(torch.tensor([*good, *bad, *bad, *bad, *bad]), slots, torch.tensor([True, False]))
    by_dpo = Tabular().train(torch.ones_like(kept))
    by_adpo = Tabular().train(kept)
    assert (by_dpo[0, CLEAN:] > 0.5).all()
    assert (by_adpo[0, CLEAN:] == 0).all()
    assert (by_adpo[0, :CLEAN] > 0.5).all()
