"""ExecuTorch with the XNNPACK backend: a .pte file for phones and microcontrollers.

Its packages pin each other and bring 1.5 GB, so it has an environment of its own: ``make
target-executorch``. The batch size is fixed when it is compiled; other batches run in parts of that size.

int8 is PyTorch's quantiser for XNNPACK (PT2E): int8 activations, weights with a scale per output channel,
ranges from calibration images. Input and logits stay float; splits and means are computed at fp32. The file
says so by a constant method of the name ``int8``. fp16 needs a processor with fp16 arithmetic.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from smash_base.errors import UsageError, VerificationError
from smash_base.sampling import evenly
from smash_targets.base import (
    CompileRequest,
    CompileResult,
    ModelSignature,
    Session,
    SessionInfo,
    SessionOptions,
)
from smash_targets.common import (
    check_batch,
    check_file,
    check_threads,
    damaged,
    fixed_batch,
    input_type,
    only_cpu,
    run_in_chunks,
    torch_program_of,
)
from smash_targets.isolation.environments import EnvironmentTarget

_BYTE = 0  # as ExecuTorch numbers the type uint8
_INT8 = "int8"  # name of the method that files of this precision have
CALIBRATED = 256  # images


class ExecuTorchTarget(EnvironmentTarget):
    """See the head of this module. Option ``batch``: the fixed batch size."""

    name = "executorch"
    extra = "executorch"
    modules = {"executorch": ("executorch",), "torch": ("torch",)}
    imports_torch = True
    environment = "executorch"
    precisions = ("fp32", "int8")
    precision_source = "target"
    needs_torch_program = True
    batch_note = "has one batch size; others run in parts of it"
    compiler = ("executorch", "torch", "torchao")

    def compile_here(self, request: CompileRequest, destination: Path) -> CompileResult:
        """Export again for one batch size, and give XNNPACK what it can run."""
        source = torch_program_of(request, self.name)
        batch = fixed_batch(request.options, request.signature)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            exported = torch.export.load(source)
            module = exported.module()
            example = torch.zeros(batch, *request.signature.input_shape, dtype=input_type(exported))
            if request.precision == "int8":
                module = _quantised(module, example, request.calibration)
            program = to_edge_transform_and_lower(
                torch.export.export(module, (example,)),
                partitioner=[XnnpackPartitioner()],
                constant_methods={_INT8: True} if request.precision == "int8" else None,
            )
            left = sorted(
                {
                    str(node.target)
                    for node in program.exported_program().graph.nodes
                    if node.op == "call_function"
                    and "delegate" not in str(node.target)
                    and "getitem" not in str(node.target)
                }
            )
            (destination / "model.pte").write_bytes(program.to_executorch().buffer)
        return CompileResult("model.pte", {"batch": batch, "operators outside XNNPACK": left})

    def open_here(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        """On the CPU, the only device of XNNPACK."""
        only_cpu(options, "ExecuTorch")
        return ExecuTorchSession(check_file(path, "ExecuTorch file"), signature, options)


class ExecuTorchSession(Session):
    """The native module, without the Python layer above it: that one imports the whole compiler."""

    def __init__(self, path: Path, signature: ModelSignature, options: SessionOptions) -> None:
        import importlib.metadata

        import torch
        from executorch.extension.pybindings import _C as native

        self._torch: Any = torch
        self._signature = signature
        threads = check_threads(options.threads)
        if threads is not None:
            native._unsafe_reset_threadpool(threads)  # unsafe while a module runs; none does yet
        try:
            self._module = native._load_for_executorch(str(path))
            meta = self._module.method_meta("forward").input_tensor_meta(0)
            sizes, self._bytes = meta.sizes(), meta.dtype() == _BYTE
        except RuntimeError as error:
            raise damaged(path, "ExecuTorch", error) from error
        self._batch = int(sizes[0])
        int8 = _INT8 in self._module.method_names()
        if tuple(sizes[1:]) != signature.input_shape:
            raise damaged(path, "ExecuTorch", ValueError(f"its input is {list(sizes)}"))
        self.info = SessionInfo(
            target="executorch",
            version=importlib.metadata.version("executorch"),
            provider="XNNPACK",
            device="cpu",
            threads=native._threadpool_get_thread_count(),
            precision="int8" if int8 else "fp32",
        )

    def run(self, batch: np.ndarray) -> np.ndarray:
        batch = check_batch(batch, self._signature)
        return run_in_chunks(self._run, batch, self._batch, self._signature.classes)

    def close(self) -> None:
        self._module = None

    def _run(self, images: np.ndarray) -> np.ndarray:
        try:
            taken = images.astype(np.uint8) if self._bytes else images
            (logits,) = self._module.forward([self._torch.from_numpy(taken)])
        except RuntimeError as error:
            raise VerificationError("ExecuTorch failed to run the network", received=error) from error
        result: np.ndarray = logits.numpy()
        return result


def _quantised(module: Any, example: Any, calibration: np.ndarray | None) -> Any:
    """The module with Q/DQ around what XNNPACK computes in int8; ranges come from the calibration images."""
    if calibration is None:
        raise UsageError("int8 needs calibration images", hint="Freeze the bundle with its data.")
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantiser = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(module, (example,)).module(), quantiser)
    batch = len(example)
    images = evenly(calibration, CALIBRATED)
    whole = np.resize(images, (-(-len(images) // batch) * batch, *images.shape[1:]))  # the first ones again
    with torch.no_grad():
        for part in whole.reshape(-1, batch, *images.shape[1:]):
            prepared(torch.from_numpy(part))
    return convert_pt2e(prepared)
