"""smash-export: from labelled images and a target device to a verified, served classifier.

Importing this package costs nothing: numpy, Pillow and a runtime are loaded by the first use of a name
below, and torch only by the commands that train or trace.

    import smash_export
    classifier = smash_export.load("bundle")
    classifier.predict("image.png", top_k=5)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smash_export.bundle.bundle import Bundle as Bundle
    from smash_export.prediction.classifier import Classifier as Classifier
    from smash_export.prediction.classifier import load as load

__version__ = "0.1.0"

_LAZY = {
    "Bundle": "smash_export.bundle.bundle",
    "Classifier": "smash_export.prediction.classifier",
    "load": "smash_export.prediction.classifier",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
