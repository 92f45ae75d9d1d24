"""Teachers: whatever they come as, their answers are those of the network that was named, kept once."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from smash_base import files
from smash_base.errors import InvalidInputError, MissingRuntimeError, UsageError
from smash_base.progress import Advance
from smash_export.bundle.bundle import Bundle
from smash_export.cli import cli
from smash_export.cli.console import Output
from smash_export.cli.teaching import _too_short, taught
from smash_export.export import teacher as teaching
from smash_export.export.teacher import (
    answers_file,
    identity,
    knowledge,
    larger_network,
    teacher_logits,
    trained_teacher,
)
from smash_search.data import Dataset, Split, load_dataset
from smash_search.space.architecture import InputSpec
from smash_search.space.best import BestFile, SearchRecord, write_best
from smash_search.space.cost import cost_of
from smash_search.space.known import known_networks
from smash_search.space.space import space_for
from smash_search.train.answers import Answers, read_answers
from smash_search.train.network import Recipe
from tests.search.small_data import small_architecture, small_digits

SPEC = InputSpec(1, (8, 8))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Few digits, decoded once."""
    return small_digits(train=64)


def test_an_onnx_file_teaches_through_its_own_preprocessing_and_labels(
    tmp_path: Path, digits_bundle: Path, dataset: Dataset
) -> None:
    wanted = teacher_logits(digits_bundle, dataset)
    path = tmp_path / "foreign.onnx"
    model = onnx.load(digits_bundle / "model.onnx")
    own = json.loads((digits_bundle / "manifest.json").read_text())
    facts = {name: json.dumps(own[name]) for name in ("labels", "preprocessing")}
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, path)
    assert np.allclose(teacher_logits(path, dataset), wanted, atol=1e-4)
    turned = replace(dataset, classes=dataset.classes[::-1])
    assert np.allclose(teacher_logits(path, turned), wanted[:, ::-1], atol=1e-4)
    long = replace(dataset, classes=tuple(f"{name} {'i' * 150}" for name in dataset.classes))
    onnx.helper.set_model_props(model, {**facts, "labels": json.dumps(long.classes)})
    onnx.save(model, path)
    assert np.allclose(teacher_logits(path, long), wanted, atol=1e-4)
    onnx.helper.set_model_props(model, {"labels": json.dumps(list("abcdefghij"))})
    onnx.save(model, path)
    with pytest.raises(InvalidInputError, match="other classes"):
        teacher_logits(path, dataset)


def test_a_torchscript_file_teaches_and_its_answers_are_kept(
    tmp_path: Path, digits_bundle: Path, dataset: Dataset
) -> None:
    path = tmp_path / "foreign.pt"
    path.write_bytes((digits_bundle / "model.torchscript.pt").read_bytes())
    answers = teacher_logits(path, dataset, tmp_path / "answers", include_validation=True)
    labels = np.concatenate([dataset.train.labels, dataset.validation.labels])
    assert (answers.argmax(1) == labels).mean() > 0.8
    (kept,) = tmp_path.glob("answers-*.npy")
    np.save(kept, answers + 1)
    again = teacher_logits(path, dataset, tmp_path / "answers", include_validation=True)
    assert np.array_equal(again, answers + 1), "nobody is asked twice"


def test_a_torchscript_file_teaches_by_the_labels_and_preprocessing_among_its_extra_files(
    tmp_path: Path, digits_bundle: Path, dataset: Dataset
) -> None:
    own = json.loads((digits_bundle / "manifest.json").read_text())
    path, network = tmp_path / "foreign.pt", torch.jit.load(digits_bundle / "model.torchscript.pt")
    extra = {f"{name}.json": json.dumps(own[name]) for name in ("labels", "preprocessing")}
    torch.jit.save(network, path, _extra_files=extra)
    wanted = teacher_logits(digits_bundle, dataset)
    turned = replace(
        dataset,
        classes=dataset.classes[::-1],
        preprocessing=replace(dataset.preprocessing, mean=(0.1,), std=(2.0,)),
    )
    assert np.allclose(teacher_logits(path, turned), wanted[:, ::-1], atol=1e-4)
    torch.jit.save(network, path, _extra_files={"labels.json": json.dumps(list("abcdefghij"))})
    with pytest.raises(InvalidInputError, match="other classes"):
        teacher_logits(path, dataset)


