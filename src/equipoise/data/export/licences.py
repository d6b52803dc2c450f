"""Which licences a user has excluded. A gate refuses rows; it never drops them unasked."""

import re
from collections.abc import Iterable

_KINDS = {
    "NC": ("NC", "NONCOMMERCIAL", "NON COMMERCIAL"),
    "GPL": ("GPL", "AGPL", "LGPL"),
    "UNKNOWN": ("UNKNOWN", "NOASSERTION", "NONE"),
}
"""What a short name of an exclusion covers; any other name stands for itself."""


def excluded_by(licence: str, excluded: Iterable[str]) -> str | None:
    """Return the first exclusion that a licence falls under, or None.

    `NC` covers every non-commercial licence, `GPL` the whole family, `unknown` also an empty licence; any
    other name covers the licences that hold its words in a row.

    >>> excluded_by("CC-BY-NC-SA-4.0", ["GPL", "NC"])
    'NC'
    >>> excluded_by("MIT", ["GPL", "NC", "unknown"]) is None
    True
    >>> excluded_by("CC-BY-4.0", ["CC-BY"])
    'CC-BY'
    """
    words = f" {_words(licence) or 'UNKNOWN'} "
    for name in excluded:
        forms = _KINDS.get(_words(name), (_words(name),))
        if any(form and f" {form} " in words for form in forms):
            return name
    return None


def _words(text: str) -> str:
    """Upper-case words with one blank between them, a number such as 4.0 being one word."""
    return " ".join(re.findall(r"[A-Z0-9.]+", text.upper()))
