"""Featurizers and heads. Names and signatures are DomainBed's, so that algorithms written for it find them."""

import torch
from torch import nn
from torch.nn import functional as F

from domainbed import backbones
from domainbed.compute import Featurizing, runs_as_configured
from domainbed.errors import UsageError
from domainbed.hparams_registry import Hparams

# Output channels per layer for each image size that a small network is made for.
_WIDTHS = {(28, 28): (64, 128, 128, 128), (8, 8): (16, 32, 32)}


class SmallCNN(Featurizing):
    """3x3 convolutions, each followed by ReLU, then GroupNorm; the second has stride 2; then a global average pool.

    With widths (64, 128, 128, 128) this is the MNIST_CNN of "In Search of Lost Domain Generalization" (Appendix D.1).

    Shapes: [n, in_channels, height, width] -> [n, n_outputs].
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        inputs = (in_channels, *widths)
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs[i], inputs[i + 1], kernel_size=3, stride=2 if i == 1 else 1, padding=1)
            for i in range(len(widths))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths)
        self.n_outputs = widths[-1]
        if min(widths) >= 64:  # On a CPU: 1.05 to 1.4 times as fast with their channels last; narrow ones, 0.8 times.
            self.to(memory_format=torch.channels_last)

    @runs_as_configured
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(F.relu(conv(x)))
        return x.mean(dim=(2, 3))


def Featurizer(input_shape: tuple[int, int, int], hparams: Hparams) -> SmallCNN | backbones.Backbone:
    """The network from images [n, *input_shape] to features [n, n_outputs] that fits this image size.

    Raises:
        UsageError: no network is made for images of this size, or the photographs' can't be had (see `Backbone`).
    """
    channels, *size = input_shape
    if tuple(size) == backbones.SIZE:
        return backbones.Backbone(channels, hparams)
    widths = _WIDTHS.get((size[0], size[1]))
    if widths is None:
        sizes = ", ".join(f"{h}x{w}" for h, w in (*_WIDTHS, backbones.SIZE))
        raise UsageError(f"there is no featurizer for images of {size[0]}x{size[1]} pixels, only for {sizes}")
    return SmallCNN(channels, widths)


class MLP(nn.Module):
    """Linear, dropout, ReLU, as often as `mlp_depth` - 1 says, then Linear; `mlp_width` units, dropout `mlp_dropout`.

    Shapes: [n, n_inputs] -> [n, n_outputs].
    """

    def __init__(self, n_inputs: int, n_outputs: int, hparams: Hparams) -> None:
        super().__init__()
        width, depth = hparams["mlp_width"], hparams["mlp_depth"]
        if depth < 2:
            raise UsageError(f"mlp_depth must be at least 2 (layers), not {depth}")
        self.input = nn.Linear(n_inputs, width)
        self.hiddens = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 2))
        self.output = nn.Linear(width, n_outputs)
        self.dropout = nn.Dropout(hparams["mlp_dropout"])
        self.n_outputs = n_outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.input, *self.hiddens):
            x = F.relu(self.dropout(layer(x)))
        return self.output(x)


def Classifier(in_features: int, out_features: int, is_nonlinear: bool = False) -> nn.Module:
    """The head from features to logits: linear, or d -> d/2 -> d/4 -> classes with ReLU."""
    if not is_nonlinear:
        return nn.Linear(in_features, out_features)
    return nn.Sequential(
        nn.Linear(in_features, in_features // 2),
        nn.ReLU(),
        nn.Linear(in_features // 2, in_features // 4),
        nn.ReLU(),
        nn.Linear(in_features // 4, out_features),
    )
