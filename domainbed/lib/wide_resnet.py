"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016), DomainBed's featurizer for images of 32x32 pixels."""

import torch
from torch import nn
from torch.nn import functional as F


class WideBasic(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, and a shortcut; dropout between the convolutions."""

    def __init__(self, in_planes: int, planes: int, dropout_rate: float, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, padding=1)
        self.dropout = nn.Dropout(dropout_rate)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1)
        is_same_shape = stride == 1 and in_planes == planes
        self.shortcut = nn.Sequential(*([] if is_same_shape else [nn.Conv2d(in_planes, planes, 1, stride=stride)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.dropout(self.conv1(F.relu(self.bn1(x))))
        return self.conv2(F.relu(self.bn2(z))) + self.shortcut(x)


class Wide_ResNet(nn.Module):
    """A wide residual network without its last layer, [n, channels, 32, 32] -> [n, n_outputs].

    Args:
        depth: number of layers, 6 n + 4.
        widen_factor: multiple of the widths 16, 32 and 64.
    """

    def __init__(self, input_shape: tuple[int, int, int], depth: int, widen_factor: int, dropout_rate: float) -> None:
        super().__init__()
        if depth % 6 != 4:
            raise ValueError(f"the depth of a wide ResNet must be 6 n + 4, not {depth}")
        n_blocks = (depth - 4) // 6
        widths = [16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = nn.Conv2d(input_shape[0], widths[0], 3, padding=1)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                *(
                    WideBasic(widths[i] if block == 0 else widths[i + 1], widths[i + 1], dropout_rate, stride)
                    for block, stride in enumerate([1 if i == 0 else 2] + [1] * (n_blocks - 1))
                )
            )
            for i in range(3)
        )
        self.bn1 = nn.BatchNorm2d(widths[3], momentum=0.9)
        self.n_outputs = widths[3]
        self.activation = nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight, gain=2**0.5)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.activation(F.relu(self.bn1(z)).mean(dim=(2, 3)))
