"""Limits of a device in a search: several latencies, a DLA, and what the files and the page then show."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smash_base import files
from smash_base.errors import GateError, UsageError
from smash_export.cli import run
from smash_export.device_search.device_limits import limited_space
from smash_export.device_search.findings import findings
from smash_export.device_search.latency import DeviceLatency, Setting, candidate_graph
from smash_export.device_search.search import SPACE_DEFAULTS, configure, latency_limits, search, tell_drift
from smash_export.progress import Output
from smash_export.report.search import search_page
from smash_search.data import load_dataset
from smash_search.rank.measurement import LOWEST
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.best import read_best
from smash_search.space.cost import block_sizes
from smash_search.space.known import known_networks
from smash_search.space.limits import CostLimits
from smash_search.space.space import space_for
from smash_search.stages import survey
from smash_targets.tensorrt.check import check_onnx
from tests.search.small_data import small_digits

SMALL = [
    *("--data", "digits", "--steps", "2", "--batch", "16", "--candidates", "4", "--images", "20"),
    *("--device", "cpu", "--finalists", "2", "--rungs", "1", "--finalist-batch", "128"),
    *("--max-parameters", "20000", "--baseline", "none", "--quiet"),
]


def test_several_limits_give_a_pick_each_and_a_front(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    words = ["search", "--run", str(folder), *SMALL, "--max-latency", "2s,5s", "--json"]
    assert run(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["picks"]) == {"2000ms", "5000ms"}
    for label in result["picks"]:
        best = read_best(folder / f"best-{label}.json")
        assert best.search.limit == label
        assert 0 < best.search.measures["latency_ms"] < 2000
        assert result["picks"][label]["unused"] == best.search.unused
    unused = read_best(folder / "best.json").search.unused
    assert unused is not None
    assert result["unused"] == unused
    networks = json.loads((folder / "pareto.json").read_text())["networks"]
    finalists = SPACE_DEFAULTS["edge-tiny"]["finalists"]
    assert len(networks) == 2 + finalists["rounds"] * finalists["per_round"]
    assert any(network["on_front"] for network in networks)
    page = (folder / "report.html").read_text()
    assert "Pareto front of the trained networks" in page
    assert "2000ms" in page
    assert re.search(r'"lead">Network [^<]* ms \(under 1% of the limit of 5000 ms\)', page)
    assert f'<p class="">{unused}</p>' in page
    assert re.search(rf"why it leaves so much unused</td><td[^>]*>{re.escape(unused)}</td>", page)
    assert run(["runs", str(folder), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["runs"]
    assert listed["latency"]["limit_ms"] == 5000
    assert (listed["within"], listed["beyond"]) == (result["candidates"], 0)
    monkeypatch.setenv("COLUMNS", "1000")  # no cell is folded
    assert run(["runs", str(folder)]) == 0
    assert "under 1% of the limit of 5000 ms" in capsys.readouterr().out
    assert run([*words[:-2], "2s,6s"]) == 2, "another limit is another search"


def test_a_search_from_python_keeps_the_limit_of_its_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pick is measured longer, and best.json says how much of the limit it uses."""
    monkeypatch.setattr(survey, "PROBES", 8)
    monkeypatch.setattr("smash_export.device_search.latency.CONFIRMED_SECONDS", 0.02)
    dataset = small_digits(train=64, validation=48)
    config = configure(
        dataset, candidates=4, training={"steps": 2, "batch": 16}, finalists={"count": 2, "rounds": 0}
    )
    latency = DeviceLatency(InputSpec(1, (8, 8)), 10, Setting(), limit_ms=5000, seconds=0.02)
    result = search(dataset, tmp_path / "run", config=config, measurement=latency, device="cpu")
    assert result is not None
    assert result.best.search.limit_ms == 5000
    assert LOWEST in result.best.search.measures
    assert result.found == result.candidates, "no round proposed any"
    few = findings(result, replace(config, candidates=result.candidates + 3)).rows()
    proposed = replace(result, found=result.found - 2)
    assert ("not found", "2 of 4 candidates: the limits leave no more networks") in findings(
        proposed, config
    ).rows()
    assert ("not found", "3 of 7 candidates: the limits leave no more networks") in few
    assert "not found" not in dict(findings(result, config).rows())
    unlimited = replace(result.best, search=replace(result.best.search, limit_ms=None))
    by_itself = findings(replace(proposed, best=unlimited), config).rows()
    assert ("not found", "2 of 4 candidates: the strategy proposed no more") in by_itself
    limits = replace(config, limits=CostLimits(macs=10**9))
    assert "the limits leave" in dict(findings(replace(proposed, best=unlimited), limits).rows())["not found"]
    by_chance = replace(result, random=result.pick, pick=replace(result.pick, group="random"))
    page = search_page(by_chance, "search", headline="", facts=[])
    assert "The pick comes from the random search beside" in page


