"""``predict``: open a bundle, classify images as they come, close it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from smash_base.errors import SmashError
from smash_base.images import LeftOut
from smash_export.bundle.bundle import Bundle
from smash_export.prediction.classifier import Classifier, Failure, Prediction, load
from smash_export.prediction.sources import sources


def predict(
    bundle: Bundle | Path | str,
    images: Any,
    top_k: int = 5,
    *,
    target: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    device: str | None = None,
    on_error: Literal["raise", "yield"] = "raise",
    on_open: Callable[[Classifier], None] = lambda classifier: None,
    left_out: LeftOut | None = None,
) -> Iterator[Prediction | Failure]:
    """Classify any number of images in bounded memory; to classify again and again, :func:`load` once.

    Args:
        bundle: an opened bundle or its path.
        images: a path, a folder, a pattern such as ``"photos/*.png"``, several of these, or whatever else
            :meth:`Classifier.predict` takes.
        top_k: how many classes to name for each image.
        target, precision, threads, device: which file to run and how; see :func:`load`.
        on_error: "yield" gives a :class:`Failure` in place of an image or folder that cannot be read, and
            goes on.
        on_open: called with the classifier before the first image.
        left_out: collects what of the folders is no image file or cannot be read.

    Yields:
        one :class:`Prediction` per image, in order; failures of whole folders come last.

    Raises:
        InvalidInputError: a damaged bundle, or an image that cannot be read.
        UsageError, MissingRuntimeError: see :func:`load`.

    Example:
        >>> for answer in smash_export.predict("bundle", "photos/*.png"):
        ...     print(answer.source, answer.label)
    """
    with load(bundle, target, threads=threads, device=device, precision=precision) as classifier:
        on_open(classifier)
        missing: list[Failure] = []
        if on_error == "yield" and isinstance(images, list | tuple):
            images = _every(images, classifier, missing, left_out)
        yield from classifier.stream(images, top_k, on_error=on_error, left_out=left_out)
        yield from missing


def _every(
    images: Sequence[Any], classifier: Classifier, missing: list[Failure], left_out: LeftOut | None
) -> Iterator[Any]:
    """Every image; a folder or pattern without any goes to ``missing``, and the next one follows."""
    for item in images:
        try:
            for source in sources(item, classifier.preprocessing, left_out):
                yield source.image
        except SmashError as error:
            missing.append(Failure(str(item), error))
