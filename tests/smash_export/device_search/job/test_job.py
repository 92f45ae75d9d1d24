"""``smash-export run`` on digits, whole: refused, interrupted, gone on with; and plans that fit a time."""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smash_base.errors import GateError, InvalidInputError, UsageError, VerificationError
from smash_base.json_values import JsonObject
from smash_export.bundle.bundle import Bundle
from smash_export.cli import run
from smash_export.cli.job import run_command
from smash_export.device_search.job.plan import Plan, Request, Stage, _searched, _stages, request_json
from smash_export.device_search.job.stages import SCHEMA, STATE, Done, Job, told
from smash_export.device_search.plan import (
    CANDIDATES,
    IMAGES,
    WHOLE,
    Units,
    _Bar,
    _limits_at,
    _Recorder,
    _smaller,
    _Timed,
    _training,
    _units,
    duration_words,
    largest_factor,
    last_epochs,
    parse_duration,
    scaled,
    search_parts,
    shared_time,
    sized_like,
    with_hypernet_share,
)
from smash_export.device_search.search import SPACE_DEFAULTS, configure, load_data
from smash_export.display import Part
from smash_search.rank.measurement import LATENCY
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.best import BestFile, write_best
from smash_search.space.cost import cost_of
from smash_search.stages.survey import probe_draws
from smash_search.train.recipes import Recipe
from tests.search.small_data import small_architecture


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults of seconds in place of minutes, and a rehearsal of fewer steps."""
    from smash_export.export import freeze
    from smash_search.train.network import Recipe

    for part, values in {
        "search": {"candidates": 6, "known": 2},
        "training": {"steps": 6, "batch": 16},
        "scoring": {"images": (20,)},
        "finalists": {"count": 2, "rungs": (1,)},
    }.items():
        monkeypatch.setitem(
            SPACE_DEFAULTS["edge-tiny"], part, {**SPACE_DEFAULTS["edge-tiny"][part], **values}
        )
    monkeypatch.setattr(freeze, "default_recipe", lambda *_: Recipe(2, 128, include_validation=True))
    for name, value in {"STEPS": 2, "CANDIDATES": 4, "FINALISTS": 2, "IMAGES": 128}.items():
        monkeypatch.setattr(f"smash_export.device_search.plan.{name}", value)
    for name in ("BENCH", "COMPARE"):
        monkeypatch.setenv(f"SMASH_EXPORT_{name}_SECONDS", "0.1")


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_one_command_makes_a_bundle_and_a_page_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    words = ["run", "--data", "digits", "--max-latency", "50ms", "--out", str(folder)]

    def interrupted(*_: object, **__: object) -> None:
        raise UsageError("not now")

    with monkeypatch.context() as patched:
        patched.setattr("smash_export.compiling.compile.compile_bundle", interrupted)
        assert run([*words, "--device", "cpu"]) == 2, "compile fails: everything before it is kept"
    told = capsys.readouterr()
    for part in ("training", "validation", "HyperNet", "candidates", "smash-export freeze"):
        assert part in told.out, "said before it starts"
    assert f"smash-export verify {folder / 'bundle'}" in told.out.splitlines(), "a line to paste"
    state = json.loads((folder / "run.json").read_text())
    assert [entry["stage"]["name"] for entry in state["done"]] == ["search", "freeze"]
    best = (folder / "search" / "best.json").stat().st_mtime_ns
    assert run([*words, "--device", "cpu", "--json", "--quiet"]) == 0
    told = capsys.readouterr()
    assert all(line.startswith("warning: ") for line in told.err.splitlines()), (
        "stages are as quiet as the run"
    )
    result = json.loads(told.out)
    assert (folder / "search" / "best.json").stat().st_mtime_ns == best, "the search is not repeated"
    assert [entry["stage"]["name"] for entry in result["stages"]][-2:] == ["bench", "compare"]
    bundle = Bundle.open(folder / "bundle")
    assert bundle.find_compiled("onnxruntime") is not None
    assert bundle.recommendation is not None
    assert bundle.recommendation.reason == result["recommendation"]["reason"]
    page = (folder / "report.html").read_text()
    assert f"smash-export predict {folder / 'bundle'}" in page
    assert re.search(r"Test accuracy [\d.]+% on 359 images \(95 % interval [\d.]+% to [\d.]+%\)", page)
    assert page.count("<img") >= 10, "images of every class"
    for link in ("search/report.html", "compare.html", "bundle/README.md"):
        assert f'href="{link}"' in page
        assert (folder / link).is_file()
    assert run([*words, "--device", "cpu", "--seed", "1"]) == 2
    assert "another seed" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_dry_run_says_everything_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    words = ["run", "--data", "digits", "--time", "10m", "--max-macs", "300000", "--out", str(folder)]
    words += ["--dry-run", "--json"]
    assert run([*words, "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 10 < told["seconds"] <= 600
    names = [stage["name"] for stage in told["stages"]]
    assert names == ["search", "freeze", "compile fp32", "verify", "bench", "compare"]
    search, freeze = (stage["words"] for stage in told["stages"][:2])
    assert search[search.index("--max-macs") + 1] == "300000"
    assert told["searched"]["last training"] == "about 8 epochs", "four times the default: there is time"
    expected = dict(told["stages"][1]["parts"])["retrain"]
    assert float(freeze[freeze.index("--time") + 1].rstrip("s")) == pytest.approx(max(1, expected), abs=0.6)
    assert told["images"]["splits"] == "train 1,078, validation 360, test 359"
    assert not folder.exists()
    folder.mkdir()
    (folder / "notes.txt").touch()
    assert run([*words, "--quiet"]) == 2
    assert "other files" in capsys.readouterr().err
    words[words.index(str(folder))] = str(folder / "notes.txt")
    assert run([*words, "--quiet"]) == 2
    assert "is a file" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--time", "soon"], 2, "45m"),
        (["--time", "2s"], 5, "at least"),
        (["--max-latency", "1ms,2ms"], 2, "one limit"),
        (["--max-macs", "10"], 5, "at most 10 MACs"),
        (["--max-latency", "1us"], 5, "no network of the space keeps"),
        (["--target", "ncnn", "--precision", "int8"], 2, "precision"),
        (["--teacher", "nowhere.onnx"], 2, "no such teacher"),
        (["--teacher", "auto", "--augment", "mixup=0.2"], 2, "neither mixup nor cutmix"),
        (["--set", "weight=1"], 2, "weight"),
        (["--set", "epochs=0"], 2, "at least 1"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    words: list[str], code: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert run(["run", "--data", "digits", "--out", str(folder), "--quiet", *words]) == code
    assert text in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_search_fits_its_time_and_keeps_its_size_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    words = ["search", "--data", "digits", "--time", "1h", "--run", str(folder), "--device", "cpu"]
    monkeypatch.setattr("smash_export.device_search.plan.WHOLE", 2.0)
    assert run([*words, "--baseline", "none"]) == 0
    assert "2 times the default search" in capsys.readouterr().err
    identity = json.loads((folder / "config.json").read_text())["identity"]
    assert identity["training"]["steps"] == 12, "an hour is more than twice the default, which is the most"
    monkeypatch.setattr("smash_export.device_search.plan.WHOLE", 1.0)
    assert run([*words, "--baseline", "none", "--quiet"]) == 0, "nothing is measured anew"


def test_a_plan_uses_the_time_it_is_given_and_no_more() -> None:
    dataset = load_data("digits")
    config = configure(dataset)
    units = Units(1.0, 0.05, 0.0, 0.04, 1e-4, 3e-4, 6e-4)

    def seconds(factor: float) -> float:
        return sum(part.seconds for part in search_parts(scaled(config, factor), dataset, units))

    for wanted in (15.0, 30.0, 60.0):
        factor = largest_factor(seconds, wanted)
        assert 0.75 * wanted < seconds(factor) <= wanted
    assert largest_factor(seconds, 1e6) == pytest.approx(WHOLE)
    with pytest.raises(GateError, match="at least"):
        largest_factor(seconds, 1.0)
    small = scaled(config, 0.0)
    assert (small.training.steps, small.candidates, small.finalists.count) == (60, 8, 2)
    assert (small.finalists.rungs, small.finalists.rounds) == (config.finalists.rungs[:1], 1)
    assert sized_like(config, {"identity": small.to_json()}) == small
    assert scaled(config, 0.1).finalists.rungs == config.finalists.rungs[:-1]
    assert scaled(config, 0.2).finalists.rungs == config.finalists.rungs
    assert scaled(config, 1.0) == config


def test_another_number_of_candidates_divides_the_parts_that_a_strategy_names() -> None:
    options: JsonObject = {"random": "20", "perturbations": 10, "steps": 10, "rate": 0.1}
    config = configure(load_data("digits"), candidates=40, strategy="perturb", strategy_options=options)
    small = scaled(config, 0.5)
    assert small.candidates == 20
    assert small.strategy_options == {"random": 10, "perturbations": 5, "steps": 5, "rate": 0.1}
    assert scaled(config, 1.0) == config
    left_out = replace(config, strategy_options={"random": 20, "steps": -1})
    assert scaled(left_out, 3.0).strategy_options == {"random": 60, "steps": -1}, "as without it"
    words = ["search", "--data", "digits", "--strategy", "perturb", "--candidates", "40", "--time", "1h"]
    words += [word for name in ("random=20", "steps=10") for word in ("--strategy-option", name)]
    assert run([*words, "--dry-run", "--quiet"]) == 0


def test_the_last_training_has_half_of_the_time_unless_the_smallest_search_needs_it() -> None:
    assert last_epochs(15, one=20.0, others=100.0, seconds=1800.0) == 45
    assert last_epochs(15, one=20.0, others=1500.0, seconds=1800.0) == 15
    assert last_epochs(15, one=20.0, others=2000.0, seconds=1800.0) == 3, "the plan is refused as a whole"
    assert last_epochs(15, one=1.0, others=100.0, seconds=1800.0) == 60, "four times the default"


def test_time_beyond_a_default_search_and_half_lengthens_the_last_training_first() -> None:
    def seconds_of(factor: float, epochs: int) -> float:
        return 100.0 + 900.0 * factor + 20.0 * epochs

    factor, epochs = shared_time(seconds_of, 15, 1200.0)
    assert epochs == 30, "half of the time"
    assert factor == pytest.approx(500 / 900)
    factor, epochs = shared_time(seconds_of, 15, 2100.0)
    assert epochs == 55, "a search of the default size, and the rest"
    assert factor == pytest.approx(1.0)
    factor, epochs = shared_time(seconds_of, 15, 4000.0)
    assert epochs == 60, "four times the default, and a larger search"
    assert factor == pytest.approx(2700 / 900)


def test_time_that_is_too_short_for_one_more_rung_goes_to_the_last_training() -> None:
    def seconds_of(factor: float, epochs: int) -> float:
        return 100.0 + (900.0 if factor > 0.5 else 300.0) + 20.0 * epochs

    factor, epochs = shared_time(seconds_of, 15, 1200.0)
    assert epochs == 40, "more than half, and nothing is left"
    assert factor == pytest.approx(0.5)


class _Formula:
    """A device whose latency grows with the square root of multiply-accumulates."""

    def measure(self, architecture: Architecture) -> dict[str, float]:
        return {LATENCY: math.sqrt(cost_of(architecture, InputSpec(1, (8, 8)), 10).macs)}


@pytest.mark.parametrize(("limit", "most"), [(447.2, 2e5), (1000.0, None), (1.0, "a twentieth")])
def test_a_rehearsal_trains_networks_that_a_latency_limit_allows(
    limit: float, most: float | str | None
) -> None:
    dataset = load_data("digits")
    config = configure(dataset, space="edge-tiny", latency_limits={"limit": limit})
    found = _limits_at(config, dataset, _Timed(_Formula())).macs  # type: ignore[arg-type]
    if most == "a twentieth":
        space = config.space_for(InputSpec(1, (8, 8)))
        macs = [cost_of(entry, InputSpec(1, (8, 8)), 10).macs for entry in probe_draws(space, config.seed)]
        assert found is not None
        assert np.mean(np.array(macs) <= found) == pytest.approx(0.05, abs=0.01)
    else:
        assert found == (None if most is None else pytest.approx(most, rel=0.01))


def test_finalists_are_rehearsed_by_the_optimiser_that_they_will_have() -> None:
    """Few images have another one, which takes less time."""
    digits = load_data("digits")
    many = replace(digits, train=digits.train.take(np.resize(np.arange(len(digits.train)), 6000)))
    for dataset, wanted in ((digits, "sgd"), (many, "muon")):
        assert _smaller(configure(dataset), dataset).finalists.recipe.optimiser == wanted


def test_a_rehearsed_training_tells_its_images_from_what_it_takes_once() -> None:
    """Two networks: a second to begin, an epoch in 0.5 s, at the end 300 of validation and 0.2 s."""
    images = replace(load_data("digits"), validation=load_data("digits").train.take(np.arange(300)))
    judged = 300 / 3 * 0.5 / IMAGES + 0.2
    bar, now = _Bar("finalists", 6, 100.0), 100.0
    for network in range(2):
        for epoch, seconds in enumerate((1.5, 0.5, 0.5 + judged)):
            now += seconds
            bar.ticks.append((3 * network + epoch + 1, now))
        bar.ticks.append((3 * network + 3, now))
    image, set_up = _training(bar, images)
    assert image == pytest.approx(0.5 / IMAGES)
    assert set_up == pytest.approx(1.2)
    assert _training(None, images) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("target", "images", "added"),
    [
        ("onnxruntime", 300, ["--option", "calibration_minimum=300"]),
        ("onnxruntime", 600, []),
        ("litert", 300, ["--option", "calibration_minimum=300"]),
        ("executorch", 300, []),  # quantises by itself and has no such option
    ],
)
def test_few_images_calibrate_a_run_rather_than_end_it_after_its_trainings(
    target: str, images: int, added: list[str]
) -> None:
    dataset = load_data("digits")
    few = replace(dataset, train=dataset.train.take(np.arange(images)))
    request = Request("folder:few", target=target, precision="int8")
    units, config = Units(1.0, 0.05, 0.0, 0.04, 1e-4, 3e-4, 6e-4), configure(few)
    stages = _stages(request, few, Path("out"), units, config, Recipe(2, 128))
    words = {stage.name: list(stage.words) for stage in stages}
    assert words["compile int8"] == [*_compile(target, "int8"), *added]
    assert words["compile fp32"] == _compile(target, "fp32")
    told = _searched(request, few, config, Recipe(2, 128), units)
    assert ("300 training images are few" in told.get("calibration", "")) == bool(added)


def test_options_of_a_run_reach_the_commands_that_they_are_for() -> None:
    dataset = load_data("digits")
    units, config = Units(1.0, 0.05, 0.0, 0.04, 1e-4, 3e-4, 6e-4), configure(dataset)
    limits = {"max_macs": 3000, "max_parameters": 2000, "max_memory": 1000}
    settings = ("momentum=0.8", "ema=0.9")
    request = Request("digits", **limits, recipe="quick", balance="loss", false_alarm=0.01)
    request = replace(request, teacher="auto", augment="flip=true", folds=3, settings=settings)
    search, freeze = (
        [*itertools.pairwise(stage.words)]
        for stage in _stages(request, dataset, Path("out"), units, config, Recipe(2, 128))[:2]
    )
    for name, value in limits.items():
        assert (f"--{name.replace('_', '-')}", str(value)) in search
    assert ("--balance", "loss") in search
    assert {("--balance", "loss"), ("--false-alarm", "0.01"), ("--recipe", "quick")} <= set(freeze)
    assert {("--teacher", "auto"), ("--augment", "flip=true"), ("--folds", "3")} <= set(freeze)
    assert {("--set", setting) for setting in settings} <= set(freeze)
    of_the_last = {"--teacher", "--set", "--augment", "--folds"}
    assert not of_the_last & {word for pair in search for word in pair}
    plain = _stages(Request("digits"), dataset, Path("out"), units, config, Recipe(2, 128))
    words = {word for stage in plain for word in stage.words}
    assert not words & {"--balance", "--recipe", "--false-alarm", "--max-macs", *of_the_last}


def _freezing(seconds: float | None = None, **asked: object) -> Stage:
    dataset = load_data("digits")
    units, config = Units(1.0, 0.05, 0.0, 0.04, 1e-4, 3e-4, 6e-4), configure(dataset)
    request = Request("digits", seconds=seconds, **asked)  # type: ignore[arg-type]
    return _stages(request, dataset, Path("out"), units, config, Recipe(20, 128))[1]


def test_folds_and_teachers_are_in_the_plan_as_freeze_trains_them() -> None:
    alone = {part.label: part.seconds for part in _freezing().parts}
    both = {part.label: part.seconds for part in _freezing(teacher="auto", folds=3).parts}
    assert list(both) == ["teacher", "3 folds", "retrain", "exporting"]
    assert both["3 folds"] == pytest.approx(3 * alone["retrain"])
    assert both["teacher"] == pytest.approx(4 * alone["retrain"])
    assert "asking the teacher" in {part.label for part in _freezing(teacher="bundle").parts}
    timed = _freezing(600.0, teacher="auto", folds=3)
    seconds = {part.label: part.seconds for part in timed.parts}
    whole = float(timed.words[timed.words.index("--time") + 1].rstrip("s"))
    assert sum(seconds.values()) - seconds["exporting"] == pytest.approx(whole, abs=0.5)
    assert seconds["teacher"] == pytest.approx(whole / 2, abs=0.5), "half of it, the rest for four trainings"
    assert seconds["retrain"] == pytest.approx(whole / 8, abs=0.5)


def test_what_a_search_left_is_divided_between_folds_teacher_and_network(tmp_path: Path) -> None:
    parts = [("teacher", 60.0), ("2 folds", 40.0), ("retrain", 20.0), ("exporting", 5.0)]
    freeze = Stage("freeze", ("freeze", "--time", "120s"), tuple(Part(*part) for part in parts))
    search = Stage("search", ("search",), (Part("search", 300.0),))
    job = Job(tmp_path, Request("digits", seconds=500.0), Plan({}, {}, (search, freeze)), [])
    job.done.append(Done(search, 255.0, {}))
    done = next(job.stages(lambda words: {"words": list(words)}))
    assert done.result == {"words": ["freeze", "--time", "240s"]}
    assert [part.seconds for part in done.stage.parts] == [120.0, 80.0, 40.0, 5.0]


@pytest.mark.parametrize(
    "changed", [{"teacher": "auto"}, {"settings": ("epochs=1",)}, {"augment": "none"}, {"folds": 2}]
)
def test_a_run_with_another_training_is_another_run(changed: dict[str, object], tmp_path: Path) -> None:
    def kept(request: dict[str, object]) -> None:
        state = {"schema": SCHEMA, "request": request, "plan": Plan({}, {}, ()).to_json(), "done": []}
        (tmp_path / STATE).write_text(json.dumps(state))

    plain = Request("digits")
    of_the_last = {"teacher", "settings", "augment", "folds"}
    kept({name: value for name, value in request_json(plain).items() if name not in of_the_last})
    assert Job.find(tmp_path, plain) is not None, "an earlier version had none of them"
    asked = replace(plain, **changed)  # type: ignore[arg-type]
    (name,) = changed
    with pytest.raises(UsageError, match=f"another {name}"):
        Job.find(tmp_path, asked)
    kept({**request_json(asked)})
    assert Job.find(tmp_path, asked) is not None
    with pytest.raises(UsageError, match=f"another {name}"):
        Job.find(tmp_path, plain)


def test_a_rejected_file_ends_no_run_that_has_another_one(tmp_path: Path) -> None:
    names = ("search", "compile fp32", "compile int8", "verify")
    stages = tuple(Stage(name, tuple(name.split()), (Part(name, 1.0),)) for name in names)
    refused = ["int8"]

    def command(words: Sequence[str]) -> JsonObject:
        if words[-1] in refused:
            raise VerificationError("it does something else")
        return {} if words[0] == "compile" else {"rejected": []}  # as verify and compare have it

    job = Job(tmp_path, Request("digits", precision="int8"), Plan({}, {}, stages), [])
    assert [done.stage.name for done in job.stages(command)] == list(names)
    (rejected,) = job.rejected
    assert told(rejected).startswith("compile int8: rejected: it does something else")
    found = Job.find(tmp_path, job.request)
    assert found is not None
    assert len(found.rejected) == 1, "a repeated command says so, too"
    for refused[:] in (["fp32"], ["int8", "verify"]):
        with pytest.raises(VerificationError):
            list(Job(tmp_path, job.request, job.plan, []).stages(command))


def test_files_that_the_device_rejects_end_no_run_that_has_others(tmp_path: Path) -> None:
    names = ("search", "compile fp32", "compile int8", "verify", "compare")
    stages = tuple(Stage(name, tuple(name.split()), (Part(name, 1.0),)) for name in names)

    def command(words: Sequence[str]) -> JsonObject:
        if words[0] == "verify":
            raise VerificationError("1 of 2 files does something else: int8")
        return {} if words[0] == "compile" else {"rejected": []}  # as compare has it

    job = Job(tmp_path, Request("digits", precision="int8"), Plan({}, {}, stages), [])
    assert [done.stage.name for done in job.stages(command)] == list(names)
    (rejected,) = job.rejected
    assert told(rejected).startswith("verify: rejected: 1 of 2 files does something else: int8")


def test_a_run_that_was_moved_goes_on_where_it_is_now(tmp_path: Path) -> None:
    before, now = tmp_path / "photos-run", tmp_path / "best-run"
    before.mkdir()
    words = (("search", "--run", f"{before}/search"), ("verify", f"{before}/bundle", f"{before}s"))
    stages = tuple(Stage(line[0], line, (Part(line[0], 1.0),)) for line in words)
    job = Job(before, Request("digits"), Plan({}, {}, stages), [])
    next(job.stages(lambda words: {}))
    before.rename(now)
    found = Job.find(now, Request("digits"))
    assert found is not None
    assert found.missing[0].words == ("verify", f"{now}/bundle", f"{before}s")
    assert found.done[0].stage.words == ("search", "--run", f"{now}/search")


def test_a_run_whose_images_have_changed_is_refused(tmp_path: Path) -> None:
    stage = Stage("search", ("search",), (Part("search", 1.0),))
    next(Job(tmp_path, Request("digits"), Plan({}, {}, (stage,)), [], "one").stages(lambda words: {}))
    assert Job.find(tmp_path, Request("digits"), "one") is not None
    with pytest.raises(UsageError, match=r"images have changed.*expected fingerprint one; received other"):
        Job.find(tmp_path, Request("digits"), "other")


def test_a_run_without_its_bundle_is_refused(tmp_path: Path) -> None:
    stages = tuple(Stage(name, (name,), (Part(name, 1.0),)) for name in ("search", "freeze", "verify"))
    done = Job(tmp_path, Request("digits"), Plan({}, {}, stages), []).stages(lambda words: {})
    next(done)
    assert Job.find(tmp_path, Request("digits")) is not None
    next(done)
    with pytest.raises(UsageError, match="lost its bundle"):
        Job.find(tmp_path, Request("digits"))
    (tmp_path / "bundle").mkdir()
    assert Job.find(tmp_path, Request("digits")) is not None


def test_a_stage_has_the_settings_of_its_words_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The plan knows nothing of the environment and of the file that it names."""
    (tmp_path / "smash.toml").write_text('[search]\nspace = "edge"\n')
    monkeypatch.setenv("SMASH_EXPORT_CONFIG", str(tmp_path / "smash.toml"))
    monkeypatch.setenv("SMASH_EXPORT_SEARCH_STRATEGY", "evolution")
    monkeypatch.chdir(tmp_path)
    planned = json.dumps(run_command(["search", "--data", "digits", "--dry-run"], quiet=True))
    assert "edge-tiny" in planned
    assert "evolution" not in planned


