"""Runs a TensorRT engine: own device buffers, one stream, a CUDA graph for each batch size in use.

The addresses never change, so that a captured graph stays right. A captured graph belongs to the
shapes of its execution context:
every batch size gets a context of its own, for the first few sizes; others share one context that is
given its shape on every call and runs without a graph. Not run on hardware.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from smash_base.errors import InvalidInputError, SmashError
from smash_targets.base import ModelSignature, Session, SessionInfo
from smash_targets.common import check_batch, damaged, run_in_chunks
from smash_targets.tensorrt.cuda import Cuda
from smash_targets.tensorrt.logs import create
from smash_targets.tensorrt.manifest import EngineManifest

MAX_GRAPHS = 4


class TensorRtSession(Session):
    """See the head of this module."""

    def __init__(
        self,
        trt: Any,
        cuda: Cuda,
        path: Path,
        manifest: EngineManifest,
        signature: ModelSignature,
        number: int,
    ) -> None:
        self._trt, self._cuda, self._signature = trt, cuda, signature
        self._runtime, self._log = create(trt, trt.Runtime)
        if manifest.flags.get("version_compatible"):
            self._runtime.engine_host_code_allowed = True  # the engine carries its own lean runtime
        dla = manifest.flags.get("dla")
        if dla is not None:
            self._runtime.DLA_core = dla
        self._can_capture = dla is None  # a CUDA graph cannot hold work of a DLA
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise damaged(path, f"TensorRT {trt.__version__}", ValueError(self._log.reason()))
        self._check_tensors(path)
        self._least, _, self._most = self._range()
        self._buffers: dict[str, tuple[int, np.ndarray]] = {}
        for name, shape in (
            (signature.input_name, signature.input_shape),
            (signature.output_name, (signature.classes,)),
        ):
            size = 4 * self._most * int(np.prod(shape))
            self._buffers[name] = (cuda.device(size), cuda.pinned(size))
        self._contexts: dict[int, Any] = {}
        self._graphs: dict[int, Callable[[], None]] = {}
        self._shared: Any = None
        self.info = SessionInfo(
            target=manifest.target,
            version=trt.__version__,
            provider=f"TensorRT on {cuda.gpu.name}" + ("" if dla is None else f", DLA core {dla}"),
            device=f"cuda:{number}",
            threads=1,
            precision=manifest.precision,
        )

    def run(self, batch: np.ndarray) -> np.ndarray:
        batch = check_batch(batch, self._signature)
        self._cuda.use()  # the current device is one of the thread, and another session may have changed it
        if len(batch) > self._most:
            return run_in_chunks(self._run, batch, self._most, self._signature.classes)
        if len(batch) < self._least:
            return run_in_chunks(self._run, batch, self._least, self._signature.classes)
        return self._run(batch).copy()

    def compute(self, size: int) -> tuple[Callable[[], None], int]:
        """What queues the computation of ``size`` images, without copies, and its stream; for timing."""
        self._cuda.use()
        context = self._context(size)

        def work() -> None:
            if not context.execute_async_v3(self._cuda.stream):
                raise self._failed("execute_async_v3")

        return work, self._cuda.stream

    def close(self) -> None:
        self._graphs, self._contexts = {}, {}
        self._shared = self._engine = self._runtime = None
        self._cuda.use()
        self._cuda.close()

    def _run(self, batch: np.ndarray) -> np.ndarray:
        """Logits in memory that the next call uses again."""
        size = len(batch)
        input_address, input_host = self._buffers[self._signature.input_name]
        output_address, output_host = self._buffers[self._signature.output_name]
        raw = batch.reshape(-1).view(np.uint8)
        input_host[: raw.size] = raw
        result = output_host[: 4 * size * self._signature.classes]

        if size in self._graphs:
            self._graphs[size]()
        else:
            context = self._context(size)

            def work() -> None:
                self._cuda.copy_in(input_address, input_host[: raw.size])
                if not context.execute_async_v3(self._cuda.stream):
                    raise self._failed("execute_async_v3")
                self._cuda.copy_out(result, output_address)

            work()  # also what TensorRT sets up on the first run must not be part of the graph
            if self._can_capture and size in self._contexts:
                self._cuda.wait()
                self._capture(size, work)
        self._cuda.wait()
        return result.view(np.float32).reshape(size, self._signature.classes)

    def _capture(self, size: int, work: Callable[[], None]) -> None:
        """Keep ``work`` as a CUDA graph; without one the session is slower and still right."""
        try:
            self._graphs[size] = self._cuda.capture(work)
        except (SmashError, RuntimeError) as error:  # torch raises the latter
            self._can_capture = False
            logging.getLogger(__name__).warning("no CUDA graph, so single images take longer: %s", error)
            self._cuda.wait()
            work()

    def _context(self, size: int) -> Any:
        """An execution context whose input has ``size`` images."""
        if size in self._contexts:
            return self._contexts[size]
        own = len(self._contexts) < MAX_GRAPHS
        context = self._engine.create_execution_context() if own or self._shared is None else self._shared
        if context is None:
            raise self._failed("create_execution_context")
        signature = self._signature
        if not context.set_input_shape(signature.input_name, (size, *signature.input_shape)):
            raise self._failed("set_input_shape")
        unknown = context.infer_shapes()
        if unknown:
            raise InvalidInputError("shapes that the engine cannot infer", received=", ".join(unknown))
        shape = tuple(context.get_tensor_shape(signature.output_name))
        if shape != (size, signature.classes):
            raise InvalidInputError(
                "output of the engine", expected=(size, signature.classes), received=shape
            )
        for name, (address, _) in self._buffers.items():
            if not context.set_tensor_address(name, address):
                raise self._failed("set_tensor_address")
        if own:
            self._contexts[size] = context
        else:
            self._shared = context
        return context

    def _range(self) -> tuple[int, int, int]:
        shape = tuple(self._engine.get_tensor_shape(self._signature.input_name))
        if shape[0] != -1:
            return shape[0], shape[0], shape[0]
        least, usual, most = self._engine.get_tensor_profile_shape(self._signature.input_name, 0)
        return least[0], usual[0], most[0]

    def _check_tensors(self, path: Path) -> None:
        trt, engine, signature = self._trt, self._engine, self._signature
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        if set(names) != {signature.input_name, signature.output_name}:
            raise InvalidInputError(
                f"{path} is another network",
                expected=f"{signature.input_name} and {signature.output_name}",
                received=", ".join(names),
            )
        for name in names:
            if np.dtype(trt.nptype(engine.get_tensor_dtype(name))) != np.float32:
                raise InvalidInputError(
                    f"tensor {name} of {path}", expected="float32", received=engine.get_tensor_dtype(name)
                )
        if engine.get_tensor_mode(signature.input_name) != trt.TensorIOMode.INPUT:
            raise InvalidInputError(f"tensor {signature.input_name} of {path}", expected="an input")

    def _failed(self, what: str) -> SmashError:
        return SmashError(f"TensorRT: {what} failed", received=self._log.reason())
