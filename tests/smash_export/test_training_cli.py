"""What commands that train say before and while they train, and which values they train with."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from torch import nn

from smash_base import files
from smash_base.progress import Advance
from smash_export.cli import cli, run
from smash_export.cli.console import Output
from smash_export.cli.teaching import larger_teacher
from smash_export.cli.training import measured_on_folds
from smash_export.cli.training_options import OF_TRAINING, chosen_recipe
from smash_export.cli.training_progress import announced, shown_by
from smash_export.export.freeze import ROUNDING_TIME, checkpoint_of, rounded, work_of
from smash_search.data import Split, load_dataset
from smash_search.space.architecture import InputSpec
from smash_search.space.known import preset
from smash_search.train.loop import TrainingProgress
from smash_search.train.network import LONG_STEPS, MOST_EPOCHS, SHORT_STEPS, Epoch, fit, new_network, settled
from smash_search.train.recipes import FEW_IMAGES, FEW_OF_A_CLASS, NAMES, PRUNED, RECIPES, Recipe, recipe_for
from tests.search.small_data import small_architecture, small_digits


@dataclass(frozen=True)
class Moves(Output):
    """Where bars were moved to: what is done, how much of that by an earlier process, seconds left."""

    to: list[tuple[float, float, float | None]] = field(default_factory=list)

    @contextlib.contextmanager
    def progress(self, label: str, total: float | None) -> Iterator[Advance]:
        done = 0.0

        def advance(
            n: float = 1, *, before: float = 0.0, left: float | None = None, **fields: object
        ) -> None:
            nonlocal done
            done += n
            self.to.append((done, before, left))

        yield advance


def test_the_bar_of_a_training_that_goes_on_begins_where_it_was() -> None:
    moves = Moves()
    with moves.progress("training", 25) as advance:
        _, on_step = shown_by(advance, Recipe(epochs=25))
        on_step(TrainingProgress(101, 200, 0.5, 90.0))
        on_step(TrainingProgress(102, 200, 0.5, 80.0))
    assert moves.to == [
        (pytest.approx(12.625), pytest.approx(12.5), 90.0),
        (pytest.approx(12.75), 0, 80.0),
    ]


def test_what_a_balanced_training_is_judged_by_has_its_name() -> None:
    shown: list[dict[str, object]] = []

    def advance(n: float = 1, *, before: float = 0.0, left: float | None = None, **fields: object) -> None:
        shown.append(fields)

    for balance in ("none", "loss"):
        on_epoch, _ = shown_by(advance, Recipe(balance=balance))  # type: ignore[arg-type]
        on_epoch(Epoch(1, 0.5, 0.75, 0))
    assert shown == [{"loss": 0.5, "accuracy": 0.75}, {"loss": 0.5, "mean_recall": 0.75}]
    on_epoch, _ = shown_by(advance, Recipe(), several=True)
    on_epoch(Epoch(1, 0.5, 0.75, 0))
    assert shown[-1] == {"loss": 0.5, "mean_average_precision": 0.75}


def test_the_bar_of_folds_begins_after_those_that_are_done(tmp_path: Path) -> None:
    data, recipe = small_digits(train=60, validation=30), Recipe(epochs=2, batch=16, precision="float32")

    def measured() -> list[tuple[float, float, float | None]]:
        moves = Moves(json=True)
        measured_on_folds(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
            data,
            recipe,
            tmp_path / "bundle",
            {"folds": 3, "device": "cpu"},
            moves,
        )
        return moves.to

    assert measured()[-1] == (pytest.approx(6), 0, None)
    (tmp_path / ".bundle.work" / "fold-1-of-3.pt").unlink()
    first, *_, last = measured()
    assert first == (pytest.approx(2 + 2 / 6), pytest.approx(2), None), "of six steps"
    assert last[0] == pytest.approx(4)


def planned(*words: str) -> dict[str, object]:
    """The recipe that ``train resnet-8`` would use for digits."""
    plan = ["train", "resnet-8", "--data", "digits", "--dry-run", "--json", *words]
    done = CliRunner().invoke(cli, plan)
    assert done.exit_code == 0, done.output
    recipe: dict[str, object] = json.loads(done.stdout)["recipe"]
    return recipe


OVERRIDDEN = {
    "--epochs 3": {"epochs": 3},
    "--batch 48": {"batch": 48},
    "--learning-rate 0.02": {"learning_rate": 0.02},
    "--label-smoothing 0.03": {"label_smoothing": 0.03},
    "--ema 0.97": {"average": 0.97},
    "--balance sampling": {"balance": "sampling"},
    "--augment pad_crop=3,cutout=2": {"augmentation": {"pad_crop": 3, "cutout": 2}},
    "--set weight_decay=0.001 --set schedule=linear": {"weight_decay": 0.001, "schedule": "linear"},
    "--seed 7": {"seed": 7},
}


def test_every_value_of_a_recipe_can_be_overridden() -> None:
    usual, given = planned("--recipe", "quick"), planned("--recipe", "quick", *" ".join(OVERRIDDEN).split())
    wanted = {name: value for values in OVERRIDDEN.values() for name, value in values.items()}
    assert all(usual[name] != value for name, value in wanted.items())
    assert given == {**usual, **wanted}, "and nothing else changes"


def test_changes_of_the_images_can_be_turned_off() -> None:
    assert planned("--augment", "none")["augmentation"] == {}


def test_one_change_of_the_images_leaves_the_recipes_others_as_they_are() -> None:
    own = planned()["augmentation"]
    assert own == {"pad_crop": 1}
    assert planned("--augment", "flip=false")["augmentation"] == {"pad_crop": 1, "flip": False}
    assert planned("--augment", "pad_crop=0,cutout=2")["augmentation"] == {"pad_crop": 0, "cutout": 2}


def test_generated_weights_are_trained_on_gently_by_every_recipe() -> None:
    data = small_digits()
    left = dict.fromkeys((*OF_TRAINING, "track", "duration"))
    usual = {**left, "weights": "finetune", "settings": (), "seed": 0, "qat": False, "false_alarm": 0.05}
    for name in NAMES:
        recipe = chosen_recipe(data, {**usual, "recipe_name": name})
        assert (recipe.learning_rate, recipe.whiten) == (0.02, False)
    asked = {**usual, "recipe_name": "standard", "learning_rate": 0.05}
    assert chosen_recipe(data, asked).learning_rate == 0.05


def test_the_teacher_of_a_network_that_is_trained_on_gently_is_trained_from_scratch() -> None:
    left = dict.fromkeys((*OF_TRAINING, "duration", "track"))
    values = {**left, "settings": (), "seed": 0, "qat": False, "false_alarm": 0.05, "recipe_name": "auto"}
    values |= {"weights": "finetune", "device": "cpu", "epochs": 4}
    data = small_digits()
    usual, gentle = chosen_recipe(data, {**values, "weights": "retrain"}), chosen_recipe(data, values)
    assert gentle.learning_rate < usual.learning_rate
    found = larger_teacher(small_architecture(), data, gentle, 0.0, None, values, Output(quiet=True))
    assert found is not None
    assert found[1] == usual


def test_a_dry_run_says_how_long_a_training_takes_and_which_epochs_fit_a_time() -> None:
    plan = ["train", "resnet-8", "--data", "digits", "--dry-run", "--json"]
    done = CliRunner().invoke(cli, [*plan, "--recipe", "quick"])
    assert "training takes about" in done.stderr
    for asked in (["--epochs", "3"], ["--set", "epochs=3"]):
        timed = CliRunner().invoke(cli, [*plan, "--time", "1000h", *asked])
        assert json.loads(timed.stdout)["recipe"]["epochs"] == MOST_EPOCHS
        assert f"{MOST_EPOCHS} in place of 3" in timed.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train resnet8", "Did you mean resnet-8?"),
        ("train capsule", "a preset: "),
        ("train resnet-8 --device gpu", "cuda:N"),
        ("train resnet-8 --out pictures --force", "not even with --force"),
        ("search --run run --teacher auto", "freeze and train take --teacher auto"),
        ("search --run run --max-parameters 300kb", "expected a count"),
        ("train resnet-8 --teacher .", "without a bundle"),
        ("train resnet-8 --teacher nowhere.onnx", "no such teacher"),
        ("train resnet-8 --augment pad_crop=8", "at most 7 pixels"),
        ("train resnet-8 --augment jitter=2", "pad_crop for images"),
        ("train resnet-8 --augment mixup=0.2 --teacher pictures/cat.png", "neither mixup nor cutmix"),
        ("train torch.nn:Flatten --teacher nowhere.onnx", "no such teacher"),
        ("train resnet-8 --augment cutout=8", "cutout of at most 7 pixels"),
        ("train resnet-8 --augment trivial", "--augment without a value"),
        ("train resnet-8 --set speed", "--set without a value"),
        ("train resnet-8 --epochs 5 --set epochs=3", "received --epochs and --set epochs"),
        ("train resnet-8 --learning-rate 0.1 --set learning_rate=0.2", "--learning-rate and --set"),
        ("train resnet-8 --ema 0.9 --set average=0.99", "--ema and --set average"),
        ("train resnet-8 --track wandb", "tensorboard or mlflow"),
        ("train resnet-8 --time soon", "45m"),
        ("train resnet-8 --time 0s", "45m"),
        ("train resnet-8 --out there", "exists"),
        ("train resnet-8 --set epochs=0", "at least 1"),
        ("train resnet-8 --set speed=1", "received speed"),
        ("train resnet-8 --set epochs=-3", "received -3"),
        ("train resnet-8 --augment blur=1", "expected pad_crop"),
        ("train torch.nn:Flatten --teacher auto", "needs an architecture file"),
        ("freeze --arch resnet-8 --weights finetune --run .", "HyperNet"),
        ("train resnet-8 --qat --folds 3", "another network"),
        ("freeze --arch resnet-8 --weights finetune --folds 3", "another network"),
        ("freeze --arch resnet-8 --weights generated --epochs 3 --set average=0.9", "--epochs, --set"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_else_is(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.png").touch()
    assert run([*words.split(), "--data", "digits", "--dry-run"]) == 2
    refused = capsys.readouterr().err
    assert said in refused
    assert "timing" not in refused


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("bundle", "architecture.json"),
        ("run", "best.json"),
        ("empty", "an architecture file"),
        ("bundle/model.onnx", "smash-export adopt"),
        ("network.py", "module:function"),
    ],
)
def test_another_file_in_place_of_an_architecture_is_answered_with_what_to_pass(
    network: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "bundle/architecture.json",
        "bundle/model.onnx",
        "run/best.json",
        "network.py",
        "empty/nothing",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert run(["train", network, "--data", "digits", "--out", "out"]) == 6
    assert said in capsys.readouterr().err


def test_the_current_folder_in_place_of_an_architecture_is_answered_with_what_to_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "architecture.json").touch()
    assert run(["freeze", "--arch", ".", "--data", "digits"]) == 6
    assert "Pass architecture.json" in capsys.readouterr().err


def test_folds_that_cannot_be_are_refused_and_others_are_part_of_the_plan(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = "tests.search.small_data:volumes"  # 64 of three classes
    plan = ["train", "resnet-8", "--data", data, "--epochs", "1", "--dry-run", "--json"]
    assert run([*plan, "--folds", "50"]) == 6
    assert "the different images of the smallest class" in capsys.readouterr().err
    assert run([*plan, "--folds", "3"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["folds"] == 3
    assert "each of the 3 folds before it takes about as long" in told.err


def test_what_comes_before_a_training_is_done_by_one_command_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "resnet-8", "--data", "digits", "--folds", "2", "--out", str(tmp_path / "bundle")]
    with files.exclusive(work_of(tmp_path / "bundle"), purpose="bundle"):
        assert run(words) == 2
    told = capsys.readouterr().err
    assert "is in use by process" in told
    assert "folds" not in told


def test_other_options_than_those_of_an_interrupted_training_are_refused_before_its_folds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_dataset("digits")
    work = work_of(tmp_path / "bundle")
    work.mkdir()
    words = ["train", "resnet-8", "--data", "digits", "--device", "cpu", "--out", str(tmp_path / "bundle")]
    recipe = replace(recipe_for("quick", data, 0), epochs=1)
    spec = InputSpec(1, (8, 8))
    network = preset("resnet-8", spec)
    path = checkpoint_of(work, "retrain", network, 0)
    fit(new_network(network, spec, 10, 0), data, recipe, checkpoint=path, evaluate=False)
    words += ["--recipe", "quick", "--folds", "2"]
    assert run([*words, "--epochs", "2"]) == 2
    told = capsys.readouterr().err
    assert "recipe.epochs differs" in told
    assert "timing" not in told
    assert not list(work.glob("fold*"))
    assert run([*words, "--time", "1s"]) == 2
    assert "recipe.seconds differs" in capsys.readouterr().err, "it had no limit of time"
    assert run([*words, "--epochs", "2", "--dry-run"]) == 2
    with files.exclusive(work, purpose="bundle"):  # it is running, and none that was interrupted
        assert run([*words, "--epochs", "2"]) == 2
    assert "is in use by process" in capsys.readouterr().err


def test_a_time_of_the_recipe_is_known_again_where_rounding_has_a_part_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, spec, work = load_dataset("digits"), InputSpec(1, (8, 8)), work_of(tmp_path / "bundle")
    work.mkdir()
    network = preset("resnet-8", spec)
    recipe = replace(recipe_for("quick", data, 0), epochs=1, seconds=77.7 - 77.7 * ROUNDING_TIME)
    path = checkpoint_of(work, "retrain", network, 0)
    fit(new_network(network, spec, 10, 0), data, recipe, checkpoint=path, evaluate=False)
    words = ["train", "resnet-8", "--data", "digits", "--device", "cpu", "--out", str(tmp_path / "bundle")]
    words += ["--recipe", "quick", "--epochs", "1", "--qat", "--dry-run"]
    assert run([*words, "--set", "seconds=77.7"]) == 0
    assert run([*words, "--set", "seconds=80"]) == 2
    assert "recipe.seconds differs" in capsys.readouterr().err


def test_a_teacher_that_cannot_be_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "teacher.onnx").write_bytes(b"no network")
    words = ["train", "resnet-8", "--data", "digits", "--device", "cpu", "--out", str(tmp_path / "bundle")]
    assert run([*words, "--teacher", str(tmp_path / "teacher.onnx")]) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.onnx"]


def test_a_search_writes_nothing_into_a_bundle(
    digits_bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(digits_bundle_copy.iterdir())
    assert run(["search", "--data", "digits", "--run", str(digits_bundle_copy), "--candidates", "2"]) == 2
    assert "holds a bundle" in capsys.readouterr().err
    assert [path for path in sorted(digits_bundle_copy.iterdir()) if path.name != ".lock"] == before


def test_finalists_of_a_search_are_balanced_when_it_is_asked_for() -> None:
    plan = ["search", "--data", "digits", "--balance", "loss", "--dry-run", "--json"]
    done = CliRunner().invoke(cli, plan)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["finalists"]["recipe"]["balance"] == "loss"


def test_the_table_of_values_says_what_the_recipes_are() -> None:
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    lines = text.split("## Values")[1].split("## Evidence")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0][1:-1] == [f"`{name}`" for name in RECIPES]
    table = {name: cells for name, *cells in rows}
    assert table["epochs"][:-1] == [str(recipe.epochs) for recipe in RECIPES.values()]
    assert table["batch"][:-1] == [str(recipe.batch) for recipe in RECIPES.values()]
    for recipe in RECIPES.values():
        clipped = f"SGD with Nesterov momentum {recipe.momentum:g}, gradients clipped at {recipe.clip:g}"
        muon = f"up to {SHORT_STEPS:,} steps, from {FEW_IMAGES:,} images and {FEW_OF_A_CLASS} of a class on"
        assert table["optimiser"] == [f"{clipped}; {muon}, [Muon](#muon) for filters"]
        assert recipe.optimiser == "auto"
        shape = {"cosine": "half a cosine", "linear": "a straight line"}[recipe.schedule]
        rate = f"{recipe.learning_rate:g} after a warm-up of {recipe.warmup:.0%}, then {shape}"
        assert table["learning rate"][0].startswith(rate.replace("%", " %"))
        assert f"by {recipe.muon_rate:g} times that over the root" in table["learning rate"][0]
        assert float(table["weight decay"][0].split(",")[0]) == recipe.weight_decay
        assert float(table["label smoothing"][0]) == recipe.label_smoothing
        least = f"up to {SHORT_STEPS:,} steps, from {FEW_IMAGES:,} images and {FEW_OF_A_CLASS} of a class on"
        assert table["images of low loss"][0].startswith(f"{PRUNED:g} of them are [left out]")
        assert least in table["images of low loss"][0]
        assert recipe.prune == "auto"
        assert "whitens" in table["first convolution"][0]
        assert f"{LONG_STEPS:,} steps" in table["first convolution"][0]
        assert recipe.whiten == "auto"
        assert ("best epoch" in table["weights at the end"][0]) == recipe.keep_best
        assert recipe.augmentation == {"pad_crop": 2}
        assert table["crops"][0].startswith("by two pixels")


@pytest.mark.parametrize(
    ("epochs", "seconds", "told", "trained"),
    [(20, 0.0, "3 min", 20), (20, 100.0, "99 s", 11), (20, 9000.0, "30 min", 200)],
)
def test_the_time_that_a_training_takes_is_told_before_it(
    epochs: int,
    seconds: float,
    told: str,
    trained: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smash_search.train.network.seconds_per_epoch", lambda *_: 9.0)
    values = {"device": "cpu", "recipe_name": "quick"}
    data, recipe = small_digits(), Recipe(epochs=epochs, batch=32, whiten="auto")
    fitted = announced(nn.Linear(1, 1), data, recipe, seconds, values, Output())
    lines = capsys.readouterr().err.splitlines()
    assert fitted.epochs == trained
    assert fitted.whiten == "auto", "decided by the epochs that a training began with, when it goes on"
    assert f"recipe quick: {settled(fitted, nn.Linear(1, 1), data).words()}" in lines
    assert f"training takes about {told} here" in lines


def test_the_optimiser_that_a_time_asks_for_decides_about_its_epochs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few steps have Muon, whose epochs take longer than those of SGD, which many have."""
    timed = {"muon": 12.0, "auto": 12.0, "sgd": 10.0}
    monkeypatch.setattr(
        "smash_search.train.network.seconds_per_epoch", lambda *given: timed[given[2].optimiser]
    )
    monkeypatch.setattr("smash_search.train.network.FEW_IMAGES", 0)
    monkeypatch.setattr("smash_search.train.network.has_few_of_a_class", lambda _: False)
    data, values = small_digits(), {"device": "cpu", "recipe_name": "auto"}
    recipe = Recipe(epochs=4, batch=32, optimiser="auto", whiten=False)
    per_epoch = len(data.train) // recipe.batch
    monkeypatch.setattr("smash_search.train.network.SHORT_STEPS", 20 * per_epoch)
    network = new_network(small_architecture(), InputSpec(1, (8, 8)), 10, 0)
    for seconds, optimiser, epochs in ((120.0, "muon", 10), (600.0, "sgd", 60)):
        fitted = announced(network, data, recipe, seconds, values, Output())
        assert (settled(fitted, network, data).optimiser, fitted.epochs) == (optimiser, epochs)
        assert fitted.optimiser == "auto", "decided by the epochs that a training began with"
        assert f"epochs {epochs}," in capsys.readouterr().err


