"""Class names in the forms in which people have them, in the order of the network's outputs.

    text    one name per line; numbered lines ("0 cat", "0,cat", "0: cat", "cat 0") in any order, under a
            headline or not; "n02123045 cat" (synset_words.txt); with or without BOM
    JSON    ["cat", ...]; {"0": "cat"}; {"0": ["n02123045", "cat"]} (imagenet_class_index.json); {"cat": 0};
            any of these as "id2label", "label2id" or "names" of a larger object (config.json of a model hub)

Lists in which a name stands twice (ImageNet's has two cranes and two maillots) are told apart by number.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smash_base import files
from smash_base.errors import InvalidInputError

MAX_LABELS_BYTES = 16 * 2**20
FORMS = 'one name per line, a JSON list of texts, or {"0": "name", ...}'
_WRAPPERS = ("id2label", "label2id", "names")
_NUMBERED = re.compile(r"""^\{?\s*["']?(\d+)["']?(?:\s*[,:;=\t]\s*|\s+)(["']?)(\S.*?)\2\s*,?\s*\}?$""")
_NUMBER_LAST = re.compile(r"""^["']?(\S.*?)["']?(?:\s*[,:;=\t]\s*|\s+)(\d+)$""")
_HEADLINE = re.compile(r"^(names:|[A-Za-z_ ]+[,;\t][A-Za-z_ ]+)$")
_WORDNET = re.compile(r"^n\d{8}\s+(\S.*)$")


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names, all different.

    Raises:
        InvalidInputError: missing, too large, no text, empty, an empty name, or numbers that are not those
            of K outputs.
    """
    text = _text(path)
    names = _from_json(text, path) if path.suffix.lower() == ".json" else _from_lines(text, path)
    if not names or not all(names):
        raise InvalidInputError(
            f"labels {path}", expected="a name for every class", received="an empty name" if names else "none"
        )
    return _told_apart(names)


def _text(path: Path) -> str:
    """The content, with any of the byte order marks that editors on Windows write."""
    try:
        size = path.stat().st_size
        if size > MAX_LABELS_BYTES:
            raise InvalidInputError(f"{path} is too large for labels", received=size)
        data = path.read_bytes()
    except FileNotFoundError:
        raise InvalidInputError(f"labels {path} do not exist", expected=FORMS) from None
    except OSError as error:
        raise InvalidInputError(f"{path} is not a text file", received=error) from None
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{path} is not a text file in UTF-8", received=error, hint="Save it again as UTF-8."
        ) from None


def _from_json(text: str, path: Path) -> list[str]:
    value = files.parse_json(text, what=f"labels {path}")
    if isinstance(value, Mapping):
        value = next((value[name] for name in _WRAPPERS if name in value), value)
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return [name.strip() for name in value]
    if isinstance(value, Mapping) and value:
        if all(isinstance(number, int) and not isinstance(number, bool) for number in value.values()):
            if len(set(value.values())) < len(value):
                raise InvalidInputError(
                    f"labels {path}", expected="another number for each name", received=text[:200]
                )
            value = {str(number): name for name, number in value.items()}
        pairs = [(number, _name(entry)) for number, entry in value.items()]
        if all(number.isdecimal() and len(number) < 10 and name is not None for number, name in pairs):
            return _in_order({int(number): name or "" for number, name in pairs}, len(value), path)
    raise InvalidInputError(
        f"labels {path}",
        expected='a JSON list of texts, {"0": "name", ...} or {"name": 0, ...}',
        received=text[:200],
    )


def _name(entry: Any) -> str | None:
    """The name in "cat", or in ["n02123045", "cat"]: the words, not the number of WordNet."""
    if isinstance(entry, list) and entry:
        entry = entry[-1]
    return entry.strip() if isinstance(entry, str) else None


def _from_lines(text: str, path: Path) -> list[str]:
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    body = lines[1:] if lines and _HEADLINE.match(lines[0]) else lines
    found = [_NUMBERED.match(line) for line in body]
    if body and all(found):
        names = {int(match[1]): match[3] for match in found if match}
        complete = len(names) == len(body) and set(names) == set(range(min(names), min(names) + len(names)))
        # "1 euro", "2 euro" are names; a list of K classes has mostly different ones.
        if complete and min(names) in (0, 1) and len(set(names.values())) > len(names) // 2:
            return _in_order(names, len(names), path)
    found = [_NUMBER_LAST.match(line) for line in body]
    if body and all(found):
        names = {int(match[2]): match[1] for match in found if match}
        if set(names) == set(range(len(body))) and len(set(names.values())) > len(names) // 2:
            return _in_order(names, len(names), path)
    words = [_WORDNET.match(line) for line in lines]
    return [match[1] for match in words if match] if lines and all(words) else lines


def _in_order(names: Mapping[int, str], count: int, path: Path) -> list[str]:
    """Names by number, which begin at 0 (or, in some lists, at 1) and leave none out."""
    start = min(names)
    if start not in (0, 1) or set(names) != set(range(start, start + count)):
        raise InvalidInputError(
            f"labels {path}",
            expected=f"each number from 0 to {count - 1} once",
            received=f"{count} entries, numbers {start} to {max(names)}",
        )
    return [names[number] for number in sorted(names)]


def _told_apart(names: list[str]) -> tuple[str, ...]:
    """Names that stand twice get the number of their output."""
    counts = Counter(names)
    apart = [f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(names)]
    return tuple(apart)
