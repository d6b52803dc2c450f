"""The tree of errors: what is a user's mistake, and what its message says."""

import errno

import pytest

from equipoise import errors


@pytest.mark.parametrize(
    "name", ["ConfigError", "DataError", "TaxonomyError", "ModelError", "MissingExtraError"]
)
def test_a_users_mistake_is_an_equipoise_error(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.EquipoiseError)


def test_a_stopped_run_is_not_the_users_mistake() -> None:
    assert not issubclass(errors.RunStoppedError, errors.EquipoiseError)


def test_a_missing_extra_names_the_command_that_brings_it() -> None:
    message = str(errors.MissingExtraError("the server", "serve"))
    assert message == "the server needs the extra 'serve': pip install 'equipoise[serve]'"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gama", " (did you mean 'gamma'?)"),
        ("Beta", " (did you mean 'beta'?)"),
        ("gamma", " (did you mean 'gamma'?)"),
        ("entirely other", ""),
        ("", ""),
    ],
)
def test_near_suggests_only_what_is_close(name: str, expected: str) -> None:
    assert errors.near(name, ["beta", "gamma"]) == expected


def test_near_takes_any_iterable_and_an_empty_one() -> None:
    assert errors.near("a", iter(["ab"])) == " (did you mean 'ab'?)"
    assert errors.near("a", []) == ""


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "here"), errno.ENOSPC),
        (OSError(errno.ENOENT, "No such file or directory", "here"), None),
        (
            Exception("Error while serializing: No space left on device (os error 28)"),
            errno.ENOSPC,
        ),
        (Exception("No such file or directory (os error 2)"), None),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), errno.EIO),
        (RuntimeError("shapes do not fit"), None),
        (ValueError("inline_container"), None),
    ],
)
def test_errors_of_the_disk_are_known_whoever_raises_them(error: Exception, number: int | None) -> None:
    found = errors.disk_error(error)
    assert (None if found is None else found.errno) == number
    if isinstance(error, OSError) and found is not None:
        assert found is error
