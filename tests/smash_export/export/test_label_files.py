"""Label files as they are found: each form gives the names in the order of the outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smash_base.errors import InvalidInputError
from smash_export.export.label_files import read_labels

NAMES = ("cat", "dog, big", "owl")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.txt", b"cat\ndog, big\nowl"),
        ("blank.txt", b" cat \r\ndog, big\r\nowl\r\n\r\n"),
        ("bom.txt", "\ufeffcat\ndog, big\nowl\n".encode()),
        ("utf16.txt", "cat\ndog, big\nowl\n".encode("utf-16")),
        ("numbered.txt", b"0 cat\n1 dog, big\n2 owl\n"),
        ("colons.txt", b"0: cat\n1: dog, big\n2: owl\n"),
        ("shuffled.csv", b"2,owl\n0,cat\n1,dog, big\n"),
        ("headline.csv", b"index,name\n0,cat\n1,dog, big\n2,owl\n"),
        ("from-one.tsv", b"1\tcat\n2\tdog, big\n3\towl\n"),
        ("python.txt", b"{0: 'cat',\n 1: 'dog, big',\n 2: 'owl'}\n"),
        ("data.yaml", b"names:\n  0: cat\n  1: dog, big\n  2: owl\n"),
        ("synset_words.txt", b"n02123045 cat\nn02110185 dog, big\nn01622779 owl\n"),
        ("list.json", json.dumps(NAMES).encode()),
        ("bom.json", ("\ufeff" + json.dumps(NAMES)).encode()),
        ("map.json", b'{"2": "owl", "0": "cat", "1": "dog, big"}'),
        ("index.json", b'{"0": ["n1", "cat"], "1": ["n2", "dog, big"], "2": ["n3", "owl"]}'),
        ("inverse.json", b'{"owl": 2, "cat": 0, "dog, big": 1}'),
        ("config.json", b'{"model": "x", "id2label": {"0": "cat", "1": "dog, big", "2": "owl"}}'),
    ],
)
def test_names_are_found_in_every_form(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_labels(tmp_path / name) == NAMES


def test_digits_and_amounts_are_names_and_no_numbers_of_lines(tmp_path: Path) -> None:
    for names in (("0", "1", "2"), ("1 euro", "2 euro", "3 euro"), ("5 cats", "7 dogs"), ("2 a", "3 b")):
        (tmp_path / "labels.txt").write_text("\n".join(names))
        assert read_labels(tmp_path / "labels.txt") == names


def test_names_that_stand_twice_are_told_apart_by_their_output(tmp_path: Path) -> None:
    (tmp_path / "imagenet.txt").write_text("crane\nowl\ncrane\n")
    assert read_labels(tmp_path / "imagenet.txt") == ("crane (0)", "owl", "crane (2)")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gap.txt", b"cat\n\ndog\n", "empty"),
        ("nothing.txt", b"", "none"),
        ("gap.json", b'{"0": "cat", "2": "dog"}', "0 to 1 once"),
        ("numbers.json", b"[1, 2]", "list of texts"),
        ("deep.json", b'{"a": {"b": 1}}', "list of texts"),
        ("latin.txt", b"caf\xe9\n", "UTF-8"),
    ],
)
def test_what_is_no_list_of_labels_is_refused(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match=words):
        read_labels(tmp_path / name)
    with pytest.raises(InvalidInputError, match="do not exist"):
        read_labels(tmp_path / "none.txt")
    with pytest.raises(InvalidInputError, match="not a text file"):
        read_labels(tmp_path)


def test_numbers_may_stand_behind_the_names(tmp_path: Path) -> None:
    """As in Places365; names that end with numbers are names."""
    path = tmp_path / "labels.txt"
    path.write_text("/a/dog 1\n/a/cat 0\n/e/emu 2\n")
    assert read_labels(path) == ("/a/cat", "/a/dog", "/e/emu")
    for names in ("level 0\nlevel 1\nlevel 2\n", "boeing 737\nboeing 747\n", "a 1\nb 2\n"):
        path.write_text(names)
        assert read_labels(path) == tuple(names.split("\n")[:-1])


def test_one_number_for_two_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text('{"cat": 1, "dog": 1, "emu": 0}')
    with pytest.raises(InvalidInputError, match="another number for each name"):
        read_labels(path)
