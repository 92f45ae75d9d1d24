"""Noise that rounding adds to each node of an int8 graph: a note of compilation, read by reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from smash_base.records import read_record


@dataclass(frozen=True)
class NodeNoise:
    """One quantised node.

    Attributes:
        node, operator: Name and ONNX operator.
        sqnr_db: Signal to noise of its output when its inputs are exact, in decibels.
        precision: Precision that it got in the end.
    """

    node: str
    operator: str
    sqnr_db: float
    precision: Literal["int8", "fp32"] = "int8"


@dataclass(frozen=True)
class _Notes:
    noise_by_node: tuple[NodeNoise, ...] = ()


def noise_of(notes: Mapping[str, Any]) -> tuple[NodeNoise, ...]:
    """The nodes in the notes of a compiled file, the noisiest first; none where nothing was quantised."""
    return read_record(_Notes, dict(notes), "notes").noise_by_node
