"""Networks for photos, from torchvision or timm: pretrained, and without their last layer.

with use_weights_dir("weights"):  # searched before torch's cache; downloads are saved to it
    featurizer = Backbone(3, {"backbone": "resnet50"})
"""

import difflib
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import nn

from domainbed import efficientnet_lite
from domainbed.compute import FeaturizerBase, runs_as_configured
from domainbed.errors import UsageError, suggest
from domainbed.hparams import Hparams

SIZE = (224, 224)  # height and width of the images, in pixels
# Normalization of the input images, by channel (red, green, blue).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The hyperparameters that select the network, and the networks that DomainBed's flags select.
SELECTORS = ("backbone", "resnet18", "resnet50_augmix", "vit", "dinov2", "pretrained")
_FLAGGED = {"resnet18": "resnet18", "resnet50_augmix": "resnet50.ram_in1k", "vit": "vit_base_patch14_dinov2.lvd142m"}

_FROM_SCRATCH = '{"pretrained": false}'
_weights_dir: ContextVar[Path | None] = ContextVar("weights_dir", default=None)
_skips_weights: ContextVar[bool] = ContextVar("skips_weights", default=False)


@contextmanager
def use_weights_dir(directory: str | Path | None) -> Iterator[None]:
    """Within a `with` block, search `directory` first for weights, and save torchvision's downloads there."""
    token = _weights_dir.set(None if directory is None else Path(directory))
    try:
        yield
    finally:
        _weights_dir.reset(token)


@contextmanager
def without_weights() -> Iterator[None]:
    """Within a `with` block, create backbones without pretrained weights, which a saved state will replace."""
    token = _skips_weights.set(True)
    try:
        yield
    finally:
        _skips_weights.reset(token)


class Backbone(FeaturizerBase):
    """A network from torchvision or timm without its last layer and the dropout before it; then a dropout.

    Images must be normalized with ImageNet's mean and standard deviation; they are converted if the pretrained weights
    require another normalization (CLIP's, for example). For images with more or fewer than three channels, channel i
    starts with the weights of channel i mod 3, and is normalized like it.

    Shapes: [n, channels, 224, 224] -> [n, n_outputs].

    Hyperparameters, all optional:
        "backbone": a classification model from torchvision ("resnet50", the default); "efficientnet_lite0" or
            "efficientnet_lite2", whose weights are a Python package; or, if timm is installed, a model from timm, with
            or without a tag ("vit_base_patch16_clip_224.openai").
        "resnet18": DomainBed's flag; true is the same as "backbone": "resnet18".
        "resnet50_augmix": DomainBed's flag; true is the same as "backbone": "resnet50.ram_in1k" (timm's).
        "vit" and "dinov2": DomainBed's flags; both true select DINOv2's ViT-B/14 (timm's), whose features are the class
            tokens of the last four blocks and the mean of the last block's patch tokens.
        "vit_attn_tune": if true, only the attention layers of that network are trained.
        "pretrained": if true (the default), start from pretrained weights (torchvision's IMAGENET1K_V1, as in the
            protocol; for timm, those of the tag). If false, start from random weights.
        "freeze_bn": if true (the default), freeze the statistics of batch norm, even in training mode; its weights and
            biases are trained. A network with random weights ignores it, because its initial statistics (mean 0,
            variance 1) do not normalize anything.
        "resnet_dropout": probability, 0.0 by default; for DINOv2, it is "vit_dropout".

    Attributes:
        activation: applied to the features, after the dropout; algorithms may replace the identity.

    Raises:
        UsageError: the network is unknown or does not support these images, or its weights are not available.
    """

    scale: torch.Tensor  # converts ImageNet's normalization to the weights': images * scale + shift
    shift: torch.Tensor

    def __init__(self, channels: int | Sequence[int], hparams: Hparams) -> None:
        """Create the network for images with this number of channels, or of this (channels, height, width)."""
        super().__init__()
        channels = channels if isinstance(channels, int) else channels[0]
        name = backbone_name(hparams)
        is_dinov2 = hparams.get("vit", False)
        pretrained = _with_all_tokens(_find_network(name)) if is_dinov2 else _find_network(name)
        is_pretrained = hparams.get("pretrained", True)
        network, self.n_outputs = pretrained.create(is_pretrained and not _skips_weights.get())
        self.network = _adapt_channels(network, channels, name)
        # On a CPU, channels_last trains a ResNet-50 with 1.35 times as many images per second.
        self.network.to(memory_format=torch.channels_last)
        if is_dinov2 and hparams.get("vit_attn_tune", False):
            for path, parameter in self.network.named_parameters():
                parameter.requires_grad_("attn" in path)
        self.dropout = nn.Dropout(hparams.get("vit_dropout" if is_dinov2 else "resnet_dropout", 0.0))
        self.has_batch_norm = any(map(_is_batch_norm, self.network.modules()))
        self.is_frozen = is_pretrained and hparams.get("freeze_bn", True)
        self.is_renormalized = is_pretrained and (pretrained.mean, pretrained.std) != (IMAGENET_MEAN, IMAGENET_STD)
        if self.is_renormalized:
            mean, std = _by_channel(pretrained.mean, channels), _by_channel(pretrained.std, channels)
            # Not part of the saved state, because they follow from the hyperparameters.
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
            raise UsageError(
                "batch norm that is not frozen requires more than one image per batch; increase batch_size (Fishr's "
                'variant all_layers always processes single images), or use {"pretrained": true, "freeze_bn": true} or '
                "a backbone without batch norm"
            )
        if self.is_renormalized:
            x = x * self.scale + self.shift
        return self.dropout(self.network(x))


