"""A network of one's own: trained by the same recipe, calibrated, adopted with every check."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from smash_base.errors import InvalidInputError, UsageError, VerificationError
from smash_export import load
from smash_export.cli import cli, run
from smash_export.compiling.compile import compile_bundle
from smash_export.export.own_network import check_export, own_network, train_own
from smash_search.data import load_dataset
from smash_search.train.recipes import Recipe

MODULE = """
from torch import nn

def small(channels, classes):
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, classes),
    )

def seven():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))

def lazy(classes):
    return nn.Sequential(
        nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes)
    )

HELD = []

def held(channels, classes):
    print("holding it")
    HELD[:] = HELD or [small(channels, classes)]
    return HELD[0]

class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.unused, self.last = nn.LazyLinear(3), nn.Linear(64, 10)

    def forward(self, images):
        return self.last(images.flatten(1))

def unused():
    return Unused()

def lazy_for_other_images():
    return nn.Sequential(nn.LazyConv2d(8, 99), nn.Flatten(), nn.LazyLinear(10))

def list_of_numbers(**options):
    return [1, 2, 3]

def wants_more(classes, depth):
    return nn.Linear(depth, classes)

def breaks():
    raise KeyError("no such layer")

def frozen(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).requires_grad_(False)

def normed_last(channels, classes):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8),
        nn.Linear(8, classes),
    )

class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.BatchNorm2d(1), nn.Linear(64, 10)

    def forward(self, images):
        answers = self.last(self.norm(images).flatten(1))
        return (answers, answers) if self.training else answers

def auxiliary():
    return Auxiliary()

class Branch(Auxiliary):
    def forward(self, images):
        images = self.norm(images)
        if images.std() < 1e-6:
            return images.new_zeros(len(images), 10)
        return self.last((images / images.abs().mean().item()).flatten(1))

def branch():
    return Branch()

class Viewed(nn.Module):
    def __init__(self):
        super().__init__()
        self.map, self.last = nn.Conv2d(1, 8, 3), nn.Linear(8 * 36, 10)

    def forward(self, images):
        maps = self.map(images)
        return self.last(maps.view(len(maps), -1))

def viewed():
    return Viewed()

def pooled_unevenly(channels, classes):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(8 * 16, classes)
    )

