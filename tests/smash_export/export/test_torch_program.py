"""Files of PyTorch: written whole, or an error says why not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

WRITE = """
import sys, torch
from pathlib import Path
from smash_export.export.torch_program import save_whole

network, example = torch.nn.Linear(64, 1000), torch.zeros(2, 64)
try:
    if sys.argv[1] == "trace":
        save_whole(torch.jit.save, torch.jit.trace(network, example), Path("/dev/full"))
    else:
        save_whole(torch.export.save, torch.export.export(network, (example,)), Path("/dev/full"))
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize("kind", ["trace", "program"])
def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(kind: str) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    done = subprocess.run([sys.executable, "-c", WRITE, kind], capture_output=True, text=True)
    assert done.stdout == "No space left on device\n", done.stderr[-1000:]
