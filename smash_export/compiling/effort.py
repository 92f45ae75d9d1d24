"""Networks that an int8 file may be made of, one after the other, until one loses little: ``--effort high``.

All answer alike at fp32; they differ in how well they bear rounding:

* "as it is": the network of the bundle. Ranges and biases are chosen by what they cost on the calibration
  images already (:mod:`smash_export.compiling.precision.int8`);
* "equalised": channels scaled so that one range fits them
  (:mod:`smash_export.compiling.precision.equalisation`);
* "trained": its weights trained on with rounding in the loop to answer as the bundle's network does
  (distillation, no labels needed), on training images. For networks of this project only.

Which is kept is decided by the gate and its images, as for any file; how many were tried stands in the notes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from smash_base import files
from smash_base.errors import MissingRuntimeError
from smash_base.sampling import evenly
from smash_export.bundle.bundle import Bundle
from smash_export.measure.machine import cpu_features
from smash_targets.base import OnProgress, Target
from smash_targets.common import has_module

if TYPE_CHECKING:
    from smash_search.data import Dataset
    from smash_search.train.loop import TrainingProgress

Effort = Literal["normal", "high"]
ENOUGH = 0.4  # of the points that may be lost: an int8 file that loses no more is not mended
TRAINED_IMAGES = 8192  # at most
STEPS, BATCH, RATE = 500, 64, 1e-3
_TRAINED: dict[tuple[str, bool, str | None], dict[str, np.ndarray]] = {}


@dataclass(frozen=True)
class Source:
    """A network at fp32.

    Attributes:
        name: "as it is", "equalised" or "trained".
        onnx: its graph.
        weights: by name, where they are other ones than the bundle's.
    """

    name: str
    onnx: Path
    weights: dict[str, np.ndarray] | None = None


def sources(
    bundle: Bundle,
    runtime: Target,
    effort: Effort,
    folder: Path,
    data: str | None = None,
    on_progress: OnProgress | None = None,
) -> Iterator[Source]:
    """The network of the bundle; with high effort what else may be tried, made when it is asked for.

    Args:
        folder: an existing one, for files.
        data: data set whose training images are trained on; None for the bundle's calibration images.
        on_progress: called with "training", the steps done and all steps.

    Raises:
        MissingRuntimeError: training needs torch, which is not here.
    """
    yield Source("as it is", bundle.onnx)
    if effort == "normal":
        return
    if not runtime.needs_torch_program:  # those start from the architecture
        path = folder / "equalised.onnx"
        if _write_equalised(bundle, path):
            yield Source("equalised", path)
    if bundle.architecture is not None and bundle.signature.outputs == "logits" and bundle.weights():
        if not has_module("torch"):
            raise MissingRuntimeError(
                "effort high trains the network, which needs torch",
                hint="Install it: pip install 'smash-export[search]'",
            )
        path = folder / "trained.onnx"
        yield Source("trained", path, _write_trained(bundle, runtime, path, data, on_progress))


def _write_equalised(bundle: Bundle, path: Path) -> bool:
    """Whether there is a channel to scale."""
    import onnx

    from smash_export.compiling.precision.equalisation import equalised
    from smash_export.export.onnx_graphs import prepared

    model = prepared(onnx.load_model_from_string(bundle.onnx.read_bytes()))
    images = bundle.calibration()
    few = evenly(images, 128)
    result, scaled = equalised(model, np.asarray(bundle.preprocessing.normalise(few), np.float32))
    if scaled:
        files.write_bytes(path, result.SerializeToString(deterministic=True))
    return scaled > 0


def _write_trained(
    bundle: Bundle, runtime: Target, path: Path, data: str | None, on_progress: OnProgress | None
) -> dict[str, np.ndarray]:
    """Train on, write the graph, and give the weights by name."""
    from smash_export.compiling.precision.int8 import scheme_for
    from smash_export.export.onnx_writer import onnx_from_architecture
    from smash_search.space.architecture import InputSpec

    architecture = bundle.architecture
    assert architecture is not None  # sources()
    narrow = runtime.precision_source == "onnx" and scheme_for(runtime.name, cpu_features()).reduce_range
    key = files.sha256(bundle.onnx), narrow, data
    if key not in _TRAINED:
        _TRAINED.clear()  # one network at a time: that of ``compile --all``
        _TRAINED[key] = _trained(bundle, 7 if narrow else 8, data, on_progress)
    channels, *size = bundle.signature.input_shape
    smallest, _, largest = bundle.signature.batch
    content = onnx_from_architecture(
        architecture,
        _TRAINED[key],
        InputSpec(channels, tuple(size)),
        labels=bundle.labels,
        preprocessing=bundle.preprocessing,
        batch=smallest if smallest == largest else None,
    )
    files.write_bytes(path, content)
    return _TRAINED[key]


def _trained(
    bundle: Bundle, bits: Literal[7, 8], data: str | None, on_progress: OnProgress | None
) -> dict[str, np.ndarray]:
    """The weights after training with weights of so many bits."""
    from smash_search.model.fake_quantisation import FakeQuantisedNetwork
    from smash_search.train.network import fit
    from smash_search.train.recipes import Recipe

    architecture, weights = bundle.architecture, bundle.weights()
    assert architecture is not None  # sources()
    assert weights is not None
    dataset, answers = _lesson(bundle, data)
    images = len(dataset.train)
    recipe = Recipe(
        epochs=math.ceil(STEPS * BATCH / images),
        batch=min(BATCH, images),
        learning_rate=RATE,
        weight_decay=0.0,
        distillation=1.0,
        temperature=1.0,
        precision="float32",  # bfloat16 would round again what is rounded to int8
    )

    def tell(progress: TrainingProgress) -> None:
        if on_progress is not None:
            on_progress("training", progress.step, progress.steps)

    network = FakeQuantisedNetwork(architecture, weights, bits)
    fit(network, dataset, recipe, evaluate=False, teacher=answers, on_step=tell)
    return network.frozen()


def _lesson(bundle: Bundle, data: str | None) -> tuple[Dataset, np.ndarray]:
    """Training images, and what the network answers for them, float32 [N, K]."""
    import onnx

    from smash_export.export.onnx_graphs import logits_of
    from smash_export.measure.labelled import from_data
    from smash_search.data.dataset import Dataset, Split

    images = bundle.calibration() if data is None else from_data(bundle, data, "train").images
    images = np.asarray(evenly(images, TRAINED_IMAGES))
    model = onnx.load_model_from_string(bundle.onnx.read_bytes())
    answers = logits_of(model, np.asarray(bundle.preprocessing.normalise(images), np.float32))
    split = Split(images, answers.argmax(axis=1).astype(np.int64))
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    few = split.take(slice(0, 1))
    dataset = Dataset(
        "calibration", "calibration", bundle.labels, bundle.preprocessing, split, few, few, digest, seed=0
    )
    return dataset, answers