def test_a_time_that_is_far_too_short_or_long_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smash_search.train.network.seconds_per_epoch", lambda *_: 9.0)
    values, data, recipe = {"device": "cpu", "recipe_name": "quick"}, small_digits(), Recipe(epochs=20)
    short, long = "before the training has seen every image once", "enough for more than 200 epochs"
    for seconds, told in ((5.0, {short}), (9.0, set()), (9 * 210.0, set()), (9 * 400.0, {long})):
        announced(nn.Linear(1, 1), data, recipe, seconds, values, Output())
        said = capsys.readouterr().err
        assert {text for text in (short, long) if text in said} == told
    announced(nn.Linear(1, 1), data, replace(recipe, seconds=4.0), 0.0, values, Output())
    assert "training takes about 4 s here" in capsys.readouterr().err, "--set seconds=4"


def test_training_with_rounding_is_part_of_the_time_that_is_told_and_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smash_search.train.network.seconds_per_epoch", lambda *_: 9.0)
    values = {"device": "cpu", "recipe_name": "quick", "qat": True, "weights": "retrain"}
    network = new_network(small_architecture(), InputSpec(1, (8, 8)), 10, 0)
    for epochs, seconds in ((20, 0.0), (20, 600.0)):
        fitted = announced(network, small_digits(), Recipe(epochs=epochs), seconds, values, Output())
        short = rounded(fitted).epochs
        assert (fitted.epochs, fitted.seconds) == (int(seconds * 5 / 6 / 9) or epochs, seconds)
        assert f"{short} epochs with rounding to int8 included" in capsys.readouterr().err
    generated = announced(
        network, small_digits(), Recipe(epochs=20), 0.0, {**values, "weights": "generated"}, Output()
    )
    said = capsys.readouterr().err
    assert generated.epochs == 20
    assert "training takes about 18 s here, 2 epochs with" in said
    assert "epochs 2, " in said


