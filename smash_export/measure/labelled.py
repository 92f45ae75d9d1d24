"""Images with known classes for a bundle: those that travel in it, or a data set by name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from smash_base.errors import InvalidInputError, UsageError
from smash_export.bundle.bundle import Bundle

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Labelled:
    """Images of the size that the network takes, with their classes.

    Attributes:
        name: where they come from, for titles.
        images: uint8 [N, *sample_shape]; may be a memmap.
        labels: int64 [N].
        warnings: what the reader of a result must know.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def bundled(bundle: Bundle) -> Labelled:
    """The test images in the bundle."""
    samples = bundle.samples()
    return Labelled("the bundled images", samples.images, samples.labels)


def from_data(bundle: Bundle, spec: str, split: str = "test", seed: int | None = None) -> Labelled:
    """A split of a data set, for a bundle that has the same classes in the same order.

    Images of another size go through the bundle's own preprocessing, as single files would.

    Args:
        spec: as for :func:`smash_search.data.load_dataset`.
        seed: of the splits, when the data come without; the seed the bundle was made with if None.

    Raises:
        UsageError: no such split.
        InvalidInputError: other classes, or channels that do not fit.
    """
    from smash_search.data import load_dataset

    if split not in SPLITS:
        raise UsageError("no such split", expected=" or ".join(SPLITS), received=split)
    made_from = bundle.manifest.provenance.get("data")
    recorded = made_from if isinstance(made_from, dict) else {}
    if seed is None:
        recorded_seed = recorded.get("seed")
        seed = recorded_seed if type(recorded_seed) is int else 0
    dataset = load_dataset(spec, seed=seed)
    if tuple(dataset.classes) != bundle.labels:
        raise InvalidInputError(
            f"{spec} has other classes than the bundle {bundle.path}",
            expected=_listed(bundle.labels),
            received=_listed(dataset.classes),
            hint="The order counts: the logits are in the order of the bundle's labels.",
        )
    part = getattr(dataset, split)
    images = part.images
    if images.shape[1:] != bundle.preprocessing.sample_shape:
        images = np.stack([bundle.preprocessing.decode(np.asarray(image)) for image in images])
    warnings = []
    if dataset.fingerprint != recorded.get("fingerprint"):
        warnings.append(
            "the bundle was not made from exactly these splits; some of these images may have been trained on"
        )
    if split != "test":
        warnings.append(f"{split} images say nothing about new images")
    return Labelled(f"{spec}, {split} split", images, part.labels, tuple(warnings))


def _listed(labels: tuple[str, ...]) -> str:
    shown = ", ".join(labels[:12])
    return shown if len(labels) <= 12 else f"{shown}, ... ({len(labels)} classes)"
