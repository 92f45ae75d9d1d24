"""A network of timm with weights from a file, as a program: ``adopt 'timm:NAME?weights=FILE.safetensors'``.

timm gives the network and the preprocessing that its weights were trained with. It is never asked for weights
itself, which it would download, and nothing is unpickled.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smash_base.errors import InvalidInputError, MissingRuntimeError, UsageError
from smash_base.json_values import JsonObject
from smash_search.data.spec import parse_spec

PREFIX = "timm:"
_RESIZE = {"bilinear": "bilinear", "bicubic": "bicubic", "nearest": "nearest", "box": "box"}


def network_and_weights(text: str) -> tuple[str, Path]:
    """Name of the network and file of its weights; raises UsageError."""
    spec = parse_spec(text)
    spec.options_known("weights")
    path = Path(spec.options.get("weights", "")).expanduser()
    if not spec.path or path.suffix != ".safetensors" or not path.is_file():
        raise UsageError(
            f"the weights of {text}",
            expected="timm:NAME?weights=FILE.safetensors; nothing is downloaded, nothing unpickled",
            received=spec.options.get("weights"),
        )
    return spec.path, path


def timm_program(name: str, weights: Path, classes: int, path: Path) -> JsonObject:
    """Write the network as a program that takes any number of images.

    Args:
        name: as ``timm.list_models()`` has it.
        weights: safetensors file of its weights.
        classes: K.
        path: the .pt2 file to write.

    Returns:
        Its preprocessing, as :func:`smash_export.export.adopt.read_preprocessing` takes it.

    Raises:
        MissingRuntimeError: timm is not installed.
        InvalidInputError: timm has no such network, or the weights are not its own.
    """
    try:
        import timm
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingRuntimeError(
            f"a network of timm needs the package {error.name}",
            hint="Install it: pip install 'smash-export[timm]'",
        ) from None
    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise InvalidInputError(
            f"timm has no network {name!r}", hint=f"Did you mean {' or '.join(near)}?" if near else None
        )
    network = timm.create_model(name, pretrained=False, num_classes=classes).eval()
    try:
        network.load_state_dict(load_file(weights))
    except (RuntimeError, SafetensorError) as error:
        raise InvalidInputError(
            f"{weights} does not hold the weights of {name} with {classes} classes",
            received=" ".join(str(error).split())[:300],
        ) from None
    config = timm.data.resolve_model_data_config(network)
    example = torch.zeros(2, *config["input_size"])
    batch = torch.export.Dim("batch", min=1, max=256)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(network, (example,), dynamic_shapes=({0: batch},)), path)
    return _preprocessing(config)


def _preprocessing(config: Mapping[str, Any]) -> JsonObject:
    channels, height, width = config["input_size"]
    block: JsonObject = {
        "height": height,
        "width": width,
        "channels": channels,
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "resize": _RESIZE.get(config["interpolation"], "bicubic"),
    }
    if height == width and config.get("crop_mode", "center") == "center":
        block["crop_pct"] = config["crop_pct"]
    return block
