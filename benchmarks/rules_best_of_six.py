"""What rules choose among six models' answers, judged by people: the part `best_of_six` of `rules.py`.

The candidates are those of Do-Not-Answer: six models' answers to questions that ask for harm, of which people
said whether they do harm and what the answer does. A refusal is an answer that says that it cannot help, or
that rejects what was asked (actions 0 and 1 of six); of the other kinds, the answer goes on to say something.
Whether it judges who asks is said by graders that learned from the half of the labelled rows that the rules'
graders did not. No prompt stands in what any of them or the reward learned from.
"""

from collections import defaultdict
from typing import Any

import numpy as np
from rules_best_of_n import Wanted, choose_and_judge, halves, prompts_seen, read_preferences
from rules_judged import Pool
from rules_steps import prompt_of

from equipoise.data.rows import read_rows
from equipoise.errors import DataError
from equipoise.generation.sources import Asked
from equipoise.records import Exchange

REFUSES = (0, 1)
"""Actions of people's labels."""


def best_of_six(wanted: Wanted, count: int) -> dict[str, Any]:
    """Train what chooses, read the answers to `count` prompts, choose, judge."""
    labelled, preferences = halves(wanted), read_preferences(wanted.data)
    seen = prompts_seen(labelled, preferences)
    answers: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in read_rows(wanted.data / "do_not_answer_responses.jsonl"):
        answers[row.values["prompt"]].setdefault(row.values["model"], row.values)
    models = sorted({model for found in answers.values() for model in found})
    whole = [
        prompt
        for prompt, found in sorted(answers.items())
        if len(found) == len(models) and prompt_of(Exchange(id="x", prompt=prompt, response="")) not in seen
    ]
    if len(whole) < count:
        raise DataError(f"do_not_answer_responses: {len(whole)} prompts, expected {count} or more")
    prompts = [whole[i] for i in np.random.default_rng(0).permutation(len(whole))[:count]]
    rows = [[answers[prompt][model] for model in models] for prompt in prompts]
    pool = Pool(
        [Asked(row[0]["id"], [{"role": "user", "content": row[0]["prompt"]}], True) for row in rows],
        [[answer["response"] for answer in row] for row in rows],
        {model: slice(i, i + 1) for i, model in enumerate(models)},
    )
    harm = {
        "harmful": np.array([[float(not answer["is_safe"]) for answer in row] for row in rows]),
        "refusal": np.array([[float(answer["action"] in REFUSES) for answer in row] for row in rows]),
    }
    told = {"candidates": {"models": models, "prompts": count}}
    return told | choose_and_judge(wanted, pool, harm, labelled, preferences)
