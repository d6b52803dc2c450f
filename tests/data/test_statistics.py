"""Counts against a set of records small enough to count by hand."""

import math

import numpy as np
import pytest

from equipoise.data.card import card
from equipoise.data.corpus import PARTS, corpus, corpus_path
from equipoise.data.statistics import Counting, statistics
from equipoise.errors import ConfigError
from equipoise.records import Answer, Exchange, Pair, Prompt
from equipoise.taxonomy import load_taxonomy

SAFE = Answer(response="one two", is_safe=True, severity=0, categories=frozenset(), refusal="full")
DRUGS = Answer(response="one two three", is_safe=False, severity=2, categories=frozenset({"Drugs"}))
BOTH = Answer(response="one", is_safe=False, severity=3, categories=frozenset({"Drugs", "Violence"}))
VIOLENCE = Answer(response="one", is_safe=False, severity=3, categories=frozenset({"Violence"}))
BARE = Answer(response="one two three four")


def pair(number: int, first: Answer, second: Answer, **choices: object) -> Pair:
    return Pair.model_validate(
        {"id": str(number), "prompt": "A prompt?", "answers": (first, second), **choices}
    )


RECORDS = [
    pair(0, SAFE, DRUGS, better=1, safer=0),
    pair(1, SAFE, SAFE, better=0, safer=0),
    pair(2, BOTH, DRUGS, better=0, safer="tie", overall=1),
    pair(3, BARE, SAFE, better=1),
    Exchange(id="4", prompt="a  PROMPT", response="one", categories=frozenset({"Drugs"}), licence="MIT"),
    Prompt(id="5", prompt="Another prompt", is_harmful=True, severity=1),
]


def test_every_number_of_a_small_set() -> None:
    stats = statistics(RECORDS)
    assert (stats.prompts, stats.exchanges, stats.pairs, stats.distinct_prompts) == (1, 1, 4, 2)
    assert stats.licences == {"unknown": 5, "MIT": 1}
    assert stats.refusals == {"none": 0, "partial": 0, "full": 4, "unlabelled": 5}
    labels = stats.response_labels
    assert labels is not None
    assert (labels.n, labels.safe, labels.unsafe, labels.unlabelled) == (9, 4, 4, 1)
    assert labels.safe_share == 0.5
    assert (labels.severity, labels.severity_unlabelled) == ([4, 0, 2, 1], 2)
    assert (labels.categories["Drugs"], labels.categories["Violence"], labels.categories["Cybercrime"]) == (
        4,
        1,
        0,
    )
    assert labels.categories_labelled == 8
    assert tuple(labels.categories) == load_taxonomy("pku19").names
    assert labels.grid.n == 7  # the exchange has no severity
    assert labels.grid.cells["Drugs"] == [0, 0, 2, 1]
    assert labels.grid.share("Drugs", 2) == 2 / 7
    pairs = stats.pair_counts
    assert pairs is not None
    assert (pairs.both_safe, pairs.mixed, pairs.both_unsafe, pairs.unlabelled) == (1, 1, 1, 1)
    assert (pairs.labelled, pairs.ties) == (
        {"better": 4, "safer": 3, "overall": 1},
        {"better": 0, "safer": 1, "overall": 0},
    )
    assert (pairs.both_dimensions, pairs.better_not_safer, pairs.better_not_safer_share) == (2, 1, 0.5)
    assert stats.prompt_words is not None
    assert stats.response_words is not None
    assert (stats.prompt_words.median, stats.response_words.median) == (2, 2)
    assert stats.response_words.percentile_90 == pytest.approx(3.2)  # 1 1 2 2 2 2 3 3 4, at 0.9 x 8
    prompts = stats.prompt_labels
    assert prompts is not None
    assert (prompts.safe, prompts.unsafe, prompts.severity) == (0, 1, [0, 1, 0, 0])


def test_nothing_labelled_is_no_share() -> None:
    stats = statistics([Exchange(id="1", prompt="p", response="r")])
    assert stats.response_labels is not None
    assert stats.response_labels.safe_share is None
    assert stats.response_labels.grid.share("Drugs", 1) is None
    assert (stats.pair_counts, stats.prompt_labels) == (None, None)
    assert statistics([]).response_words is None


def test_names_outside_the_taxonomy_are_counted_last() -> None:
    records = [Exchange(id="1", prompt="p", response="r", categories=frozenset({"Own"}), taxonomy="gone")]
    labels = statistics(records).response_labels
    assert labels is not None
    assert labels.categories == {"Own": 1}


