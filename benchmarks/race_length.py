"""How long a race must be to foresee which network is ahead after a real training.

    python -m benchmarks.race_length --of NAME,.. --network NAME --folder DIR [--rungs 2,6,14,30]
        [--only KEY,..] [--part I/N] [--data cifar10:PATH] [--results NAME]

Picks of committed comparisons (files of benchmarks/results, by name) within the latency of ``--network``,
which were trained by ``standard`` there, go through the rungs of a default search and further ones. After
each rung stands what orders a race, the validation loss, and the validation error beside it; each is compared
with the validation loss after the last rung, and with the test error after the real training, which was
known before and decides nothing here. What is done is kept in DIR, and the same command goes on; ``--part
1/2`` trains half of the networks and records nothing.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.record import RESULTS, record
from smash_base import files
from smash_export.device_search.search import configure, load_data
from smash_search.data import Dataset
from smash_search.rank.finalists import Finalist, FinalistsConfig, input_spec_of, train_rung
from smash_search.rank.statistics import kendall
from smash_search.rank.trained import Trained
from smash_search.space.architecture import Architecture
from smash_search.space.cost import cost_of


def main() -> None:
    """Train what is missing, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--of", required=True, help="files of results, with commas between")
    parser.add_argument("--network", required=True, help="whose latency is the limit there")
    parser.add_argument("--rungs", default="2,6,14,30", help="epochs at the end of each rung")
    parser.add_argument("--epoch-images", type=int, help="images of an epoch, in place of the default")
    parser.add_argument(
        "--only", default="", help="beginnings of keys, with commas between; all unless given"
    )
    parser.add_argument("--part", default="", help="I/N: every Nth network, from the Ith")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--results", default="race_length", help="name of the file of results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(arguments.data)
    rungs = tuple(map(int, arguments.rungs.split(",")))
    asked = {"rungs": rungs, "baseline": "none", "epoch_images": arguments.epoch_images}
    config = configure(data, space="edge", seed=0, finalists=asked).finalists
    picks = picks_of(arguments.of.split(","), arguments.network)
    part, parts = map(int, (arguments.part or "1/1").split("/"))
    keys = sorted(key for key in picks if key.startswith(tuple(arguments.only.split(","))))[part - 1 :: parts]
    rows = [row(picks[key], data, config, arguments.folder) for key in keys]
    if parts == 1:
        settings = {"network": arguments.network, "rungs": rungs, "epoch_images": config.epoch_images}
        settings |= {"data": data.name, "of": arguments.of}
        told = [foreseen(rows, rung) for rung in range(len(rungs))]
        record(arguments.results, {"settings": settings, "rows": rows, "rungs": told}, goals(told, rungs))


def picks_of(names: list[str], network: str) -> dict[str, dict[str, Any]]:
    """Picks of all arms of these comparisons, by key; of one that stands there twice, the mean test error."""
    found: dict[str, dict[str, Any]] = {}
    errors: dict[str, set[float]] = {}
    for name in names:
        for compared in files.read_json(RESULTS / f"{name}.json")["results"]["rows"]:
            for pick in compared["arms"].values() if compared["network"] == network else ():
                errors.setdefault(pick["key"], set()).add(pick["test_error"])
                found[pick["key"]] = pick
    return {key: {**pick, "test_error": float(np.mean(list(errors[key])))} for key, pick in found.items()}


def row(pick: dict[str, Any], data: Dataset, config: FinalistsConfig, folder: Path) -> dict[str, Any]:
    """One network through all rungs."""
    architecture = Architecture.from_json(pick["architecture"])
    macs = cost_of(architecture, input_spec_of(data), len(data.classes)).macs
    finalist = Finalist(architecture, "search", "of a comparison", None, macs)
    records = folder / f"{architecture.key}.jsonl"
    records.parent.mkdir(parents=True, exist_ok=True)
    done = files.read_jsonl(records)
    for rung in range(len(done), len(config.rungs)):
        begin = time.process_time()
        trained = train_rung(finalist, rung, data, config, weights=folder)
        done.append({**trained.to_json(), "seconds": time.process_time() - begin})
        files.append_jsonl(records, done[-1])
        print(architecture.key, pick["test_error"], done[-1], flush=True)
    entries = [Trained.from_json(entry) for entry in done]
    return {
        "key": architecture.key,
        "origin": pick["origin"],
        "macs": macs,
        "pattern": entries[0].pattern,
        "test_error": pick["test_error"],
        "errors": [entry.error for entry in entries],
        "losses": [entry.validation_loss for entry in entries],
        "seconds": [entry["seconds"] for entry in done],
    }


def foreseen(rows: list[dict[str, Any]], rung: int) -> dict[str, Any]:
    """How a rung orders networks: tau with the last rung and with the real training, and what it picks."""
    told = [entry["losses"][rung] for entry in rows]
    last, real = [entry["losses"][-1] for entry in rows], [entry["test_error"] for entry in rows]
    first = int(np.argmin(told))
    return {
        "tau_with_the_last_rung": kendall(told, last).value,
        "tau_with_the_real_training": kendall(told, real).to_json(),
        "points_behind_the_best": 100 * (real[first] - min(real)),
        "seconds": float(np.sum([entry["seconds"][: rung + 1] for entry in rows])),
    }


def goals(told: list[dict[str, Any]], rungs: tuple[int, ...]) -> list[dict[str, Any]]:
    """What a further rung is worth."""
    taus = [rung["tau_with_the_real_training"]["value"] for rung in told]
    behind = [rung["points_behind_the_best"] for rung in told]
    return [
        {
            "what": "tau of the validation loss with the test error of a real training, by epochs of a race",
            "goal": "higher after a further rung",
            "value": ", ".join(f"{tau:.2f} at {epochs}" for tau, epochs in zip(taus, rungs, strict=True)),
            "met": bool(taus[-1] > max(taus[:-1])),
            "note": "the first by it is behind the best by "
            + ", ".join(f"{points:.2f}" for points in behind)
            + " points",
        }
    ]


if __name__ == "__main__":
    main()
