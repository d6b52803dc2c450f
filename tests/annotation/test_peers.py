"""Our consensus beside crowd-kit's, which loads transformers and so has a process of its own.

Its MACE restarts at random and its Bradley-Terry (1.4.2) stops after two rounds, because the old scores
are the new ones under another name; so only Dawid and Skene's model is compared number by number.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from equipoise.annotation.latent import decide, fit
from equipoise.annotation.rater_models import FullConfusion, Spammer
from equipoise.annotation.raters import Votes

THEIRS = """
import json, sys
import pandas as pd
from crowdkit.aggregation import MACE, DawidSkene

data = pd.DataFrame(json.load(sys.stdin), columns=["task", "worker", "label"])
fitted = DawidSkene(n_iter=5000, tol=1e-13).fit(data)
copies = MACE(n_restarts=10, random_state=0).fit_predict(data)
tasks, p = [int(i) for i in fitted.probas_.index], fitted.probas_[[0, 1]].values.tolist()
print(json.dumps({"tasks": tasks, "p": p, "mace": {str(k): int(v) for k, v in copies.items()}}))
"""


@pytest.mark.slow
def test_dawid_skene_without_priors_equals_crowd_kit() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.4
    skills = [(0.95, 0.9), (0.9, 0.85), (0.8, 0.85), (0.7, 0.75)]
    rows = [
        (i, r, int(t if rng.random() < skills[r][int(t)] else not t))
        for i, t in enumerate(truth)
        for r in range(4)
        if rng.random() < 0.8 or r == 0
    ]
    done = subprocess.run(
        [sys.executable, "-c", THEIRS], input=json.dumps(rows), capture_output=True, text=True, check=True
    )
    theirs = json.loads(done.stdout.splitlines()[-1])
    item, rater, value = np.array(rows).T
    votes = Votes(item, rater, value, tuple(map(str, range(300))), tuple("abcd"), (0, 1))
    ours = fit(votes, FullConfusion(prior_count=0.0), prior_count=0.0, rounds=5000, tolerance=1e-14)
    np.testing.assert_allclose(ours.posterior[theirs["tasks"]], theirs["p"], atol=1e-3)
    mace = decide(fit(votes, Spammer(), uniform_prior=True).posterior)
    same = np.mean([mace[int(task)] == label for task, label in theirs["mace"].items()])
    assert same > 0.9
