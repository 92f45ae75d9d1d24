"""A machine that has PyTorch, numpy and Pillow and nothing else that the project declares."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.tensorrt import PACKAGES

_ROOT = Path(__file__).resolve().parents[2]
_MISSING = [*PACKAGES, "scipy", "matplotlib", "packaging"]
_CODE = """
import importlib, sys

sys.modules.update(dict.fromkeys({missing}))  # an import then says that there is none
name, *sys.argv[1:] = sys.argv[1:]
sys.exit(importlib.import_module(name).main())
"""


def run_bare(benchmark: str, *words: str) -> subprocess.CompletedProcess[str]:
    """``python -m BENCHMARK WORDS...`` as such a machine would run it."""
    code = _CODE.format(missing=_MISSING)
    return subprocess.run(
        [sys.executable, "-c", code, benchmark, *words],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
