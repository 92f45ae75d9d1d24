"""A constant that is added to a tensor, moved into the biases of the convolutions that make the tensor.

A runtime fuses a convolution with the sum of a residual connection and the ReLU behind it, but not with an
addition of a constant between them. Convolutions, sums, concatenations and splits are linear: the constant
can stand in the bias of the convolution where it all begins. Whoever else reads the tensor on the way must
not notice: a 1x1 convolution takes the constant off again in its own bias, a sum in its other operand, and
any reader that can do neither forbids the move.
"""

from __future__ import annotations

from collections.abc import Collection, MutableMapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

# What other readers take off again costs them digits where it is much larger than the values.
LARGEST_TAKEN_OFF = 8.0


def move_into_biases(
    nodes: Sequence[onnx.NodeProto],
    constants: MutableMapping[str, np.ndarray],
    tensor: str,
    shift: np.ndarray,
    held: Collection[str] = (),
) -> bool:
    """Make ``tensor`` larger by ``shift`` [channels] for a reader that is still to be written.

    Args:
        nodes: all that was written so far; every convolution has a bias of its own.
        constants: initialisers by name; the biases in it are changed.
        held: tensors that readers still to be written take as they are.

    Returns:
        False where it is not possible; then nothing is changed.
    """
    move = _Move(nodes, constants, frozenset(held))
    if not move.enlarge(tensor, np.asarray(shift, np.float64), None):
        return False
    for name, change in move.changes.items():
        constants[name] = (constants[name].astype(np.float64) + change).astype(constants[name].dtype)
    return True


@dataclass
class _Move:
    nodes: Sequence[onnx.NodeProto]
    constants: MutableMapping[str, np.ndarray]
    held: frozenset[str]
    changes: dict[str, np.ndarray] = field(default_factory=dict)  # name of a bias -> what to add to it
    _open: set[str] = field(default_factory=set)  # tensors whose change is being planned

    def enlarge(self, tensor: str, shift: np.ndarray, reader: onnx.NodeProto | None) -> bool:
        """Whether ``tensor`` can be made larger for ``reader`` alone; notes the changes of biases."""
        if tensor in self._open or (reader is not None and tensor in self.held):
            return False
        if reader is not None and list(reader.input).count(tensor) > 1:
            return False
        before = dict(self.changes)
        self._open.add(tensor)
        possible = self._producer_adds(tensor, shift) and self._others_take_off(tensor, shift, reader)
        self._open.remove(tensor)
        if not possible:
            self.changes = before
        return possible

    def _producer_adds(self, tensor: str, shift: np.ndarray) -> bool:
        producer = next((node for node in self.nodes if tensor in node.output), None)
        if producer is None:
            return False
        if producer.op_type == "Conv":
            self._change(producer.input[2], shift)
            return True
        if producer.op_type == "Add":
            return any(self.enlarge(name, shift, producer) for name in reversed(producer.input))
        if producer.op_type == "Split":
            whole = [shift if name == tensor else np.zeros_like(shift) for name in producer.output]
            return self.enlarge(producer.input[0], np.concatenate(whole), producer)
        return False

    def _others_take_off(self, tensor: str, shift: np.ndarray, reader: onnx.NodeProto | None) -> bool:
        others = [node for node in self.nodes if tensor in node.input and node is not reader]
        if others and np.abs(shift).max() > LARGEST_TAKEN_OFF:
            return False
        return all(self._takes_off(node, tensor, shift) for node in others)

    def _takes_off(self, node: onnx.NodeProto, tensor: str, shift: np.ndarray) -> bool:
        if list(node.input).count(tensor) > 1:
            return False
        if node.op_type == "Conv":
            weight = self.constants[node.input[1]]
            if weight.shape[1] != len(shift) or weight[0, 0].size > 1:
                return False
            self._change(node.input[2], -weight.reshape(len(weight), -1).astype(np.float64) @ shift)
            return True
        if node.op_type == "Add":
            (other,) = (name for name in node.input if name != tensor)
            return self.enlarge(other, -shift, node)
        return False

    def _change(self, name: str, amount: np.ndarray) -> None:
        self.changes[name] = self.changes.get(name, 0) + amount
