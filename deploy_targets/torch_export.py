"""torch.export and AOTInductor: a .pt2 package of compiled C++, PyTorch's successor of TorchScript.

Needs a C++ compiler where it is compiled, and the same version of PyTorch and kind of processor where it
runs. Compiling takes 15 to 60 seconds. Like TorchScript, a package is a program: open only those that you or
people you trust made.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from smash_base.errors import InvalidInputError, MissingRuntimeError, UsageError, VerificationError
from smash_targets.base import (
    Availability,
    CompileRequest,
    CompileResult,
    ModelSignature,
    Precision,
    Session,
    SessionInfo,
    SessionOptions,
    Target,
)
from smash_targets.common import check_file, damaged, find_runtime, kind_of_device, torch_program_of
from smash_targets.torchscript import INSTALL, TYPES, TorchSession, torch_device

_PRECISION = "smash_export_precision"  # in the package's own metadata
_DEVICE = "AOTI_DEVICE_KEY"


class TorchExportTarget(Target):
    """See the head of this module. Option ``device``: "cpu" (default) or "cuda"."""

    name = "torch_export"
    extra = "torch-export"
    modules = {"torch": ("torch",)}
    imports_torch = True
    precisions = ("fp32", "bf16", "fp16")
    precision_source = "target"
    needs_torch_program = True
    batch_note = "takes every batch size"
    options = ("device",)

    def availability(self) -> Availability:
        return find_runtime(self, INSTALL)

    def check_options(
        self, options: Mapping[str, Any], signature: ModelSignature, precision: Precision
    ) -> None:
        super().check_options(options, signature, precision)
        wish = options.get("device", "cpu")
        if not isinstance(wish, str):
            raise UsageError("option device", expected="cpu, cuda or cuda:NUMBER", received=wish)
        kind_of_device(wish)

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        """Compile the exported program, its weights packed for this processor."""
        self.require()
        self.check_request(request)
        device = torch_device(SessionOptions(device=request.options.get("device", "cpu")))
        source = torch_program_of(request, self.name)
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            raise MissingRuntimeError(
                "target torch_export cannot compile here: there is no C++ compiler",
                hint="Install it: apt-get install g++",
            )
        import torch

        with _quiet(), torch.no_grad():
            try:
                program = torch.export.load(source)
            except Exception as error:  # a zip, a JSON or a schema error of many types
                raise damaged(source, "torch.export", error) from error
            program = _at(program, request.precision, device)
            try:
                torch._inductor.aoti_compile_and_package(
                    program,
                    package_path=str(destination / "model.pt2"),
                    inductor_configs={
                        "freezing": True,
                        # Else the number of threads of this machine is written into the code.
                        "cpp.dynamic_threads": True,
                        "aot_inductor.metadata": {_PRECISION: request.precision},
                    },
                )
            except RuntimeError as error:
                raise VerificationError(
                    "AOTInductor could not compile this network", received=error
                ) from error
        return CompileResult("model.pt2", {"device": device})

    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        """On the device that it was compiled for."""
        self.require()
        check_file(path, ".pt2 package")
        device = torch_device(options)
        import torch

        with _quiet():
            try:
                package = torch._inductor.aoti_load_package(str(path))
                metadata = package.loader.get_metadata()
            except Exception as error:  # of many types, from the zip reader to the loader of libraries
                raise damaged(path, "AOTInductor", error) from error
        made_for = metadata.get(_DEVICE, "cpu")
        if made_for != device.partition(":")[0]:
            raise InvalidInputError(
                f"{path} was compiled for another device",
                expected=made_for,
                received=device,
                hint=f"Pass --device {made_for}, or compile it for this one.",
            )
        return TorchSession(
            package,
            signature,
            SessionInfo(
                target=self.name,
                version=torch.__version__,
                provider="AOTInductor",
                device=device,
                threads=options.threads or torch.get_num_threads(),
                precision=metadata.get(_PRECISION, "fp32"),
            ),
        )


def _at(program: Any, precision: str, device: str) -> Any:
    """The program at that precision, on that device."""
    import torch

    if precision == "fp32" and device == "cpu":
        return program
    ranges = list(program.range_constraints.values())
    if len(ranges) != 1:
        raise UsageError("this program takes one batch size", expected="a dynamic batch axis")
    _, (example,) = program.example_inputs[1], program.example_inputs[0]
    module = program.module().to(device, getattr(torch, TYPES[precision]))
    batch = torch.export.Dim("batch", min=1, max=int(ranges[0].upper))
    example = example.to(device, getattr(torch, TYPES[precision]))
    return torch.export.export(module, (example,), dynamic_shapes=({0: batch},))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of PyTorch's own parts about one another."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
