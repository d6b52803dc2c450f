"""The baseline that a guard and a scorer must beat: TF-IDF and logistic regression.

It gets the same training rows, and its regularisation is chosen by cross-validation over prompts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold

from equipoise.data.splits import normalise_prompt
from equipoise.errors import DataError
from equipoise.records import Exchange, Pair, text_of

Floats = NDArray[np.float64]

_GRID = {"C": [0.1, 1.0, 10.0]}
_FOLDS = 5


def unsafe_scores(train: Sequence[Exchange], test: Sequence[Exchange]) -> Floats:
    """Probability that each test response is unsafe, learned from labelled training exchanges, [N].

    Raises:
        DataError: Too little to learn from.
    """
    groups = _prompts(train, "labelled responses")
    weights = vectors()
    x = weights.fit_transform([_text(e) for e in train])
    model = _fit(x, np.array([not e.is_safe for e in train]), groups, intercept=True)
    found: Floats = model.predict_proba(weights.transform([_text(e) for e in test]))[:, 1]
    return found


def safer_scores(train: Sequence[Pair], test: Sequence[Pair]) -> Floats:
    """How much more harmful answer 0 looks than answer 1, [N]; above 0 means answer 1 is safer.

    A linear ranker on the difference of the answers' vectors. Each training pair counts in both
    directions, so there is no preference for a place.

    Raises:
        DataError: Too little to learn from.
    """
    groups = _prompts(train, "pairs with `safer`")
    weights = vectors()
    weights.fit([_text(p.exchange(k)) for p in train for k in (0, 1)])

    def difference(pairs: Sequence[Pair]) -> Any:
        first, second = (weights.transform([_text(p.exchange(k)) for p in pairs]) for k in (0, 1))
        return first - second

    d = difference(train)
    second_is_safer = np.array([p.safer == 1 for p in train])
    model = _fit(
        vstack([d, -d]), np.concatenate([second_is_safer, ~second_is_safer]), groups * 2, intercept=False
    )
    found: Floats = model.decision_function(difference(test))
    return found


def _prompts(rows: Sequence[Exchange] | Sequence[Pair], what: str) -> list[str]:
    prompts = [normalise_prompt(text_of(row.prompt)) for row in rows]
    if len(set(prompts)) < 2:
        raise DataError(f"baseline: {len(prompts)} {what} to train on; expected those of 2 prompts or more")
    return prompts


def vectors() -> TfidfVectorizer:
    """Return what turns texts into vectors, not yet fitted."""
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_features=50_000)


def _fit(x: Any, y: NDArray[np.bool_], groups: Sequence[str], *, intercept: bool) -> Any:
    model = LogisticRegression(max_iter=2000, fit_intercept=intercept)
    count = min(_FOLDS, len(set(groups)))
    # where one side of a fold holds one kind only there is nothing to fit or to rank
    folds = [
        fold
        for fold in GroupKFold(count).split(x, y, groups)
        if all(0 < y[side].sum() < len(side) for side in fold)
    ]
    if not folds:
        raise DataError(
            f"baseline: {len(y)} training rows cannot be cross-validated by prompt;"
            " expected safe and unsafe responses to several prompts"
        )
    search = GridSearchCV(model, _GRID, cv=folds, scoring="roc_auc")
    return search.fit(x, y).best_estimator_


def _text(exchange: Exchange) -> str:
    return f"{text_of(exchange.prompt)}\n{exchange.response}"
