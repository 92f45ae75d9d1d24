"""Images with known classes for a bundle: those that travel in it, or a data set by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from smash_base.errors import InvalidInputError, UsageError
from smash_base.preprocess import Preprocessing
from smash_base.sampling import spread
from smash_export.bundle.bundle import Bundle

if TYPE_CHECKING:
    from smash_search.data import Dataset

PARTS = ("train", "validation", "test")
WHOLE = "all"
SPLITS = (*PARTS, WHOLE)
CALIBRATION_IMAGES = 1024  # that travel in a bundle, for int8


@dataclass(frozen=True)
class Labelled:
    """Images of the size that the network takes, with their classes.

    Attributes:
        name: where they come from, for titles.
        images: uint8 [N, *sample_shape]; may be a memmap.
        labels: int64 [N], K for an image of no class.
        targets: uint8 [N, K] in the order of the network's outputs, where an image may be of several classes.
        warnings: what the reader of a result must know.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    warnings: tuple[str, ...] = ()
    targets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


def bundled(bundle: Bundle) -> Labelled:
    """The test images in the bundle."""
    samples = bundle.samples()
    return Labelled("the bundled images", samples.images, samples.labels, targets=samples.targets)


def calibration_images(dataset: Dataset, count: int = CALIBRATION_IMAGES, seed: int = 0) -> np.ndarray:
    """Images that files of lower precision are calibrated on, uint8 [M, *S]: validation images, and training
    images where those are too few.

    Rounding is chosen by the labels that change with it. A network is surer of images that it was trained on,
    which change theirs less: one that lost 0.7 points of accuracy on test images was thought to lose 0.2
    by training images.

    Args:
        dataset: Its images are taken as they are in it.
        count: most images.
        seed: Random seed of the choice.
    """
    parts: list[np.ndarray] = []
    for split in (dataset.validation, dataset.train):
        chosen = spread(len(split), count - sum(map(len, parts)), seed)
        parts.append(np.asarray(split.images[chosen]))
    return np.concatenate(parts)


def from_data(bundle: Bundle, spec: str, split: str = "test", seed: int | None = None) -> Labelled:
    """A split of a data set, or all of it, for a bundle that has its classes, in whatever order.

    Images of another size go through the bundle's own preprocessing, as single files would.

    Args:
        spec: as for :func:`smash_search.data.load_dataset`.
        split: One of :data:`SPLITS`; "all" is for data that the bundle was not made from.
        seed: Random seed of the splits, where the data have none; that of the bundle if None.

    Raises:
        UsageError: no such split.
        InvalidInputError: a class that the bundle has not, or channels that do not fit.
    """
    from smash_search.data import Split, as_seen_by, load_dataset

    if split not in SPLITS:
        raise UsageError("no such split", expected=" or ".join(SPLITS), received=split)
    made_from = bundle.manifest.provenance.get("data")
    recorded = made_from if isinstance(made_from, dict) else {}
    if seed is None:
        recorded_seed = recorded.get("seed")
        seed = recorded_seed if type(recorded_seed) is int else 0
    seen = as_seen_by(bundle.preprocessing, spec)
    try:
        dataset = load_dataset(seen, seed=seed)
    except InvalidInputError:
        if split != WHOLE:
            raise
        dataset = load_dataset(seen, seed=seed, whole=True)  # too few to split, which nobody asked for
    numbers = class_numbers(spec, dataset.classes, bundle.labels)
    parts = [getattr(dataset, name) for name in (PARTS if split == WHOLE else (split,))]
    parts = [part for part in parts if len(part)]
    part = parts[0] if len(parts) == 1 else Split.joined(*parts)
    images = as_files(part.images, dataset.preprocessing, bundle.preprocessing)
    warnings = _warnings(split, is_known=dataset.fingerprint == recorded.get("fingerprint"))
    targets = by_outputs(part.targets, numbers, len(bundle.labels))
    labels = labels_by_outputs(part.labels, numbers, len(bundle.labels))
    if bundle.signature.outputs != "sigmoid" and len(of_none := np.flatnonzero(labels == len(bundle.labels))):
        warnings = (*warnings, f"{len(of_none)} images of no class are left out: each answer is of one class")
        kept = np.setdiff1d(np.arange(len(labels)), of_none)
        images, labels, targets = images[kept], labels[kept], None if targets is None else targets[kept]
    name = f"{spec}, all images" if split == WHOLE else f"{spec}, {split} split"
    return Labelled(name, images, labels, warnings, targets)


def _warnings(split: str, is_known: bool) -> tuple[str, ...]:
    """What a reader of a result must know of a split; ``is_known``: the bundle was made from the same."""
    if is_known and split == WHOLE:
        return ("the bundle was made from these data: most of these images were trained on",)
    warnings = []
    if not is_known:
        hint = ". Of data that it never saw, --split all takes every image" if split == "test" else ""
        warnings.append(
            "the bundle was not made from exactly these splits; some of these images may have been trained "
            f"on{hint}"
        )
    if split not in ("test", WHOLE):
        warnings.append(f"{split} images say nothing about new images")
    return tuple(warnings)


def class_numbers(spec: str, classes: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """For each class of a data set, in its order, the output that has its name: int64 [classes].

    Raises:
        InvalidInputError: a class that is no label.
    """
    outputs = {name: index for index, name in enumerate(labels)}
    unknown = [name for name in classes if name not in outputs]
    if unknown:
        raise InvalidInputError(
            f"{spec} has other classes: some are none of the labels",
            expected=_listed(labels),
            received=_listed(unknown),
            hint="Name the labels as the data set does, in the order of the network's outputs.",
        )
    return np.array([outputs[name] for name in classes], np.int64)


def labels_by_outputs(labels: np.ndarray, numbers: np.ndarray, outputs: int) -> np.ndarray:
    """Labels int64 [N] of a data set as outputs of :func:`class_numbers`; no class is one more of either."""
    moved: np.ndarray = np.append(numbers, outputs)[np.asarray(labels)]
    return moved


def by_outputs(targets: np.ndarray | None, numbers: np.ndarray, outputs: int) -> np.ndarray | None:
    """Targets [N, classes] of a data set, its classes moved to the outputs of :func:`class_numbers`."""
    if targets is None:
        return None
    moved = np.zeros((len(targets), outputs), np.uint8)
    moved[:, numbers] = targets
    return moved


def as_files(images: np.ndarray, made_by: Preprocessing, preprocessing: Preprocessing) -> np.ndarray:
    """Images of a data set, uint8 [N, H, W, C], as the network would see them in files: [N, *sample_shape].

    An array of the network's size is a sample already; where the preprocessing cuts the centre out, an image
    of that size is none, unless the data set (``made_by``) has cut it.
    """
    sized = images.shape[1:] == preprocessing.sample_shape
    if sized and preprocessing.short_side in (None, made_by.short_side):
        return images
    if preprocessing.short_side is None:
        return np.stack([preprocessing.decode(np.asarray(image)) for image in images])
    pictures = (np.asarray(image) for image in images)
    return np.stack(
        [
            preprocessing.decode(Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture))
            for picture in pictures
        ]
    )


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:12])
    return shown if len(labels) <= 12 else f"{shown}, ... ({len(labels)} classes)"
