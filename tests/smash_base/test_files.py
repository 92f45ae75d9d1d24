"""Files appear whole or not at all, also when the process is killed in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smash_base import files
from smash_base.errors import InvalidInputError, UsageError

WRITER = """
import sys
from smash_base import files
path = sys.argv[1]
print("ready", flush=True)
number = 0
while True:
    number = (number + 1) % 10
    files.write_bytes(path, bytes([48 + number]) * 300_000)
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "file"
    for attempt in range(8):
        process = start(WRITER, str(path))
        time.sleep(0.01 + 0.007 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if path.exists():
            data = path.read_bytes()
            assert len(data) == 300_000
            assert len(set(data)) == 1


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_text(path, "old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_new_folder_appears_whole_or_not_at_all(tmp_path):
    place = tmp_path / "deep" / "bundle"
    with pytest.raises(ZeroDivisionError), files.new_folder(place) as folder:
        (folder / "a").write_text(str(1 // 0))
    assert os.listdir(place.parent) == []
    with files.new_folder(place) as folder:
        (folder / "a").write_text("1")
        assert not place.exists()
    assert (place / "a").read_text() == "1"
    with pytest.raises(UsageError, match="exists already"), files.new_folder(place):
        pass
    with files.new_folder(place, replace=True) as folder:
        (folder / "b").write_text("2")
    assert os.listdir(place) == ["b"]
    assert os.listdir(place.parent) == ["bundle"]


def test_only_a_folder_of_the_same_kind_is_replaced(tmp_path):
    for name in ("pictures", "ours", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "pictures" / "cat.png").write_text("irreplaceable")
    (tmp_path / "ours" / "mark.json").write_text("{}")
    (tmp_path / "file").write_text("irreplaceable")
    for name in ("pictures", "file"):
        for replace, words in ((True, "not even with --force"), (False, "Choose another name.$")):
            with (
                pytest.raises(UsageError, match=words),
                files.new_folder(tmp_path / name, replace=replace, mark="mark.json"),
            ):
                pass
    assert (tmp_path / "pictures" / "cat.png").read_text() == (tmp_path / "file").read_text()
    for name in ("ours", "empty"):
        with files.new_folder(tmp_path / name, replace=True, mark="mark.json") as folder:
            (folder / "new").write_text("1")
        assert os.listdir(tmp_path / name) == ["new"]
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "ours", "pictures"]


def test_a_folder_that_two_make_at_once_is_refused_to_one(tmp_path):
    place = tmp_path / "bundle"
    for replace in (False, True):
        with files.new_folder(place, replace=replace) as first:
            (first / "whose").write_text("first")
            with (
                pytest.raises(UsageError, match="being made by another"),
                files.new_folder(place, replace=replace),
            ):
                pass
            with files.new_folder(tmp_path / "beside", replace=replace):
                pass
        assert (place / "whose").read_text() == "first"
    assert sorted(os.listdir(tmp_path)) == ["beside", "bundle"]


def test_a_folder_that_appeared_meanwhile_is_not_replaced(tmp_path):
    place = tmp_path / "bundle"

    def make() -> None:
        with files.new_folder(place):
            place.mkdir()
            (place / "precious").write_text("1")

    with pytest.raises(UsageError, match="exists already"):
        make()
    assert os.listdir(place) == ["precious"]
    assert os.listdir(tmp_path) == ["bundle"]


def test_what_a_killed_maker_left_does_not_stand_in_the_way(tmp_path):
    maker = (
        "import sys, time\nfrom smash_base import files\n"
        "with files.new_folder(sys.argv[1]):\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    process = start(maker, str(tmp_path / "bundle"))
    with pytest.raises(UsageError, match="being made"), files.new_folder(tmp_path / "bundle"):
        pass
    process.kill()
    process.wait()
    with files.new_folder(tmp_path / "bundle") as folder:
        (folder / "a").write_text("1")
    assert (tmp_path / "bundle" / "a").exists()


# As CIFS, NFS without a lock daemon and FAT answer; the program under test is the real one, in a process.
SHIM = r"""
#include <errno.h>
#include <sys/types.h>
static int no(int code) { errno = code; return -1; }
int fsync(int fd) { return no(EINVAL); }
int fdatasync(int fd) { return no(EINVAL); }
int flock(int fd, int how) { return no(ENOLCK); }
int chmod(const char *path, mode_t mode) { return no(EPERM); }
int fchmod(int fd, mode_t mode) { return no(EPERM); }
int fchmodat(int folder, const char *path, mode_t mode, int flags) { return no(EPERM); }
"""


@pytest.fixture(scope="session")
def poor_disk(tmp_path_factory):
    """Environment of a process whose file systems neither flush nor lock nor have modes."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    words = [compiler, "-shared", "-fPIC", "-o", str(folder / "shim.so"), str(folder / "shim.c")]
    subprocess.run(words, check=True)
    return {**os.environ, "LD_PRELOAD": str(folder / "shim.so")}


def test_files_are_written_where_nothing_can_be_flushed_locked_or_given_a_mode(tmp_path, poor_disk):
    code = (
        "import fcntl, os, sys\nfrom smash_base import files\nos.chdir(sys.argv[1])\n"
        "try:\n    os.fsync(1)\nexcept OSError:\n    print('poor')\n"
        "files.write_text('a', '1')\nfiles.append_jsonl('log', {'n': 1})\n"
        "with files.exclusive('run', purpose='run'):\n    pass\n"
        "with files.new_folder('bundle') as folder:\n    files.write_text(folder / 'b', '2')\n"
        "with files.new_folder('bundle', replace=True) as folder:\n    files.write_text(folder / 'c', '3')\n"
        "from pathlib import Path\nfiles.copy(Path('bundle'), Path('stick'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=poor_disk,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "poor\n"), done.stderr
    assert (tmp_path / "a").read_text() == "1"
    assert files.read_jsonl(tmp_path / "log") == [{"n": 1}]
    assert os.listdir(tmp_path / "bundle") == os.listdir(tmp_path / "stick") == ["c"]


def test_json_round_trip_and_no_nan(tmp_path):
    value = {"b": [1, 2.5, None, "ü"], "a": {}}
    files.write_json(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json") == value
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "y.json", float("nan"))
    assert not (tmp_path / "y.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid"), ("{", "not valid"), ("[1,]", "not valid"), ('{"a":1,"a":2}', "twice"),
        ("[NaN]", "NaN"), ("[-Infinity]", "Infinity"), ("[" * 40 + "]" * 40, "deep"), ("[" * 200_000, "deep"),
        ("9" * 5000, "not valid"), ("\ufeff{}", "not valid"),
    ],
)  # fmt: skip
def test_strict_json(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        files.read_json(path)


def test_brackets_in_strings_are_not_depth():
    assert files.parse_json(json.dumps("[" * 100 + '\\"{')) == "[" * 100 + '\\"{'


def test_json_files_that_are_none(tmp_path):
    (tmp_path / "latin").write_bytes(b'"\xff"')
    (tmp_path / "large").write_bytes(b" " * (files.MAX_JSON_BYTES + 1))
    for name, message in (("latin", "UTF-8"), ("large", "too large"), ("none", "not exist"), (".", "folder")):
        with pytest.raises(InvalidInputError, match=message):
            files.read_json(tmp_path / name)


def test_a_torn_line_spoils_itself_only(tmp_path):
    path = tmp_path / "log.jsonl"
    assert files.read_jsonl(path) == []
    files.append_jsonl(path, {"n": 1})
    with open(path, "ab") as stream:
        stream.write(b'{"n": 2, "te')
    assert files.read_jsonl(path) == [{"n": 1}]
    files.append_jsonl(path, {"n": 3})
    assert files.read_jsonl(path) == [{"n": 1}, {"n": 3}]
    with open(path, "ab") as stream:
        stream.write(b"\xff\xfe\n[1]\n")
    assert files.read_jsonl(path) == [{"n": 1}, {"n": 3}]


@settings(deadline=None)  # it flushes to the disk, which others may keep busy
@given(st.integers(0, 200))
def test_any_cut_of_json_lines_keeps_the_whole_lines(cut):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        for number in range(10):
            files.append_jsonl(path, {"number": number, "text": "ä\n"})
        path.write_bytes(path.read_bytes()[:cut])
        records = files.read_jsonl(path)
        assert records == [{"number": number, "text": "ä\n"} for number in range(len(records))]


def test_a_folder_is_held_by_one_process_and_freed_by_its_death(tmp_path):
    holder = (
        "import sys, time\nfrom smash_base import files\n"
        "with files.exclusive(sys.argv[1], purpose='run'):\n    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = start(holder, str(tmp_path))
    with (
        pytest.raises(UsageError, match=f"in use by process {process.pid}"),
        files.exclusive(tmp_path, purpose="run"),
    ):
        pass
    process.kill()
    process.wait()
    with files.exclusive(tmp_path, purpose="run"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"), files.exclusive(tmp_path / "file", purpose="run"):
        pass


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert files.sha256(tmp_path / "x").startswith("ba7816bf8f01cfea")