class Attentive(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.patches = nn.Conv2d(channels, 32, 2, 2)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.layers, self.last = nn.TransformerEncoder(layer, 1), nn.Linear(32, classes)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.last(self.layers(tokens).mean(1))

def attentive(channels, classes):
    return Attentive(channels, classes)

class Overflows(Auxiliary):
    def forward(self, images):
        return self.last(images.flatten(1)) * float("inf")

def overflows():
    return Overflows()

def softmax(channels, classes):
    return nn.Sequential(*small(channels, classes), nn.Softmax(1))

def sigmoid(channels, classes):
    return nn.Sequential(*small(channels, classes), nn.Sigmoid())

def log_softmax(channels, classes):
    return nn.Sequential(*small(channels, classes), nn.LogSoftmax(1))

def zeros_first(channels, classes):
    network = small(channels, classes)
    nn.init.zeros_(network[-1].weight)
    nn.init.zeros_(network[-1].bias)
    return network
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module with networks, which can be imported."""
    name = "my_networks_of_a_test"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_network_that_its_module_holds_is_not_trained_itself(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next fold would begin with what the last one has learned."""
    data = load_dataset("digits")
    first, second = (own_network(f"{module}:held", data, 0) for _ in range(2))
    assert not capsys.readouterr().out, "stdout is for the answer of a command"
    with torch.no_grad():
        for value in first.parameters():
            value.add_(1.0)
    third = own_network(f"{module}:held", data, 0)
    for name, value in third.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_train_makes_a_bundle_of_a_network_of_ones_own(tmp_path: Path, module: str) -> None:
    out = tmp_path / "bundle"
    words = ["train", f"{module}:small", "--data", "digits", "--out", str(out), "--threads", "1"]
    planned = CliRunner().invoke(cli, [*words, "--dry-run", "--json"])
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["recipe"]["whiten"] is False, "its weights may be trained ones"
    done = CliRunner().invoke(
        cli, [*words, "--epochs", "6", "--folds", "2", "--false-alarm", "0.3", "--device", "cpu", "--json"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (
        "recipe auto: epochs 6, batch 32, optimiser sgd, learning_rate 0.05, warmup 0.05, schedule cosine"
        in done.stderr
    )
    assert re.search(r"training takes about \d+(\.\d+)? s here", done.stderr)
    assert "each of the 2 folds before it takes about as long" in done.stderr
    assert found["test_accuracy"] > 0.8
    provenance = json.loads((out / "manifest.json").read_text())["provenance"]
    assert provenance["network"] == f"{module}:small"
    assert provenance["recipe"]["epochs"] == 6
    accuracy = provenance["accuracy"]
    assert (found["mean_recall"], found["macro_f1"]) == (accuracy["balanced"], accuracy["macro_f1"])
    digits = load_dataset("digits")
    folds = provenance["folds"]
    assert folds["images"] == len(digits.train) + len(digits.validation)
    assert folds["interval"][0] < folds["top1"] < folds["interval"][1]
    assert folds["top1"] > 0.7
    assert provenance["calibration"]["images"] == len(load_dataset("digits").validation)
    test = load_dataset("digits").test
    with load(out) as classifier:
        doubtful = [answer.doubtful for answer in classifier.predict(list(digits.validation.images))]
        assert np.mean(doubtful) == pytest.approx(0.3, abs=0.03), "the rate that was asked for"
        answers = [classifier.predict(image).index for image in test.images[:40]]
    assert sum(a == b for a, b in zip(answers, test.labels[:40], strict=True)) >= 32
    assert not list(tmp_path.glob(".*work*/*"))


def test_the_recipe_of_ones_own_network_in_the_bundle_is_the_one_that_was_used(
    tmp_path: Path, module: str
) -> None:
    digits = load_dataset("digits")
    asked = Recipe(epochs=1, batch=64, include_validation=True, keep_best=True)
    made = train_own(
        own_network(f"{module}:small", digits, 0), digits, tmp_path / "bundle", name="small", recipe=asked
    )
    written = made.bundle.manifest.provenance["recipe"]
    assert isinstance(written, dict)
    assert (written["include_validation"], written["keep_best"]) == (True, False)


def test_a_network_of_lazy_modules_is_trained(tmp_path: Path, module: str) -> None:
    digits = load_dataset("digits")
    network, same, other = (own_network(f"{module}:lazy", digits, seed) for seed in (0, 0, 1))
    assert torch.equal(network[0].weight, same[0].weight)
    assert not torch.equal(network[0].weight, other[0].weight)
    recipe = Recipe(epochs=1, batch=64)
    made = train_own(network, digits, tmp_path / "bundle", name="lazy", recipe=recipe)
    assert made.bundle.signature.classes == 10
    with pytest.raises(InvalidInputError, match=r"received none for unused\.weight, unused\.bias"):
        own_network(f"{module}:unused", digits, 0)
    with pytest.raises(InvalidInputError, match=r"images \[2, 1, 8, 8\].*received RuntimeError"):
        own_network(f"{module}:lazy_for_other_images", digits, 0)


def test_a_network_with_attention_of_pytorch_becomes_a_bundle(tmp_path: Path, module: str) -> None:
    digits = load_dataset("digits")
    network = own_network(f"{module}:attentive", digits, 0)
    check_export(network, digits, "attentive")
    fused = torch.backends.mha.get_fastpath_enabled()
    made = train_own(
        network, digits, tmp_path / "bundle", name="attentive", recipe=Recipe(epochs=1, batch=64)
    )
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert made.bundle.torchscript is not None
    for target in ("torchscript", "onnxruntime"):
        assert compile_bundle(made.bundle, target).evidence["parity"]["agreement"] == 1


def test_a_weak_network_of_ones_own_is_not_said_to_have_other_labels(tmp_path: Path, module: str) -> None:
    digits = load_dataset("digits")
    made = train_own(
        own_network(f"{module}:small", digits, 0),
        digits,
        tmp_path / "bundle",
        name="small",
        recipe=Recipe(epochs=1, batch=64, learning_rate=1e-6),
    )
    assert made.accuracy < 0.15
    assert made.warnings == ()


def test_a_training_that_diverges_is_no_defect_of_the_program(
    tmp_path: Path, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"{module}:overflows", "--data", "digits", "--out", str(tmp_path / "bundle")]
    assert run([*words, "--epochs", "1", "--device", "cpu", "--threads", "1"]) == 2
    assert "Lower the learning rate" in capsys.readouterr().err


def test_what_is_no_classifier_of_these_images_is_refused(module: str) -> None:
    digits = load_dataset("digits")
    with pytest.raises(InvalidInputError, match=r"logits \[2, 10\]"):
        own_network(f"{module}:seven", digits, 0)
    with pytest.raises(InvalidInputError, match=r"torch\.nn\.Module"):
        own_network(f"{module}:list_of_numbers", digits, 0)
    with pytest.raises(UsageError, match="no function"):
        own_network(f"{module}:absent", digits, 0)
    with pytest.raises(UsageError, match="no module"):
        own_network("no_such_module_here:absent", digits, 0)
    with pytest.raises(UsageError, match=f"without .py: {module}:small"):
        own_network(f"{module}.py:small", digits, 0)


def test_a_network_that_ends_in_probabilities_is_refused(module: str) -> None:
    """The loss takes the softmax of its answers: digits had 61 % where the same logits have 92."""
    digits = load_dataset("digits")
    with pytest.raises(InvalidInputError, match=r"between 0 and 1 that sum to 1.*Leave its last Softmax out"):
        own_network(f"{module}:softmax", digits, 0)
    with pytest.raises(InvalidInputError, match=r"between 0 and 1\. Leave its last Sigmoid out"):
        own_network(f"{module}:sigmoid", digits, 0)
    for name in ("log_softmax", "zeros_first", "small", "attentive"):
        own_network(f"{module}:{name}", digits, 0)


def test_what_cannot_be_trained_is_refused_before_it_is(module: str) -> None:
    digits = load_dataset("digits")
    with pytest.raises(InvalidInputError, match="parameters to train"):
        own_network(f"{module}:frozen", digits, 0)
    with pytest.raises(InvalidInputError, match=r"while it is trained; .* received tuple"):
        own_network(f"{module}:auxiliary", digits, 0)
    with pytest.raises(InvalidInputError, match=r"Use \.reshape\(\.\.\.\) instead"):
        own_network(f"{module}:viewed", digits, 0)
    network = own_network(f"{module}:small", digits, 0)
    assert not network.training
    assert int(network.state_dict()["1.num_batches_tracked"]) == 0, "trying it leaves no trace"


@pytest.mark.parametrize(
    ("name", "options"), [("lazy", ["--set", "first_size=0.5"]), ("normed_last", ["--batch", "1"])]
)
def test_a_recipe_that_it_cannot_be_trained_by_is_refused(
    module: str, name: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"{module}:{name}", "--data", "digits", "--epochs", "1", "--out", str(tmp_path / "b")]
    assert run([*words, *options]) == 2
    assert "cannot be trained by this recipe" in capsys.readouterr().err


def test_a_network_that_cannot_be_exported_is_refused_before_it_is_trained(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"{module}:pooled_unevenly", "--data", "digits", "--out", str(tmp_path / "bundle")]
    assert run(words) == 6
    told = capsys.readouterr().err
    assert "cannot be exported" in told
    assert "adaptive" in told
    assert "training takes about" not in told
    assert not list(tmp_path.glob("*bundle*"))


def test_a_network_whose_values_decide_what_it_does_makes_no_bundle(module: str, tmp_path: Path) -> None:
    """Its trace would hold what was done for one example, under the accuracy of what was trained."""
    digits = load_dataset("digits")
    network, recipe = own_network(f"{module}:branch", digits, 0), Recipe(epochs=1)
    with pytest.raises(VerificationError, match=r"does not answer as the network.*Converting a tensor"):
        train_own(network, digits, tmp_path / "bundle", name="branch", recipe=recipe)
    assert list(tmp_path.iterdir()) == [tmp_path / f"{module}.py"], "another try begins anew"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("def f(:", "SyntaxError"),
        ("import no_such_library_of_mine", r"ModuleNotFoundError.*broken_module_of_a_test\.py, line 1"),
        ("\nraise ValueError('half written')", r"ValueError: half written \(.*line 2\)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_its_line(
    content: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module_of_a_test.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InvalidInputError, match=why):
        own_network("broken_module_of_a_test:f", load_dataset("digits"), 0)
    with pytest.raises(InvalidInputError, match=why):
        load_dataset("broken_module_of_a_test:f")


def test_a_function_that_fails_is_named_with_its_error(module: str) -> None:
    digits = load_dataset("digits")
    for name, why in (("wants_more", "depth"), ("breaks", "no such layer")):
        with pytest.raises(InvalidInputError, match=rf"{module}:{name} makes no network.*{why}"):
            own_network(f"{module}:{name}", digits, 0)


def test_its_training_is_tracked(module: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    out = tmp_path / "bundle"
    words = [
        "train",
        f"{module}:small",
        "--data",
        "digits",
        "--epochs",
        "1",
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    done = CliRunner().invoke(cli, [*words, "--track", f"tensorboard:{tmp_path / 'curves'}"])
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "curves").rglob("events.*"))


def test_a_rate_of_false_alarms_needs_validation_images(module: str) -> None:
    words = ["train", f"{module}:small", "--data", "digits", "--false-alarm", "0.2", "--dry-run"]
    assert CliRunner().invoke(cli, words).exit_code == 0
    done = CliRunner().invoke(cli, [*words, "--set", "include_validation=true"])
    assert isinstance(done.exception, UsageError)
    assert "include_validation" in str(done.exception)


def test_options_of_architectures_are_refused_for_it(module: str) -> None:
    done = CliRunner().invoke(cli, ["train", f"{module}:small", "--data", "digits", "--qat"])
    assert isinstance(done.exception, UsageError) or done.exit_code == 2
