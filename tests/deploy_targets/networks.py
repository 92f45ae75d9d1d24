"""The small network that every target is tested with, in the three forms that targets start from."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from smash_targets.base import CompileRequest, Precision
from tests.deploy_targets.inputs import IMAGES, SHAPE, SIGNATURE


class BankNetwork(nn.Module):
    """Two memory banks: slices, additions, a gate, concatenations, and convolutions of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, stride=2)
        self.rectangular = nn.Conv2d(16, 16, (1, 3), padding=(0, 1), groups=4)
        self.dilated = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=2)
        self.tall = nn.Conv2d(24, 16, (5, 3), padding=(2, 1))
        self.transition = nn.Conv2d(32, 24, 1)
        self.head = nn.Linear(24, 10)
        self.scale = nn.Parameter(torch.rand(32, 1, 1) + 0.5)
        self.shift = nn.Parameter(torch.randn(32, 1, 1) * 0.1)

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, 12, 12] -> [B, 10]
        x = torch.relu(self.stem(images))  # [B, 16, 6, 6]
        first, second = x[:, :8], x[:, 8:]
        y = self.dilated(torch.relu(self.rectangular(torch.relu(x))))
        first, third = first + y[:, :8], y[:, 8:]
        z = self.tall(torch.cat([first, second, third], 1))
        gated = torch.sigmoid(z[:, :8]) * z[:, 8:]
        x = torch.cat([first, second, third, gated], 1) * self.scale + self.shift  # [B, 32, 6, 6]
        x = self.transition(nn.functional.avg_pool2d(torch.relu(x), 2))  # [B, 24, 3, 3]
        return self.head(torch.relu(x).mean((2, 3)))


@dataclass(frozen=True)
class Sources:
    """The network in a folder; ``logits`` are those of eager PyTorch for ``IMAGES``."""

    folder: Path
    network: BankNetwork
    logits: np.ndarray

    @classmethod
    def make(cls, folder: Path) -> Sources:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = BankNetwork().eval()
        with torch.no_grad():
            logits = network(torch.from_numpy(IMAGES)).numpy()
        return cls(folder, network, logits)

    @cached_property
    def onnx(self) -> Path:
        path = self.folder / "model.onnx"
        axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                self.network,
                (torch.zeros(2, *SHAPE),),
                path,
                input_names=["input"],
                output_names=["logits"],
                dynamic_axes=axes,
                opset_version=20,
                dynamo=False,
            )
        return path

    @cached_property
    def torchscript(self) -> Path:
        path = self.folder / "model.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.trace(self.network, torch.zeros(2, *SHAPE)), str(path))
        return path

    @cached_property
    def torch_program(self) -> Path:
        path = self.folder / "model.pt2"
        batch = torch.export.Dim("batch", min=1, max=64)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                self.network, (torch.zeros(2, *SHAPE),), dynamic_shapes=({0: batch},)
            )
            torch.export.save(program, path)
        return path

    def request(
        self, precision: Precision = "fp32", *, torch_program: bool = False, **options: object
    ) -> CompileRequest:
        return CompileRequest(
            onnx=self.onnx,
            torchscript=self.torchscript,
            signature=SIGNATURE,
            precision=precision,
            calibration=IMAGES if precision == "int8" else None,
            options=options,
            torch_program=self.torch_program if torch_program else None,
        )
