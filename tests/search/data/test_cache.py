"""Converted copies: whose they are, who makes them, and which of them stay."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from smash_base import files
from smash_base.errors import UsageError
from smash_search.data import cache

SHAPE = (10, 4, 4, 1)


def source(folder: Path, text: str = "") -> Sequence[Path]:
    folder.mkdir(exist_ok=True)
    (folder / "images").write_text(text)
    return [folder / "images"]


def copy_of(folder: Path, sources: Sequence[Path], value: int, key: str = "train") -> np.ndarray:
    """A copy of ``value`` everywhere, unless there is a valid one."""

    def fill(target: np.ndarray) -> None:
        target[:] = value

    return cache.mapped(folder, key, sources, SHAPE, fill)[0]


def copies(folder: Path) -> int:
    return len(list((folder / cache.FOLDER).glob("*/images.npy")))


def test_data_sets_with_one_folder_for_their_copies_keep_them_beside_each_other(tmp_path: Path) -> None:
    one, two = source(tmp_path / "one"), source(tmp_path / "two")
    for _ in range(2):
        assert (copy_of(tmp_path / "fast", one, 1) == 1).all()
        assert (copy_of(tmp_path / "fast", two, 2) == 2).all()
    assert copies(tmp_path / "fast") == 2
    assert (copy_of(tmp_path / "fast", one, 3) == 1).all(), "nothing was made again"
    found = [
        cache.remembered(tmp_path / "fast", "form", sources, lambda number=number: {"of": number})
        for sources, number in ((one, 1), (two, 2), (one, 3), (two, 4))
    ]
    assert found == [{"of": 1}, {"of": 2}, {"of": 1}, {"of": 2}]


def test_a_copy_in_use_stays_as_it_is_when_its_data_change(tmp_path: Path) -> None:
    first = copy_of(tmp_path, source(tmp_path, "a"), 1)
    second = copy_of(tmp_path, source(tmp_path, "bb"), 2)
    assert isinstance(first, np.memmap)
    assert first.filename is not None
    assert (np.load(first.filename) == 1).all()
    assert (second == 2).all()


def test_who_needs_a_copy_waits_for_the_one_that_makes_it(tmp_path: Path) -> None:
    sources = source(tmp_path)
    begun, go_on = threading.Event(), threading.Event()
    calls = []

    def fill(target: np.ndarray) -> list[int]:
        calls.append(1)
        begun.set()
        assert go_on.wait(60)
        target[:] = 7
        return [2, 3]

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(cache.mapped, tmp_path, "train", sources, SHAPE, fill)
        assert begun.wait(60)
        others = [pool.submit(cache.mapped, tmp_path, "train", sources, SHAPE, fill) for _ in range(3)]
        with pytest.raises(TimeoutError):
            others[0].result(0.2)
        go_on.set()
        for future in (first, *others):
            images, rows = future.result(60)
            assert (images == 7).all()
            assert rows == [2, 3]
    assert len(calls) == 1
    assert copies(tmp_path) == 1
    assert len(list((tmp_path / cache.FOLDER).iterdir())) == 1, "no lock is left"


def test_copies_that_are_mapped_here_stay_however_large_they_are_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MOST_BYTES", 500)
    sources = source(tmp_path)
    train = copy_of(tmp_path, sources, 1, "train")[2:5]
    test = copy_of(tmp_path, sources, 2, "test")
    assert copies(tmp_path) == 2
    for name, image in (("train", train), ("test", test)):
        assert (copy_of(tmp_path, sources, 9, name)[2:5] == image[0, 0, 0, 0]).all(), "nothing was made again"
    del train, test, image
    copy_of(tmp_path, sources, 3, "validation")
    assert copies(tmp_path) == 1


def test_copies_that_another_process_has_mapped_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_BYTES", 500)
    sources = source(tmp_path)
    script = (
        "import sys; from pathlib import Path; from smash_search.data import cache\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "sources = [folder / 'images']\n"
        f"held, _ = cache.mapped(folder, 'train', sources, {SHAPE}, lambda target: target.fill(1))\n"
        "print('mapped', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mapped\n"
        copy_of(tmp_path, sources, 2, "test")
        assert copies(tmp_path) == 2
        other.communicate()
    copy_of(tmp_path, sources, 3, "validation")
    assert copies(tmp_path) == 1


def test_what_a_killed_process_left_goes_and_a_copy_that_is_being_made_stays(tmp_path: Path) -> None:
    places = [tmp_path / cache.FOLDER / f".partial-{name}" for name in ("killed", "working")]
    long_ago = time.time() - 2 * files.LEFT_SECONDS
    for place, written in zip(places, (long_ago, time.time()), strict=True):
        place.mkdir(parents=True)
        (place / "images.npy").write_bytes(b"half")
        for item in (place / "images.npy", place):
            os.utime(item, (written if item.is_file() else long_ago,) * 2)
    copy_of(tmp_path, source(tmp_path), 1)
    assert [place.exists() for place in places] == [False, True]


@pytest.mark.parametrize("name", ["images.npy", "rows.npy", "source.json"])
@pytest.mark.parametrize("left", [0, 100, 130])
def test_a_copy_that_was_cut_off_is_made_again(tmp_path: Path, name: str, left: int) -> None:
    """A power cut may leave a file with its name and without its end."""
    sources = source(tmp_path)

    def held(value: int) -> list[int]:
        def fill(target: np.ndarray) -> list[int]:
            target[:] = value
            return [0]

        images, rows = cache.mapped(tmp_path, "train", sources, SHAPE, fill)
        assert rows == [0]
        return np.unique(images).tolist()

    assert held(1) == held(2) == [1]
    (torn,) = tmp_path.glob(f"{cache.FOLDER}/*/{name}")
    os.truncate(torn, left)
    assert held(3) == held(4) == [3]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_told_with_the_option_for_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    sources = source(tmp_path)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UsageError, match=r"\?cache=FOLDER"):
        copy_of(tmp_path, sources, 1)


def test_the_room_of_a_copy_is_taken_before_it_is_filled(tmp_path: Path) -> None:
    """A map of a file with holes ends the process by a bus error where the disk is full."""
    taken: list[int] = []

    def fill(target: np.ndarray) -> None:
        (images,) = tmp_path.glob(f"{cache.FOLDER}/*/{cache.IMAGES}")
        taken.append(images.stat().st_blocks * 512)
        target[:] = 1

    cache.mapped(tmp_path, "train", source(tmp_path), (1000, 32, 32, 1), fill)
    assert taken[0] >= 1000 * 32 * 32


def test_a_full_disk_is_told_with_the_option_for_another_one_and_keeps_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UsageError, match=r"No space left.*\?cache=FOLDER"):
        copy_of(tmp_path, source(tmp_path), 1)
    assert list((tmp_path / cache.FOLDER).iterdir()) == []
