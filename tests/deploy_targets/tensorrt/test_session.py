"""The session's own work, over host memory and an engine that adds up pixels: nothing about TensorRT."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from smash_base.errors import MissingRuntimeError, SmashError
from smash_targets.base import ModelSignature
from smash_targets.tensorrt.cuda import Cuda, Gpu, _CudaPython
from smash_targets.tensorrt.logs import create
from smash_targets.tensorrt.manifest import EngineManifest
from smash_targets.tensorrt.session import MAX_GRAPHS, TensorRtSession

SIGNATURE = ModelSignature("input", "logits", (1, 2, 2), 3, (1, 2, 8))
IMAGES = np.random.default_rng(0).standard_normal((20, 1, 2, 2), dtype=np.float32)
LOGITS = IMAGES.sum((1, 2, 3))[:, None] * np.array([1, 2, 3], np.float32)


class HostCuda(Cuda):
    """Host memory as device memory; remembers in which threads it was made current."""

    gpu = Gpu("host", "0.0", "0", "0")
    stream = 1

    def __init__(self, broken: bool = False) -> None:
        self.arrays: list[np.ndarray] = []
        self.threads: list[int] = []
        self.captured = 0
        self.broken = broken

    def use(self) -> None:
        self.threads.append(threading.get_ident())

    def device(self, size: int) -> int:
        return int(self.pinned(size).ctypes.data)

    def pinned(self, size: int) -> np.ndarray:
        self.arrays.append(np.zeros(size, np.uint8))
        return self.arrays[-1]

    def copy_in(self, address: int, host: np.ndarray) -> None:
        ctypes.memmove(address, host.ctypes.data, host.nbytes)

    def copy_out(self, host: np.ndarray, address: int) -> None:
        ctypes.memmove(host.ctypes.data, address, host.nbytes)

    def wait(self) -> None:
        pass

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1
        if self.broken:
            raise SmashError(
                "cudaStreamEndCapture failed on the GPU", received="cudaErrorStreamCaptureInvalidated"
            )
        return work

    def close(self) -> None:
        self.arrays = []


class Context:
    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.size = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.size = shape[0]
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.size, 3)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        def floats(name: str, count: int) -> np.ndarray:
            return np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses[name]))

        sums = floats("input", self.size * 4).reshape(self.size, 4).sum(1)
        floats("logits", self.size * 3)[:] = (sums[:, None] * np.array([1, 2, 3], np.float32)).ravel()
        return True


class Engine:
    num_io_tensors = 2

    def get_tensor_name(self, index: int) -> str:
        return ("input", "logits")[index]

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def get_tensor_mode(self, name: str) -> int:
        return int(name == "logits")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 1, 2, 2)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [(size, 1, 2, 2) for size in SIGNATURE.batch]

    def create_execution_context(self) -> Context:
        return Context()


class ILogger:
    Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0, WARNING=2)


class Runtime:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        if plan != b"plan":
            self.logger.log(1, "[a.cpp::f::1] Error Code 6: the cause")
            self.logger.log(1, "Error Code 4: what follows")
            return None
        return Engine()


def module() -> Any:
    return SimpleNamespace(
        __name__="stand_in", __version__="0", ILogger=ILogger, Runtime=Runtime, nptype=np.dtype,
        TensorIOMode=SimpleNamespace(INPUT=0),
    )  # fmt: skip


def opened(folder: Path, cuda: Cuda, plan: bytes = b"plan") -> TensorRtSession:
    path = folder / "model.engine"
    path.write_bytes(plan)
    manifest = EngineManifest("host", "0.0", "0", "0", "0", "", "", "", "", "fp32", SIGNATURE.batch, {}, {})
    return TensorRtSession(module(), cuda, path, manifest, SIGNATURE, 0)


def test_every_batch_size_is_answered_and_the_first_few_have_a_graph(tmp_path: Path) -> None:
    cuda = HostCuda()
    with opened(tmp_path, cuda) as session:
        for _ in range(2):
            for size in (1, 2, 3, 5, 7, 8, 20):
                np.testing.assert_allclose(session.run(IMAGES[:size]), LOGITS[:size], rtol=1e-5)
        assert cuda.captured == MAX_GRAPHS


def test_a_computation_alone_can_be_timed(tmp_path: Path) -> None:
    with opened(tmp_path, HostCuda()) as session:
        work, stream = session.compute(2)
        work()
        assert stream == HostCuda.stream


def test_the_device_is_made_current_in_every_thread_that_runs(tmp_path: Path) -> None:
    cuda = HostCuda()
    session = opened(tmp_path, cuda)
    threads = [threading.Thread(target=session.run, args=(IMAGES[:1],)) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    assert {thread.ident for thread in threads} <= set(cuda.threads)


def test_a_graph_that_cannot_be_captured_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = HostCuda(broken=True)
    session = opened(tmp_path, cuda)
    with caplog.at_level(logging.WARNING):
        for size in (1, 2, 1, 2):
            np.testing.assert_allclose(session.run(IMAGES[:size]), LOGITS[:size], rtol=1e-5)
    assert [record.getMessage()[:13] for record in caplog.records] == ["no CUDA graph"]
    assert cuda.captured == 1


def test_the_first_error_is_the_one_that_is_shown(tmp_path: Path) -> None:
    with pytest.raises(SmashError, match="received Error Code 6: the cause; Error Code 4"):
        opened(tmp_path, HostCuda(), b"damaged")


def test_a_library_that_gives_no_object_is_a_missing_driver() -> None:
    def nothing(logger: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(MissingRuntimeError, match="no working driver") as caught:
        create(module(), nothing)
    assert caught.value.exit_code == 3
    assert "nvidia-smi" in str(caught.value)


class BrokenCapture:
    """The part of cuda-python that captures: the work fails, and so does the end of the capture then."""

    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        self.ended = 0

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any]:
        return (_Code(0, "cudaSuccess"),)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, None]:
        self.ended += 1
        return _Code(901, "cudaErrorStreamCaptureInvalidated"), None

    def cudaMalloc(self, size: int) -> tuple[Any, int]:
        return _Code(2, "cudaErrorMemoryAllocation"), 0


class _Code:
    def __init__(self, number: int, name: str) -> None:
        self.number, self.name = number, name

    def __int__(self) -> int:
        return self.number


def test_errors_of_the_device_are_not_missing_things_and_the_first_one_counts() -> None:
    cuda = _CudaPython.__new__(_CudaPython)
    cuda._api, cuda._stream, cuda._device = BrokenCapture(), 1, []

    def work() -> None:
        raise SmashError("the cause")

    with pytest.raises(SmashError, match="the cause"):
        cuda.capture(work)
    assert cuda._api.ended == 1
    with pytest.raises(SmashError, match="cudaMalloc failed on the GPU; received cudaErrorMemory") as caught:
        cuda.device(8)
    assert caught.value.exit_code == 1
