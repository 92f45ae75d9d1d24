"""Which tests were skipped and why; with ``--strict-skips``, as in CI, some reasons fail.

A reason that may stay is one that no installation removes: hardware, a licence, another system. Everything
else is a test that nobody runs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import pytest

STAYS = (
    r"^(tensorrt|tensorrt_rtx) is not here$",  # engines run on an NVIDIA GPU only
    r"^(trtexec|baked) is not here$",  # files for other programs
    r"^(executorch|litert) is not here$",  # test_own_environments.py runs them
    r"^no GPU here$",
    r"^there is a GPU$",
    r"^onnxruntime-gpu is (installed|not here)$",  # excludes onnxruntime, which the other tests need
    r"^(TensorRT is here|there is something to measure here)$",
    r"^no Python 3\.\d+ here$",  # this system offers one version
    r"^timm is not here$",  # its torchvision has to be of the same build as torch
    r"^the npm package onnxruntime-web is not here$",  # of no Python registry; .ci/run tries to get it
    r"^this system lets no user mount a small file system$",
    r"^no /dev/full on this system$",
)


def reasons(reports: Iterable[pytest.TestReport]) -> Counter[str]:
    """Reason -> how many tests."""
    found: Counter[str] = Counter()
    for report in reports:
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        found[text.removeprefix("Skipped: ")] += 1
    return found


def removable(found: Iterable[str]) -> list[str]:
    """The reasons that an installation would remove."""
    return [reason for reason in found if not any(re.search(pattern, reason) for pattern in STAYS)]


def report(config: pytest.Config, session: pytest.Session) -> None:
    """Print the reasons; with ``--strict-skips`` fail for those that could be removed."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    found = reasons(terminal.stats.get("skipped", [])) if terminal else Counter()
    if not found or not config.getoption("--strict-skips"):
        return
    terminal.write_line(f"\n{found.total()} tests were skipped:")
    for reason, count in found.most_common():
        terminal.write_line(f"  {count}  {reason}")
    unwanted = removable(found)
    if unwanted:
        terminal.write_line(f"{len(unwanted)} of these reasons can be removed here: {'; '.join(unwanted)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
