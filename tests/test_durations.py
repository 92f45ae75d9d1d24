"""What is called fast and slow is what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import durations

REPORT = """
12.31s call     tests/test_x.py::test_long
0.45s call     tests/test_x.py::test_short[a b]
8.00s setup    tests/test_x.py::test_short[a b]
0.01s call     tests/test_x.py::test_tiny
"""


def test_a_report_becomes_a_list_of_what_takes_long(tmp_path: Path) -> None:
    file = tmp_path / "durations.txt"
    assert durations.record(REPORT.splitlines(), file) == 2
    assert durations.read(file) == {
        "tests/test_x.py::test_long": 12.3,
        "tests/test_x.py::test_short[a b]": 0.5,
    }


def test_fast_leaves_out_what_was_slow_and_keeps_what_is_new(
    pytester: pytest.Pytester, tmp_path: Path
) -> None:
    file = tmp_path / "durations.txt"
    file.write_text(
        "# head\n0.9 test_it.py::test_medium\n9.0 test_it.py::test_long\n0.4 test_it.py::test_short\n"
    )
    pytester.makeini("[pytest]\nmarkers =\n    slow: slow\n")
    pytester.makeconftest(
        f"""
        from pathlib import Path
        from tests import durations

        def pytest_addoption(parser):
            parser.addoption("--fast", action="store_true")

        def pytest_collection_modifyitems(config, items):
            durations.select(config, items, Path({str(file)!r}))
        """
    )
    pytester.makepyfile(
        test_it="""
        import pytest
        def test_medium(): pass
        def test_long(): pass
        def test_short(): pass
        def test_new(): pass
        @pytest.mark.slow
        def test_marked(): pass
    """
    )
    pytester.inline_run("--fast", "-p", "no:cacheprovider").assertoutcome(passed=2)
    pytester.inline_run("-m", "slow", "-p", "no:cacheprovider").assertoutcome(passed=2)
    pytester.inline_run("-p", "no:cacheprovider").assertoutcome(passed=5)
