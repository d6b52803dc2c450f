"""The model card of the shipped guard, written from what was measured."""

from collections.abc import Mapping
from typing import Any

from default_guard_rows import LONGEST, SOURCES

from equipoise.evaluation.calibration_card import HEADING

_OWN = {
    "builtin": ("Apache-2.0", "equipoise, the built-in exchanges, pairs and look-alikes"),
    "requests": ("Apache-2.0", "equipoise, the built-in requests"),
    "questions": ("Apache-2.0", "equipoise, the built-in questions"),
    "harmless_prompts": ("Apache-2.0", "equipoise, benchmarks/data/*.txt"),
}

_LIMITS = f"""## Limits

- English, single questions and answers. Read by a sentence encoder of 22 M parameters: it sees topic and
  tone better than what an answer makes possible. It is a first guard to try things with, and a floor to
  beat with rows of your own (`equipoise train guard`), not a guard to rely on alone.
- Training answers were cut at {LONGEST} characters. Longer ones are read in windows, of which the worst
  counts, so their rate of false alarms is higher.
- Most sources label only whether an answer is unsafe. Severity was learned from pyrit_severity and the
  built-in corpus, refusal from pyrit_refusal, rbr_gold and the built-in corpus; of the 19 categories
  those that these sources do not name rest on the built-in corpus alone, which is mild.
- Answers of pandalm and qa_feedback count as safe because they are everyday answers; nobody labelled them.
  Those of jbb_artifacts were labelled by a language model.
- hh_harmless has preferences only: each is three votes of five, a number of ours.
- What it flags of harmless questions depends on how they are asked. Most prompts of LLM-Safeguard
  begin with "How to" or "Ways to", as many built-in requests do, so they say little of other ways; OKTest is
  asked otherwise.
- OKTest and LLM-Safeguard guided the development: harms that somebody wants to prevent or understand,
  look-alikes, requests and questions were added, and the policies' aims were lowered. A half of each, by
  hash, was set aside and not read while requests and questions were written. PKU-SafeRLHF was measured each
  time and decided nothing.
- Jailbreak texts around a question were not part of the training; the question itself was.
"""


def model_card(result: Mapping[str, Any], calibrated: str) -> str:
    """Return the card as Markdown.

    Args:
        result: As `default_guard.py` measures it.
        calibrated: Card of the calibrated guard, whose part on calibration is taken over.
    """
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    parts = [
        "# The guard that comes with equipoise",
        "Judges prompts, and responses in the context of their prompt: P(unsafe), severity 0 to 3, 19"
        " categories, refusal. Heads"
        + (" and adapters" if result["settings"]["tune"] == "lora" else "")
        + " on all-MiniLM-L6-v2 (Apache-2.0; the built-in model `minilm`, which is not part of this folder)."
        f" {result['bytes'] / 1e6:.1f} MB, Apache-2.0. Written by `benchmarks/default_guard.py`.",
        "## Training data",
        _sources(result),
        f"Settings: {settings}. {result['rows']['train']} rows trained it,"
        f" {result['rows']['calibration']} calibrated it and {result['rows']['held']} were held out, split by"
        " prompt. No row of PKU-SafeRLHF and none to one of its prompts is among them.",
        "## What it does",
        _numbers(result),
        _LIMITS.rstrip(),
    ]
    told = calibrated.partition(HEADING)
    if told[1]:
        parts.append((told[1] + told[2]).rstrip())
    return "\n\n".join(parts) + "\n"


def _sources(result: Mapping[str, Any]) -> str:
    rows = ["| source | rows | licence | from |", "|---|---|---|---|"]
    for name, count in result["sources"].items():
        licence, owner = _OWN[name] if name in _OWN else (SOURCES[name].licence, SOURCES[name].owner)
        rows.append(f"| {name} | {count} | {licence} | {owner} |")
    return "\n".join(rows)


def _numbers(result: Mapping[str, Any]) -> str:
    pku, held, refusal = result["pku"], result["held_out"], result["over_refusal"]
    shown = [
        ("PKU-SafeRLHF answers, AUROC", pku["auroc"]),
        ("the same, TF-IDF and logistic regression on the same rows", pku["tfidf_auroc"]),
        ("difference, paired", pku["difference"]),
        ("PKU-SafeRLHF answers labelled safe that the default policy flags", pku["safe_flagged"]),
        ("and labelled unsafe", pku["unsafe_flagged"]),
        ("held-out answers of its own sources, AUROC", held["responses"]["auroc"]),
        ("held-out safe answers that the default policy flags", held["responses"]["safe_flagged"]),
        ("held-out prompts of its own sources, AUROC", held["prompts"]["auroc"]),
        ("held-out harmless prompts flagged", held["prompts"]["safe_flagged"]),
        ("without built-in requests and questions", held["prompts"]["safe_flagged_of_others"]),
        ("OKTest (harmless look-alikes) flagged", refusal["oktest_harmless_flagged"]),
        ("of a half that was set aside", refusal["oktest_harmless_flagged_set_aside"]),
        ("LLM-Safeguard, harmless prompts flagged", refusal["llm_safeguard_harmless_flagged"]),
        ("of a half that was set aside", refusal["llm_safeguard_harmless_flagged_set_aside"]),
        ("LLM-Safeguard, harmful prompts flagged", refusal["llm_safeguard_harmful_flagged"]),
        ("of a half that was set aside", refusal["llm_safeguard_harmful_flagged_set_aside"]),
        ("LLM-Safeguard prompts, AUROC", refusal["llm_safeguard_auroc"]),
    ]
    lines = ["| 95 % intervals by prompt | | n |", "|---|---|---|"]
    for name, found in shown:
        interval = f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        lines.append(f"| {name} | {interval} | {found['n']} |")
    return "\n".join(lines)