def test_a_search_whose_notes_nobody_reads_is_not_rehearsed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def rehearsed(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("smash_export.device_search.plan.rehearse", rehearsed)
    monkeypatch.chdir(tmp_path)
    assert run(["search", "--data", "digits", "--dry-run", "--quiet"]) == 0


def test_ranks_do_not_size_a_search_each_for_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["search", "--data", "digits", "--time", "1h", "--dry-run"]) == 2
    assert "several ranks" in capsys.readouterr().err


def test_what_was_spent_before_an_interruption_counts(tmp_path: Path) -> None:
    freeze = Stage("freeze", ("freeze", "--time", "120s"), (Part("retrain", 120.0),))
    search = Stage("search", ("search", "--device", "auto"), (Part("search", 300.0),))
    request = Request("digits", seconds=500.0)
    job = Job(tmp_path, request, Plan({}, {}, (search, freeze)), [], spent=200.0)

    def interrupted(_: Sequence[str]) -> JsonObject:
        time.sleep(0.05)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(job.stages(interrupted))
    found = Job.find(tmp_path, replace(request, device="cpu"))
    assert found is not None
    assert 200.0 < found.spent < 210.0
    assert found.missing[0].words == ("search", "--device", "cpu"), "where to train is no other run"
    done = found.stages(lambda words: {"words": list(words)})
    assert 200.0 < next(done).seconds < 210.0
    (words,) = next(done).result.values()
    assert words in (["freeze", "--time", f"{left}s"] for left in (299, 300))


