"""``smash-export reproduce`` at a size of seconds, and the committed results at the CPU size."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from smash_base import files
from smash_export.cli.reproduce import NAMES, command
from smash_export.device_search.reproduce import paragraph, write_report
from smash_search.experiments import EXPERIMENTS
from smash_search.experiments.config import SIZES
from smash_search.experiments.workbench import TEST_STREAM
from smash_search.rank.statistics import kendall
from smash_search.space.architecture import InputSpec
from smash_search.train.compute import seed_of
from tests.search.tiny_experiments import TINY

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGES = ROOT / "benchmarks" / "results" / "experiments", ROOT / "docs" / "experiments"
COMMITTED = [path.relative_to(RESULTS).with_suffix("") for path in sorted(RESULTS.rglob("*.json"))]


@pytest.fixture
def tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--size cpu`` that takes seconds."""
    monkeypatch.setitem(SIZES, "cpu", TINY)


def _run(*arguments: str) -> Result:
    result = CliRunner().invoke(command, [*arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_the_command_knows_every_experiment() -> None:
    assert tuple(EXPERIMENTS) == NAMES


def test_an_experiment_gives_numbers_pictures_and_words(tiny_size: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--data", "digits", "--out", str(out), "--json", "--device", "cpu", "--quiet"]
    answer = json.loads(_run("correlation", *options).stdout)
    assert (out / "correlation.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "correlation.svg").read_text().rstrip().endswith("</svg>")
    assert answer["paragraph"] in (out / "correlation.md").read_text()
    assert "Kendall's tau" in answer["paragraph"]
    assert "5 random networks" in answer["paragraph"]
    assert answer["result"] == files.read_json(out / "correlation.json")
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    again = _run("correlation", "--data", "digits", "--out", str(out), "--device", "cpu")
    assert answer["paragraph"] in again.stdout
    changed = [path.name for path in out.iterdir() if path.read_bytes() != before[path.name]]
    assert changed == []


def test_a_dry_run_writes_nothing(tiny_size: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = json.loads(_run("capacity", "--data", "digits", "--out", str(out), "--dry-run", "--json").stdout)
    assert answer["dry_run"]
    assert answer["networks"] == TINY.networks
    assert not out.exists()
    words = ["transfer", "--data", "digits", "--transfer-to", "stl10:here", "--dry-run", "--json"]
    assert json.loads(_run(*words).stdout)["transfer_to"] == ["stl10:here"], "what it would do"


def test_without_time_it_says_that_there_is_too_little(tiny_size: None, tmp_path: Path) -> None:
    options = ["--data", "digits", "--out", str(tmp_path), "--device", "cpu", "--minutes", "0"]
    answer = _run("correlation", *options).stdout
    assert "Only 0 networks" in answer
    assert "time limit" in answer


@pytest.mark.parametrize("name", COMMITTED, ids=str)
def test_committed_words_and_pictures_follow_from_the_committed_numbers(name: Path, tmp_path: Path) -> None:
    result: dict[str, Any] = files.read_json(RESULTS / f"{name}.json")
    page = (PAGES / f"{name}.md").read_text()
    assert paragraph(result) in page
    made = write_report(result, tmp_path)
    assert made.markdown.read_text() == page
    assert made.png.stat().st_size > 1000


def test_block_widths_order_the_committed_networks_nearly_as_their_scores_do() -> None:
    """The networks are drawn again, by the seed of the experiment."""
    points = files.read_json(RESULTS / "correlation.json")["points"]
    config = SIZES["cpu"]
    space = config.space_of(InputSpec(1, (28, 28)))
    drawn = [space.draw(seed_of(config.seed, TEST_STREAM), slot) for slot in range(len(points))]
    assert [architecture.key for architecture in drawn] == [point["key"] for point in points]
    widths = [-math.prod(block.channels_in for block in architecture.blocks) for architecture in drawn]
    tau = kendall(widths, [point["error"] for point in points])
    assert f"which needs no HyperNet, has {tau.value:.2f} (" in (PAGES / "README.md").read_text()


@pytest.mark.parametrize("half", [-1.0, -0.9])
def test_halves_of_the_images_that_do_not_agree_are_not_stepped_up(half: float) -> None:
    result = files.read_json(RESULTS / "correlation.json")
    assert "by Spearman and Brown" in paragraph(result)
    stored = -18.0 if half > -1 else None  # as an early version wrote it
    found = paragraph({**result, "split_half": half, "split_half_stepped_up": stored})
    assert "two halves of the images" not in found


def test_a_result_without_zeroed_scores_claims_no_ranking() -> None:
    early = files.read_json(RESULTS / "correlation.json")
    assert "no scores with every generated filter set to zero" in paragraph(early)
    assert "no ranking is claimed" in paragraph(early)
    today = files.read_json(RESULTS / "cifar10" / "correlation.json")
    assert "holds no scores" not in paragraph(today)
