"""What rows and outcomes count for: even classes, and labels that cross-validation doubts."""

import pytest
import torch

from equipoise.models.windows import TextPair
from equipoise.training.guard_rows import GuardTargets
from equipoise.training.guard_weights import balanced, doubted, likely_errors


def targets(passed: list[list[float]], failed: list[list[float]]) -> GuardTargets:
    count = len(passed)
    return GuardTargets(
        torch.tensor(passed),
        torch.tensor(failed),
        torch.tensor([[1.0, 0, 0]] + [[0.0, 0, 0]] * (count - 1)),
        torch.tensor([[1.0, 1, 0]] * count),
        torch.tensor([[1.0, 0, 0]] * (count - 1) + [[0.0, 1, 0]]),
        torch.zeros(count, dtype=torch.long),
    )


FOUR = targets(
    [[1, 1], [0, 0], [0, 0], [0, 0]],
    [[0, 0], [1, 0], [1, 0], [0, 0]],
)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_an_outcome_is_weighed_by_how_rare_it_is(power: float) -> None:
    found = balanced(FOUR, power)
    rare, common = (3 / 2 / 1) ** power, (3 / 2 / 2) ** power
    torch.testing.assert_close(found.passed, torch.tensor([[rare, 1], [0, 0], [0, 0], [0, 0]]))
    torch.testing.assert_close(found.failed, torch.tensor([[0, 0], [common, 0], [common, 0], [0, 0]]))
    rare, common = (4 / 2 / 1) ** power, (4 / 2 / 3) ** power
    expected = [[rare, 1, 0]] + [[common, 1, 0]] * 3  # category 1 never occurs, category 2 was never rated
    torch.testing.assert_close(found.category_weight, torch.tensor(expected))
    torch.testing.assert_close(found.refusal, torch.tensor([[common, 0, 0]] * 3 + [[0, rare, 0]]))
    assert torch.equal(found.categories, FOUR.categories)


def test_at_power_one_outcomes_count_alike_in_sum_and_labels_once_on_average() -> None:
    found = balanced(FOUR, 1.0)
    assert found.passed[:, 0].sum() == found.failed[:, 0].sum() == 1.5
    assert found.refusal.sum(0).tolist() == [2, 2, 0]
    assert found.category_weight[:, 0].sum().item() == pytest.approx(4)


def test_a_doubted_row_keeps_its_refusal() -> None:
    found = doubted(FOUR, torch.tensor([True, False, True, False]), 0.25)
    assert found.passed.tolist() == [[0.25, 0.25], [0, 0], [0, 0], [0, 0]]
    assert found.failed[:, 0].tolist() == [0, 1, 0.25, 0]
    assert found.category_weight[:, 0].tolist() == [0.25, 1, 0.25, 1]
    assert torch.equal(found.refusal, FOUR.refusal)
    assert found.unsafe.tolist() == FOUR.unsafe.tolist()


def rows(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[TextPair]]:
    """Features that tell the label, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    unsafe = torch.arange(count) % 2
    features = 4.0 * unsafe[:, None] - 2 + 0.2 * torch.randn(count, 4, generator=generator)
    return features, unsafe, [TextPair(f"prompt {n}", "answer") for n in range(count)]


def test_flipped_labels_are_found() -> None:
    features, unsafe, texts = rows(300)
    flipped = torch.zeros(300, dtype=torch.bool)
    flipped[::15] = True
    found = likely_errors(features, torch.where(flipped, 1 - unsafe, unsafe), texts)
    assert (found & flipped).sum() >= 16  # of 20
    assert (found & ~flipped).sum() == 0


def test_of_clean_labels_next_to_none_is_doubted() -> None:
    features, unsafe, texts = rows(300, seed=1)
    assert likely_errors(features, unsafe, texts).sum() == 0


def test_what_is_not_labelled_is_not_doubted() -> None:
    features, unsafe, texts = rows(200)
    unknown = torch.arange(200) < 60
    flipped = torch.arange(200) >= 190
    labels = torch.where(unknown, -1, torch.where(flipped, 1 - unsafe, unsafe))
    found = likely_errors(features, labels, texts)
    assert not found[unknown].any()
    assert found[flipped].sum() >= 7


def test_rows_of_one_prompt_do_not_vouch_for_each_other() -> None:
    """All ten rows of four prompts are flipped, and features tell the prompts apart."""
    prompt = torch.arange(600) // 10
    label = prompt % 2
    topic = torch.nn.functional.one_hot(prompt).float().repeat(1, 10)
    features = torch.cat([2.0 * label[:, None] - 1, topic], dim=1)
    flipped = prompt < 4
    given = torch.where(flipped, 1 - label, label)
    found = likely_errors(features, given, [TextPair(f"prompt {n}", "answer") for n in prompt.tolist()])
    assert torch.equal(found, flipped)
    apart = likely_errors(features, given, [TextPair(f"prompt {n}", "answer") for n in range(600)])
    assert not apart.any()  # nine rows like it stand in the folds it is judged by


def test_prompts_and_responses_are_judged_apart() -> None:
    """What tells a harmful prompt is the opposite of what tells a harmful answer."""
    features, unsafe, texts = rows(400)
    alone = torch.arange(400) >= 200
    labels = torch.where(alone, 1 - unsafe, unsafe)
    mixed = [TextPair(t.prompt, None) if is_alone else t for t, is_alone in zip(texts, alone, strict=True)]
    assert likely_errors(features, labels, mixed).sum() == 0
    assert likely_errors(features, labels, texts).sum() > 30


def test_too_few_prompts_say_nothing() -> None:
    features, unsafe, texts = rows(8)
    assert not likely_errors(features, unsafe, texts).any()
