"""A network as TorchScript, and TorchScript as ONNX."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING, Any

from smash_base import files

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

OPSET = 20
_UNFLATTEN = "aten::unflatten"
_FUSED = ("_native_multi_head_attention", "_transformer_encoder_layer_fwd")


def traced(network: nn.Module, example: torch.Tensor) -> Any:
    """The network as TorchScript, by what it does with an example.

    Attention is traced as its single operations: the fused ones that PyTorch takes where nothing is trained
    have no form in ONNX.

    Raises:
        RuntimeError: it cannot be traced.
    """
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return torch.jit.trace(network, example, check_trace=False)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def onnx_of_torchscript(network: Any, image: tuple[int, ...]) -> onnx.ModelProto:
    """The ONNX form of a network that was read or traced, for any number of images [C, *S].

    Raises:
        RuntimeError, ValueError, TypeError: PyTorch cannot write it; :func:`cause_of` says why.
    """
    import onnx
    import torch
    from torch.onnx.utils import register_custom_op_symbolic, unregister_custom_op_symbolic

    with files.temporary_folder() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is old is no news to the user
        with contextlib.suppress(AttributeError):  # there is no public name for it
            torch._C._jit_set_onnx_log_output_stream("stderr")  # for graphs that it fails at
        target = folder / "model.onnx"
        register_custom_op_symbolic(_UNFLATTEN, _unflatten, OPSET)
        try:
            torch.onnx.export(  # the exporter that takes a traced module; the other one needs Python code
                network,
                (torch.zeros(2, *image),),
                target,
                dynamo=False,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["logits"],
                dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
            )
        finally:
            unregister_custom_op_symbolic(_UNFLATTEN, OPSET)
        return onnx.load_model_from_string(target.read_bytes())


def _unflatten(graph: Any, value: Any, axis: Any, sizes: Any) -> Any:
    """An axis as several, in ONNX; PyTorch's own form forgets how many axes there are, which attention asks.

    ``sizes`` may hold one number that is not known before the network runs.
    """
    import torch
    from torch.onnx import symbolic_helper, symbolic_opset13

    axes, place = symbolic_helper._get_tensor_rank(value), symbolic_helper._maybe_get_const(axis, "i")
    known = symbolic_helper._maybe_get_const(sizes, "is")
    if not isinstance(known, list):
        known = [symbolic_helper._maybe_get_const(size, "i") for size in symbolic_helper._unpack_list(sizes)]
    parts = [size if isinstance(size, int) else -1 for size in known]
    if axes is None or not isinstance(place, int) or parts.count(-1) > 1 or place % axes != axes - 1:
        return symbolic_opset13.unflatten(graph, value, axis, sizes)
    kept = [0] * (axes - 1)  # as they are
    return graph.op("Reshape", value, graph.op("Constant", value_t=torch.tensor([*kept, *parts])))


def evaluating(network: Any) -> bytes:
    """A TorchScript file of the network in evaluation mode: no runtime changes the mode of what it opens."""
    import torch

    stream = io.BytesIO()
    torch.jit.save(network.eval(), stream)
    return stream.getvalue()


def advice_on(error: Exception) -> str | None:
    """What to do about an error of :func:`onnx_of_torchscript`, where that is known."""
    if any(name in str(error) for name in _FUSED):
        return "Trace it with attention in single operations: torch.backends.mha.set_fastpath_enabled(False)."
    return None


def cause_of(error: Exception) -> str:
    """What went wrong in TorchScript: of its interpreter the last line, since the first ones trace code."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines and "TorchScript interpreter" in lines[0] else "\n".join(lines)
