"""Rows of a prompt and its responses as one batch of tokens, without a model."""

import pytest
import torch

from equipoise.errors import DataError
from equipoise.models.layout import Row, pack, split_rows
from equipoise.objectives.sequence import segment_sums

ROWS = [
    Row([1, 5, 9, 14], [[7, 11, 2, 40, 2], [50, 2]]),
    Row([1, 6, 44], [[12, 13, 2]]),
    Row([1, 30], [[9, 2], [10, 20, 30, 40, 50, 2], [9, 8, 2]]),
]


def test_sums_have_the_first_token_that_differs_and_no_padding() -> None:
    """A known public DPO drops the first diverging token and adds one of the padding (off by one).

    There, log-probabilities that equal the token ids sum to 11+12+9 and 21+9+PAD.
    """
    batch = pack([Row([1, 2, 3], [[10, 11, 12, 9], [20, 21, 9]]), Row([1] * 20, [[5]])], pad_id=999)
    sums = segment_sums(batch.targets.float(), batch.slots, 3)
    assert sums.tolist() == [10 + 11 + 12 + 9, 20 + 21 + 9, 5]
    before = batch.input_ids[batch.rows, batch.predictors].tolist()
    assert before == [3, 10, 11, 12, 3, 20, 21, 1]
    assert batch.position_ids[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 4, 5] + [0] * 11
    assert batch.segments[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2] + [-1] * 11
    assert batch.input_ids[batch.end_rows, batch.end_positions].tolist() == [9, 9, 5]


def test_split_rows_keep_the_order_of_responses() -> None:
    shared, split = pack(ROWS), split_rows(ROWS)
    assert torch.equal(shared.targets, split.targets)
    assert torch.equal(shared.slots, split.slots)
    assert torch.equal(shared.lengths, split.lengths)
    assert split.end_rows.tolist() == list(range(6))
    assert torch.equal(
        shared.input_ids[shared.rows, shared.predictors], split.input_ids[split.rows, split.predictors]
    )


@pytest.mark.parametrize(
    ("row", "what"),
    [(Row([], [[1]]), "prompt"), (Row([1], [[1], []]), "response"), (Row([1], []), "list of responses")],
)
def test_an_empty_part_is_named(row: Row, what: str) -> None:
    with pytest.raises(DataError, match=f"row 1 of the batch: empty {what};"):
        pack([ROWS[0], row])
