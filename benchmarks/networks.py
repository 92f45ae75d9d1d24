"""Hand-made networks to compare with, in plain PyTorch after the papers, for images of 28 to 32 pixels.

    ResNet-8        MLPerf Tiny's image classification network (Banbury et al. 2021): three stages of one
                    residual block, 16, 32 and 64 channels; ``width`` scales them
    MobileNetV2     Sandler et al. 2018: inverted residuals, ReLU6; strides cut for small images, ``width``
    EfficientNet    Tan and Le 2019: MBConv with squeeze-and-excitation and SiLU, ``width`` and ``depth``
    DenseNet-BC     Huang et al. 2017: bottleneck 4k, compression 0.5, growth k and depth

Every network maps [B, C, H, W] to logits [B, K].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.norm1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.second, self.norm2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet8(nn.Module):
    """MLPerf Tiny's ResNet-8, 78 thousand parameters at width 1; with three blocks a stage He et al.'s
    ResNet-20.
    """

    def __init__(self, channels: int, classes: int, width: float = 1.0, blocks: int = 1) -> None:
        super().__init__()
        a, b, c = (max(4, round(width * value)) for value in (16, 32, 64))
        self.stem = nn.Sequential(_conv(channels, a), nn.BatchNorm2d(a), nn.ReLU())
        stages: list[nn.Module] = []
        for inputs, outputs, stride in ((a, a, 1), (a, b, 2), (b, c, 2)):
            stages.append(_Residual(inputs, outputs, stride))
            stages += [_Residual(outputs, outputs, 1) for _ in range(blocks - 1)]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(c, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, K]."""
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


class Pooled(nn.Module):
    """Three stages of two 3x3 convolutions, pooled behind the first one and wide where the map is small: a
    network that learns much in few epochs (the stages of K. Jordan's airbench, 2024), here with ReLU.
    """

    def __init__(self, channels: int, classes: int, widths: tuple[int, ...] = (64, 256, 256)) -> None:
        super().__init__()
        inputs = widths[0] // 2
        self.stem = nn.Sequential(_conv(channels, inputs), nn.BatchNorm2d(inputs), nn.ReLU())
        stages: list[nn.Module] = []
        for outputs in widths:
            stages += [_conv(inputs, outputs), nn.MaxPool2d(2), nn.BatchNorm2d(outputs), nn.ReLU()]
            stages += [_conv(outputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, K]."""
        return self.head(self.stages(self.stem(x)).amax((2, 3)))


class _Inverted(nn.Module):
    """MBConv: 1x1 expansion, depthwise, optional squeeze-and-excitation, 1x1 projection."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        kernel: int,
        stride: int,
        activation: Callable[[], nn.Module],
        squeeze: bool,
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [_conv(inputs, hidden, 1), nn.BatchNorm2d(hidden), activation()]
        layers += [_conv(hidden, hidden, kernel, stride, hidden), nn.BatchNorm2d(hidden), activation()]
        if squeeze:
            layers.append(_Squeeze(hidden, max(1, inputs // 4)))
        layers += [_conv(hidden, outputs, 1), nn.BatchNorm2d(outputs)]
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.adds else y


class _Squeeze(nn.Module):
    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, reduced, 1), nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))


class _Mobile(nn.Module):
    def __init__(
        self,
        channels: int,
        classes: int,
        stages: list[tuple[int, int, int, int, int]],
        stem: int,
        head: int,
        activation: Callable[[], nn.Module],
        squeeze: bool,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(channels, stem), nn.BatchNorm2d(stem), activation()]
        inputs = stem
        for expansion, outputs, repeats, stride, kernel in stages:
            for index in range(repeats):
                step = stride if index == 0 else 1
                layers.append(_Inverted(inputs, outputs, expansion, kernel, step, activation, squeeze))
                inputs = outputs
        layers += [_conv(inputs, head, 1), nn.BatchNorm2d(head), activation()]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


def _of_eight(value: float) -> int:
    """Channels as whole eights, never less than 90 % of what was asked for (both papers' programs)."""
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


class MobileNetV2(_Mobile):
    """The first five stages of the paper; strides 1, 1, 2, 2, 1 in place of 2, 2, 2, 2, 1."""

    def __init__(self, channels: int, classes: int, width: float = 0.35) -> None:
        table = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
        stages = [(t, _of_eight(c * width), n, s, 3) for t, c, n, s in table]
        head = _of_eight(640 * max(0.35, width))
        super().__init__(channels, classes, stages, _of_eight(32 * width), head, nn.ReLU6, False)


class EfficientNet(_Mobile):
    """B0's first five stages with strides for small images, scaled in width and depth."""

    def __init__(self, channels: int, classes: int, width: float = 0.35, depth: float = 0.5) -> None:
        table = [(1, 16, 1, 1, 3), (6, 24, 2, 1, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5)]
        stages = [(t, _of_eight(c * width), max(1, round(n * depth)), s, k) for t, c, n, s, k in table]
        super().__init__(
            channels, classes, stages, _of_eight(32 * width), _of_eight(640 * width), nn.SiLU, True
        )


class _Dense(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.first = nn.BatchNorm2d(inputs), _conv(inputs, 4 * growth, 1)
        self.norm2, self.second = nn.BatchNorm2d(4 * growth), _conv(4 * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.second(F.relu(self.norm2(self.first(F.relu(self.norm1(x))))))], 1)


class DenseNetBC(nn.Module):
    """Three dense blocks; ``layers`` bottleneck pairs in each."""

    def __init__(self, channels: int, classes: int, growth: int = 8, layers: int = 4) -> None:
        super().__init__()
        width = 2 * growth
        parts: list[nn.Module] = [_conv(channels, width)]
        for block in range(3):
            for _ in range(layers):
                parts.append(_Dense(width, growth))
                width += growth
            if block < 2:
                parts += [nn.BatchNorm2d(width), nn.ReLU(), _conv(width, width // 2, 1), nn.AvgPool2d(2)]
                width //= 2
        parts += [nn.BatchNorm2d(width), nn.ReLU()]
        self.layers, self.head = nn.Sequential(*parts), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, K]."""
        return self.head(self.layers(x).mean((2, 3)))


# By family, from small to large; name -> (channels, classes) -> network.
NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet8-0.5": lambda c, k: ResNet8(c, k, 0.5),
    "resnet8": lambda c, k: ResNet8(c, k),
    "resnet20": lambda c, k: ResNet8(c, k, blocks=3),
    "mobilenetv2-0.35": lambda c, k: MobileNetV2(c, k, 0.35),
    "mobilenetv2-0.5": lambda c, k: MobileNetV2(c, k, 0.5),
    "efficientnet-0.35": lambda c, k: EfficientNet(c, k, 0.35),
    "efficientnet-0.5": lambda c, k: EfficientNet(c, k, 0.5, 0.7),
    "densenet-bc-8-4": lambda c, k: DenseNetBC(c, k, 8, 4),
    "densenet-bc-12-6": lambda c, k: DenseNetBC(c, k, 12, 6),
}