def test_more_patience_with_a_device_is_the_same_run_and_holds_from_then_on(tmp_path: Path) -> None:
    device = ("--device-host", "pi@pi")
    before = Request("digits", elsewhere=(*device, "--device-timeout", "60.0"))
    stages = tuple(
        Stage(name, (name, *before.elsewhere), (Part(name, 1.0),)) for name in ("search", "verify")
    )
    next(Job(tmp_path, before, Plan({}, {}, stages), []).stages(lambda words: {}))
    for now in ((*device, "--device-timeout", "900.0"), device):
        found = Job.find(tmp_path, replace(before, elsewhere=now))
        assert found is not None
        assert found.missing[0].words == ("verify", *now)
    with pytest.raises(UsageError, match="another elsewhere"):
        Job.find(tmp_path, replace(before, elsewhere=("--device-host", "pi@other")))


def test_a_run_does_not_lie_among_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    monkeypatch.chdir(tmp_path / "photos")
    assert run(["run", "--data", "folder:.", "--max-macs", "1M", "--dry-run"]) == 2
    assert "lies among the images" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["cat", "dog"]


def test_epochs_that_are_set_are_said_once_to_the_last_training(tmp_path: Path) -> None:
    dataset = load_data("digits")
    units, config = Units(1.0, 0.05, 0.0, 0.04, 1e-4, 3e-4, 6e-4), configure(dataset)
    for settings, epochs in ((("epochs=7",), 0), ((), 1)):
        request = Request("digits", settings=settings, device="cpu")
        words = _stages(request, dataset, tmp_path, units, config, Recipe(7, 128))[1].words
        assert words.count("--epochs") == epochs