@pytest.mark.parametrize("suffix", ["onnx", "pt"])
def test_a_file_for_images_of_another_size_says_what_makes_a_teacher_of_it(
    tmp_path: Path, dataset: Dataset, suffix: str
) -> None:
    path, network = (
        tmp_path / f"large.{suffix}",
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)),
    )
    if suffix == "onnx":
        torch.onnx.export(network, (torch.zeros(1, 1, 28, 28),), path, dynamo=False)
    else:
        torch.jit.save(torch.jit.trace(network, torch.zeros(2, 1, 28, 28)), path)
    with pytest.raises(InvalidInputError, match=f"smash-export adopt {path} --size N"):
        teacher_logits(path, dataset)


def test_a_teacher_is_judged_by_validation_images_that_it_does_not_teach(
    tmp_path: Path, digits_bundle: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(wrong: str, recipe: Recipe) -> str:
        split = getattr(dataset, wrong)
        data = replace(dataset, **{wrong: replace(split, labels=(split.labels + 1) % 10)})
        values = {"teacher": digits_bundle}
        found, _ = taught(None, data, recipe, 0.0, tmp_path / "teacher", values, Output())
        assert found is not None
        count = len(data.train) + recipe.include_validation * len(data.validation)
        assert len(found.logits) == count
        assert (found.validation is None) == recipe.include_validation
        return capsys.readouterr().err

    wrong = told("validation", Recipe())
    assert "of the validation images" in wrong
    assert "distillation_left=0" in wrong
    right = told("train", Recipe())
    assert "of the validation images" in right
    assert "hold the network back" not in right, "whatever it does on its training images"
    none_left = told("train", Recipe(include_validation=True))
    assert "of the training images; its answers are divided by" in none_left
    assert "it may hold the network back" in none_left
    assert "mean recall of the classes" in told("train", Recipe(balance="loss"))
    assert len(list(tmp_path.glob("teacher-*.npy"))) == 1, "asked once for all of them"


def test_a_teacher_is_asked_once_for_all_students_of_the_same_images(
    tmp_path: Path, digits_bundle: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def noted(*arguments: Any) -> np.ndarray:
        asked.append(1)
        return ask(*arguments)

    ask = teaching._asked
    monkeypatch.setattr(teaching, "_asked", noted)
    first = answers_file(digits_bundle, dataset, tmp_path / "one" / "answers")
    second = answers_file(digits_bundle, dataset, tmp_path / "two" / "answers")
    assert first != second
    assert first.read_bytes() == second.read_bytes()
    assert len(asked) == 1
    (known,) = files.user_cache("answers-1").iterdir()
    known.write_bytes(b"cut off")
    third = answers_file(digits_bundle, dataset, tmp_path / "three" / "answers")
    assert len(asked) == 2, "what is damaged is asked for again"
    assert third.read_bytes() == first.read_bytes()
    monkeypatch.setattr(teaching, "CACHE_BYTES", first.stat().st_size)
    changed = replace(dataset, fingerprint="0" * 64)
    answers_file(digits_bundle, changed, tmp_path / "one" / "answers")
    (newest,) = files.user_cache("answers-1").iterdir()
    assert newest != known, "the oldest answers make room"
    files.user_cache("answers-1").rename(tmp_path / "away")
    files.user_cache("answers-1").write_text("no folder")
    answers_file(digits_bundle, dataset, tmp_path / "four" / "answers")
    assert len(asked) == 4, "no cache can be written, and nothing is lost"


def test_a_teacher_with_weights_in_a_file_beside_it_is_another_one_once_they_change(
    tmp_path: Path, digits_bundle: Path
) -> None:
    model = onnx.load(digits_bundle / "model.onnx")
    place = tmp_path / "teacher.onnx"
    onnx.save(model, place, save_as_external_data=True, location="teacher.data", size_threshold=0)
    first = identity(place)
    weights = bytearray((tmp_path / "teacher.data").read_bytes())
    weights[0] ^= 1
    (tmp_path / "teacher.data").write_bytes(weights)
    assert identity(place)["fingerprint"] != first["fingerprint"]
    assert identity(place)["name"] == first["name"]


def test_answers_that_an_earlier_version_kept_are_asked_for_again(
    tmp_path: Path, digits_bundle: Path, dataset: Dataset
) -> None:
    path = answers_file(digits_bundle, dataset, tmp_path / "answers")
    whole = np.load(path)
    np.save(path, whole[: len(dataset.train)])
    assert read_answers(path, dataset).validation is None
    assert np.array_equal(np.load(answers_file(digits_bundle, dataset, tmp_path / "answers")), whole)


def test_a_student_that_is_as_good_as_its_teacher_is_told_to_learn_alone(tmp_path: Path) -> None:
    data = load_dataset("digits")
    record = SearchRecord(
        error=0.1, epochs=3, fingerprint=data.fingerprint, recipe={"balance": "none"}, data="digits"
    )
    write_best(tmp_path / "best.json", BestFile(small_architecture(), SPEC, data.classes, record))

    def trained(name: str, *words: str) -> str:
        command = ["freeze", "--arch", str(tmp_path / "best.json"), "--out", str(tmp_path / name)]
        command += ["--threads", "1", "--device", "cpu", "--recipe", "quick", *words]
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 0, done.output
        return done.output

    assert "teacher" not in trained("poor", "--epochs", "2")
    told = trained("good", "--epochs", "8", "--teacher", str(tmp_path / "poor"))
    assert "the network had 90.0% after the 3 epochs of the search, no less than its teacher has" in told
    assert "a training without a teacher is worth trying" in told
    told = trained("short", "--epochs", "1", "--teacher", str(tmp_path / "good"))
    assert "the teacher: right on" in told
    assert "worth trying" not in told


TIMM = '''
"""Stands for timm, which needs a torchvision that this environment has not."""
import torch

def is_model(name):
    return name == "linear"

def create_model(name, pretrained, num_classes, in_chans):
    assert name == "linear" and not pretrained
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(in_chans * 256, num_classes))
    network.pretrained_cfg = {
        "input_size": (3, 16, 16), "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "crop_pct": 1.0,
        "interpolation": "bicubic",
    }
    return network

class data:
    def resolve_model_data_config(network):
        return network.pretrained_cfg
'''


def test_a_network_of_timm_sees_its_own_size_and_has_the_weights_of_the_file(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.safetensors"
    bias = torch.arange(10.0)
    save_file({"1.weight": torch.zeros(10, 256), "1.bias": bias}, weights)
    words = f"timm:linear?weights={weights}"
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "timm", None)  # not installed
        with pytest.raises(MissingRuntimeError, match=r"pip install 'smash-export\[timm\]'"):
            teacher_logits(words, dataset)
    (tmp_path / "timm.py").write_text(TIMM)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "timm", None)  # whatever is imported below goes with this test
    del sys.modules["timm"]
    assert np.allclose(teacher_logits(words, dataset), np.tile(bias.numpy(), (64, 1)))
    save_file({"1.weight": torch.zeros(7, 256), "1.bias": torch.zeros(7)}, weights)
    with pytest.raises(InvalidInputError, match="weights for 10 classes"):
        teacher_logits(words, dataset)
    with pytest.raises(UsageError, match="nothing is downloaded"):
        teacher_logits("timm:linear", dataset)


def test_kept_answers_of_a_network_of_timm_are_those_of_its_size(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file({"bias": torch.zeros(10)}, weights)
    rows = len(dataset.train) + len(dataset.validation)

    def asked(words: str, *_: object) -> np.ndarray:
        return np.full((rows, 10), 64 if "size=64" in words else 32, np.float32)

    monkeypatch.setattr("smash_export.export.teacher._asked", asked)
    for size in (32, 64, 32):
        words = f"timm:linear?weights={weights}&size={size}"
        assert (teacher_logits(words, dataset, tmp_path / "answers") == size).all()


def test_a_teacher_whose_classes_exclude_each_other_is_none_for_images_of_several(
    digits_bundle: Path, dataset: Dataset
) -> None:
    targets = np.eye(10, dtype=np.uint8)[dataset.train.labels]
    several = replace(dataset, train=replace(dataset.train, targets=targets))
    with pytest.raises(InvalidInputError, match="each class by itself"):
        teacher_logits(digits_bundle, several)


def test_a_teacher_that_is_not_there_is_refused_with_the_forms(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="timm:NAME"):
        teacher_logits("nowhere.onnx", dataset)


def test_a_teacher_of_the_frequent_classes_alone_knows_little_where_classes_are_balanced(
    dataset: Dataset,
) -> None:
    labels = np.where(np.arange(100) < 96, 0, 1 + np.arange(100) % 4)
    split = Split(np.zeros((100, 8, 8, 1), np.uint8), labels)
    data = replace(dataset, train=split, validation=split)
    answers = Answers(np.eye(10, dtype=np.float32)[np.zeros(100, int)], None)
    assert not knowledge(answers, data, Recipe()).little
    known = knowledge(answers, data, Recipe(balance="loss"))
    assert known.little
    assert "right on 96.0% of the training images, mean recall of the classes" in known.words


def test_that_no_teacher_was_trained_is_known_of_the_same_command_alone(tmp_path: Path) -> None:
    """Neither of one with another time, nor of one whose teacher was begun."""
    kept, other = tmp_path / "teacher-a.npy", tmp_path / "teacher-b.npy"
    output = Output(quiet=True)
    assert _too_short(2, 190, kept, output)
    assert _too_short(190, 190, kept, output), "decided once"
    assert not _too_short(190, 190, other, output)
    other.with_suffix(".pt").touch()
    assert not _too_short(2, 190, other, output), "begun once"
    assert _too_short(2, 190, tmp_path / "teacher-c.npy", output)


def test_an_automatic_teacher_is_larger_and_an_interrupted_one_is_trained_to_the_end(
    tmp_path: Path, dataset: Dataset
) -> None:
    student = small_architecture()
    larger = larger_network(student, dataset)
    assert larger is not None
    own, others = (cost_of(entry, SPEC, 10).macs for entry in (student, larger))
    assert others >= 1.5 * own
    recipe = Recipe(epochs=4, batch=32)
    device = torch.device("cpu")
    whole = trained_teacher(larger, dataset, recipe, device=device, cache=tmp_path / "a" / "teacher")

    class Stop(Exception):
        pass

    def stop(progress: object) -> None:
        raise Stop

    place = tmp_path / "b" / "teacher"
    with pytest.raises(Stop):
        trained_teacher(larger, dataset, recipe, device=device, cache=place, on_step=stop)
    again = trained_teacher(larger, dataset, recipe, device=device, cache=place)
    assert np.array_equal(whole.training, again.training)
    assert whole.validation is not None
    assert again.validation is not None
    assert np.array_equal(whole.validation, again.validation)
    assert len(whole.validation) == len(dataset.validation)
    assert [path.suffix for path in place.parent.iterdir()] == [".npy"]


def test_the_largest_network_of_a_space_is_trained_without_a_teacher(
    tmp_path: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    known = known_networks(space_for(SPEC))
    largest = max(known, key=lambda entry: cost_of(entry, SPEC, 10).macs)
    values: dict[str, Any] = {"teacher": "auto"}
    found, seconds = taught(largest, dataset, Recipe(), 7.0, tmp_path / "t", values, Output())
    assert found is None
    assert seconds == 7.0
    assert "no teacher is trained" in capsys.readouterr().err


def test_the_bar_of_a_teacher_that_is_trained_shows_how_good_it_is(tmp_path: Path, dataset: Dataset) -> None:
    shown: list[dict[str, object]] = []

    class Noted(Output):
        @contextlib.contextmanager
        def progress(self, label: str, total: float | None) -> Iterator[Advance]:
            def advance(
                n: float = 1, *, before: float = 0.0, left: float | None = None, **fields: object
            ) -> None:
                shown.append({"label": label.partition(" ")[0], **fields})

            yield advance

    values = {"teacher": "auto", "device": "cpu", "recipe_name": "auto"}
    recipe = Recipe(epochs=2, batch=32, keep_best=True)
    taught(small_architecture(), dataset, recipe, 0.0, tmp_path / "teacher", values, Noted(quiet=True))
    told = [entry for entry in shown if "accuracy" in entry]
    assert [entry["label"] for entry in told] == ["teacher"] * 2
    assert all(set(entry) == {"label", "loss", "accuracy"} for entry in told)


def test_train_trains_the_teacher_within_the_time_and_then_its_student(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    words = ["train", str(tmp_path / "best.json"), "--data", "digits", "--out", str(out), "--threads", "1"]
    data = load_dataset("digits")
    write_best(tmp_path / "best.json", BestFile(small_architecture(), SPEC, data.classes))
    words += ["--teacher", "auto", "--device", "cpu"]
    done = CliRunner().invoke(cli, [*words, "--time", "3s", "--epochs", "1"])
    assert done.exit_code == 0, done.output
    assert "a larger network of the same space" in done.output
    assert "the teacher: right on" in done.output
    provenance = json.loads((out / "manifest.json").read_text())["provenance"]
    assert provenance["recipe"]["seconds"] == pytest.approx(1.5)
    assert provenance["teacher"]["architecture"] == larger_network(small_architecture(), data).key
    assert 0 < provenance["teacher"]["validation"] <= 1
    assert "trained first" in (out / "README.md").read_text()
    again = CliRunner().invoke(cli, [*words, "--time", "3s"])
    assert isinstance(again.exception, UsageError)
    assert "a larger network" not in again.output, "refused before a teacher is trained"
    short = CliRunner().invoke(cli, [*words, "--time", "1s", "--epochs", "190", "--force"])
    assert short.exit_code == 0, short.output
    assert "no teacher is trained" in short.output
    provenance = json.loads((out / "manifest.json").read_text())["provenance"]
    assert provenance["recipe"]["seconds"] == 1, "the student has the whole time"
    assert "teacher" not in provenance


def test_a_dry_run_plans_an_automatic_teacher_as_it_will_be_trained(tmp_path: Path) -> None:
    data = load_dataset("digits")
    write_best(tmp_path / "best.json", BestFile(small_architecture(), SPEC, data.classes))
    words = [
        "train",
        str(tmp_path / "best.json"),
        "--data",
        "digits",
        "--threads",
        "1",
        "--dry-run",
        "--json",
    ]
    words += ["--teacher", "auto", "--device", "cpu", "--out", str(tmp_path / "bundle")]

    def plan(*more: str) -> tuple[dict[str, Any], str]:
        done = CliRunner().invoke(cli, [*words, *more])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout), done.stderr

    found, told = plan("--time", "1000h", "--epochs", "1")
    assert found["teacher"]["architecture"] == larger_network(small_architecture(), data).key
    assert found["recipe"]["seconds"] == 500 * 3600
    assert told.count("training takes about") == 2, "of the teacher and of its student"
    found, told = plan("--time", "1s", "--epochs", "190")
    assert "no teacher is trained" in told
    assert "teacher" not in found
    assert found["recipe"]["seconds"] == 1, "the student has the whole time"
    assert not list(tmp_path.glob(".bundle*")), "and nothing is written"


def test_a_bundle_says_who_taught_it(tmp_path: Path, digits_bundle: Path) -> None:
    out = tmp_path / "bundle"
    words = ["train", "resnet-8", "--data", "digits", "--epochs", "1", "--threads", "1", "--out", str(out)]
    done = CliRunner().invoke(cli, [*words, "--teacher", str(digits_bundle)])
    assert done.exit_code == 0, done.output
    told = json.loads((out / "manifest.json").read_text())["provenance"]["teacher"]
    assert told["name"] == digits_bundle.name
    assert told["fingerprint"] == files.sha256(Bundle.open(digits_bundle).onnx)
    assert 0.9 < told["validation"] <= 1
