"""Errors carry their exit code and survive the way between processes."""

from __future__ import annotations

import copy
import pickle

import pytest

from smash_base import errors

KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SmashError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_and_copy_keep_everything(kind):
    error = kind("it is wrong", expected=3, received="x" * 500, hint="Try again.")
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(same) is kind
        assert str(same) == str(error)
        assert (same.expected, same.received, same.hint) == ("3", error.received, "Try again.")
        assert same.exit_code == kind.exit_code


def test_message_is_one_line_with_its_parts():
    error = errors.UsageError("no", expected="yes", received="a\nb", hint="Do.")
    assert str(error) == "no; expected yes; received a b. Do."
    assert str(errors.UsageError("no")) == "no"
    assert len(errors.UsageError("no", received="y" * 1000).received) == 200


def test_exit_codes_are_the_documented_ones():
    assert [kind.exit_code for kind in KINDS] == [1, 2, 3, 4, 5, 6]
