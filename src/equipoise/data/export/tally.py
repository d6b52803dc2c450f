"""What an export counts as rows go by, so that nothing is left out unsaid and nothing is held in memory."""

from collections import Counter
from typing import NamedTuple

from equipoise.data.check import Finding
from equipoise.data.identity import AnyRecord
from equipoise.data.io import Placed


class Refused(NamedTuple):
    """The records under one licence that the user excluded."""

    exclusion: str
    first: Placed[AnyRecord]
    n: int


class Tally:
    """Counts over one export: rows written, records they came from, records and answers left out."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.rows: dict[str, int] = {}
        """Split -> rows written."""
        self.kinds: dict[str, str] = {}
        """Split -> the kind of record in it, where records themselves are exported."""
        self.licences: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.origins: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        """Reason -> records or answers."""
        self.refused: dict[str, Refused] = {}
        """Licence -> what of it was refused."""

    def take(self, record: AnyRecord) -> None:
        """Count a record that gave at least one row."""
        self.licences[record.licence] += 1
        self.sources[record.source] += 1
        self.origins[record.label_origin or "unknown"] += 1

    def refuse(self, placed: Placed[AnyRecord], exclusion: str) -> None:
        """Count a record whose licence is excluded."""
        licence = placed.record.licence
        before = self.refused.get(licence, Refused(exclusion, placed, 0))
        self.refused[licence] = before._replace(n=before.n + 1)

    def findings(self) -> list[Finding]:
        """Return one finding for each licence that was refused, at the first record under it."""
        return [
            Finding(
                first.path,
                first.line,
                first.record.id,
                "licence",
                "licence",
                f"{n} records under '{licence}', which is excluded ({exclusion})",
            )
            for licence, (exclusion, first, n) in sorted(self.refused.items())
        ]
