"""Featurizers and heads, with the names and signatures of DomainBed, so algorithms written for it work unchanged."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.compute import FeaturizerBase, runs_as_configured
from domainbed.errors import UsageError
from domainbed.hparams import Hparams

# (channels, hparams) -> a module [n, channels, height, width] -> [n, n_outputs], with an attribute `n_outputs`.
FeaturizerFactory: TypeAlias = Callable[[int, Hparams], Any]
Factory = TypeVar("Factory", bound=FeaturizerFactory)

_FEATURIZERS: dict[tuple[int, int], FeaturizerFactory] = {}  # by height and width


def register_featurizer(height: int, width: int) -> Callable[[Factory], Factory]:
    """Return a decorator that registers a class or function as the featurizer for images of this size.

    A featurizer that derives from `compute.FeaturizerBase` also supports `--precision bf16` and `--compile`.

    Raises:
        UsageError: the size already has a featurizer.
    """

    def decorate(factory: Factory) -> Factory:
        if (height, width) in _FEATURIZERS:
            raise UsageError(f"a featurizer for images of {height}x{width} pixels is already registered")
        _FEATURIZERS[height, width] = factory
        return factory

    return decorate


def Featurizer(input_shape: tuple[int, ...], hparams: Hparams) -> Any:
    """Return a network from images, or features of a frozen backbone, [n, *input_shape] to features [n, n_outputs].

    For features, that is an MLP of width `mlp_width` or, with `linear_probe`, nothing.

    Raises:
        UsageError: no featurizer is registered for this image size, or its pretrained weights are not available.
    """
    if len(input_shape) == 1:
        if hparams.get("linear_probe", False):
            return FrozenFeatures(input_shape[0])
        return MLP(input_shape[0], hparams["mlp_width"], hparams)
    channels, height, width = input_shape
    if (height, width) not in _FEATURIZERS:
        sizes = ", ".join(f"{h}x{w}" for h, w in sorted(_FEATURIZERS))
        raise UsageError(
            f"no featurizer for images of {height}x{width} pixels (only for {sizes}); register one with "
            f"networks.register_featurizer({height}, {width})"
        )
    return _FEATURIZERS[height, width](channels, hparams)


class MNIST_CNN(FeaturizerBase):
    """3x3 convolutions, each followed by ReLU and GroupNorm, and a global average pool; the second has stride 2.

    The default widths are those of "In Search of Lost Domain Generalization" (Appendix D.1).

    Shapes: [n, *input_shape] -> [n, n_outputs].
    """

    def __init__(self, input_shape: tuple[int, int, int], widths: tuple[int, ...] = (64, 128, 128, 128)) -> None:
        super().__init__()
        inputs = (input_shape[0], *widths)
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs[i], inputs[i + 1], kernel_size=3, stride=2 if i == 1 else 1, padding=1)
            for i in range(len(widths))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths)
        self.n_outputs = widths[-1]
        if min(widths) >= 64:  # on a CPU, channels_last is 1.05 to 1.4 times as fast; with few channels, 0.8 times
            self.to(memory_format=torch.channels_last)

    @runs_as_configured
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(F.relu(conv(x)))
        return x.mean(dim=(2, 3))


@register_featurizer(8, 8)
def _digits_cnn(channels: int, hparams: Hparams) -> MNIST_CNN:
    return MNIST_CNN((channels, 8, 8), (16, 32, 32))


@register_featurizer(28, 28)
def _mnist_cnn(channels: int, hparams: Hparams) -> MNIST_CNN:
    return MNIST_CNN((channels, 28, 28))


@register_featurizer(224, 224)
def _backbone(channels: int, hparams: Hparams) -> FeaturizerBase:
    from domainbed.backbones import Backbone

    return Backbone(channels, hparams)


class FrozenFeatures(nn.Identity):
    """The featurizer of a linear probe, which returns the features of the frozen backbone: [n, n_outputs]."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.n_outputs = n_outputs


class MLP(nn.Module):
    """`mlp_depth` linear layers; all but the last have width `mlp_width`, dropout `mlp_dropout` and ReLU.

    Shapes: [n, n_inputs] -> [n, n_outputs].

    Attributes:
        activation: applied to the outputs; algorithms may replace the identity.
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
        self.activation = nn.Identity()
        self.n_outputs = n_outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.input, *self.hiddens):
            x = F.relu(self.dropout(layer(x)))
        return self.activation(self.output(x))


def Classifier(in_features: int, out_features: int, is_nonlinear: bool = False) -> nn.Module:
    """Return a head from features to logits: a linear layer, or three with widths d/2, d/4, classes and ReLU."""
    if not is_nonlinear:
        return nn.Linear(in_features, out_features)
    return nn.Sequential(
        nn.Linear(in_features, in_features // 2),
        nn.ReLU(),
        nn.Linear(in_features // 2, in_features // 4),
        nn.ReLU(),
        nn.Linear(in_features // 4, out_features),
    )


class ContextNet(nn.Module):
    """The context network of ARM, [n, *input_shape] -> [n, 1, height, width]."""

    def __init__(self, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.context_net = nn.Sequential(
            nn.Conv2d(input_shape[0], 64, 5, padding=2),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 64, 5, padding=2),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 1, 5, padding=2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.context_net(x)


class WholeFish(nn.Module):
    """A featurizer with its head, as DomainBed's Fish clones it in each update.

    Args:
        weights: the state to start with, for a clone. A clone is not part of the state of the algorithm that it is an
            attribute of: the next update replaces it, and a new instance of the algorithm has none to restore.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        hparams: Hparams,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.is_clone = weights is not None
        if weights is None:
            featurizer = Featurizer(input_shape, hparams)
        else:
            from domainbed.backbones import without_weights

            with without_weights():
                featurizer = Featurizer(input_shape, hparams)
        classifier = Classifier(featurizer.n_outputs, num_classes, hparams["nonlinear_classifier"])
        self.net = nn.Sequential(featurizer, classifier)
        if weights is not None:
            self.reset_weights(weights)

    def reset_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Load a state."""
        self.load_state_dict(weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_clone and kwargs.get("destination") is not None:  # called for the state of the algorithm
            return kwargs["destination"]
        return super().state_dict(*args, **kwargs)

    def named_modules(self, memo: Any = None, prefix: str = "", remove_duplicate: bool = True) -> Any:
        if self.is_clone and prefix:  # called for the modules, parameters and buffers of the algorithm
            return iter(())
        return super().named_modules(memo, prefix, remove_duplicate)


class Identity(nn.Identity):
    """The identity."""


def __getattr__(name: str) -> Any:
    """Import DomainBed's name of the featurizer for photos on first access, because its module takes long to import."""
    if name == "ResNet":
        from domainbed.backbones import Backbone

        return Backbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