@dataclass(frozen=True)
class _PretrainedNetwork:
    """A network from torchvision or timm.

    Attributes:
        create: (with_weights) -> the network without its last layer, with pretrained or random weights, and its number
            of features.
        mean, std: normalization of the images that the weights were trained on, by channel.
    """

    create: Callable[[bool], tuple[nn.Module, int]]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def backbone_name(hparams: Hparams) -> str:
    """Return the name of the network that the backbone and DomainBed's flags select."""
    name = hparams.get("backbone", "resnet50")
    flags = {flag: hparams.get(flag, False) for flag in ("resnet18", "resnet50_augmix", "vit", "dinov2")}
    if flags["vit"] != flags["dinov2"]:
        missing, given = ("dinov2", "vit") if flags["vit"] else ("vit", "dinov2")
        raise UsageError(f"{given} is true, but {missing} is false; set both, or name another network as the backbone")
    if hparams.get("vit_attn_tune", False) and not flags["vit"]:
        raise UsageError("vit_attn_tune is true, but vit is false; set vit and dinov2, too")
    if flags["vit"]:
        flags["resnet50_augmix"] = False  # true by default with --protocol head
    selected = [flag for flag in ("resnet18", "resnet50_augmix", "vit") if flags[flag]]
    if not selected:
        return name
    if len(selected) > 1:
        raise UsageError(f"{' and '.join(selected)} are true, but select different networks; set only one of them")
    if name not in ("resnet50", _FLAGGED[selected[0]]):
        raise UsageError(f"{selected[0]} is true, but the backbone is {name!r}; omit one of them")
    if selected != ["resnet18"]:
        try:
            import timm  # noqa: F401
        except ImportError:
            raise UsageError(f"{selected[0]} requires timm; install it: pip install 'domainbed[timm]'") from None
    return _FLAGGED[selected[0]]


