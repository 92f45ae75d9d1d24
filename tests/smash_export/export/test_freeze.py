"""Freeze: three ways to weights, one verified bundle, nothing left behind by what fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from smash_base.errors import InvalidInputError, UsageError, VerificationError
from smash_export import load
from smash_export.bundle.bundle import Bundle
from smash_export.cli import cli
from smash_export.export.freeze import default_recipe, freeze, rounded, statistics_images, work_beside
from smash_export.export.teacher import teacher_logits
from smash_search.data import Dataset, load_dataset
from smash_search.model.hypernet import HyperNetConfig
from smash_search.model.interpreter import FrozenNetwork
from smash_search.model.supernet import Supernet
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.best import BestFile, SearchRecord, write_best
from smash_search.space.space import SPACES, space_for
from smash_search.train.compute import load_checkpoint
from smash_search.train.loop import TrainingProgress
from smash_search.train.network import Recipe
from tests.search.hand_clock import HandClock

TINY = SPACES["tiny"]
SPEC = InputSpec(1, (8, 8))
LABELS = tuple("0123456789")
SHORT = Recipe(epochs=1, learning_rate=0.05, include_validation=True)


def cheapest() -> Architecture:
    return min((TINY.draw(0, slot) for slot in range(40)), key=lambda a: sum(len(b.ops) for b in a.blocks))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def best() -> BestFile:
    return BestFile(cheapest(), SPEC, LABELS, SearchRecord(data="digits"))


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    torch.manual_seed(0)
    return Supernet(TINY, SPEC, 10)


def test_generated_weights_become_the_bundle_of_the_network_that_was_scored(
    tmp_path: Path, best: BestFile, dataset: Dataset, supernet: Supernet
) -> None:
    report = freeze(best, dataset, tmp_path / "bundle", weights="generated", supernet=supernet)
    assert report.fit is None
    statistics = supernet.statistics(best.architecture, [statistics_images(dataset)])
    images = torch.from_numpy(dataset.preprocessing.normalise(dataset.test.images[:32]))
    weights = report.bundle.weights()
    assert weights is not None
    with torch.no_grad():
        scored = supernet(best.architecture, images, statistics)
        frozen = FrozenNetwork(best.architecture, weights)(images)
    assert float((scored - frozen).abs().max()) <= 1e-5


def test_retraining_learns_and_the_bundle_says_how(tmp_path: Path, best: BestFile, dataset: Dataset) -> None:
    recipe = replace(SHORT, epochs=3)
    report = freeze(best, dataset, tmp_path / "bundle", recipe=recipe)
    assert report.test_accuracy > 0.5
    bundle = Bundle.open(tmp_path / "bundle")
    provenance = bundle.manifest.provenance
    assert provenance["weights"] == "retrain"
    assert provenance["recipe"] == json.loads(json.dumps(recipe.to_json()))
    assert provenance["accuracy"]["top1"] == report.test_accuracy  # type: ignore[index, call-overload]
    digit = report.test.classes[3]
    facts = provenance["accuracy"]["classes"]["3"]  # type: ignore[index, call-overload]
    assert facts == {"images": digit.images, "recall": digit.recall, "precision": digit.precision}
    card = (bundle.path / "README.md").read_text()
    assert f"mean recall of the classes {report.test.balanced_accuracy:.2%}" in card
    assert f"| 3 | {digit.images} | {digit.recall:.2%} |" in card
    assert provenance["data"]["fingerprint"] == dataset.fingerprint  # type: ignore[index, call-overload]
    assert bundle.architecture == best.architecture
    assert len(bundle.calibration()) >= 512
    assert all(parity.max_difference <= 1e-4 and parity.agreement == 1 for parity in report.parity.values())
    assert not list(tmp_path.glob(".*work*"))


def test_the_recipe_in_the_bundle_is_the_one_that_was_used(
    tmp_path: Path, best: BestFile, dataset: Dataset
) -> None:
    asked = Recipe(epochs=2, batch=64, seconds=600.0, include_validation=True, keep_best=True)

    def killed(progress: TrainingProgress) -> None:
        if progress.step == progress.steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        freeze(best, dataset, tmp_path / "bundle", recipe=asked, on_step=killed)
    (checkpoint,) = (tmp_path / ".bundle.work").glob("*.pt")
    held = load_checkpoint(checkpoint, None)
    assert held is not None
    measured_anew = replace(asked, epochs=50)  # --time times its steps in every process
    report = freeze(best, dataset, tmp_path / "bundle", recipe=measured_anew)
    written = report.bundle.manifest.provenance["recipe"]
    assert written == json.loads(json.dumps(held["identity"]["recipe"]))
    assert isinstance(written, dict)
    assert (written["epochs"], written["keep_best"]) == (2, False)


def test_fine_tuning_starts_from_the_generated_weights(
    tmp_path: Path, best: BestFile, dataset: Dataset, supernet: Supernet
) -> None:
    still = replace(SHORT, learning_rate=1e-12)
    tuned = freeze(
        best, dataset, tmp_path / "a", weights="finetune", recipe=still, supernet=supernet
    ).bundle.weights()
    generated = freeze(best, dataset, tmp_path / "b", weights="generated", supernet=supernet).bundle.weights()
    assert tuned is not None
    assert generated is not None
    name = "blocks.0.ops.0.reduce.weight"
    assert np.allclose(tuned[name], generated[name], atol=1e-6)


def test_fine_tuning_keeps_the_norms_that_the_hypernet_was_trained_with(
    tmp_path: Path, dataset: Dataset
) -> None:
    space = space_for(SPEC)
    drawn = min((space.draw(0, slot) for slot in range(40)), key=lambda entry: entry.op_count)
    torch.manual_seed(0)
    supernet = Supernet(space, SPEC, 10, HyperNetConfig(depths=(1,), growth=2, norm="sandwich"))
    best = BestFile(drawn, SPEC, LABELS, SearchRecord(data="digits"))
    still = replace(SHORT, learning_rate=1e-12)
    made = [
        freeze(best, dataset, tmp_path / weights, weights=weights, recipe=still, supernet=supernet)
        for weights in ("finetune", "generated")
    ]
    images = dataset.preprocessing.normalise(torch.from_numpy(dataset.test.images[:64]))
    tuned, generated = (torch.jit.load(entry.bundle.torchscript)(images) for entry in made)
    assert torch.nn.functional.cosine_similarity(tuned.flatten(), generated.flatten(), dim=0) > 0.9


def test_the_same_seed_gives_the_same_onnx_bytes(tmp_path: Path, best: BestFile, dataset: Dataset) -> None:
    one, two = (freeze(best, dataset, tmp_path / name, recipe=SHORT).bundle.onnx for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    other = freeze(best, dataset, tmp_path / "c", recipe=replace(SHORT, seed=1)).bundle.onnx
    assert other.read_bytes() != one.read_bytes()


@pytest.mark.slow
def test_the_traced_file_equals_the_written_one(
    tmp_path: Path, best: BestFile, dataset: Dataset, supernet: Supernet
) -> None:
    report = freeze(
        best, dataset, tmp_path / "bundle", weights="generated", supernet=supernet, exporter="torch"
    )
    model = onnx.load(report.bundle.onnx)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert str(Path.cwd()) not in str(model)  # no path of the machine that exported it
    assert report.parity["onnx"].max_difference <= 1e-4


def test_rounding_in_the_loop_is_recorded_and_keeps_the_labels(
    tmp_path: Path, best: BestFile, dataset: Dataset
) -> None:
    steps: list[TrainingProgress] = []
    report = freeze(
        best,
        dataset,
        tmp_path / "bundle",
        recipe=replace(SHORT, epochs=2),
        quantisation_aware=True,
        on_rounding_step=steps.append,
    )
    assert report.bundle.manifest.provenance["quantisation_aware"] is True
    assert report.test_accuracy > 0.4
    assert [done.step for done in steps] == list(range(1, steps[-1].steps + 1)), "two epochs, seen"


def test_generated_weights_are_calibrated_once_they_are_trained_with_rounding(
    tmp_path: Path, best: BestFile, dataset: Dataset, supernet: Supernet
) -> None:
    for rounding in (False, True):
        report = freeze(
            best,
            dataset,
            tmp_path / f"bundle-{rounding}",
            weights="generated",
            supernet=supernet,
            recipe=replace(SHORT, include_validation=False),
            quantisation_aware=rounding,
        )
        assert (report.bundle.manifest.provenance["calibration"] is not None) == rounding


def test_rounding_learns_from_the_teacher_with_the_weight_that_it_had_in_the_end() -> None:
    recipe = Recipe(epochs=40, distillation=0.8, distillation_left=0.25)
    assert (rounded(recipe).distillation, rounded(recipe).distillation_left) == (0.2, 1.0)
    assert rounded(recipe).epochs == 4


def test_a_limit_of_time_holds_for_the_training_with_rounding_too(
    tmp_path: Path, best: BestFile, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, usual, rounding = HandClock(monkeypatch), list[int](), list[int]()

    def noted(steps: list[int]) -> Callable[[TrainingProgress], None]:
        def on_step(progress: TrainingProgress) -> None:
            steps.append(progress.step)
            clock.spend(1)

        return on_step

    report = freeze(
        best,
        dataset,
        tmp_path / "bundle",
        recipe=replace(SHORT, epochs=1000, seconds=12.0),
        quantisation_aware=True,
        on_step=noted(usual),
        on_rounding_step=noted(rounding),
    )
    assert report.fit is not None
    assert report.fit.recipe.seconds == 10
    assert 9 <= len(usual) <= 11
    assert 1 <= len(rounding) <= 3


def test_a_file_that_differs_is_rejected_and_nothing_gets_the_final_name(
    tmp_path: Path, best: BestFile, dataset: Dataset, supernet: Supernet, monkeypatch: pytest.MonkeyPatch
) -> None:
    import smash_export.export.freeze as module

    written = module.onnx_from_architecture

    def wrong(
        architecture: Architecture, weights: dict[str, np.ndarray], *args: object, **more: object
    ) -> bytes:
        return written(architecture, {**weights, "head.bias": weights["head.bias"] + 0.01}, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "onnx_from_architecture", wrong)  # a defect of an exporter
    with pytest.raises(VerificationError) as caught:
        freeze(best, dataset, tmp_path / "bundle", weights="generated", supernet=supernet)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "bundle").exists()
    report = json.loads((tmp_path / "bundle.rejected" / "report.json").read_text())
    assert report["onnx"]["max_difference"] == pytest.approx(0.01, rel=0.01)


def test_an_existing_bundle_is_kept_unless_forced(
    tmp_path: Path, best: BestFile, dataset: Dataset, supernet: Supernet
) -> None:
    first = freeze(best, dataset, tmp_path / "bundle", weights="generated", supernet=supernet)
    with pytest.raises(UsageError, match="exists already"):
        freeze(best, dataset, tmp_path / "bundle", weights="generated", supernet=supernet)
    other = replace(best, architecture=TINY.draw(0, 99))
    forced = freeze(other, dataset, tmp_path / "bundle", weights="generated", supernet=supernet, force=True)
    assert forced.bundle.manifest.architecture != first.bundle.manifest.architecture


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"classes": tuple("abcdefghij")}, "other classes"),
        ({"classes": tuple("012345678")}, "other classes"),
        ({"input": InputSpec(3, (8, 8))}, "another input"),
        ({"input": InputSpec(1, (28, 28))}, "another input"),
    ],
)
def test_an_architecture_for_other_data_is_refused(
    tmp_path: Path, best: BestFile, dataset: Dataset, change: dict[str, object], named: str
) -> None:
    with pytest.raises(InvalidInputError, match=named):
        freeze(replace(best, **change), dataset, tmp_path / "bundle")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_generated_weights_need_the_search(tmp_path: Path, best: BestFile, dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="--run"):
        freeze(best, dataset, tmp_path / "bundle", weights="generated")


def test_small_data_get_more_epochs(dataset: Dataset) -> None:
    assert default_recipe(dataset).epochs > default_recipe(dataset, "finetune").epochs


def command(best_path: Path, out: Path, *more: str) -> list[str]:
    return ["freeze", "--arch", str(best_path), "--out", str(out), "--threads", "1", *more]


def test_the_command_plans_without_writing_and_refuses_what_does_not_fit(
    tmp_path: Path, best: BestFile
) -> None:
    path, out = tmp_path / "best.json", tmp_path / "bundle"
    write_best(path, best)
    planned = CliRunner().invoke(cli, [*command(path, out, "--epochs", "2"), "--dry-run", "--json"])
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["recipe"]["epochs"] == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["best.json"]
    write_best(path, replace(best, search=SearchRecord()))
    unknown = CliRunner().invoke(cli, command(path, out))
    assert isinstance(unknown.exception, UsageError)
    assert "--data" in str(unknown.exception)


def test_a_file_cannot_name_code_to_run(tmp_path: Path, best: BestFile) -> None:
    path = tmp_path / "best.json"
    write_best(path, replace(best, search=SearchRecord(data="os.path:join")))
    result = CliRunner().invoke(cli, command(path, tmp_path / "bundle"))
    assert result.exception is not None
    assert getattr(result.exception, "exit_code", 0) in (2, 6)


def test_a_killed_freeze_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, best: BestFile) -> None:
    path = tmp_path / "best.json"
    write_best(path, best)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(out: Path) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "smash_export.cli", *command(path, out, "--epochs", "80", "-q")]
        return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "straight").wait() == 0
    killed = start(tmp_path / "resumed")
    work = tmp_path / ".resumed.work"
    deadline = time.monotonic() + 120
    while not list(work.glob("*.pt")) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (checkpoint,) = work.glob("*.pt")
    held = load_checkpoint(checkpoint, None)
    assert held is not None
    assert not held["state"]["over"], "it was killed on the way"
    assert start(tmp_path / "resumed").wait() == 0
    straight, resumed = (tmp_path / name / "model.onnx" for name in ("straight", "resumed"))
    assert straight.read_bytes() == resumed.read_bytes()
    assert not list(tmp_path.glob(".partial-*"))


def test_freeze_bakes_when_it_is_asked_to(tmp_path: Path, best: BestFile) -> None:
    path, out = tmp_path / "best.json", tmp_path / "bundle"
    write_best(path, best)
    done = CliRunner().invoke(cli, command(path, out, "--epochs", "1", "--bake", "-q"))
    assert done.exit_code == 0, done.output
    accuracy = Bundle.open(out).manifest.provenance["accuracy"]
    assert isinstance(accuracy, dict)
    told = f"mean recall of the classes {accuracy['balanced']:.2%}, mean F1 {accuracy['macro_f1']:.2%}"
    assert told in done.stdout
    assert (out / "targets" / "baked" / "fp32" / "model.onnx").is_file()


def test_a_trained_network_is_calibrated_and_teaches_another(
    tmp_path: Path, best: BestFile, dataset: Dataset
) -> None:
    recipe = Recipe(epochs=1, batch=32, learning_rate=0.05)
    bundle = freeze(best, dataset, tmp_path / "teacher", recipe=recipe, false_alarm=0.2).bundle
    calibration = bundle.manifest.provenance["calibration"]
    assert isinstance(calibration, dict)
    assert calibration["false_alarm"] == 0.2
    assert calibration["images"] == len(dataset.validation)
    assert calibration["error_after"] <= calibration["error_before"] + 0.02  # type: ignore[operator]
    assert bundle.doubt_below == calibration["threshold"]
    with load(bundle.path) as classifier:
        answered = classifier.predict(list(dataset.validation.images))
    doubtful = sum(answer.doubtful for answer in answered) / len(answered)
    assert doubtful == pytest.approx(calibration["false_alarm"], abs=0.03)
    cache = tmp_path / "answers"
    answers = teacher_logits(bundle.path, dataset, cache)
    assert answers.shape == (len(dataset.train), 10)
    assert len(list(tmp_path.glob("answers-*.npy"))) == 1
    assert np.array_equal(teacher_logits(bundle.path, dataset, cache), answers)
    others = replace(dataset, classes=tuple("abcdefghij"))
    with pytest.raises(InvalidInputError, match="other classes"):
        teacher_logits(bundle.path, others)


def test_a_training_that_is_rejected_leaves_its_teacher_and_no_checkpoint(tmp_path: Path) -> None:
    def rejected() -> None:
        with work_beside(tmp_path / "bundle") as work:
            (work / "own.pt").touch()
            (work / "teacher-0577f075f5593179-digits.npy").touch()
            (work / "fold-0-of-3.pt").touch()
            raise VerificationError("answers otherwise")

    with pytest.raises(VerificationError):
        rejected()
    left = sorted(path.name for path in (tmp_path / ".bundle.work").iterdir())
    assert left == ["fold-0-of-3.pt", "teacher-0577f075f5593179-digits.npy"]