def test_test_images_that_are_trained_on_are_told_before_a_training(tmp_path: Path) -> None:
    digits = load_dataset("digits")
    for part, split, count in (("train", digits.train, 60), ("test", digits.test, 40)):
        images, labels = split.images[:count].copy(), split.labels[:count]
        if part == "test":
            images[:7] = digits.train.images[:7]
            labels = np.concatenate([digits.train.labels[:7], labels[7:]])
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            (tmp_path / part / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(tmp_path / part / str(label) / f"{index}.png")
    words = ["train", "resnet-8", "--data", f"folder:{tmp_path}", "--out", str(tmp_path / "bundle")]
    done = CliRunner().invoke(cli, [*words, "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)["images"]
    assert told["duplicates"]["across_splits"] == 7
    assert any("validation and test images stand in another split too" in note for note in told["notes"])


def test_few_validation_images_are_warned_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smash_search.train.network.seconds_per_epoch", lambda *_: 9.0)
    values = {"device": "cpu", "recipe_name": "quick"}
    for images, warned in ((199, True), (200, False)):
        shown = Split(np.zeros((images, 8, 8, 1), np.uint8), np.zeros(images, np.int64))
        data = replace(small_digits(), validation=shown)
        announced(nn.Linear(1, 1), data, Recipe(), 0.0, values, Output(quiet=True))
        said = capsys.readouterr().err
        assert (f"warning: {images} validation images decide" in said) == warned
        assert ("--folds 5" in said) == warned