def _find_network(name: str) -> _PretrainedNetwork:
    from torchvision import models  # takes seconds to import

    names = models.list_models(module=models)
    if name in names:
        return _from_torchvision(name)
    if name in efficientnet_lite.NETWORKS:
        create = partial(efficientnet_lite.create, name)
        return _PretrainedNetwork(create, efficientnet_lite.MEAN, efficientnet_lite.STD)
    try:
        import timm
    except ImportError:
        lists, more = "torchvision.models.list_models()", "; for models from timm: pip install 'domainbed[timm]'"
    else:
        timm_names = [*timm.list_models(), *timm.list_models(include_tags=True)]
        if name in timm_names:
            return _from_timm(name)
        names, lists, more = [*names, *timm_names], "torchvision.models.list_models() and timm.list_models()", ""
    # Without similar names, `suggest` would list all of them.
    hint = suggest(name, names) if difflib.get_close_matches(str(name).lower(), names) else f"see {lists}"
    raise UsageError(f"unknown backbone {name!r}; {hint}{more}")


def _adapt_channels(network: nn.Module, channels: int, name: str) -> nn.Module:
    """Adapt a network for three-channel images to `channels` channels, in place, and return it."""
    if channels == 3:
        return network
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3]
    if not convs:
        raise UsageError(f"backbone {name} supports only images with 3 channels, not {channels}")
    for conv in convs:
        conv.weight = nn.Parameter(conv.weight.detach()[:, [i % 3 for i in range(channels)]])
        conv.in_channels = channels
    return network


def _by_channel(values: Sequence[float], channels: int) -> torch.Tensor:
    """Return the value of each channel, [channels, 1, 1]."""
    return torch.tensor([values[i % 3] for i in range(channels)])[:, None, None]


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _summary(error: Exception) -> str:
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def _from_torchvision(name: str) -> _PretrainedNetwork:
    from torchvision import models

    entries = {entry.name: entry for entry in models.get_model_weights(name)}
    # Two networks have no V1 weights; use those trained on images closest to this size.
    weights = entries.get("IMAGENET1K_V1") or min(entries.values(), key=lambda entry: entry.transforms().crop_size)
    transforms = weights.transforms()
    mean, std, options = tuple(transforms.mean), tuple(transforms.std), {}
    if name in ("googlenet", "inception_v3"):
        # With weights, torchvision sets transform_input, which converts images of three channels to this normalization.
        mean, std, options = (0.5,) * 3, (0.5,) * 3, {"aux_logits": False, "init_weights": True}

    def create(with_weights: bool) -> tuple[nn.Module, int]:
        network = models.get_model(name, weights=None, **options)
        if with_weights:
            _load_weights(network, _weights_file(weights.url), name)
        return network, _remove_last_layer(network)

    return _PretrainedNetwork(create, mean, std)


def _remove_last_layer(network: nn.Module) -> int:
    """Remove the last layer of a torchvision network, and a dropout directly before it. Return its number of inputs."""
    modules = list(network.named_modules())
    kind = nn.Linear if any(isinstance(m, nn.Linear) for _, m in modules) else nn.Conv2d  # SqueezeNet has a convolution
    last = max(i for i, (_, module) in enumerate(modules) if isinstance(module, kind))
    for path, module in modules[last - 1 : last + 1]:
        if isinstance(module, kind | nn.Dropout):
            network.set_submodule(path, nn.Identity())
    layer: Any = modules[last][1]
    return layer.in_features if kind is nn.Linear else layer.in_channels