def test_card_says_what_is_counted_and_shows_no_text() -> None:
    secret = Exchange(id="6", prompt="a secret", response="a secret", source="own | odd", licence="MIT")
    text = card(statistics([*RECORDS, secret]), "Small set", "For tests only.")
    assert text.startswith("# Small set\n\nFor tests only.\n")
    assert "secret" not in text
    assert "| own \\| odd | 1 |" in text
    assert "| MIT | 2 |" in text
    assert "| Drugs | 4 | 0 | 0 | 2 | 1 |" in text
    assert "is not the safer one in 1 of 2 pairs with both preferences (50.0%)" in text
    assert "not labelled" in text


def test_shares_are_of_those_that_were_rated_and_profiles_of_those_that_are_flagged() -> None:
    labels = statistics(RECORDS).response_labels
    assert labels is not None
    assert (labels.category_share["Drugs"], labels.category_share["Cybercrime"]) == (4 / 8, 0)
    assert labels.severity_profile["Drugs"] == [0, 0, 2 / 3, 1 / 3]
    assert labels.severity_profile["Cybercrime"] is None
    drugs = frozenset({"Drugs"})
    partly = Exchange(id="7", prompt="p", response="r", categories=frozenset(), rated=drugs)
    labels = statistics([*RECORDS, partly]).response_labels
    assert labels is not None
    assert (labels.category_share["Drugs"], labels.category_share["Violence"]) == (4 / 9, 1 / 8)


def test_correlation_is_over_unsafe_responses_with_categories() -> None:
    labels = statistics(RECORDS).response_labels
    assert labels is not None
    assert labels.correlation is not None
    assert (labels.correlation.n, labels.correlation.names) == (4, ["Violence", "Drugs"])
    assert labels.correlation.conditional == [[1, 1], [1 / 4, 1]]
    assert labels.correlation.phi[0][1] is None  # all have drugs
    safe = statistics([pair(0, SAFE, SAFE)]).response_labels
    assert safe is not None
    assert safe.correlation is None


def test_lengths_by_source_and_safety_equal_numpys_percentiles() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 60, 200).tolist()
    records = [
        Exchange(id=str(n), prompt="p", response="w " * count, is_safe=n % 3 > 0, source="ab"[n % 2])
        for n, count in enumerate(counts)
    ]
    stats = statistics(records)
    groups = {
        "all": (stats.response_words, counts),
        "unsafe": (stats.response_words_by_safety["unsafe"], counts[::3]),
        "b": (stats.by_source["b"].response_words, counts[1::2]),
    }
    for found, words in groups.values():
        assert found is not None
        assert found.n == len(words)
        points = (found.percentile_10, found.percentile_25, found.median, found.percentile_75)
        assert points == pytest.approx(np.percentile(words, [10, 25, 50, 75]))
    assert (stats.by_source["a"].unsafe, stats.by_source["a"].unsafe_share) == (34, 0.34)
    assert "unlabelled" not in stats.response_words_by_safety


def test_records_are_counted_as_they_go_by() -> None:
    counting = Counting()
    assert list(counting.watch(iter(RECORDS))) == RECORDS
    assert counting.result() == statistics(RECORDS)


def test_card_cites_the_sources_it_knows() -> None:
    record = Exchange(id="1", prompt="p", response="r", source="beavertails")
    text = card(statistics([record, *RECORDS]), "Small set")
    assert "- beavertails: Ji et al., BeaverTails" in text
    assert "Cite:" not in card(statistics(RECORDS), "Small set")


def test_card_shows_which_categories_go_together_and_where_help_is_not_safety() -> None:
    more = [pair(10, DRUGS, BOTH, better=1, safer=0), pair(11, DRUGS, VIOLENCE, better=0, safer=0)]
    text = card(statistics([*RECORDS, *more]), "Small set")
    # of 8 responses 7 have drugs, 3 violence, 2 both
    phi = (8 * 2 - 7 * 3) / math.sqrt(7 * 1 * 3 * 5)
    assert f"| Drugs | Violence | {phi:.2f} | 28.6% | 66.7% |" in text
    assert "| both unsafe | 2 | 1 | 50.0% |" in text
    assert "| severities apart by 1 | 2 | 1 | 50.0% |" in text


@pytest.mark.parametrize("name", PARTS)
def test_built_in_corpus_loads_and_holds_its_kind(name: str) -> None:
    records = corpus(name)
    assert records
    assert all(isinstance(record, PARTS[name]) for record in records)


def test_unknown_part_of_the_corpus_gets_the_near_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'pairs'"):
        corpus_path("pair")
