"""The photographs' networks: published ones, from torchvision or timm, with their weights and without their last layer.

with weights_in("weights"):  # looked into before torch's cache, and downloaded into
    featurizer = Backbone(3, {"backbone": "resnet50"})
"""

import difflib
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import nn

from domainbed.compute import Featurizing, runs_as_configured
from domainbed.errors import UsageError, suggest
from domainbed.hparams_registry import Hparams

SIZE = (224, 224)  # height and width of the images, in pixels
# Of the images that come in, by channel (red, green, blue).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FROM_SCRATCH = '{"pretrained": false}'
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)
_is_untrained: ContextVar[bool] = ContextVar("is_untrained", default=False)


@contextmanager
def weights_in(directory: str | Path | None) -> Iterator[None]:
    """Within it, backbones find their weights in `directory`, if they are there; torch's downloads go there, too."""
    token = _folder.set(None if directory is None else Path(directory))
    try:
        yield
    finally:
        _folder.reset(token)


@contextmanager
def untrained() -> Iterator[None]:
    """Within it, no weights are looked for: backbones come as if pretrained, for a saved state to be loaded into."""
    token = _is_untrained.set(True)
    try:
        yield
    finally:
        _is_untrained.reset(token)


class Backbone(Featurizing):
    """A published network without its last layer (and the dropout before it), then dropout `resnet_dropout`.

    Hyperparameters, each of which may be missing:
        "backbone"        a classification model of torchvision ("resnet50", the default) or else, where timm is
                          installed, one of timm, with or without a tag ("vit_base_patch16_clip_224.openai").
        "resnet18"        DomainBed's flag: true is "backbone": "resnet18".
        "pretrained"      true, the default: begin with the published weights (torchvision's IMAGENET1K_V1, those of the
                          protocol; timm's of that tag). Batch norm stays as it is in evaluation, with its statistics
                          frozen, also after `train()`; its weights and biases do train. false: begin at random. Then
                          batch norm is not frozen: at its initial mean 0 and variance 1 it would normalise nothing.
        "resnet_dropout"  0.0, the default.

    Images come normalised with ImageNet's mean and standard deviation; for weights that were trained on another
    normalisation (CLIP's, say) they are brought to that one. Channel i of images that have more or fewer than three
    starts with the weights of, and is normalised like, channel i mod 3.

    Shapes: [n, channels, 224, 224] -> [n, n_outputs].

    Raises:
        UsageError: there is no such network, or it takes no such images, or its weights can't be had.
    """

    scale: torch.Tensor  # from ImageNet's normalisation to the weights' own: images * scale + shift
    shift: torch.Tensor

    def __init__(self, channels: int, hparams: Hparams) -> None:
        super().__init__()
        name = _chosen(hparams)
        published = _published(name)
        is_pretrained = hparams.get("pretrained", True)
        network, self.n_outputs = published.headless(is_pretrained and not _is_untrained.get())
        self.network = _with_channels(network, channels, name)
        # Convolutions train 1.35 times as many images a second with their channels last (a ResNet-50 on a CPU).
        self.network.to(memory_format=torch.channels_last)
        self.dropout = nn.Dropout(hparams.get("resnet_dropout", 0.0))
        self.has_batch_norm = any(map(_is_batch_norm, self.network.modules()))
        self.is_frozen = is_pretrained
        self.is_renormalised = is_pretrained and (published.mean, published.std) != (IMAGENET_MEAN, IMAGENET_STD)
        if self.is_renormalised:
            mean, std = _by_channel(published.mean, channels), _by_channel(published.std, channels)
            # They follow from the hyperparameters, so no saved state needs them.
            self.register_buffer("scale", _by_channel(IMAGENET_STD, channels) / std, persistent=False)
            self.register_buffer("shift", (_by_channel(IMAGENET_MEAN, channels) - mean) / std, persistent=False)
        self.train()

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        if self.is_frozen:
            for module in filter(_is_batch_norm, self.network.modules()):
                module.eval()
        return self

    @runs_as_configured
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.has_batch_norm and not self.is_frozen and len(x) == 1:
            # Among them Fishr's variant all_layers, which has every sample go through the network on its own.
            raise UsageError(
                "batch norm that is trained from scratch needs batches of more than one image, also per sample "
                '(Fishr\'s variant all_layers); use {"pretrained": true} or a backbone without batch norm'
            )
        if self.is_renormalised:
            x = x * self.scale + self.shift
        return self.dropout(self.network(x))


