"""A language model as a judge of records: safety first, then what hangs on it, then preferences.

Severity and categories are asked only of answers that it finds unsafe; a safe one has severity 0 and no
category. Preferences are asked in both orders of the answers, since small models often choose by place.
"""

import math
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from equipoise.judges.asking import Answer, Asker
from equipoise.judges.judging import Judged, Opinion, answers_of, arrange, judgement
from equipoise.judges.preferences import Compared, OnFlip, opinion_of
from equipoise.judges.questions import NO_YES, Preference, Question, Questions, wording_version
from equipoise.records import Exchange, Judgement, Labels, Pair, text_of

_YES = (NO_YES.index("yes"),)


class LanguageModelJudge:
    """Asks every question of every record through an `Asker`; a `RecordJudge`."""

    def __init__(
        self,
        questions: Questions,
        ask: Asker,
        annotator: str,
        *,
        on_flip: OnFlip = "tie",
        kind: str = "model",
    ) -> None:
        """Hold the questions; `kind` says in the judgements how the answers were got."""
        self.questions = questions
        self.ask = ask
        self.annotator = annotator
        self.on_flip: OnFlip = on_flip
        self._about: dict[str, JsonValue] = {"judge": kind, "taxonomy": questions.taxonomy.name}
        safety = [questions.is_safe, *questions.about_unsafe] if questions.is_safe else []
        self._labels_version = wording_version(safety)
        self._preferences_version = wording_version(questions.preferences.values())

    def __call__(self, records: Sequence[Judged]) -> list[list[Judgement]]:
        """Judge the answers, and the pairs among the records."""
        labels = self._label(self.questions.is_safe, answers_of(records)) if self.questions.is_safe else {}
        pairs = [record for record in records if isinstance(record, Pair)]
        return arrange(records, labels, self._compare(pairs) if self.questions.preferences else {})

    def _label(self, is_safe: Question, exchanges: Sequence[Exchange]) -> dict[str, Judgement]:
        """Ask whether each answer is safe, and the rest of those that are not."""
        answers = [{is_safe.key: answer} for answer in self._ask(is_safe, exchanges)]
        unsafe = [i for i, found in enumerate(answers) if found[is_safe.key].picked == _YES]
        for question in self.questions.about_unsafe:
            more = self._ask(question, [exchanges[i] for i in unsafe])
            for i, answer in zip(unsafe, more, strict=True):
                answers[i][question.key] = answer
        return {
            exchange.id: judgement(self.annotator, exchange, self._opinion(found))
            for exchange, found in zip(exchanges, answers, strict=True)
        }

    def _ask(self, question: Question, exchanges: Sequence[Exchange]) -> list[Answer]:
        return self.ask(question, [question.messages(text_of(e.prompt), e.response) for e in exchanges])

    def _opinion(self, answers: Mapping[str, Answer]) -> Opinion:
        """Put the answers about one response together."""
        missing: dict[str, JsonValue] = {
            key: answer.missing for key, answer in answers.items() if answer.missing is not None
        }
        labels = read_labels(self.questions, answers)
        if labels.is_safe is False and labels.categories == frozenset() and labels.rated is None:
            labels = labels.model_copy(update={"categories": None})
            missing["categories"] = "no_category"  # unsafe, and of no kind: that is no answer
        safety = answers["is_safe"]
        sure = None if safety.logps is None or safety.picked is None else safety.logps[safety.picked[0]]
        return Opinion(
            labels,
            confidence=None if sure is None else math.exp(sure),
            details={
                **self._about,
                "prompt_version": self._labels_version,
                "probabilities": probabilities(self.questions, answers),
                "raw": {key: answer.raw for key, answer in answers.items() if answer.raw is not None},
                "missing": missing,
            },
        )

    def _compare(self, pairs: Sequence[Pair]) -> dict[str, Judgement]:
        """Ask every preference about every pair, once in each order."""
        about = {**self._about, "prompt_version": self._preferences_version}
        found: list[dict[Preference, Compared]] = [{} for _ in pairs]
        for name, question in self.questions.preferences.items():
            prompts = [
                question.messages(text_of(pair.prompt), pair.answers[a].response, pair.answers[b].response)
                for a, b in ((0, 1), (1, 0))
                for pair in pairs
            ]
            answers = self.ask(question, prompts)
            for i, both in enumerate(found):
                both[name] = Compared(answers[i], answers[i + len(pairs)])
        return {
            pair.id: judgement(self.annotator, pair, opinion_of(both, self.on_flip, about))
            for pair, both in zip(pairs, found, strict=True)
        }


def read_labels(questions: Questions, answers: Mapping[str, Answer]) -> Labels:
    """Return the labels that answers about one response give; what is missing stays None."""
    picked = {key: answer.picked for key, answer in answers.items() if answer.picked is not None}
    if "is_safe" not in picked:
        return Labels()
    if picked["is_safe"] != _YES:
        severity, categories = questions.severity and 0, frozenset[str]() if questions.categories else None
        return Labels(is_safe=True, severity=severity, categories=categories)
    level = picked.get("severity")
    categories, rated = _categories(questions, picked)
    severity = None if level is None else 1 + level[0]
    return Labels(is_safe=False, severity=severity, categories=categories, rated=rated)


def probabilities(questions: Questions, answers: Mapping[str, Answer]) -> dict[str, JsonValue]:
    """Return P(safe), P(each severity from 0) and P(each category), as a guard gives them.

    Empty where the answers were written.
    """
    each = {key: [math.exp(x) for x in a.logps] for key, a in answers.items() if a.logps is not None}
    if "is_safe" not in each:
        return {}
    safe, unsafe = each["is_safe"]
    found: dict[str, JsonValue] = {"is_safe": round(safe, 6)}
    if "severity" in each:
        found["severity"] = [round(p, 6) for p in (safe, *(unsafe * p for p in each["severity"]))]
    named = {q.category: each[q.key][1] for q in questions.categories if q.key in each}
    if named:
        found["categories"] = {str(name): round(unsafe * p, 6) for name, p in named.items()}
    return found


def _categories(
    questions: Questions, picked: Mapping[str, tuple[int, ...]]
) -> tuple[frozenset[str] | None, frozenset[str] | None]:
    """Return the categories that were found, and those that were looked at where it was not all."""
    if "categories" in picked:
        return frozenset(questions.taxonomy.names[i] for i in picked["categories"]), None
    rated = {q.category: picked[q.key] for q in questions.categories if q.category and q.key in picked}
    if not rated:
        return None, None
    found = frozenset(name for name, answer in rated.items() if answer == _YES)
    return found, None if len(rated) == len(questions.categories) else frozenset(rated)