def test_the_last_training_of_a_run_has_teacher_folds_and_settings(
    tmp_path: Path, digits_bundle: Path
) -> None:
    dataset = load_data("digits")
    settings = ("epochs=1", "distillation=0.3")
    request = Request(
        "digits", teacher=str(digits_bundle), settings=settings, augment="none", folds=2, device="cpu"
    )
    units, config = Units(1.0, 0.05, 0.0, 0.04, 1e-4, 3e-4, 6e-4), configure(dataset)
    stage = _stages(request, dataset, tmp_path, units, config, Recipe(1, 128))[1]
    best = BestFile(small_architecture(), InputSpec(1, (8, 8)), dataset.classes)
    (tmp_path / "search").mkdir()
    write_best(tmp_path / "search" / "best.json", best)
    result = run_command(stage.words, quiet=True)
    provenance = Bundle.open(tmp_path / "bundle").manifest.provenance
    recipe, folds = provenance["recipe"], provenance["folds"]
    assert isinstance(recipe, dict)
    assert isinstance(folds, dict)
    assert (recipe["epochs"], recipe["distillation"], recipe["augmentation"]) == (1, 0.3, {})
    assert f"; 2 folds {folds['top1']:.2%}" in told(Done(stage, 1.0, result))


def _compile(target: str, precision: str) -> list[str]:
    return ["compile", "out/bundle", "--target", target, "--precision", precision]


