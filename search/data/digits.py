"""scikit-learn's digits: 1,797 real handwritten digits of 8x8 pixels, part of the installation.

Source: UCI "Optical Recognition of Handwritten Digits" (test part). Values 0 to 16 become 0 to 255.
"""

from __future__ import annotations

import numpy as np

from smash_search.data.dataset import Parts, Split
from smash_search.data.spec import Spec


def read(spec: Spec) -> Parts:
    """Read the built-in digits; the splits are made by :func:`smash_search.data.dataset.assemble`."""
    from sklearn.datasets import load_digits

    spec.options_known()
    spec.no_path()
    raw = load_digits()
    images = np.rint(raw.images * (255.0 / 16.0)).astype(np.uint8)[..., None]  # [N, 8, 8, 1]
    return Parts(
        classes=tuple(str(name) for name in raw.target_names),
        train=Split(images, raw.target.astype(np.int64)),
    )
