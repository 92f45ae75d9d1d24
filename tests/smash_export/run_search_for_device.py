"""A search of seconds that measures its candidates, for what kills it:

python -m tests.smash_export.run_search_for_device FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from smash_export.device_search.latency import DeviceLatency, Setting
from smash_search.rank.evaluation import CONFIRMED, MEASURES, REFERENCE
from smash_search.rank.finalists import FinalistsConfig, input_spec_of
from smash_search.rank.pareto import Limit
from smash_search.run import run_search
from smash_search.stages.picks import SearchResult
from smash_search.train.recipes import Recipe
from tests.search.run_small_search import RESULTS, config
from tests.search.small_data import small_digits

LIMITS = (Limit("0.1ms", 0.1), Limit("5ms", 5.0))
MEASURED = {MEASURES: 1, REFERENCE: 2, CONFIRMED: 2}
"""Files of measurements, and how often each measures one network at most."""


def search(folder: Path) -> SearchResult:
    """Run or resume it."""
    data = small_digits(train=64, validation=48)
    spec = input_spec_of(data)
    latency = DeviceLatency(
        spec, len(data.classes), Setting("onnxruntime", "fp32"), limit_ms=5.0, seconds=0.02
    )
    chosen = config(
        candidates=12,
        finalists=FinalistsConfig(count=4, rungs=(1, 2), random=1, recipe=Recipe(batch=32)),
        measured=latency.describe(),
        latency_limits=LIMITS,
    )
    return run_search(chosen, data, folder, device="cpu", measurement=latency)


def contents(folder: Path) -> dict[str, bytes]:
    """What must not depend on interruptions, once the same was measured."""
    names = (*RESULTS, "pareto.json", *(f"best-{limit.label}.json" for limit in LIMITS))
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


if __name__ == "__main__":
    search(Path(sys.argv[1]))
