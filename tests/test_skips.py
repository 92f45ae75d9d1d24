"""A skip needs a reason that a machine of CI cannot remove."""

from __future__ import annotations

from pathlib import Path

import pytest

from smash_targets.base import get_target, target_names
from smash_targets.elsewhere import ElsewhereTarget
from tests.skips import removable

ROOT = Path(__file__).resolve().parents[1]
CONFTEST = """
from tests import skips

def pytest_addoption(parser):
    parser.addoption("--strict-skips", action="store_true")

def pytest_sessionfinish(session):
    skips.report(session.config, session)
"""


@pytest.mark.parametrize(
    ("reason", "option", "code"),
    [
        ("no GPU here", "--strict-skips", 0),
        ("Ray is not installed", "--strict-skips", 1),
        ("Ray is not installed", "-q", 0),
    ],
)
def test_a_skip_that_an_installation_would_remove_fails_in_ci(
    reason: str, option: str, code: int, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(f"import pytest\ndef test_it(): pytest.skip({reason!r})\ndef test_other(): pass\n")
    result = pytester.runpytest_subprocess(option, "-p", "no:cacheprovider")
    assert result.ret == code
    if option == "--strict-skips":
        result.stdout.fnmatch_lines(["1 tests were skipped:", f"  1  {reason}"])


def test_a_target_for_other_programs_may_be_skipped_in_ci() -> None:
    elsewhere = [name for name in target_names() if isinstance(get_target(name), ElsewhereTarget)]
    assert elsewhere
    assert removable(f"{name} is not here" for name in elsewhere) == []
