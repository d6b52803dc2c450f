"""What an exclusion covers."""

import pytest

from equipoise.data.export.licences import excluded_by

FREE = ["MIT", "Apache-2.0", "CC-BY-4.0", "CC0-1.0", "ODC-BY-1.0"]


@pytest.mark.parametrize(
    ("exclusion", "covered"),
    [
        (
            "NC",
            ["CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "cc-by-nc-4.0", "data CC-BY-NC; code MIT", "Non-commercial"],
        ),
        ("nc", ["CC-BY-NC-4.0"]),
        ("GPL", ["GPL-3.0", "GPL-3.0-only", "AGPL-3.0", "LGPL-2.1-or-later"]),
        ("unknown", ["unknown", "Unknown", "", " ", "NOASSERTION", "none"]),
        ("CC-BY-NC-4.0", ["CC-BY-NC-4.0", "CC BY-NC 4.0"]),
        ("ODC-BY", ["ODC-BY-1.0"]),
    ],
)
def test_an_exclusion_covers_its_kind_and_nothing_free(exclusion: str, covered: list[str]) -> None:
    for licence in covered:
        assert excluded_by(licence, [exclusion]) == exclusion, licence
    for licence in FREE:
        if licence not in covered:
            assert excluded_by(licence, [exclusion]) is None, licence


def test_a_version_is_part_of_a_name() -> None:
    assert excluded_by("CC-BY-NC-3.0", ["CC-BY-NC-4.0"]) is None
    assert excluded_by("MIT-0", ["MIT"]) == "MIT"


def test_no_exclusion_lets_everything_through_and_the_first_that_fits_is_named() -> None:
    assert excluded_by("CC-BY-NC-4.0", []) is None
    assert excluded_by("CC-BY-NC-4.0", ["", "GPL", "CC-BY-NC", "NC"]) == "CC-BY-NC"
