"""EfficientNet-Lite0 in PyTorch, under the names that the published weights have.

Architecture: Tan and Le 2019 (EfficientNet) and Google's EfficientNet-Lite: no squeeze-and-excitation, ReLU6, stem and head of
fixed width, batch norms with eps .001 and TensorFlow's padding, which pads below and on the right first.
Needs the extra `train`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

SIDE = 224
FEATURES = 1280
# kernel, stride, expansion, channels, repeats
STAGES = (
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1),
)  # fmt: skip


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _padded(x: torch.Tensor, convolution: nn.Conv2d) -> torch.Tensor:
    """TensorFlow's SAME: as many outputs as strides fit into the input, what is odd behind."""
    (kernel, _), (stride, _) = convolution.kernel_size, convolution.stride
    total = max(0, (-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1])
    before, behind = total // 2, total - total // 2
    return functional.pad(x, (before, behind, before, behind)) if total else x


class Block(nn.Module):  # type: ignore[misc]  # PyTorch is not installed where mypy runs
    """An inverted residual: widen, convolve each channel, narrow."""

    def __init__(self, kernel: int, stride: int, expansion: int, inner: int, outer: int) -> None:
        super().__init__()
        wide = inner * expansion
        self.shortcut = stride == 1 and inner == outer
        self._expand_conv = nn.Conv2d(inner, wide, 1, bias=False) if expansion > 1 else None
        self._bn0 = _norm(wide) if expansion > 1 else None
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv = nn.Conv2d(wide, outer, 1, bias=False)
        self._bn2 = _norm(outer)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        x = given
        if self._expand_conv is not None and self._bn0 is not None:
            x = functional.relu6(self._bn0(self._expand_conv(x)))
        x = functional.relu6(self._bn1(self._depthwise_conv(_padded(x, self._depthwise_conv))))
        x = self._bn2(self._project_conv(x))
        return x + given if self.shortcut else x


class EfficientNetLite0(nn.Module):  # type: ignore[misc]
    """[n, 3, 224, 224] to logits [n, classes]; `features` stops at the pooled [n, 1280]."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks, inner = [], 32
        for kernel, stride, expansion, outer, repeats in STAGES:
            for repeat in range(repeats):
                blocks.append(Block(kernel, stride if repeat == 0 else 1, expansion, inner, outer))
                inner = outer
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(inner, FEATURES, 1, bias=False)
        self._bn1 = _norm(FEATURES)
        self._fc = nn.Linear(FEATURES, classes)

    def places(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 320, 7, 7]: what the last block says of each place."""
        x = functional.relu6(self._bn0(self._conv_stem(_padded(x, self._conv_stem))))
        for block in self._blocks:
            x = block(x)
        return x

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.places(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        return x.mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._fc(self.features(x))
        return logits


class Backbone(nn.Module):  # type: ignore[misc]
    """The network without its last layer: [n, 3, 224, 224] to [n, 1280]."""

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.features(x)


class Places(nn.Module):  # type: ignore[misc]
    """The network up to where it still knows where things are: [n, 3, 224, 224] to [n, 320, 7, 7]."""

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.places(x)