@dataclass(frozen=True)
class _Published:
    """A network that others published.

    `headless(with_weights)` makes it without its last layer, its weights the published or random ones, and says how
    many features it gives. The weights were trained on images with this `mean` and `std`, by channel.
    """

    headless: Callable[[bool], tuple[nn.Module, int]]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _chosen(hparams: Hparams) -> str:
    """The backbone's name."""
    name = hparams.get("backbone", "resnet50")
    if not hparams.get("resnet18", False):
        return name
    if name not in ("resnet50", "resnet18"):
        raise UsageError(f"resnet18 is true, but the backbone is {name!r}; leave out one of the two")
    return "resnet18"


def _published(name: str) -> _Published:
    from torchvision import models  # some seconds, and only photographs need it

    names = models.list_models(module=models)
    if name in names:
        return _from_torchvision(name)
    try:
        import timm
    except ImportError:
        lists, more = "torchvision.models.list_models()", "; for timm's: pip install domainbed[timm]"
    else:
        of_timm = [*timm.list_models(), *timm.list_models(include_tags=True)]
        if name in of_timm:
            return _from_timm(name)
        names, lists, more = [*names, *of_timm], "torchvision.models.list_models() and timm.list_models()", ""
    # Where none is near, `near` would list them all.
    hint = suggest(name, names) if difflib.get_close_matches(str(name).lower(), names) else f"see {lists}"
    raise UsageError(f"unknown backbone {name!r}; {hint}{more}")


def _with_channels(network: nn.Module, channels: int, name: str) -> nn.Module:
    """`network`, which takes images of three channels, made to take `channels` (itself, changed)."""
    if channels == 3:
        return network
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3]
    if not convs:
        raise UsageError(f"backbone {name} takes images of 3 channels, not of {channels}; choose another")
    for conv in convs:
        conv.weight = nn.Parameter(conv.weight.detach()[:, [i % 3 for i in range(channels)]])
        conv.in_channels = channels
    return network


def _by_channel(values: Sequence[float], channels: int) -> torch.Tensor:
    """[channels, 1, 1]"""
    return torch.tensor([values[i % 3] for i in range(channels)])[:, None, None]


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _told(error: Exception) -> str:
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def _from_torchvision(name: str) -> _Published:
    from torchvision import models

    entries = {entry.name: entry for entry in models.get_model_weights(name)}
    # Two networks have no V1: of theirs, those for images of this size.
    weights = entries.get("IMAGENET1K_V1") or min(entries.values(), key=lambda entry: entry.transforms().crop_size)
    transforms = weights.transforms()
    mean, std, options = tuple(transforms.mean), tuple(transforms.std), {}
    if name in ("googlenet", "inception_v3"):
        # torchvision's own would bring images (of three channels) to this normalisation themselves.
        mean, std, options = (0.5,) * 3, (0.5,) * 3, {"aux_logits": False, "init_weights": True}

    def headless(with_weights: bool) -> tuple[nn.Module, int]:
        network = models.get_model(name, weights=None, **options)
        if with_weights:
            _load(network, _weights_file(weights.url), name)
        return network, _remove_last_layer(network)

    return _Published(headless, mean, std)


def _remove_last_layer(network: nn.Module) -> int:
    """Put nothing in the place of a torchvision network's last layer, whose number of inputs it returns.

    Nor of a dropout right before it, where this network's own stands.
    """
    modules = list(network.named_modules())
    kind = nn.Linear if any(isinstance(m, nn.Linear) for _, m in modules) else nn.Conv2d  # SqueezeNet's
    last = max(i for i, (_, module) in enumerate(modules) if isinstance(module, kind))
    for path, module in modules[last - 1 : last + 1]:
        if isinstance(module, kind | nn.Dropout):
            network.set_submodule(path, nn.Identity())
    layer: Any = modules[last][1]
    return layer.in_features if kind is nn.Linear else layer.in_channels