class Steady(DeviceLatency):
    """A device on which every network takes a millisecond."""

    def measure(self, architecture: Architecture) -> dict[str, float]:
        return {"latency_ms": 1.0}


def test_a_search_that_goes_on_where_networks_take_another_time_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = small_digits(train=64, validation=48)
    config = configure(dataset, latency_limits={"5000ms": 5000.0})
    latency = Steady(InputSpec(1, (8, 8)), 10, Setting(), limit_ms=5000)
    probe = survey.probe_draws(config.space_for(InputSpec(1, (8, 8))), config.seed)[3]
    for before, words in ((1.1, ""), (2.0, f"network {probe.key} takes 1 ms, and took 2 ms")):
        (tmp_path / "measures.jsonl").unlink(missing_ok=True)
        files.append_jsonl(
            tmp_path / "measures.jsonl", {"key": probe.key, "measures": {"latency_ms": before}}
        )
        tell_drift(tmp_path, config, dataset, latency, Output())
        said = capsys.readouterr().err
        assert words in said
        assert bool(said) == bool(words)
    for milliseconds in (3.8, 2.0):  # it was a busy machine that surveyed, as the search knows
        files.append_jsonl(
            tmp_path / "reference.jsonl", {"key": "", "measures": {"latency_ms": milliseconds}}
        )
    tell_drift(tmp_path, config, dataset, latency, Output())
    assert not capsys.readouterr().err


def test_limits_are_read_with_their_units() -> None:
    assert latency_limits("800us, 3ms") == {"0.8ms": 0.8, "3ms": 3.0}
    assert latency_limits(None) == {}
    with pytest.raises(UsageError, match="3ms"):
        latency_limits("3ms,fast")


def test_convolutions_and_pooling_of_the_narrowed_space_fit_a_dla(tmp_path: Path) -> None:
    spec = InputSpec(3, (32, 32))
    space = space_for(spec, "small")
    narrow = limited_space(space, spec, "tensorrt-dla")
    assert dict(narrow.dilations)[3] == 2
    path = tmp_path / "model.onnx"
    found: dict[str, list[str]] = {}
    for name, which in (("whole", space), ("narrow", narrow)):
        found[name] = []
        for slot in range(3):
            path.write_bytes(candidate_graph(which.draw(0, slot), spec, 10))
            found[name] += [
                verdict.reason
                for verdict in check_onnx(path, dla=True)
                if verdict.level != "ok"
                and verdict.operator in ("Conv", "AveragePool", "GlobalAveragePool", "Relu")
            ]
    assert any("padding" in reason for reason in found["whole"])
    assert found["narrow"] == []


@pytest.mark.parametrize(("precision", "raced"), [("fp32", "fp32"), ("fp16", "fp32"), ("int8", "int8")])
def test_a_race_for_int8_files_is_decided_by_int8_accuracy(precision: str, raced: str) -> None:
    measured = {"setting": {"target": "onnxruntime", "precision": precision}, "predicted": False}
    config = configure(load_dataset("digits"), measured=measured)
    assert config.finalists.precision == raced
    assert config.to_json()["finalists"]["precision"] == raced


