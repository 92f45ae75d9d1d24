"""What the tests feed every target; without torch, for child processes that must start quickly."""

from __future__ import annotations

import numpy as np

from smash_targets.base import ModelSignature

SHAPE = (3, 12, 12)
SIGNATURE = ModelSignature("input", "logits", SHAPE, 10, (1, 1, 32))
IMAGES = np.random.default_rng(0).standard_normal((33, *SHAPE), dtype=np.float32)
