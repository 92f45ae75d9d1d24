"""Two real processes that train one HyperNet over gloo, and what one process does instead."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smash_base.errors import UsageError
from smash_search.train.compute import load_checkpoint
from smash_search.train.distributed import ALONE, Ranks
from tests.search.run_distributed_training import CONFIG, run

ROOT = Path(__file__).parents[3]


def _together(folder: Path, world: int, *arguments: str) -> None:
    """What torchrun does: the same program, with ranks in the environment."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.search.run_distributed_training", str(folder), *arguments]
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={
                **os.environ,
                **settings,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(world)
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0] * world


def test_two_processes_see_the_architectures_of_one_and_give_nearly_its_weights(tmp_path: Path) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    alone.mkdir()
    run(alone, bad=False)
    _together(both, 2)
    records = [json.loads((both / f"{rank}.json").read_text()) for rank in (0, 1)]
    expected = json.loads((alone / "0.json").read_text())
    assert records[0] == records[1]
    assert records[0]["counts"] == expected["counts"]
    first, second, one = (torch.load(path) for path in (both / "0.pt", both / "1.pt", alone / "0.pt"))
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), "ranks never drift apart"
        assert torch.allclose(first[name], value, atol=1e-3), name
    moved = load_checkpoint(both / "hypernet.pt", None)
    assert moved is not None
    assert moved["state"]["counters"][0] == CONFIG.steps

    # resumed: rank 0 alone reads the file, and nothing is left to do
    before = (both / "hypernet.pt").read_bytes()
    (both / "1.pt").unlink()
    _together(both, 2)
    assert (both / "hypernet.pt").read_bytes() == before
    assert all(torch.equal(value, first[name]) for name, value in torch.load(both / "1.pt").items())


def test_a_rank_with_nan_makes_every_rank_skip_the_step(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _together(folder, 2, "bad")
    records = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert records[0] == records[1]
    assert records[0]["skipped"] == CONFIG.steps
    assert records[0]["counts"] == {}
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) and value.isfinite().all() for name, value in first.items())


def test_more_processes_than_architectures_are_refused_and_one_process_is_left_alone() -> None:
    with pytest.raises(UsageError, match="--archs-per-step 4"):
        Ranks(0, 4).check(3)
    ALONE.check(1)
    loss = torch.tensor(1.0)
    assert ALONE.sum_gradients([], loss) is loss
    assert ALONE.from_first("value") == "value"
