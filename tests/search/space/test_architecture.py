"""Architectures: equal after a round trip, and every malformed file is one clear error."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from typing import Any

import pytest
from hypothesis import given

from smash_base.errors import InvalidInputError
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.best import BestFile, SearchRecord, read_best, write_best
from smash_search.space.cost import Cost, cost_of
from tests.search.legal import DIGITS, EVERY_FORM, RICH, VOXELS, drawn, hand_written

LABELS = tuple("0123456789")


def document() -> dict[str, Any]:
    best = BestFile(RICH.draw(3, 5), DIGITS, LABELS, SearchRecord(score=0.25, rank=1))
    return json.loads(json.dumps(best.to_json()))


@given(drawn(RICH) | drawn(EVERY_FORM))
def test_a_drawn_architecture_survives_json(architecture: Architecture) -> None:
    again = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
    assert again == architecture
    assert again.key == architecture.key


@given(hand_written())
def test_a_hand_written_architecture_survives_json(architecture: Architecture) -> None:
    assert Architecture.from_json(architecture.to_json()) == architecture


def test_different_architectures_have_different_keys() -> None:
    assert len({RICH.draw(0, slot).key for slot in range(200)}) == 200


def test_the_file_is_written_and_read(tmp_path: Any) -> None:
    best = BestFile(VOXELS.draw(0, 1), InputSpec(1, (8, 8, 8)), ("chair", "desk"))
    write_best(tmp_path / "best.json", best)
    assert read_best(tmp_path / "best.json") == best


def test_four_keys_are_enough_by_hand() -> None:
    value = document()
    del value["search"]
    assert BestFile.from_json(value).search == SearchRecord()


def change(path: str, value: Any) -> dict[str, Any]:
    result = document()
    at: Any = result
    *parents, last = path.split(".")
    for name in parents:
        at = at[int(name) if name.isdigit() else name]
    at[int(last) if last.isdigit() else last] = value
    return result


OP = "architecture.blocks.0.ops.0"


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("schema", 2, "schema"),
        ("schema", "1", "schema"),
        ("schema", True, "schema"),
        ("extra", 1, "unknown key"),
        ("architecture.extra", 1, "unknown key"),
        (f"{OP}.extra", 1, "blocks[0].ops[0] has an unknown key"),
        (f"{OP}.reads", [999], "blocks[0].ops[0].reads names a bank that does not exist"),
        (f"{OP}.writes", [-1], "blocks[0].ops[0].writes names a bank that does not exist"),
        (f"{OP}.reads", [], "blocks[0].ops[0].reads"),
        (f"{OP}.reads", [0, 0], "blocks[0].ops[0].reads"),
        (f"{OP}.reads", [[0]], "blocks[0].ops[0].reads"),
        (f"{OP}.bottleneck", -4, "blocks[0].ops[0].bottleneck"),
        (f"{OP}.bottleneck", 4.0, "blocks[0].ops[0].bottleneck"),
        (f"{OP}.units", 10**9, "blocks[0].ops[0].units"),
        (f"{OP}.convs.0.groups", 3, "blocks[0].ops[0].convs[0].groups does not divide"),
        (f"{OP}.convs.0.kernel", [2, 2], "odd sizes"),
        (f"{OP}.convs.0.kernel", [3], "2 axes"),
        (f"{OP}.convs.0.activation", "swish", "activation"),
        (f"{OP}.convs", [None, None, None, {"kernel": [3, 3], "dilation": [1, 1]}], "active slots"),
        (f"{OP}.reduce", 1, "blocks[0].ops[0].reduce"),
        (f"{OP}.project", "gelu", "blocks[0].ops[0].project"),
        (f"{OP}.squeeze", -1, "blocks[0].ops[0].squeeze"),
        ("architecture.blocks.0.pool", 1, "blocks[0].pool"),
        ("architecture.blocks.1.pool", 0, "blocks[1].pool"),
        (f"{OP}.convs", [None] * 5, "at most 4"),
        ("architecture.blocks.0.channels_in", 7, "blocks[0].channels_in"),
        ("architecture.blocks.0.banks", 0, "blocks[0].banks"),
        ("architecture.blocks.0.ops", [{}] * 10_000, "at most 512"),
        ("architecture.blocks", [], "1 to 16 blocks"),
        ("architecture.stem", None, "stem"),
        ("input.channels", 0, "input.channels"),
        ("input.height", -1, "input size"),
        ("input.depth", 8, "axes"),
        ("classes", ["a"], "classes"),
        ("classes", ["a", "a"], "different labels"),
        ("classes", ["a", 3], "classes"),
        ("classes", "abc", "a list"),
        ("search", [], "search"),
    ],
)
def test_a_malformed_file_is_refused_by_name(path: str, value: Any, named: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        BestFile.from_json(change(path, value))
    assert named in str(caught.value)
    assert caught.value.exit_code == 6


def test_ten_thousand_ops_over_many_blocks_are_refused_before_they_are_read() -> None:
    value = document()
    block = value["architecture"]["blocks"][0]
    block["ops"] = block["ops"][:1] * 300
    value["architecture"]["blocks"] = [block, copy.deepcopy(block)]
    with pytest.raises(InvalidInputError, match="too many ops"):
        BestFile.from_json(value)


def test_a_network_too_large_to_hold_is_refused() -> None:
    value = document()
    value["architecture"]["blocks"] = [
        {
            "channels_in": 4096,
            "bank_channels": 4096,
            "banks": 1,
            "ops": [
                {
                    "reads": [0],
                    "writes": [0],
                    "bottleneck": 4096,
                    "units": 4096,
                    "convs": [{"kernel": [15, 15], "dilation": [1, 1]}, None, None, None],
                }
            ],
        }
    ]
    with pytest.raises(InvalidInputError, match="too large"):
        BestFile.from_json(value)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 50_000, "null", "[]", '"best"', "{}", '{"schema": 1, "schema": 1}', "NaN", "\udcff"],
)
def test_a_file_that_is_not_the_document_is_refused(tmp_path: Any, text: str) -> None:
    path = tmp_path / "best.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InvalidInputError):
        read_best(path)


JUNK = [None, True, -1, 0, 1, 3, 7, 2**31, 2**70, 1.5, "", "x", [], [0], {}, {"a": 1}, [[]], "relu", 1e308]


def mutate(value: Any, random_: random.Random) -> Any:
    """Change, drop, add or swap one entry somewhere in a JSON value."""
    holders: list[tuple[Any, Any]] = []

    def walk(at: Any) -> None:
        entries = at.items() if isinstance(at, dict) else enumerate(at)
        for name, entry in entries:
            holders.append((at, name))
            if isinstance(entry, dict | list):
                walk(entry)

    walk(value)
    holder, name = random_.choice(holders)
    match random_.randrange(5):
        case 0:
            holder[name] = copy.deepcopy(random_.choice(JUNK))
        case 1:
            del holder[name]
        case 2 if isinstance(holder, dict):
            holder[random_.choice(["schema", "x", "ops", "", name + "x"])] = holder[name]
        case 3 if isinstance(holder[name], int) and not isinstance(holder[name], bool):
            holder[name] += random_.choice([-1, 1, 2, 8, -8, 1000])
        case _:
            other, key = random_.choice(holders)
            with contextlib.suppress(KeyError, IndexError):  # the entry went with an earlier change
                holder[name] = copy.deepcopy(other[key])
    return value


@pytest.mark.parametrize("seed", range(20))
def test_a_mutated_file_is_either_clean_or_refused_cleanly(seed: int) -> None:
    random_ = random.Random(seed)
    original = document()
    refused = 0
    for _ in range(300):
        value = copy.deepcopy(original)
        for _ in range(random_.choice([1, 1, 2, 5])):
            value = mutate(value, random_)
        try:
            best = BestFile.from_json(value)
        except InvalidInputError:
            refused += 1
        else:
            cost_of(best.architecture, best.input, len(best.classes))
    assert refused > 150


def test_the_search_block_keeps_what_it_knows_in_its_order() -> None:
    block = {
        "score": 0.25,
        "rank": 1,
        "candidates": 40,
        "cost": {"parameters": 9, "macs": 5, "activation_bytes": 4},
    }
    best = BestFile.from_json({**document(), "search": {**block, "of another version": 1}})
    assert best.search.cost == Cost(9, 5, 4)
    written = best.to_json()["search"]
    assert written == block
    assert list(written) == list(block)