@pytest.mark.parametrize(("searched", "trained"), [(100.0, "385s"), (400.0, "85s"), (900.0, "60s")])
def test_the_last_training_gets_what_the_search_left_of_the_time(
    searched: float, trained: str, tmp_path: Path
) -> None:
    """500 s in all, of which verify needs 10 and exporting 5; half of what was planned stays in any case."""
    stages = (
        Stage("search", ("search",), (Part("search", 300.0),)),
        Stage("freeze", ("freeze", "--time", "120s"), (Part("retrain", 120.0), Part("exporting", 5.0))),
        Stage("verify", ("verify",), (Part("verify", 10.0),)),
    )
    done = [Done(stages[0], searched, {})]
    job = Job(tmp_path, Request("digits", seconds=500.0), Plan({}, {}, stages), done)
    asked: list[tuple[str, ...]] = []

    def command(words: Sequence[str]) -> JsonObject:
        asked.append(tuple(words))
        return {}

    assert next(job.stages(command)).stage.seconds == float(trained.rstrip("s")) + 5
    assert asked == [("freeze", "--time", trained)]
    (tmp_path / "bundle").mkdir()
    found = Job.find(tmp_path, job.request)
    assert found is not None
    assert found.missing == stages[2:]


def test_times_are_read_and_written_as_people_do() -> None:
    assert parse_duration("45m") == 2700
    assert parse_duration("1h30m") == 5400
    assert parse_duration("90") == parse_duration("90s") == parse_duration("1.5min") == 90
    assert [duration_words(value) for value in (50, 210, 7560)] == ["50 s", "3.5 min", "2.1 h"]
    with pytest.raises(UsageError):
        parse_duration("")
    plan = Plan({"images": "5"}, {}, ())
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("rest", [{}, {"plan": {}, "done": []}, {"plan": Plan({}, {}, ()).to_json()}])
def test_a_damaged_run_is_refused_by_its_file(rest: dict[str, object], tmp_path: Path) -> None:
    request = Request("digits")
    document = {"schema": SCHEMA, "request": request_json(request), **rest}
    (tmp_path / STATE).write_text(json.dumps(document))
    with pytest.raises(InvalidInputError, match=r"damaged|malformed"):
        Job.find(tmp_path, request)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_the_hypernet_gets_the_share_of_the_time_that_is_asked_for(share: float) -> None:
    dataset = load_data("digits")
    units = Units(1.0, 0.05, 0.0, 0.04, 1e-4, 3e-4, 6e-4)
    config = with_hypernet_share(configure(dataset), share, dataset, units)
    parts = {part.label: part.seconds for part in search_parts(config, dataset, units)}
    assert parts["HyperNet"] / sum(parts.values()) == pytest.approx(share, abs=0.02)


