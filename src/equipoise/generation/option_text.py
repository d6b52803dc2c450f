"""Which of a few fixed answers a server's words mean. What is not clear is missing, never guessed."""

import json
import math
import re
from collections.abc import Sequence

from equipoise.errors import DataError

_AROUND = " \t\r\n\"'`*_.,:;!?()[]{}<>▁Ġ"
"""What may stand around an answer or a token and says nothing."""
_LEAD = re.compile(r"\A(?:the )?(?:final )?answer(?: is\b\s*:?|\s*:)", re.IGNORECASE)


def check_options(options: Sequence[str]) -> None:
    """Refuse options that cannot be told apart, with DataError; case and punctuation around them aside."""
    names = _names(options)
    if len(names) < 2 or "" in names or len(set(names)) < len(names):
        raise DataError(f"options: got {list(options)}; expected two or more, none empty and none twice")


def score_tokens(first: Sequence[tuple[str, float]], options: Sequence[str]) -> list[float]:
    """Return the log-probability of each option, by the likeliest first tokens of an answer.

    A token counts for the one option that begins with it. An option without a token has at most the
    probability of the rarest one listed, and is given that. Where no option has a token, or most of what
    fits any fits several, the row is NaN.

    >>> score_tokens([("Yes", math.log(0.6)), (" yes", math.log(0.2)), ("No", math.log(0.2))], ["yes", "no"])
    [-0.2231435513142097, -1.6094379124341003]
    """
    names = _names(options)
    mass, unclear, floor = [0.0] * len(names), 0.0, 1.0
    for token, logp in first:
        word, probability = token.strip(_AROUND).casefold(), math.exp(min(logp, 0.0))
        floor = min(floor, probability)
        fits = [k for k, name in enumerate(names) if word and name.startswith(word)]
        if len(fits) == 1:
            mass[fits[0]] += probability
        elif fits:
            unclear += probability
    if not sum(mass) > unclear:  # nor where one is no number
        return [math.nan] * len(names)
    mass = [m or floor for m in mass]
    return [math.log(m / sum(mass)) if m else -math.inf for m in mass]


def score_text(text: str, options: Sequence[str]) -> list[float]:
    """Return 0 (probability 1) for the option that an answer names and -inf for the others, or NaN.

    The answer is the option, begins with it, or is a JSON object whose `answer` it is. A line that names
    another option too is not clear, nor is a single letter that goes on as a sentence.

    >>> [score_text(text, ["safe", "unsafe"]) for text in ("Unsafe, because ...", "safe or unsafe?")]
    [[-inf, 0.0], [nan, nan]]
    """
    line = _LEAD.sub("", _unpacked(text).strip()).strip(_AROUND).split("\n")[0].casefold()
    names = _names(options)
    found = [name for name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", line)]
    name = max((n for n in found if line.startswith(n)), key=len, default=None)
    if name is None or any(other not in name for other in found) or _goes_on(line, name):
        return [math.nan] * len(names)
    return [0.0 if n == name else -math.inf for n in names]


def _goes_on(line: str, name: str) -> bool:
    return len(name) == 1 and line[1:2] == " "


def _unpacked(text: str) -> str:
    try:
        packed = json.loads(text)
    except ValueError:
        return text
    answer = packed.get("answer") if isinstance(packed, dict) else None
    return answer if isinstance(answer, str) else text


def _names(options: Sequence[str]) -> list[str]:
    return [option.strip(_AROUND).casefold() for option in options]
