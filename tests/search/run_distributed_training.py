"""One rank of a training, as torchrun starts it: python -m tests.search.run_distributed_training FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from smash_search.model.hypernet import HyperNetConfig
from smash_search.space.architecture import InputSpec
from smash_search.space.space import space_for
from smash_search.train.compute import DivergedError
from smash_search.train.distributed import joined
from smash_search.train.hypernet import TrainingConfig, new_supernet, train
from tests.search.small_data import small_digits, with_bad_images

SPEC = InputSpec(1, (8, 8))
CONFIG = TrainingConfig(steps=4, batch=16, architectures=3, learning_rate=0.01, average=0.9)


def run(folder: Path, bad: bool) -> None:
    """Train; with ``bad`` the last rank alone sees images that overflow."""
    device = torch.device("cpu")
    torch.set_num_threads(1)
    with joined(device) as ranks:
        data = small_digits()
        if bad and ranks.rank == ranks.world - 1:
            data = with_bad_images(data)
        supernet = new_supernet(space_for(SPEC), SPEC, 10, HyperNetConfig(depths=(1, 1)), seed=0)
        path = folder / "hypernet.pt"
        try:
            result = train(
                supernet, data, CONFIG, device=device, checkpoint=path, checkpoint_seconds=0, ranks=ranks
            )
        except DivergedError as error:
            (folder / f"{ranks.rank}.json").write_text(json.dumps({"error": str(error)}))
            raise
        torch.save(supernet.state_dict(), folder / f"{ranks.rank}.pt")
        record = {
            "counts": result.counts,
            "skipped": result.skipped,
            "history": [vars(part) for part in result.history],
        }
        (folder / f"{ranks.rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    run(Path(sys.argv[1]), "bad" in sys.argv[2:])
