"""What every training loop shares, beside what the tests of the loops see."""

from __future__ import annotations

import platform

import pytest
import torch

from smash_search.train.compute import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_of_a_tensor_serves_the_next_one() -> None:
    import resource

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def give_back(times: int) -> None:
        for _ in range(times):
            torch.ones(4_000_000)  # 16 MB, 3906 pages

    keep_freed_memory()
    give_back(30)  # glibc grows until a free piece is a little larger than what is asked for
    before = faults()
    give_back(30)
    assert faults() - before < 30 * 3906 / 2