def _load_weights(network: nn.Module, file: Path, name: str) -> None:
    """Load a torchvision weights file."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        for key in list(state):  # modified in place to keep its version metadata
            value = state.pop(key)
            if not key.startswith(("aux1.", "aux2.", "AuxLogits.")):  # auxiliary heads, used in training only
                # DenseNet files have keys with norm.1 where the network has norm1.
                state[re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key)] = value
        network.load_state_dict(state)
    except Exception as error:  # a damaged file can raise any exception
        raise UsageError(
            f"{file} is not a weights file of {name} ({_summary(error)}); delete it to download it again"
        ) from error


def _weights_file(url: str) -> Path:
    """Return the path of the file with this URL, in the weights directory or torch's cache; download it if missing."""
    name = url.rpartition("/")[2]
    folders = [folder for folder in (_weights_dir.get(), Path(torch.hub.get_dir(), "checkpoints")) if folder]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    file = folders[0] / name
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(30)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Downloads to a temporary file and moves it once it is complete and verified, so several jobs can download.
        torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rpartition("-")[2], progress=False)
    except (OSError, HTTPException, RuntimeError) as error:
        raise UsageError(
            f"{name} was not found in {' or '.join(map(str, folders))}, and downloading it failed ({_summary(error)}); "
            f"save {url} there, or train from scratch: {_FROM_SCRATCH}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return file


def _from_timm(name: str) -> _PretrainedNetwork:
    import timm
    from timm.models import PretrainedCfg

    config = timm.models.get_pretrained_cfg(name) or PretrainedCfg()
    tagged = f"{name.partition('.')[0]}.{config.tag}" if config.tag else name
    options: dict[str, Any] = {"img_size": SIZE} if config.fixed_input_size else {}

    def create(with_weights: bool) -> tuple[nn.Module, int]:
        n_outputs = _count_timm_features(name, options)  # before weights are downloaded
        # The last layer is removed afterwards, because timm verifies the weights only if it exists.
        network: Any = _create_timm_pretrained(tagged, options) if with_weights else timm.create_model(name, **options)
        network.reset_classifier(0)
        return network, n_outputs

    return _PretrainedNetwork(create, tuple(config.mean), tuple(config.std))


def _count_timm_features(name: str, options: dict[str, Any]) -> int:
    """Return the number of features of a timm network, by running it on the "meta" device, which computes nothing."""
    import timm

    try:
        with torch.device("meta"), torch.no_grad():
            network: Any = timm.create_model(name, **options).eval()
            network.reset_classifier(0)
            _, n = network(torch.zeros(1, 3, *SIZE)).shape
    except Exception as error:  # networks raise many kinds of errors
        raise UsageError(
            f"backbone {name} does not support images of 224x224 pixels ({_summary(error)}); choose another backbone"
        ) from error
    return n


def _create_timm_pretrained(tagged: str, options: dict[str, Any]) -> nn.Module:
    """Return a timm network with weights from a file in the weights directory or, if there is none, from timm."""
    import timm

    folder = _weights_dir.get()
    files = [folder / f"{tagged}{suffix}" for suffix in (".safetensors", ".pth", ".pt", ".bin")] if folder else []
    file = next(filter(Path.is_file, files), None)
    # timm loads the file itself, because its filters convert older checkpoints and other image sizes.
    overlay = {"file": str(file), "custom_load": False} if file else {}
    try:
        return timm.create_model(tagged, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except Exception as error:  # timm and its download clients raise many kinds of errors
        if file:
            raise UsageError(
                f"{file} is not a weights file of {tagged} ({_summary(error)}); delete it to download the weights"
            ) from error
        raise UsageError(
            f"timm failed to load the weights of {tagged} ({_summary(error)}); save them as {tagged}.safetensors in "
            f"{folder or 'the folder given by --weights_dir'}, or train from scratch: {_FROM_SCRATCH}"
        ) from error


class _AllTokens(nn.Module):
    """A transformer of timm with the class tokens of the last four blocks, and the last block's mean patch token.

    Shapes: [n, channels, height, width] -> [n, 5 * width of the transformer].
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blocks = self.network.get_intermediate_layers(x, n=4, return_prefix_tokens=True, norm=True)
        return torch.cat([*(prefix[:, 0] for _, prefix in blocks), blocks[-1][0].mean(1)], dim=1)


def _with_all_tokens(pretrained: _PretrainedNetwork) -> _PretrainedNetwork:
    def create(with_weights: bool) -> tuple[nn.Module, int]:
        network, n_outputs = pretrained.create(with_weights)
        return _AllTokens(network), 5 * n_outputs

    return replace(pretrained, create=create)
