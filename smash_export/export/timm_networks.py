"""A network of timm with weights from a file: ``timm:NAME?weights=FILE.safetensors``, adopted or a teacher.

timm gives the network and the preprocessing that its weights were trained with. It is never asked for weights
itself, which it would download, and nothing is unpickled.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smash_base.errors import InvalidInputError, MissingRuntimeError, UsageError
from smash_base.json_values import JsonObject
from smash_export.export.adopt import read_preprocessing
from smash_export.export.torch_program import save_whole
from smash_search.data.spec import Spec

if TYPE_CHECKING:
    from torch import nn

PREFIX = "timm:"
_RESIZE = ("bilinear", "bicubic", "nearest", "box")


def weights_file(spec: Spec, *others: str) -> Path:
    """The file that a specification names; raises UsageError.

    Args:
        spec: parsed from ``timm:NAME?weights=FILE.safetensors``.
        others: options that it may have besides.
    """
    spec.options_known("weights", *others)
    path = Path(spec.options.get("weights", "")).expanduser()
    if not spec.path or path.suffix != ".safetensors" or not path.is_file():
        raise UsageError(
            f"the weights of {spec.text}",
            expected="timm:NAME?weights=FILE.safetensors; nothing is downloaded, nothing unpickled",
            received=spec.options.get("weights"),
        )
    return path


def network_with_weights(
    name: str, weights: Path, classes: int, channels: int | None = None
) -> tuple[nn.Module, JsonObject]:
    """The network for evaluation, and its preprocessing.

    Args:
        name: as ``timm.list_models()`` has it.
        weights: safetensors file of its weights.
        classes: K.
        channels: Channels of the images, where they are not those that timm has the network for.

    Returns:
        The preprocessing is as :func:`smash_export.export.adopt.read_preprocessing` takes it.

    Raises:
        MissingRuntimeError: timm is not installed.
        InvalidInputError: timm has no such network, or the weights are not its own.
    """
    try:
        import timm
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
    wanted = {} if channels is None else {"in_chans": channels}
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **wanted)
        network.load_state_dict(load_file(weights))
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise InvalidInputError(
            f"{weights} does not hold the weights of {name}",
            expected=f"weights for {classes} classes",
            received=" ".join(str(error).split())[:300],
        ) from None
    return network.eval(), _preprocessing(timm.data.resolve_model_data_config(network), channels)


def timm_program(name: str, weights: Path, classes: int, path: Path) -> JsonObject:
    """Write the network as a program that takes any number of images.

    Args:
        name, weights, classes: see :func:`network_with_weights`.
        path: the .pt2 file to write.

    Returns:
        Its preprocessing, as :func:`smash_export.export.adopt.read_preprocessing` takes it.

    Raises:
        MissingRuntimeError, InvalidInputError: see :func:`network_with_weights`.
    """
    network, block = network_with_weights(name, weights, classes)
    import torch

    example = torch.zeros(2, *read_preprocessing(None, block, path).input_shape)
    batch = torch.export.Dim("batch", min=1, max=256)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
        save_whole(torch.export.save, program, path)
    return block


def _preprocessing(config: Mapping[str, Any], channels: int | None) -> JsonObject:
    own, height, width = config["input_size"]
    channels = channels or own
    block: JsonObject = {"height": height, "width": width, "channels": channels}
    for name in ("mean", "std"):
        values = list(config[name])
        block[name] = values if len(values) == channels else [sum(values) / len(values)] * channels
    block["resize"] = config["interpolation"] if config["interpolation"] in _RESIZE else "bicubic"
    if height == width and config.get("crop_mode", "center") == "center":
        block["crop_pct"] = config["crop_pct"]
    return block
