"""Names of nodes and layers, with their place in the architecture."""

from __future__ import annotations

import re

_NODE = re.compile(r"blocks\.(\d+)\.(?:ops\.(\d+)\.(?:(reduce)|convs\.(\d+))?|(transition))?")


def describe_node(name: str) -> str:
    """A node name with its place in the architecture: block, operation and convolution.

    >>> describe_node("blocks.1.ops.2.convs.0")
    'blocks.1.ops.2.convs.0 (block 1, operation 2, convolution 0)'
    """
    match = _NODE.search(name)
    if not match:
        return name
    block, operation, reduce, conv, transition = match.groups()
    words = [f"block {block}"]
    if operation is not None:
        words.append(f"operation {operation}")
    if reduce:
        words.append("1x1 reduction")
    if conv is not None:
        words.append(f"convolution {conv}")
    if transition:
        words.append("transition")
    return f"{name} ({', '.join(words)})"


def node_hint(text: str) -> str | None:
    """Which layer an error text of the builder speaks of; None when it names none."""
    match = _NODE.search(text)
    return f"The layer is {describe_node(match[0])}." if match else None
