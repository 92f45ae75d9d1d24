"""Device memory: on a machine without a GPU one clear line; with one, bytes come back and graphs replay."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from smash_base.errors import MissingRuntimeError
from smash_targets.tensorrt import cuda

# What is used of cuda.bindings.runtime; attributes of its enums after a dot.
NAMES = """
cudaGetDeviceCount cudaSetDevice cudaGetDeviceProperties cudaRuntimeGetVersion cudaDriverGetVersion
cudaStreamCreateWithFlags cudaStreamNonBlocking cudaMalloc cudaMallocHost cudaMemcpyAsync
cudaMemcpyKind.cudaMemcpyHostToDevice cudaMemcpyKind.cudaMemcpyDeviceToHost cudaStreamSynchronize
cudaStreamBeginCapture cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal cudaStreamEndCapture
cudaGraphInstantiate cudaGraphLaunch cudaGraphExecDestroy cudaGraphDestroy cudaFree cudaFreeHost
cudaStreamDestroy
"""


def has_gpu() -> bool:
    try:
        cuda.open_cuda().close()
    except MissingRuntimeError:
        return False
    return True


def test_a_machine_without_a_driver_is_told_so() -> None:
    if has_gpu():
        pytest.skip("there is a GPU")
    with pytest.raises(MissingRuntimeError, match="no NVIDIA GPU can be used here") as caught:
        cuda.open_cuda()
    assert "nvidia-smi" in str(caught.value)
    assert caught.value.exit_code == 3


def test_neither_cuda_python_nor_torch_is_one_line() -> None:
    code = (
        "import sys\n"
        "for name in ('cuda', 'cuda.bindings', 'torch'): sys.modules[name] = None\n"
        "import importlib.util as util\n"
        "from smash_targets.tensorrt.cuda import open_cuda\n"
        "from smash_base.errors import MissingRuntimeError\n"
        "find = util.find_spec\n"
        "missing = ('cuda', 'torch')\n"
        "util.find_spec = lambda name, *a: None if name.split('.')[0] in missing else find(name, *a)\n"
        "try: open_cuda()\n"
        "except MissingRuntimeError as error: print(error)\n"
    )
    root = Path(cuda.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    (line,) = done.stdout.strip().splitlines()
    assert "pip install cuda-python" in line


def test_every_name_is_in_cuda_python() -> None:
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("cuda-python is not here")
    from cuda.bindings import runtime

    for name in NAMES.split():
        found = runtime
        for part in name.split("."):
            found = getattr(found, part)


def test_the_list_of_names_is_what_the_module_uses() -> None:
    text = Path(cuda.__file__).read_text()
    used = set(re.findall(r"\bcuda(?:[A-Z]\w+)", text))
    assert used == {part for name in NAMES.split() for part in name.split(".")}


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="no GPU here")
def test_bytes_come_back_and_a_graph_replays() -> None:
    device = cuda.open_cuda()
    try:
        assert device.gpu.name
        assert float(device.gpu.compute_capability) >= 5
        buffer, sent, received = device.device(1024), device.pinned(1024), device.pinned(1024)

        def there_and_back() -> None:
            device.copy_in(buffer, sent)
            device.copy_out(received, buffer)

        for value in (1, 2):
            sent[:] = value
            there_and_back()
            device.wait()
            assert (received == value).all()
        replay = device.capture(there_and_back)
        for value in (3, 4):
            sent[:] = value
            replay()
            device.wait()
            np.testing.assert_array_equal(received, sent)
    finally:
        device.close()