@pytest.mark.parametrize(("size", "strides"), [(28, (1, 2, 4)), (32, (1, 2, 4)), (64, (2, 4)), (96, (4,))])
def test_every_average_of_a_network_for_a_dla_is_over_a_map_that_it_can_take(
    size: int, strides: tuple[int, ...]
) -> None:
    spec = InputSpec(3, (size, size))
    space = limited_space(space_for(spec, "edge"), spec, "tensorrt-dla")
    assert set(strides) <= set(space.stem_strides)
    drawn = [space.draw(0, slot) for slot in range(100)]
    drawn += [space.mutate(architecture, 1, slot, 0.2) for slot, architecture in enumerate(drawn)]
    drawn += known_networks(space)
    assert {architecture.stem.stride[0] for architecture in drawn} >= set(strides[:1])
    for architecture in drawn:
        space.check(architecture)
        sizes = block_sizes(architecture, spec.size)
        averaged = [sizes[-1]]
        averaged += [
            sizes[index]
            for index, block in enumerate(architecture.blocks)
            if any(op.squeeze for op in block.ops)
        ]
        assert max(max(area) for area in averaged) <= 8


def test_what_no_dla_can_do_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    voxels = InputSpec(1, (32, 32, 32))
    with pytest.raises(GateError, match="two axes"):
        limited_space(space_for(voxels), voxels, "tensorrt-dla")
    wide = InputSpec(3, (200, 200))
    with pytest.raises(GateError, match="last feature map"):
        limited_space(space_for(wide, "tiny"), wide, "tensorrt-dla")
    with pytest.raises(UsageError, match="tensorrt-dla"):
        limited_space(space_for(wide), wide, "fpga")
    assert run(["search", "--data", "digits", "--require", "tensorrt-dla", "--dry-run", "--json"]) == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--executor", "serial", "--workers", "2"], "--executor process"),
        (["--ray-address", "auto"], "executor ray"),
        (["--strategy", "perturb", "--strategy-option", "rate"], "NAME=NUMBER"),
        (["--strategy", "evolution", "--strategy-option", "speed=3"], "no option 'speed'"),
        (["--strategy", "evolution", "--strategy-option", "rate=fast"], "a number"),
        (["--strategy", "evolution", "--strategy-option", "rate=7"], "1e-06 to 1"),
    ],
)
def test_wrong_options_are_one_clear_line(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["search", "--data", "digits", "--run", str(tmp_path / "run"), *words, "--quiet"]) == 2
    captured = capsys.readouterr().err
    assert text in captured
    assert "Traceback" not in captured


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 224])
def test_pictures_larger_than_32_pixels_go_the_whole_way(size: int, tmp_path: Path) -> None:
    """Searched within the space of their size, trained, compiled and verified; red against blue noise."""
    random = np.random.default_rng(0)
    for part, channel, number in itertools.product(("train", "test"), (0, 2), range(24)):
        place = tmp_path / "pictures" / part / ("red", "green", "blue")[channel]
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 90, (size, size, 3), dtype=np.uint8)
        pixels[..., channel] += 120
        Image.fromarray(pixels).save(place / f"{number}.png")
    data, folder, bundle = f"folder:{tmp_path / 'pictures'}", tmp_path / "run", tmp_path / "bundle"
    words = ["search", "--data", data, "--run", str(folder), "--steps", "2", "--batch", "8", "--images", "8"]
    words += ["--candidates", "3", "--known", "1", "--finalists", "2", "--rungs", "1", "--rounds", "0"]
    assert run([*words, "--finalist-batch", "16", "--max-macs", "40M", "--device", "cpu", "--quiet"]) == 0
    best = read_best(folder / "best.json")
    space_for(InputSpec(3, (size, size)), "edge").check(best.architecture)
    words = ["freeze", "--arch", str(folder / "best.json"), "--weights", "retrain", "--out", str(bundle)]
    assert run([*words, "--epochs", "4", "--quiet"]) == 0
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["provenance"]["cost"]["macs"] <= 40_000_000
    assert manifest["provenance"]["accuracy"]["top1"] == 1.0
    assert run(["compile", str(bundle), "--target", "onnxruntime", "--quiet"]) == 0
    assert run(["verify", str(bundle), "--quiet"]) == 0