def _load(network: nn.Module, file: Path, name: str) -> None:
    """Load a file of torchvision's into its network."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        for key in list(state):  # changed in place: it carries versions, too
            value = state.pop(key)
            if not key.startswith(("aux1.", "aux2.", "AuxLogits.")):  # heads that act in training only
                # DenseNets' files say norm.1 where the network says norm1.
                state[re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key)] = value
        network.load_state_dict(state)
    except Exception as error:  # a damaged file can fail in any way
        raise UsageError(
            f"{file} does not hold the weights of {name} ({_told(error)}); delete it to have it downloaded again"
        ) from error


def _weights_file(url: str) -> Path:
    """Where the file of this address lies: in the given folder or torch's cache, if need be downloaded first."""
    name = url.rpartition("/")[2]
    folders = [folder for folder in (_folder.get(), Path(torch.hub.get_dir(), "checkpoints")) if folder]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    file = folders[0] / name
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(30)
        file.parent.mkdir(parents=True, exist_ok=True)
        # It comes under a name of its own and is moved when complete and checked: several jobs may do so at once.
        torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rpartition("-")[2], progress=False)
    except (OSError, HTTPException, RuntimeError) as error:
        raise UsageError(
            f"{name} is not in {' or '.join(map(str, folders))} and could not be downloaded ({_told(error)}); put "
            f"{url} there, or train from scratch: {_FROM_SCRATCH}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return file


def _from_timm(name: str) -> _Published:
    import timm
    from timm.models import PretrainedCfg

    config = timm.models.get_pretrained_cfg(name) or PretrainedCfg()
    tagged = f"{name.partition('.')[0]}.{config.tag}" if config.tag else name
    options: dict[str, Any] = {"img_size": SIZE} if config.fixed_input_size else {}

    def headless(with_weights: bool) -> tuple[nn.Module, int]:
        n_outputs = _timm_features(name, options)  # before any weights are downloaded
        # Its last layer goes afterwards: timm checks the weights it loads only where that is there.
        network: Any = _timm_pretrained(tagged, options) if with_weights else timm.create_model(name, **options)
        network.reset_classifier(0)
        return network, n_outputs

    return _Published(headless, tuple(config.mean), tuple(config.std))


def _timm_features(name: str, options: dict[str, Any]) -> int:
    """How many features one of timm's networks gives. Tried out on torch's device "meta", where nothing is computed."""
    import timm

    try:
        with torch.device("meta"), torch.no_grad():
            network: Any = timm.create_model(name, **options).eval()
            network.reset_classifier(0)
            _, n = network(torch.zeros(1, 3, *SIZE)).shape
    except Exception as error:  # every network has its own way to fail
        raise UsageError(
            f"backbone {name} does not turn images of 224x224 pixels into features ({_told(error)}); choose another"
        ) from error
    return n


def _timm_pretrained(tagged: str, options: dict[str, Any]) -> nn.Module:
    """One of timm's networks with its weights: from a file in the given folder or else by timm's own ways."""
    import timm

    folder = _folder.get()
    files = [folder / f"{tagged}{suffix}" for suffix in (".safetensors", ".pth", ".pt", ".bin")] if folder else []
    file = next(filter(Path.is_file, files), None)
    # By timm, whose filters know the older forms of a checkpoint and bring it to another image size.
    overlay = {"file": str(file), "custom_load": False} if file else {}
    try:
        return timm.create_model(tagged, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except Exception as error:  # timm and what it downloads with fail in many ways
        if file:
            raise UsageError(
                f"{file} does not hold the weights of {tagged} ({_told(error)}); delete it to have them downloaded"
            ) from error
        raise UsageError(
            f"timm could not get the weights of {tagged} ({_told(error)}); put them as {tagged}.safetensors into "
            f"{folder or 'a folder that --weights_dir names'}, or train from scratch: {_FROM_SCRATCH}"
        ) from error
