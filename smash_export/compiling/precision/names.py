"""Names that options and the code behind them share; imports nothing."""

from __future__ import annotations

PLACEMENT_NAMES = ("plain", "folded", "folded_first_fp32", "clipped", "clipped_first_fp32")
