"""Fixtures that several parts of the tests share: one small, real, trained classifier as a bundle."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from smash_base.preprocess import Preprocessing
from smash_export.bundle.bundle import Samples, write_bundle
from smash_targets.base import ModelSignature
from tests import durations, skips

# Every run of the tests tries the same examples: a change is judged by what it changes, not by luck.
# ``--hypothesis-profile=default`` looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="Only tests that were fast when last measured.")
    parser.addoption(
        "--strict-skips", action="store_true", help="Fail when an installation would end a skip."
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    durations.select(config, items)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    skips.report(session.config, session)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Start every test at one state of the global generators, in whatever order tests run."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test finds what another run, or the user, has kept in the cache folder; pip does."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        if "PIP_CACHE_DIR" not in os.environ:
            usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            patch.setenv("PIP_CACHE_DIR", str(usual / "pip"))
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def _cache_of_its_own(_caches: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another one has kept there."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    monkeypatch.setenv("XDG_CACHE_HOME", str(_caches / name))


DIGITS_PREPROCESSING = Preprocessing(height=8, width=8, channels=1, mean=(0.3,), std=(0.38,))


def digits_arrays() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits, shuffled: uint8 images [1797, 8, 8, 1] and labels int64 [1797]."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    order = np.random.default_rng(0).permutation(len(raw.target))
    images = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]
    return images[order], raw.target[order].astype(np.int64)


@pytest.fixture(scope="session")
def digits_images() -> tuple[np.ndarray, np.ndarray]:
    """Test images uint8 [597, 8, 8, 1] and labels int64 [597] that ``digits_bundle`` never trained on."""
    images, labels = digits_arrays()
    return images[1200:], labels[1200:]


DOUBT_BELOW = 0.5  # probability from which on ``digits_bundle`` takes an image for a digit


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional network trained on digits in seconds, as a bundle. Treat it as read-only:
    tests that write take ``digits_bundle_copy``."""
    base = tmp_path_factory.getbasetemp()
    # pytest-xdist gives every worker its own folder in a common one: the first worker trains for all.
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "digits"
    shared.mkdir(exist_ok=True)
    with open(shared / "lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if not (shared / "bundle").exists():
            make_digits_bundle(shared / "bundle")
    return shared / "bundle"


@pytest.fixture
def digits_bundle_copy(digits_bundle: Path, tmp_path: Path) -> Path:
    """A private copy of ``digits_bundle``."""
    destination = tmp_path / "bundle"
    shutil.copytree(digits_bundle, destination)
    return destination


def make_digits_bundle(destination: Path, epochs: int = 12) -> Path:
    """Train, trace, export and write; about three seconds on one core, accuracy about 97 %."""
    import torch
    from torch import nn

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a network this small gains nothing from two, and loses much on a busy machine
    images, labels = digits_arrays()
    train, test = slice(0, 1200), slice(1200, None)
    x = DIGITS_PREPROCESSING.normalise(torch.from_numpy(images))
    y = torch.from_numpy(labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 48, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(48, 48, 3, padding=1, groups=4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(48, 10),
        )
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-2, total_steps=epochs * 19)
        for _ in range(epochs):
            for chosen in torch.randperm(1200).split(64):
                loss = nn.functional.cross_entropy(network(x[chosen]), y[chosen])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    torch.set_num_threads(threads)
    network.eval()
    with torch.no_grad():
        logits = network(x[test]).numpy()
        traced = torch.jit.trace(network, x[:2])
        torchscript = io.BytesIO()
        torch.jit.save(traced, torchscript)
    accuracy = float((logits.argmax(1) == labels[test]).mean())
    return write_bundle(
        destination,
        onnx=_onnx_bytes(network),
        torchscript=torchscript.getvalue(),
        architecture=None,
        weights=None,
        labels=[str(digit) for digit in range(10)],
        preprocessing=DIGITS_PREPROCESSING,
        signature=ModelSignature("input", "logits", (1, 8, 8), 10, (1, 1, 32)),
        samples=Samples(images[test], labels[test], logits),
        calibration=images[train][:640],
        provenance={
            "data": "scikit-learn digits",
            "seed": 0,
            "accuracy": accuracy,
            "calibration": {"threshold": DOUBT_BELOW},
        },
    ).path


def _onnx_bytes(network: object) -> bytes:
    """The network above as an ONNX graph, opset 20, written node by node."""
    from onnx import TensorProto, checker, helper, numpy_helper
    from torch import nn

    nodes, weights, last = [], [], "input"
    for index, layer in enumerate(network):  # type: ignore[arg-type, var-annotated]
        result = "logits" if isinstance(layer, nn.Linear) else f"{index}"
        inputs = [last]
        if isinstance(layer, nn.Conv2d | nn.Linear):
            for name, value in (("weight", layer.weight), ("bias", layer.bias)):
                weights.append(numpy_helper.from_array(value.detach().numpy(), f"{index}.{name}"))
                inputs.append(f"{index}.{name}")
        if isinstance(layer, nn.Conv2d):
            pads, strides, kernel = [1, 1, 1, 1], list(layer.stride), list(layer.kernel_size)
            attributes = {"pads": pads, "strides": strides, "kernel_shape": kernel, "group": layer.groups}
            nodes.append(helper.make_node("Conv", inputs, [result], **attributes))
        elif isinstance(layer, nn.Linear):
            nodes.append(helper.make_node("Gemm", inputs, [result], transB=1))
        else:
            kind = {nn.ReLU: "Relu", nn.AdaptiveAvgPool2d: "GlobalAveragePool", nn.Flatten: "Flatten"}[
                type(layer)
            ]
            nodes.append(helper.make_node(kind, inputs, [result]))
        last = result
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model, full_check=True)
    return model.SerializeToString()
