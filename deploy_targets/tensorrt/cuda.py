"""Device buffers, pinned buffers, one stream and CUDA graphs, through cuda-python or torch.

The TensorRT session needs no more of CUDA than this. cuda-python (``cuda.bindings.runtime``) is preferred,
because an edge device has no torch; torch serves where it is there already. Not run on hardware.
"""

from __future__ import annotations

import abc
import ctypes
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smash_base.errors import MissingRuntimeError, SmashError

INSTALL = "pip install cuda-python"


@dataclass(frozen=True)
class Gpu:
    """What an engine depends on.

    Attributes:
        name: Name of the GPU.
        compute_capability: for example "9.0".
        cuda: version of the CUDA runtime, for example "13.0".
        driver: version of the driver.
    """

    name: str
    compute_capability: str
    cuda: str
    driver: str


class Cuda(abc.ABC):
    """One device and one stream. :meth:`close` frees everything that was handed out."""

    gpu: Gpu
    stream: int

    @abc.abstractmethod
    def use(self) -> None:
        """Make the device the current one of this thread, where CUDA starts every thread on device 0."""

    @abc.abstractmethod
    def device(self, size: int) -> int:
        """Address of ``size`` bytes on the device."""

    @abc.abstractmethod
    def pinned(self, size: int) -> np.ndarray:
        """uint8 [size] of page-locked memory, which copies need to be asynchronous."""

    @abc.abstractmethod
    def copy_in(self, address: int, host: np.ndarray) -> None:
        """Queue a copy of pinned memory to the device."""

    @abc.abstractmethod
    def copy_out(self, host: np.ndarray, address: int) -> None:
        """Queue a copy from the device to pinned memory."""

    @abc.abstractmethod
    def wait(self) -> None:
        """Until everything queued is done; an error of the device is raised here."""

    @abc.abstractmethod
    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what ``work`` queues as a CUDA graph; the result queues it again.

        Raises:
            SmashError, RuntimeError: the first thing that went wrong; the stream can be used again.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Free all."""


def open_cuda(number: int = 0) -> Cuda:
    """The device, through whichever of cuda-python and torch is there.

    Raises:
        MissingRuntimeError: neither is installed, or no driver or device is there.
    """
    if _importable("cuda.bindings.runtime"):
        return _CudaPython(number)
    if _importable("torch"):
        return _Torch(number)
    raise MissingRuntimeError(
        "TensorRT needs access to GPU memory", expected="cuda-python or torch", hint=f"Install it: {INSTALL}"
    )


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # a parent package is missing
        return False


def _no_device(why: object) -> MissingRuntimeError:
    return MissingRuntimeError(
        "no NVIDIA GPU can be used here",
        received=why,
        hint="Check the driver with: nvidia-smi",
    )


def _driver() -> str:
    """Version of the kernel driver; "" where the system does not tell (Jetson)."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return ""
    return next((word for word in words if word[:1].isdigit() and "." in word), "")


class _CudaPython(Cuda):
    def __init__(self, number: int) -> None:
        from cuda.bindings import runtime

        self._api: Any = runtime
        error, count = runtime.cudaGetDeviceCount()
        if int(error) != 0 or not count or number >= count:
            raise _no_device(f"{error.name}, {count or 0} devices")
        self._number = number
        self.use()
        properties = self._call("cudaGetDeviceProperties", number)
        name = properties.name
        self.gpu = Gpu(
            name.decode().rstrip("\0") if isinstance(name, bytes) else str(name),
            f"{properties.major}.{properties.minor}",
            _cuda_version(self._call("cudaRuntimeGetVersion")),
            _driver() or f"CUDA {_cuda_version(self._call('cudaDriverGetVersion'))}",
        )
        self._stream = self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        self.stream = int(self._stream)
        self._device: list[int] = []
        self._host: list[int] = []
        self._graphs: list[tuple[Any, Any]] = []

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._api, name)(*arguments)
        if int(error) != 0:
            raise SmashError(f"{name} failed on the GPU", received=error.name)
        return values[0] if values else None

    def use(self) -> None:
        self._call("cudaSetDevice", self._number)

    def device(self, size: int) -> int:
        address = int(self._call("cudaMalloc", size))
        self._device.append(address)
        return address

    def pinned(self, size: int) -> np.ndarray:
        address = int(self._call("cudaMallocHost", size))
        self._host.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def copy_in(self, address: int, host: np.ndarray) -> None:
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, host.ctypes.data, host.nbytes, kind, self._stream)

    def copy_out(self, host: np.ndarray, address: int) -> None:
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host.ctypes.data, address, host.nbytes, kind, self._stream)

    def wait(self) -> None:
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:  # an open capture would refuse every later call on the stream
            self._api.cudaStreamEndCapture(self._stream)
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        executable = self._call("cudaGraphInstantiate", graph, 0)
        self._graphs.append((graph, executable))
        return lambda: self._call("cudaGraphLaunch", executable, self._stream)

    def close(self) -> None:
        for graph, executable in self._graphs:
            self._call("cudaGraphExecDestroy", executable)
            self._call("cudaGraphDestroy", graph)
        for address in self._device:
            self._call("cudaFree", address)
        for address in self._host:
            self._call("cudaFreeHost", address)
        if self.stream:
            self._call("cudaStreamDestroy", self._stream)
        self._graphs, self._device, self._host, self.stream = [], [], [], 0


class _Torch(Cuda):
    def __init__(self, number: int) -> None:
        import torch

        self._torch: Any = torch
        if not torch.cuda.is_available() or number >= torch.cuda.device_count():
            raise _no_device("torch without CUDA or without that device")
        self._number = number
        major, minor = torch.cuda.get_device_capability(number)
        self.gpu = Gpu(
            torch.cuda.get_device_name(number), f"{major}.{minor}", torch.version.cuda or "", _driver()
        )
        self._stream = torch.cuda.Stream(number)
        self.stream = int(self._stream.cuda_stream)
        self._tensors: dict[int, Any] = {}

    def use(self) -> None:
        self._torch.cuda.set_device(self._number)

    def device(self, size: int) -> int:
        tensor = self._torch.empty(size, dtype=self._torch.uint8, device=f"cuda:{self._number}")
        self._tensors[tensor.data_ptr()] = tensor
        return int(tensor.data_ptr())

    def pinned(self, size: int) -> np.ndarray:
        tensor = self._torch.empty(size, dtype=self._torch.uint8, pin_memory=True)
        self._tensors[tensor.data_ptr()] = tensor
        array: np.ndarray = tensor.numpy()
        return array

    def copy_in(self, address: int, host: np.ndarray) -> None:
        with self._torch.cuda.stream(self._stream):
            part = self._tensors[host.ctypes.data][: host.nbytes]
            self._tensors[address][: host.nbytes].copy_(part, non_blocking=True)

    def copy_out(self, host: np.ndarray, address: int) -> None:
        with self._torch.cuda.stream(self._stream):
            part = self._tensors[address][: host.nbytes]
            self._tensors[host.ctypes.data][: host.nbytes].copy_(part, non_blocking=True)

    def wait(self) -> None:
        self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = self._torch.cuda.CUDAGraph()
        with self._torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()

        def replay() -> None:
            with self._torch.cuda.stream(self._stream):
                graph.replay()

        return replay

    def close(self) -> None:
        self._tensors = {}


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
