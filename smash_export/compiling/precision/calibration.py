"""Calibration images: are they fit for it, and what ranges do the tensors take on them.

Ranges come from ONNX Runtime's calibrators. What those lack and is done here: images in pieces (a
calibrator keeps every intermediate tensor of what it is given at once), and refusing images that would
calibrate a network for something else than its task.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from smash_base import files
from smash_base.errors import InvalidInputError
from smash_base.preprocess import PRESENT, Outputs, Preprocessing
from smash_base.sampling import evenly
from smash_export.bundle.samples import check_images
from smash_export.export.onnx_graphs import chunks, require_onnxruntime, session_of, static_batch

if TYPE_CHECKING:
    import onnx

Method = Literal["minmax", "entropy", "percentile", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile", "mse")
MINIMUM = 512  # fewer images leave ranges to chance; four images cost one project 20 points of accuracy
MOST = 1024
BINS, SHARES = 2048, np.linspace(0.3, 1.0, 36)  # of a tensor's values, and of its extremes that are tried
COUNTED = 64  # images whose values are counted in bins
Ranges = dict[str, tuple[float, float]]


def calibration_tensors(
    images: np.ndarray, preprocessing: Preprocessing, minimum: int = MINIMUM
) -> np.ndarray:
    """Check uint8 images [M, *sample_shape] and give tensors float32 [N, *input_shape], N <= 1024.

    Raises:
        InvalidInputError: see :func:`check_calibration`.
    """
    check_calibration(images, preprocessing, minimum)
    return np.asarray(preprocessing.normalise(np.asarray(evenly(images, MOST))), dtype=np.float32)


def check_calibration(images: np.ndarray, preprocessing: Preprocessing, minimum: int = MINIMUM) -> None:
    """Refuse images that cannot calibrate.

    Raises:
        InvalidInputError: another size or type, fewer than ``minimum``, or all the same image.
    """
    check_images("calibration images", images, preprocessing)
    if len(images) < minimum:
        raise InvalidInputError(
            "too few calibration images",
            expected=f"at least {minimum} training images, all classes together",
            received=len(images),
            hint="Make the bundle again with more training data, or accept fewer: "
            f"--option calibration_minimum={len(images)}",
        )
    if len(images) > 1 and (images == images[0]).all():
        raise InvalidInputError("calibration images are all the same image", received=f"{len(images)} copies")


def check_classes(answers: np.ndarray, outputs: Outputs = "logits") -> None:
    """Refuse calibration images which the network takes to be of one class (answers [N, K], K > 1).

    The labels of calibration images do not travel with them; what the network sees in them does.

    Args:
        outputs: what the answers are. Of an image that may have several classes ("sigmoid") they are a
            probability of each: images that share their likeliest class may differ in the others.
    """
    seen = np.unique(answers.argmax(axis=1))
    if outputs == "sigmoid" and len(np.unique(answers > PRESENT, axis=0)) > 1:
        return
    if answers.shape[1] > 1 and len(seen) == 1:
        raise InvalidInputError(
            "calibration images are all of one class",
            expected=f"images of all {answers.shape[1]} classes",
            received=f"class {int(seen[0])} only, according to the network",
            hint="Make the bundle again with training images of every class.",
        )


def tensor_ranges(
    model: onnx.ModelProto,
    tensors: np.ndarray,
    method: Method,
    op_types: list[str],
    extremes: Ranges | None = None,
) -> Ranges:
    """Range of every float tensor that an operator of ``op_types`` reads or writes.

    Args:
        tensors: float32 [N, *input_shape].
        method: the extremes seen; the threshold that keeps the distribution's entropy best; the 99.999th
            percentile; or the share of the extremes that rounds values with the least squared error.
        extremes: What "minmax" gave for the same images, for "mse"; measured where it is not given.
    """
    if method == "mse":
        extremes = extremes or tensor_ranges(model, tensors, "minmax", op_types)
        return _least_squares(model, tensors, extremes)
    require_onnxruntime()
    import onnx
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    source = model.graph.input[0].name
    with files.temporary_folder() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = folder / "model.onnx"
        onnx.save(model, path)
        calibrator = create_calibrator(
            str(path),
            op_types,
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=methods[method],
        )
        for part in chunks(tensors, static_batch(model)):
            calibrator.collect_data(_Reader({source: part}))
        found = calibrator.compute_data()
        return {name: _range(data) for name, data in found.items()}


def _least_squares(model: onnx.ModelProto, tensors: np.ndarray, extremes: Ranges) -> Ranges:
    """Each range times the share under which 8 bits keep the values on the images best."""
    counts = {name: np.zeros(BINS) for name, (low, high) in extremes.items() if low < high}
    for values in _values(model, evenly(tensors, COUNTED), list(counts)):
        for name, value in values.items():
            counts[name] += np.histogram(value, BINS, extremes[name])[0]
    return {**extremes, **{name: _best_share(extremes[name], count) for name, count in counts.items()}}


def _best_share(extremes: tuple[float, float], counts: np.ndarray) -> tuple[float, float]:
    low, high = extremes
    centres = low + (np.arange(BINS) + 0.5) * (high - low) / BINS
    errors = []
    for share in SHARES:
        step = share * (high - low) / 255
        rounded = np.rint(centres / step - share * low / step).clip(0, 255) * step + share * low
        errors.append(float(counts @ np.square(rounded - centres)))
    share = float(SHARES[int(np.argmin(errors))])
    return share * low, share * high


def _values(model: onnx.ModelProto, tensors: np.ndarray, names: list[str]) -> Iterator[dict[str, np.ndarray]]:
    """Values of these tensors, a piece of the images at a time."""
    import onnx

    copy = onnx.ModelProto.FromString(model.SerializeToString())
    listed = {value.name for value in copy.graph.output}
    made = {name for node in copy.graph.node for name in node.output}
    wanted = [name for name in names if name in made]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in listed)
    session, source = session_of(copy), model.graph.input[0].name
    for part in chunks(tensors, static_batch(model)):
        values = dict(zip(wanted, session.run(wanted, {source: part}), strict=True))
        yield values | ({source: part} if source in names else {})


def _range(data: Any) -> tuple[float, float]:
    low, high = data.range_value
    return float(np.min(low)), float(np.max(high))


class _Reader:
    """One batch, in the form that ONNX Runtime's calibrators read."""

    def __init__(self, feed: dict[str, np.ndarray]) -> None:
        self._feeds = iter([feed])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)
