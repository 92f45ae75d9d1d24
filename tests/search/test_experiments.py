"""The experiments at a size of seconds: they resume, share their networks, and say what they measured."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smash_base import files
from smash_base.errors import GateError, InvalidInputError, UsageError
from smash_search.data import Dataset, load_dataset
from smash_search.experiments import EXPERIMENTS, run_experiment, workbench
from smash_search.experiments.config import size_named
from smash_search.experiments.correlation import widest_band
from smash_search.experiments.encoding import corruptions
from smash_search.experiments.presets import patterns
from smash_search.experiments.workbench import Workbench
from smash_search.rank.finalists import input_spec_of
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.encoding import Layout
from smash_search.space.space import SPACES
from tests.search.tiny_experiments import TINY, silent


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """A folder in which every experiment has run."""
    path = tmp_path_factory.mktemp("experiments")
    for name in EXPERIMENTS:
        run_experiment(name, TINY, digits, path, silent)
    return path


def test_correlation_reports_score_ceiling_baselines_and_the_original_mistake(folder: Path) -> None:
    result = files.read_json(folder / "correlation.json")
    assert result["networks"] == len(result["points"]) == TINY.networks
    assert result["second_seeds"] == TINY.second_seeds
    names = [row["signal"] for row in result["signals"]]
    assert names == [
        *("SMASH score", "SMASH loss", "filters zeroed", "running statistics"),
        *("parameters", "MACs", "one epoch"),
    ]
    gaps = [point["zeroed"] - point["score"] for point in result["points"]]
    assert result["op_contribution"] == pytest.approx(np.mean(gaps))
    assert any(gaps), "zeros are not what was generated"
    for row in result["signals"]:
        assert {"all", "top half", "top fifth", "precision", "regret"} <= set(row)
    few, most = result["band"]["macs"]
    inside = [point for point in result["points"] if few <= point["macs"] <= most]
    assert most <= 1.25 * few
    assert len(inside) == result["band"]["kendall"]["count"] == result["band"]["zeroed"]["count"] > 0
    assert result["ceiling"]["count"] == TINY.second_seeds
    assert any(point["running"] != point["score"] for point in result["points"])


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=60))
def test_no_band_of_like_cost_holds_more_networks_than_the_one_that_is_taken(macs: list[int]) -> None:
    costs = np.asarray(macs, np.float64)
    few, most, inside = widest_band(costs)
    assert most <= 1.25 * few
    assert inside.tolist() == [few <= value <= most for value in macs]
    for low in macs:
        assert sum(low <= value <= 1.25 * low for value in macs) <= inside.sum()


def test_networks_of_a_band_are_judged_alone(digits: Dataset, tmp_path: Path) -> None:
    whole = Workbench(TINY, digits, tmp_path / "whole", silent)
    costs = sorted(whole.cost(whole.architecture(number)).macs for number in range(40))
    bench = Workbench(replace(TINY, macs=(costs[10], costs[20])), digits, tmp_path / "band", silent)
    drawn = [bench.architecture(number) for number in range(10)]
    assert len({architecture.key for architecture in drawn}) == 10
    assert all(costs[10] <= bench.cost(architecture).macs <= costs[20] for architecture in drawn)
    assert [bench.architecture(number) for number in reversed(range(10))] == drawn[::-1]


def test_all_experiments_share_one_hypernet_and_the_same_trained_networks(folder: Path) -> None:
    lines = files.read_jsonl(folder / "trained.jsonl")
    jobs = [(line["data"], line["key"], line["seed"]) for line in lines]
    assert len(jobs) == len(set(jobs))
    scores = [
        (line["hypernet"], line["key"], line["variant"]) for line in files.read_jsonl(folder / "scores.jsonl")
    ]
    assert len(scores) == len(set(scores))
    assert sorted(path.name for path in folder.glob("*.pt")) == ["hypernet-smaller.pt", "hypernet.pt"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_repeated_experiment_computes_nothing_and_says_the_same(
    name: str, folder: Path, digits: Dataset
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".jsonl")}
    again = run_experiment(name, TINY, digits, folder, silent)
    assert files.parse_json(before[f"{name}.json"].decode()) == files.read_json(folder / f"{name}.json")
    assert again["experiment"] == name
    for path in folder.iterdir():
        if path.suffix in (".json", ".jsonl"):
            assert path.read_bytes() == before[path.name], path.name


def test_a_cut_has_every_class_of_data_that_lie_in_the_order_of_their_classes() -> None:
    digits = load_dataset("digits")
    train = digits.train.take(np.argsort(digits.train.labels, kind="stable"))
    turned = replace(digits, train=train.take(np.repeat(np.arange(len(train)), 2)), views=2)
    few = workbench.cut(turned, replace(TINY, train_images=200))
    assert len(few.train) == 200
    assert len(np.unique(few.train.labels)) == 10
    assert np.array_equal(few.train.images[::2], few.train.images[1::2]), "views stay together"
    assert few.fingerprint != workbench.cut(turned, replace(TINY, train_images=100)).fingerprint


def test_an_interrupted_experiment_goes_on_and_gives_the_same_result(
    folder: Path, digits: Dataset, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    cut.mkdir()
    for name in ("config.json", "hypernet.pt", "hypernet.json"):
        (cut / name).write_bytes((folder / name).read_bytes())
    for name in ("trained.jsonl", "scores.jsonl"):  # killed in the middle of a line
        (cut / name).write_bytes((folder / name).read_bytes()[:700])
    run_experiment("correlation", TINY, digits, cut, silent)
    assert files.read_json(cut / "correlation.json") == files.read_json(folder / "correlation.json")


def test_the_time_limit_leaves_a_result_that_counts_what_there_is(digits: Dataset, tmp_path: Path) -> None:
    result = run_experiment("correlation", TINY, digits, tmp_path, silent, minutes=0)
    assert result["networks"] == 0
    assert result["stopped_by_time"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_that_is_complete_was_not_stopped_by_time(
    name: str, folder: Path, digits: Dataset
) -> None:
    before = (folder / f"{name}.json").read_bytes()
    assert run_experiment(name, TINY, digits, folder, silent, minutes=0)["stopped_by_time"] is False
    assert (folder / f"{name}.json").read_bytes() == before


def test_a_hypernet_that_time_left_out_is_told(folder: Path, digits: Dataset, tmp_path: Path) -> None:
    some = tmp_path / "some"
    shutil.copytree(folder, some)
    (some / "hypernet-smaller.pt").unlink()
    result = run_experiment("capacity", TINY, digits, some, silent, minutes=0)
    assert len(result["hypernets"]) == 1
    assert result["stopped_by_time"]


def test_a_folder_of_another_size_or_other_data_is_refused(folder: Path, digits: Dataset) -> None:
    with pytest.raises(UsageError, match="differs"):
        run_experiment("encoding", replace(TINY, networks=4), digits, folder, silent)
    with pytest.raises(UsageError, match="differs"):
        run_experiment("encoding", TINY, replace(digits, fingerprint="other"), folder, silent)


def test_unknown_names_and_impossible_sizes_are_refused(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="correlatoin"):
        run_experiment("correlatoin", TINY, digits, tmp_path, silent)
    with pytest.raises(UsageError, match="huge"):
        size_named("huge")
    with pytest.raises(InvalidInputError, match="second_seeds"):
        replace(TINY, second_seeds=6)


def test_the_right_encoding_is_compared_with_every_corrupted_one(folder: Path) -> None:
    result = files.read_json(folder / "encoding.json")
    assert [row["c"] for row in result["kinds"]] == [
        "shuffled dilation",
        "shuffled channels",
        "another architecture's",
        "none",
    ]
    for row in result["kinds"]:
        assert row["cost"]["difference"]["value"] == pytest.approx(row["mean"] - result["right_mean"])
    contribution = result["op_contribution"]["difference"]["value"]
    assert contribution == pytest.approx(result["zeroed_mean"] - result["right_mean"])
    assert contribution != 0


def test_encodings_are_compared_of_networks_that_have_one(tmp_path: Path, digits: Dataset) -> None:
    config = replace(TINY, space="edge-tiny", changes={}, corrupted=4, seed=4)
    layout = Layout(config.space_of(input_spec_of(digits)))
    bench = Workbench(config, digits, tmp_path / "bench", silent)
    assert not all(layout.tiles(bench.architecture(number)) for number in range(config.corrupted))
    run_experiment("encoding", config, digits, tmp_path, silent)
    assert files.read_json(tmp_path / "encoding.json")["architectures"] == config.corrupted


def test_corruptions_change_what_they_say_and_nothing_else() -> None:
    space = SPACES["tiny"]
    layout = Layout(space)
    c = torch.from_numpy(layout.encode(space.draw(0, 1)))
    kinds = corruptions(layout, lambda seed: space.draw(1, seed))
    for name, corrupt in kinds.items():
        changed = corrupt(c, 3)
        assert changed.shape == c.shape, name
        assert not torch.equal(changed, c), name
        assert torch.equal(corrupt(c, 3), changed), name
    dilation = kinds["shuffled dilation"](c, 3)
    for name, part in layout.sections.items():
        if not name.startswith("dilation"):
            assert torch.equal(dilation[part], c[part]), name
    assert torch.all(kinds["none"](c, 3) == -1)


def test_gradient_and_random_steps_score_equally_many_networks(folder: Path) -> None:
    result = files.read_json(folder / "gradient.json")
    assert len(result["guided"]) == len(result["random"]) == TINY.starts
    for path in (*result["guided"], *result["random"]):
        assert len(path) == TINY.steps + 1
        assert path == sorted(path, reverse=True)  # the best so far


def test_capacity_compares_hypernets_over_the_same_networks(folder: Path) -> None:
    rows = files.read_json(folder / "capacity.json")["hypernets"]
    assert [row["hypernet"] for row in rows] == ["full", "smaller"]
    assert rows[0]["parameters"] > rows[1]["parameters"]
    assert all(len(row["scores"]) == TINY.networks for row in rows)
    assert all(row["op_contribution"] for row in rows)
    assert rows[0]["kendall_zeroed"]["count"] == TINY.networks


def test_transfer_trains_the_picks_on_the_other_data(folder: Path) -> None:
    (target,) = files.read_json(folder / "transfer.json")["targets"]
    assert set(target["groups"]) == {"best trained", "best score", "random"}
    assert all(len(group) == 1 and len(group[0]["errors"]) == 2 for group in target["groups"].values())


def test_transfer_chooses_the_best_trained_by_validation_errors(folder: Path, digits: Dataset) -> None:
    result = files.read_json(folder / "transfer.json")
    assert result["chosen_by"] == "validation error"
    (best,) = result["targets"][0]["groups"]["best trained"]
    bench = Workbench(TINY, digits, folder, silent)
    errors = {entry.key: record.validation or 0.0 for entry, record in bench.population()}
    assert best["validation"] == errors[best["key"]] == min(errors.values())
    images = len(bench.dataset.validation)
    assert all(error * images == pytest.approx(round(error * images), abs=1e-4) for error in errors.values())


def test_transfer_chooses_nothing_among_networks_without_validation_errors(
    folder: Path, digits: Dataset, tmp_path: Path
) -> None:
    for name in ("config.json", "correlation.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for line in files.read_jsonl(folder / "trained.jsonl"):
        earlier = {name: value for name, value in line.items() if name != "validation"}
        files.append_jsonl(tmp_path / "trained.jsonl", earlier)
    bench = Workbench(TINY, digits, tmp_path, silent)
    (_, record), *_ = bench.population()
    assert (record.validation, record.error > 0) == (None, True)
    with pytest.raises(UsageError, match="without their validation errors"):
        run_experiment("transfer", TINY, digits, tmp_path, silent)


@pytest.mark.parametrize("name", SPACES)
def test_every_space_holds_the_patterns_of_the_known_networks(name: str) -> None:
    found = patterns(SPACES[name])
    assert {key.split(",")[0] for key in found} == {"resnet", "densenet", "fractalnet"}
    for key, architecture in found.items():
        SPACES[name].check(architecture)
        for block in architecture.blocks:
            if key.startswith("resnet"):
                assert all(op.reads == op.writes == tuple(range(block.banks)) for op in block.ops)
            if key.startswith("densenet"):
                assert [op.writes for op in block.ops] == [
                    (block.input_banks + number,) for number in range(len(block.ops))
                ]


def test_patterns_of_experiments_with_a_band_are_inside_it() -> None:
    space, config = SPACES["edge"], size_named("edge")
    assert config.macs is not None

    def cost(architecture: Architecture) -> float:
        return cost_of(architecture, InputSpec(3, (32, 32)), 100).macs

    low, high = config.macs
    for name, architecture in patterns(space, cost, high).items():
        space.check(architecture)
        assert low / 2 <= cost(architecture) <= high, name
    cheapest = [cost(architecture) for architecture in patterns(space, cost, 1.0).values()]
    assert max(cheapest) < low, "none is within it"


def test_patterns_fit_voxels_too() -> None:
    space = replace(SPACES["tiny"], dims=3)
    for architecture in patterns(space).values():
        space.check(architecture)


def test_running_statistics_are_the_mean_over_architectures(digits: Dataset, tmp_path: Path) -> None:
    bench = Workbench(TINY, digits, tmp_path, silent)
    running = bench._running
    moments = running["head.norm"]
    parts = []
    order = np.random.default_rng(_seed(bench, 3)).permutation(len(bench.dataset.train))
    for slot in range(TINY.statistics_networks):
        architecture = bench.space.draw(_seed(bench, 0x5A7), slot)
        images, _ = bench._batch(bench.dataset.train, np.roll(order, 60 * slot)[:60])
        parts.append(bench.supernet().statistics(architecture, [images])["head.norm"])
    shortest = min(len(part.mean) for part in parts)
    expected = torch.stack([part.mean[:shortest] for part in parts]).mean(0)
    assert torch.allclose(moments.mean[:shortest], expected)
    longest = max(parts, key=lambda part: len(part.mean))
    assert torch.allclose(moments.mean[shortest : len(longest.mean)], longest.mean[shortest:])


def _seed(bench: Workbench, *numbers: int) -> Any:
    from smash_search.train.compute import seed_of

    return seed_of(bench.config.seed, *numbers)


def test_a_band_that_no_network_is_in_ends_with_a_sentence(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smash_search.experiments.workbench.MOST_DRAWS", 20)
    bench = Workbench(replace(TINY, macs=(1.0, 2.0)), digits, tmp_path, silent)
    with pytest.raises(GateError, match="none"):
        bench.architecture(0)


def test_data_to_transfer_to_may_change_in_a_folder_that_was_begun(digits: Dataset, tmp_path: Path) -> None:
    Workbench(TINY, digits, tmp_path, silent)
    Workbench(replace(TINY, transfer_to=("fashion-mnist",)), digits, tmp_path, silent)
    with pytest.raises(UsageError):
        Workbench(replace(TINY, networks=4, second_seeds=1), digits, tmp_path, silent)


@pytest.mark.parametrize("name", ["capacity", "presets", "transfer"])
def test_an_experiment_that_trains_the_networks_itself_shows_how_far_it_is(
    name: str, digits: Dataset, folder: Path, tmp_path: Path
) -> None:
    bars: dict[str, list[tuple[float, float]]] = {}

    @contextlib.contextmanager
    def shown(label: str, total: float | None) -> Iterator[Any]:
        moved = bars.setdefault(label, [])
        yield lambda n=1.0, before=0.0, **fields: moved.append((n, before))

    run_experiment(name, TINY, digits, tmp_path, shown)
    assert bars["networks"] == [(1, 0)] * TINY.networks
    bars.clear()
    run_experiment(name, TINY, digits, folder, shown)
    assert bars["networks"] == [(1, 1)] * TINY.networks, "an earlier experiment trained them"
