"""Grades of propositions by a language model: the probability of yes to the question of each."""

from collections.abc import Sequence

import numpy as np

from equipoise.errors import RunStoppedError
from equipoise.judges.questions import NO_YES, Question
from equipoise.protocols import OptionScorer
from equipoise.records import Exchange, text_of
from equipoise.rewards.rules import Grades, RuleSet


class PropositionGrader:
    """A `rewards.rules.Grader` that asks one question per proposition; nothing needs to be trained."""

    def __init__(self, rules: RuleSet, scorer: OptionScorer) -> None:
        """Ask the questions of `rules`, whose options are no and yes."""
        self.scorer = scorer
        self.questions = tuple(
            Question("proposition", "proposition.j2", NO_YES, category=p.name, values={"proposition": p})
            for p in rules.propositions
        )

    def __call__(self, exchanges: Sequence[Exchange]) -> Grades:
        """Return the probability of yes, [N, P].

        Raises:
            RunStoppedError: No answer came: the prompt did not fit, or the server gave none.
        """
        grades = np.zeros((len(exchanges), len(self.questions)))
        for place, question in enumerate(self.questions):
            prompts = [question.messages(text_of(e.prompt), e.response) for e in exchanges]
            grades[:, place] = [np.exp(no_yes[1]) for no_yes in self.scorer(prompts, question.options)]
        if np.isnan(grades).any():
            row, place = np.argwhere(np.isnan(grades))[0]
            raise RunStoppedError(
                f"grading: '{exchanges[row].id}': no answer to {self.questions[place].key};"
                " its prompt did not fit, or the server gave none"
            )
        return grades
