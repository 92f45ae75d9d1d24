"""search, space and runs on the command line: real searches of seconds on digits."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from smash_base.files import read_jsonl
from smash_export.cli import run
from smash_export.cli.search import GROUPS, TABLE_SEED
from smash_export.device_search.search import SPACE_DEFAULTS, STRATEGIES, absolute, configure
from smash_search import strategies
from smash_search.data import load_dataset
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.best import read_best
from smash_search.space.space import SPACES
from smash_search.stages.hurry import TIMES
from smash_search.stages.survey import table_networks
from smash_targets.base import Availability
from smash_targets.onnxruntime import OnnxRuntimeTarget

SMALL = [
    *("--steps", "3", "--batch", "16", "--candidates", "4", "--images", "20,0", "--device", "cpu"),
    *("--finalists", "2", "--rungs", "1", "--finalist-batch", "128", "--max-parameters", "20000"),
]


def test_every_space_has_defaults_and_every_strategy_a_name() -> None:
    assert list(SPACE_DEFAULTS) == list(SPACES)
    assert list(STRATEGIES) == list(strategies.STRATEGIES)


def test_help_groups_options_and_shows_defaults_of_each_space(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for heading in GROUPS:
        assert f"{heading}:" in text
    for part, name in (("training", "steps"), ("search", "candidates"), ("finalists", "count")):
        for space, preset in SPACE_DEFAULTS.items():
            assert f"{space} {preset[part][name]}" in text
    assert "|".join(STRATEGIES) in text


def test_the_right_command_runs_after_a_refused_one_and_keeps_foreign_files(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "again"
    wrong = ["--strategy", "evolution", "--strategy-option", "speed=3"]
    words = ["search", "--data", "digits", "--run", str(folder), "--quiet", *SMALL]
    assert run([*words, *wrong]) == 2
    assert not folder.parent.exists()
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    assert run([*words, *wrong]) == 2
    assert (folder / "notes.txt").read_text() == "mine"


def test_finalists_have_the_recipe_that_fits_the_images_and_what_is_set(
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = ["search", "--data", "digits", "--dry-run", "--validation", "0.05"]
    assert run(few) == 0
    assert "validation images choose" in capsys.readouterr().err
    words = ["search", "--data", "digits", "--dry-run", "--json", "--recipe", "quick"]
    assert run([*words, "--set", "weight_decay=0.001", "--finalist-batch", "48"]) == 0
    finalists = json.loads(capsys.readouterr().out)["finalists"]
    recipe = finalists["recipe"]
    assert recipe["augmentation"] == {"pad_crop": 1}, "digits are not flipped"
    assert (recipe["whiten"], recipe["label_smoothing"]) == (True, 0.1)
    assert (recipe["weight_decay"], recipe["batch"]) == (0.001, 48)
    assert finalists["rungs"] == [2, 6]
    assert run([*words, "--rungs", "1,4"]) == 0
    assert json.loads(capsys.readouterr().out)["finalists"]["rungs"] == [1, 4]
    assert run([*words, "--set", "epochs=9"]) == 2
    assert "--rungs" in capsys.readouterr().err


def test_a_search_for_a_short_training_knows_how_far_each_network_comes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", "--data", "digits", "--run", str(tmp_path / "run"), "--json", "--quiet", *SMALL]
    assert run([*words, "--train-within", "4s"]) == 0
    found = json.loads(capsys.readouterr().out)
    times = read_jsonl(tmp_path / "run" / TIMES)
    assert found["architecture"] in {record["key"] for record in times}
    assert len(times) >= 2, "of every network of the last rung"
    assert (found["hurried"] or "4 s of training are").startswith("4 s of training are")
    assert run([*words, "--train-within", "4s"]) == 0, "a search that is there picks the same"
    assert json.loads(capsys.readouterr().out)["architecture"] == found["architecture"]
    assert read_jsonl(tmp_path / "run" / TIMES) == times
    assert run([*words, "--train-within", "9s"]) == 2
    assert "last_training differs" in capsys.readouterr().err


def test_finalists_learn_from_a_teacher_whose_answers_stay_in_the_run(
    tmp_path: Path, digits_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "taught"
    words = ["search", "--data", "digits", "--run", str(folder), "--quiet", *SMALL, "--rounds", "0"]
    words += ["--validation", "0.1", "--ensemble"]
    assert run([*words, "--teacher", str(digits_bundle)]) == 0
    (kept,) = folder.glob("ensemble-*.npy")
    means = np.load(kept)
    data = load_dataset("digits")
    labels = np.concatenate([data.train.labels, data.validation.labels])
    assert means.shape == (len(labels), 10)
    assert (np.exp(means).sum(1) <= 1 + 1e-5).all(), "geometric means of probabilities"
    best = ["freeze", "--arch", str(folder / "best.json"), "--out", str(tmp_path / "bundle")]
    assert run([*best, "--teacher", "auto", "--epochs", "1", "--recipe", "quick", "--threads", "1"]) == 0
    told = capsys.readouterr().err
    assert "no teacher: the best finalists of the search" in told, "after one epoch they know too little"
    assert "a larger network of the same space" in told
    np.save(kept, 9 * np.eye(10, dtype=np.float32)[labels])
    assert run([*best, "--teacher", "auto", "--epochs", "1", "--recipe", "quick", "--force"]) == 0
    assert "teacher: the best finalists of the search" in capsys.readouterr().err
    (answers,) = folder.glob("teacher-*.npy")
    config = json.loads((folder / "config.json").read_text())
    assert config["identity"]["finalists"]["teacher"] == answers.name
    capsys.readouterr()
    assert run(words) == 2, "a search without that teacher is another one"
    assert "teacher differs" in capsys.readouterr().err


def test_a_search_draws_by_the_prior_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prior, folder = tmp_path / "inverted.toml", tmp_path / "run"
    prior.write_text("forms = {projected = 1.0}\nactivations = {relu6 = 1.0}\nexpansions = {3 = 1.0}\n")
    words = ["search", "--data", "digits", "--run", str(folder), "--quiet", *SMALL, "--prior", str(prior)]
    assert run([*words, "--known", "0", "--rounds", "0"]) == 0
    ops = [op for _, _, op in read_best(folder / "best.json").architecture.ops()]
    assert {op.project for op in ops} == {"relu6"}, "one in twenty of the usual prior"
    assert '"name": "inverted"' in json.dumps(json.loads((folder / "config.json").read_text()))
    prior.write_text("expansions = {16 = 1.0}\n")
    words[4] = str(tmp_path / "refused")
    assert run(words) != 0
    assert "inverted.toml: prior expansions; expected whole numbers, 1 to 6" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


def test_a_search_the_papers_way_ends_with_a_pick(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["search", "--data", "digits", "--run", str(folder), "--quiet", "--strategy", "smash"]
    assert run([*words, *SMALL]) == 0
    best = read_best(folder / "best.json")
    assert all(op.project is None and op.reduce for _, _, op in best.architecture.ops())
    reasons = [json.loads(line)["reason"] for line in (folder / "finalists.jsonl").read_text().splitlines()]
    assert len(reasons) == 2
    assert all(reason.startswith("best score") for reason in reasons), "not known, by lot or proposed"


def test_the_hypernet_is_trained_for_its_share_of_the_time_of_a_search_that_ends_with_a_pick(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    words = ["search", "--data", "digits", "--run", str(folder), "--quiet", *SMALL[2:], "--rounds", "0"]
    assert run([*words, "--hypernet-share", "0.3"]) == 0
    assert read_best(folder / "best.json").architecture
    steps = json.loads((folder / "config.json").read_text())["identity"]["training"]["steps"]
    assert steps != SPACE_DEFAULTS["edge-tiny"]["training"]["steps"]
    assert run([*words, "--hypernet-share", "0.3"]) == 0, "goes on with the updates that were chosen"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a finished small search on digits."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    assert run(["search", "--data", "digits", "--run", str(folder), *SMALL, "--quiet"]) == 0
    return folder


def test_a_search_writes_best_and_a_report_that_loads_nothing(folder: Path) -> None:
    best = json.loads((folder / "best.json").read_text())
    assert best["search"]["recipe"]["augmentation"] == {"pad_crop": 1}
    assert best["search"]["recipe"]["batch"] == 128
    assert best["schema"] == 1
    assert best["search"]["data"] == "digits"
    assert best["search"]["cost"]["parameters"] <= 20_000
    page = (folder / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "<script" not in page
    for part in (
        "Rungs",
        "Memory banks of block 0",
        "Cost of each stage",
        "Choices that winners share",
        "What each stage added",
        "best so far after the first rung",
    ):
        assert part in page
    assert f"--run {folder}" in page
    assert "--max-parameters 20000" in page
    HTMLParser().feed(page)
    assert page.count("<svg") >= 5


def test_the_same_command_again_resumes_and_json_is_pure(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "scores.jsonl").read_bytes()
    assert run(["search", "--data", "digits", "--run", str(folder), *SMALL, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    finalists = SPACE_DEFAULTS["edge-tiny"]["finalists"]
    assert result["candidates"] == 4 + finalists["rounds"] * finalists["per_round"]
    assert (folder / "scores.jsonl").read_bytes() == before
    assert run(["search", "--data", "digits", "--run", str(folder), *SMALL, "--no-resume"]) == 2
    assert run(["search", "--data", "digits", "--run", str(folder), *SMALL, "--seed", "1"]) == 2
    assert "seed differs" in capsys.readouterr().err


def test_terminal_json_and_report_say_why_the_pick_was_trained(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # no cell is folded
    best = json.loads((folder / "best.json").read_text())["search"]
    trained = [json.loads(line) for line in (folder / "finalists.jsonl").read_text().splitlines()]
    assert best["reason"] in {record["reason"] for record in trained}
    words = ["search", "--data", "digits", "--run", str(folder), *SMALL]
    assert run(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("why it was trained" in line and best["reason"] in line for line in lines), lines
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reason"] == best["reason"]
    page = (folder / "report.html").read_text()
    assert re.search(rf'"lead">Network [^<]* Why it was trained: {re.escape(best["reason"])}\.<', page)


def test_best_json_names_its_images_in_any_folder_and_freeze_refuses_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photos").mkdir()
    assert absolute("folder:my photos?size=32") == f"folder:{tmp_path / 'my photos'}?size=32"
    assert absolute("digits") == "digits"
    assert absolute("package.module:function") == "package.module:function"
    (tmp_path / "function").touch()
    assert absolute("package.module:function?count=3") == "package.module:function?count=3"
    (tmp_path / "labels.csv").touch()
    assert absolute("csv:labels.csv?root=my photos&size=8&cache=~/fast") == (
        f"csv:{tmp_path / 'labels.csv'}?root={tmp_path / 'my photos'}&size=8&cache=~/fast"
    )
    best = json.loads((folder / "best.json").read_text())
    best["search"]["fingerprint"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(best))
    words = ["freeze", "--arch", "other.json", "--dry-run", "--quiet"]
    assert run(words) == 0  # divided otherwise
    assert "not the images" not in capsys.readouterr().err
    best["search"]["images_sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(best))
    assert run(words) == 6
    said = capsys.readouterr().err
    assert "have changed since the search" in said
    assert "--data digits" in said
    assert run([*words, "--data", "digits"]) == 0
    assert "not the images of the search" in capsys.readouterr().err


def test_runs_lists_and_compares(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs", str(folder.parent), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["runs"]
    assert entry["state"] == "done"
    finalists = SPACE_DEFAULTS["edge-tiny"]["finalists"]
    assert entry["scored"] == 4 + finalists["rounds"] * finalists["per_round"]
    assert entry["error"] is not None
    assert entry["latency"] is None
    assert run(["runs", str(folder / "nothing")]) == 2


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "run"
    words = ["search", "--data", "digits", "--run", str(target), "--epochs", "2", "--dry-run", "--json"]
    assert run(words) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["space"] == "edge-tiny"
    assert plan["training"]["steps"] > 1
    assert not target.exists()


@pytest.mark.parametrize(
    ("option", "value", "code", "expected"),
    [
        ("--strategy-option", "population=1", 2, "option population of the strategy"),
        ("--strategy-option", "colour=1", 2, "no option 'colour'"),
        ("--max-macs", "1", 5, "keeps the limits"),
    ],
)
def test_a_dry_run_says_what_a_search_would_refuse(
    option: str, value: str, code: int, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", "--data", "digits", "--run", str(tmp_path / "run"), "--strategy", "evolution"]
    assert run([*words, option, value, "--dry-run"]) == code
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_for_another_device_needs_no_runtime_and_measures_nothing_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Availability(False, reason="it is on the device alone")
    monkeypatch.setattr(OnnxRuntimeTarget, "availability", lambda self: missing)
    words = ["search", "--data", "digits", "--run", str(tmp_path / "run"), "--max-latency", "5ms"]
    words += ["--precision", "int8", "--dry-run", "--json"]
    assert run(words) == 3
    assert "it is on the device alone" in capsys.readouterr().err
    assert run([*words, "--device-host", "pi@nowhere"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["measured"]["predicted"]
    assert plan["measured"]["device"] == "pi@nowhere"
    assert plan["finalists"]["precision"] == "int8"
    assert run([*words, "--device-host", "pi@nowhere", "--target", "torchscript"]) == 2, "it has no int8"
    capsys.readouterr()
    assert run([*words, "--device-host", "pi@nowhere", "--latency-table", "table.json"]) == 2
    assert "both a device and --latency-table" in capsys.readouterr().err


def test_a_search_says_how_long_it_takes_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["search", "--data", "digits", "--run", str(tmp_path / "run"), "--dry-run"]) == 0
    assert re.search(r"the search: about [\d.]+ (s|min) here", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--rungs", "1,x"], 2, "whole numbers"),
        (["--rungs", "3,1"], 2, "rungs"),
        (["--epochs", "1", "--steps", "1"], 2, "Choose one"),
        (["--max-parameters", "5"], 5, "smallest found"),
        (["--strategy", "magic"], 2, "evolution"),
        (["--device", "tpu"], 2, "unknown device"),
        (["--augment", "blur=1"], 2, "expected pad_crop"),
        (["--augment", "mixup=much"], 2, "mixup"),
        (["--set", "speed=1"], 2, "received speed"),
        (["--set", "schedule=steps"], 2, "cosine or linear"),
        (["--strategy", "evolution", "--strategy-option", "population=none"], 2, "population"),
    ],
)
def test_wrong_options_are_one_clear_line(
    words: list[str], code: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["search", "--data", "digits", "--run", str(tmp_path / "run"), *words, "--quiet"]) == code
    captured = capsys.readouterr().err
    assert text in captured
    assert "Traceback" not in captured
    assert not (tmp_path / "run").exists(), "a refused command leaves nothing behind"


def test_space_says_what_it_holds_and_whether_a_limit_can_be_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["space", "--data", "digits", "--samples", "40", "--json"]
    assert run([*words, "--max-parameters", "30000"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["space"] == "edge-tiny"
    assert result["log10_size"] > 6
    assert 0 < result["share_within_limits"] < 1
    assert result["parameters"]["smallest"] < result["parameters"]["median"] < result["parameters"]["largest"]
    assert run([*words, "--max-macs", "10"]) == 5
    capsys.readouterr()
    assert run([*words, "--max-macs", "8000"]) == 0, "the smallest network keeps it, which no draw is"
    assert json.loads(capsys.readouterr().out)["share_within_limits"] == 0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("300k", 300_000),
        ("0.5M", 500_000),
        ("1.5e7", 15_000_000),
        ("64KiB", 65_536),
        ("1_000", 1000),
        ("2g", 2 * 10**9),
    ],
)
def test_counts_are_read_as_people_write_them(
    text: str, number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = "memory" if text.endswith("B") else "macs"  # bytes are no unit of the others
    words = ["search", "--data", "digits", "--run", str(tmp_path / "run"), f"--max-{limit}", text]
    assert run([*words, "--print-config"]) == 0
    assert re.search(rf"max.{limit}\W+{number}\b", capsys.readouterr().out)


@pytest.mark.parametrize("text", ["15X", "0", "0.5", "-3", "M", "", "15MB"])
def test_what_is_no_count_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["space", f"--max-macs={text}"]) == 2
    assert "expected a count such as 15000000 or 15M" in capsys.readouterr().err


def test_the_table_of_a_device_is_of_networks_that_the_search_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of the space's usual networks says little of those of another prior or strategy."""
    written: list[Architecture | None] = []
    monkeypatch.setattr(
        "smash_export.device_search.latency.write_kit", lambda kit, networks, *_: written.extend(networks)
    )
    monkeypatch.setattr("smash_export.cli.search.ask", lambda *_, **__: written.append(None))
    words = ["search", "--data", "digits", "--strategy", "smash", "--device-folder", str(tmp_path), "--quiet"]
    assert run([*words, "--run", str(tmp_path / "run"), "--max-latency", "5ms"]) != 0, "there is no table"
    *networks, asked = written
    assert asked is None
    space = configure(load_dataset("digits"), strategy="smash").space_for(InputSpec(1, (8, 8)))
    assert networks == table_networks(space, InputSpec(1, (8, 8)), 10, TABLE_SEED, 150)
    ops = [op for network in networks if network for block in network.blocks for op in block.ops]
    assert ops
    assert all(op.project is None and not op.gate for op in ops), "what --strategy smash draws"
