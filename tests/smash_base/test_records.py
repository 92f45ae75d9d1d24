"""Records read from JSON: types are checked, unknown keys are not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from smash_base.errors import InvalidInputError
from smash_base.records import read_record


@dataclass(frozen=True)
class Inner:
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Outer:
    name: str
    share: float
    inner: Inner | None = None


def test_a_record_is_read_with_what_it_holds() -> None:
    value = {"name": "a", "share": 1, "inner": {"counts": [1, 2]}, "of a later version": []}
    assert read_record(Outer, value, "file") == Outer("a", 1.0, Inner((1, 2)))


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"name": "a"}, "file share"),
        ({"name": 1, "share": 0.5}, "file name"),
        ({"name": "a", "share": "0.5"}, "file share"),
        ({"name": "a", "share": True}, "file share"),
        ({"name": "a", "share": 0.5, "inner": {"counts": [1, 2.5]}}, r"file inner\.counts\.1"),
        ([], "file"),
        ({"name": object(), "share": 0.5}, "file"),
    ],
)
def test_another_type_is_refused_by_the_field(value: object, field: str) -> None:
    with pytest.raises(InvalidInputError, match=field):
        read_record(Outer, value, "file")