def test_a_random_search_of_equal_total_is_planned_with_all_of_its_networks() -> None:
    dataset = load_data("digits")
    units = Units(0.0, 0.05, 0.0, 0.04, 1e-4, 3e-4, 3e-4)

    def planned(baseline: str) -> dict[str, float]:
        config = configure(dataset, training={"steps": 2000}, finalists={"baseline": baseline})
        return {part.label: part.seconds for part in search_parts(config, dataset, units)}

    assert "random search" not in planned("none")
    assert planned("finalists")["random search"] == pytest.approx(planned("none")["finalists"], rel=0.05)
    images = len(dataset.train) + len(dataset.validation) / 3  # of an epoch, as they are timed
    updates = 2000 * 64 * 3e-4 * images / len(dataset.train)
    assert planned("total")["random search"] > planned("finalists")["random search"] + 0.9 * updates


def test_a_rehearsed_score_is_told_from_the_measurements_before_and_after_it() -> None:
    config, dataset = configure(load_data("digits")), load_data("digits")
    recorder, timed = _Recorder(lambda: None), _Timed(_Formula())  # type: ignore[arg-type]
    for label, begin, end in (("HyperNet", 10.0, 12.0), ("candidates", 12.0, 20.0)):
        recorder.bars.append(_Bar(label, CANDIDATES, begin, end=end))
    timed.taken = [(place, 0.5) for place in (1.0, 2.0, *np.arange(12.0, 17.0, 0.5), 21.0)]
    units = _units(config, dataset, recorder, timed, 0.0)
    assert units.score == pytest.approx((8.0 - 10 * 0.5) / CANDIDATES)
    assert units.measurement == 0.5


def test_a_share_and_a_number_of_updates_are_one_too_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", "--data", "digits", "--run", str(tmp_path / "run"), "--quiet"]
    assert run([*words, "--hypernet-share", "0.2", "--steps", "9"]) == 2
    assert "Choose one" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
