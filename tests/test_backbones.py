"""Backbones, with weights files created by the tests; no test uses the network."""

import hashlib
import os
import pickle
import re
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models.regnet import BlockParams

from domainbed import networks
from domainbed.algorithms import get_algorithm_class
from domainbed.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone, _weights_file, use_weights_dir, without_weights
from domainbed.errors import UsageError
from domainbed.gradients import network_gradient_variance
from domainbed.hparams_registry import default_hparams

RESNET18 = "resnet18-f37072fd.pth"
TEST_VIT = "test_vit.r160_in1k"  # timm's smallest: 160 pixels, mean and standard deviation 0.5


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Isolate the tests from the network and the caches of torch and Hugging Face; return torch's, which is empty."""

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no network in the tests")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    torch.manual_seed(0)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return a folder for weights files."""
    folder = tmp_path / "weights"
    folder.mkdir()
    return folder


def images(n: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randn(n, channels, 224, 224)


def randomize(network: nn.Module) -> nn.Module:
    """Change the running statistics in place, as training does."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


def resnet18() -> nn.Module:
    return randomize(models.resnet18())


def features_of(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the inputs of a torchvision network's last layer."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    inputs = []
    layers[-1].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        network.eval()(x)
    return inputs[0]


# Loading weights


def test_resnet18_equals_torchvisions(weights: Path):
    network = resnet18()
    torch.save(network.state_dict(), weights / RESNET18)
    x = images()
    with use_weights_dir(str(weights)):
        flag, name = Backbone(3, {"resnet18": True}), Backbone(3, {"backbone": "resnet18", "resnet18": True})
    for backbone in (flag, name):
        assert backbone.n_outputs == 512
        torch.testing.assert_close(backbone.eval()(x), features_of(network, x))


def test_default_is_resnet50_v1(weights: Path):
    network = randomize(models.resnet50())
    torch.save(network.state_dict(), weights / "resnet50-0676ba61.pth")
    with use_weights_dir(weights):
        backbone = Backbone(3, {})
    x = images()
    expected = features_of(network, x)  # no dropout, frozen batch norm
    torch.testing.assert_close(backbone(x), expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    assert backbone.n_outputs == 2048


def test_weights_dir_takes_precedence_over_the_cache(weights: Path, cache: Path):
    given, cached = resnet18(), resnet18()
    cache.mkdir(parents=True)
    torch.save(given.state_dict(), weights / RESNET18)
    torch.save(cached.state_dict(), cache / RESNET18)
    with use_weights_dir(weights):
        first = Backbone(3, {"resnet18": True}).network.conv1.weight
        with use_weights_dir(None):
            assert torch.equal(Backbone(3, {"resnet18": True}).network.conv1.weight, cached.conv1.weight)
    assert torch.equal(first, given.conv1.weight)
    (weights / RESNET18).unlink()
    for folder in (None, weights):
        with use_weights_dir(folder):
            assert torch.equal(Backbone(3, {"resnet18": True}).network.conv1.weight, cached.conv1.weight)


def test_missing_weights(tmp_path: Path, cache: Path):
    with pytest.raises(UsageError) as error:
        Backbone(3, {})
    folders = str(cache)
    message = (
        f"resnet50-0676ba61.pth was not found in {folders}, and downloading it failed (URLError: <urlopen error no "
        "network in the tests>); save https://download.pytorch.org/models/resnet50-0676ba61.pth there, or train from "
        'scratch: {"pretrained": false}'
    )
    assert str(error.value) == message
    with use_weights_dir(tmp_path / "mine"), pytest.raises(UsageError) as error:
        Backbone(3, {})
    assert str(error.value) == message.replace(folders, f"{tmp_path / 'mine'} or {cache}")
    (tmp_path / "file").touch()
    with use_weights_dir(tmp_path / "file"), pytest.raises(UsageError, match="FileExistsError"):
        Backbone(3, {})


def truncate(file: Path) -> None:
    torch.save(resnet18().state_dict(), file)
    file.write_bytes(file.read_bytes()[:1_000_000])


class Evil:
    """An object that creates a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize(
    "write",
    [
        truncate,
        lambda file: file.touch(),
        lambda file: file.write_text("<html>Not found</html>"),
        lambda file: torch.save(torch.zeros(3), file),
        lambda file: torch.save({0: torch.zeros(3)}, file),
        lambda file: torch.save({}, file),
        lambda file: torch.save(models.resnet34().state_dict(), file),
        lambda file: torch.save(models.resnet18(num_classes=7).state_dict(), file),
        lambda file: torch.save(resnet18(), file),  # the network instead of its state
        lambda file: file.write_bytes(pickle.dumps(Evil(file.with_name("evil")), protocol=2)),
    ],
)
def test_invalid_weights_file(weights: Path, write):
    write(weights / RESNET18)
    with use_weights_dir(weights), pytest.raises(UsageError) as error:
        Backbone(3, {"resnet18": True})
    assert str(error.value).startswith(f"{weights / RESNET18} is not a weights file of resnet18 (")
    assert str(error.value).endswith("; delete it to download it again")
    assert "\n" not in str(error.value)
    assert not (weights / "evil").exists()


def serve(folder: Path, content: bytes, sha256: str | None = None) -> str:
    """Write a file, named like torchvision's, and return its URL."""
    digest = sha256 or hashlib.sha256(content).hexdigest()[:8]
    file = folder / f"net1.0_top-{digest}.pth"
    file.write_bytes(content)
    return file.as_uri()


@pytest.mark.parametrize("given", [True, False])
def test_concurrent_downloads(given: bool, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "setdefaulttimeout", lambda seconds: None)  # threads share it
    content = os.urandom(3_000_000)
    url = serve(tmp_path, content)
    folder = tmp_path / "new" / "weights"
    with use_weights_dir(folder if given else None), ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(copy_context().run, _weights_file, url) for _ in range(8)]
        files = {job.result() for job in jobs}
    (file,) = files
    assert file.parent == (folder if given else cache)
    assert file.read_bytes() == content
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_download_is_verified(tmp_path: Path, weights: Path):
    url = serve(tmp_path, b"another file", sha256="0123abcd")
    with (
        use_weights_dir(weights),
        pytest.raises(UsageError, match=r"failed \(RuntimeError: invalid hash"),
    ):
        _weights_file(url)
    assert not list(weights.iterdir())
    assert socket.getdefaulttimeout() is None


# Modifications of the network


@pytest.mark.parametrize("training", [True, False])
def test_frozen_batch_norm(training: bool):
    with without_weights():
        backbone = Backbone(3, {"resnet18": True}).train(training)
    assert all(m.training == (training and not isinstance(m, nn.BatchNorm2d)) for m in backbone.modules())
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone(images()).sum().backward()
    assert len(before) == 60
    assert all(torch.equal(before[name], buffer) for name, buffer in backbone.named_buffers())
    assert all(p.requires_grad and p.grad is not None and p.grad.any() for p in backbone.network.bn1.parameters())


def test_batch_norm_from_scratch_is_trained():
    backbone = Backbone(3, {"resnet18": True, "pretrained": False})
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone(images())
    assert not any(torch.equal(before[name], buffer) for name, buffer in backbone.named_buffers())
    after = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone.eval()(images())
    assert all(torch.equal(after[name], buffer) for name, buffer in backbone.named_buffers())


def test_batch_norm_from_scratch_requires_a_batch():
    network = nn.Sequential(Backbone(3, {"resnet18": True, "pretrained": False}), nn.Linear(512, 2))
    y = torch.tensor([0, 1])
    with pytest.raises(UsageError, match="requires more than one image per batch; increase batch_size"):
        network_gradient_variance(network, images(), y)
    assert network.eval()(images(1)).shape == (1, 2)
    with without_weights():
        network[0] = Backbone(3, {"backbone": "shufflenet_v2_x0_5"})
    network[1] = nn.Linear(1024, 2)
    assert network_gradient_variance(network, images(), y).isfinite().all()
    network[0] = Backbone(3, {"backbone": "test_vit", "pretrained": False})  # has no batch norm
    assert network[0](images(1)).shape == (1, 64)


def test_batch_norm_is_not_frozen_without_freeze_bn():
    with without_weights():
        backbone = Backbone(3, {"resnet18": True, "freeze_bn": False})
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone(images())
    assert not any(torch.equal(before[name], buffer) for name, buffer in backbone.named_buffers())
    with pytest.raises(UsageError, match="batch norm that is not frozen requires more than one image"):
        backbone(images(1))
    assert not Backbone(3, {"resnet18": True, "pretrained": False, "freeze_bn": True}).is_frozen


def test_activation_is_applied_to_the_features():
    backbone = Backbone((3, 224, 224), {"backbone": "test_vit", "pretrained": False}).eval()
    x = images()
    features = backbone(x)
    backbone.activation = nn.Tanh()
    torch.testing.assert_close(backbone(x), features.tanh())
    assert isinstance(backbone, networks.ResNet)


def test_dropout_is_active_only_in_training():
    with without_weights():
        backbone = Backbone(3, {"backbone": "shufflenet_v2_x0_5", "resnet_dropout": 0.5})
    x = images(8)
    features = backbone.eval()(x)
    torch.testing.assert_close(backbone(x), features)
    dropped = backbone.train()(x)
    kept = dropped != 0
    assert 0.4 < kept[features != 0].double().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * features[kept])


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v3_small", "googlenet", "squeezenet1_1", "alexnet"])
def test_dropout_before_the_last_layer_is_removed(name: str):
    """AlexNet keeps the two dropouts between its other layers."""
    with torch.device("meta"), without_weights():
        backbone = Backbone(3, {"backbone": name})
    dropouts = [m for m in backbone.network.modules() if isinstance(m, nn.Dropout)]
    assert len(dropouts) == (2 if name == "alexnet" else 0)


@pytest.mark.parametrize("hparams", [{"resnet18": True}, {"backbone": "test_vit"}, {"backbone": "test_efficientnet"}])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_channels(channels: int, hparams: dict, weights: Path):
    torch.save(resnet18().state_dict(), weights / RESNET18)
    torch.save(timm.create_model("test_vit").state_dict(), weights / f"{TEST_VIT}.pth")
    torch.save(timm.create_model("test_efficientnet").state_dict(), weights / "test_efficientnet.r160_in1k.pth")
    with use_weights_dir(weights):
        three, other = Backbone(3, hparams).eval(), Backbone(channels, hparams).eval()
    x = images(channels=channels)
    assert other(x).shape == (2, other.n_outputs)
    first = next(m for m in three.modules() if isinstance(m, nn.Conv2d))
    conv = next(m for m in other.modules() if isinstance(m, nn.Conv2d))
    for i in range(channels):
        assert torch.equal(conv.weight[:, i], first.weight[:, i % 3])
    if three.is_renormalized:
        x = x * other.scale + other.shift
        torch.testing.assert_close(other.shift.flatten(), three.shift.flatten()[[i % 3 for i in range(channels)]])
    summed = torch.zeros(2, 3, 224, 224)  # channels with the same weights can be summed
    for i in range(channels):
        summed[:, i % 3] += x[:, i]
    torch.testing.assert_close(other.network(x), three.network(summed), rtol=1e-3, atol=1e-4)


def test_network_without_convolutions_supports_only_three_channels():
    hparams = {"backbone": "naflexvit_base_patch16_gap", "pretrained": False}
    with torch.device("meta"), pytest.raises(UsageError, match="supports only images with 3 channels, not 4"):
        Backbone(4, hparams)


@pytest.mark.parametrize("hparams", [{"resnet18": True}, {"backbone": "test_vit"}, {"backbone": "inception_v3"}])
@pytest.mark.parametrize("channels", [3, 2])
def test_saved_state_is_loaded_without_pretrained_weights(hparams: dict, channels: int):
    with without_weights():
        trained, loaded = randomize(Backbone(channels, hparams)), Backbone(channels, hparams)
    assert not {"scale", "shift"} & set(trained.state_dict())
    loaded.load_state_dict(trained.state_dict())
    x = images(channels=channels)
    assert torch.equal(loaded(x), trained.eval()(x))  # frozen even in training mode


def test_contexts_end(cache: Path):
    with without_weights():
        Backbone(3, {"resnet18": True})
    with pytest.raises(UsageError, match="was not found in"):
        Backbone(3, {"resnet18": True})
    with pytest.raises(KeyError), without_weights(), use_weights_dir(cache):
        raise KeyError
    with pytest.raises(UsageError, match="was not found in"):
        Backbone(3, {"resnet18": True})


# Networks of torchvision

TORCHVISION_NETWORKS = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "inception_v3",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet50",
    "shufflenet_v2_x0_5",
    "swin_t",
    "vgg11_bn",
    "vit_b_32",
]


@pytest.mark.parametrize("name", TORCHVISION_NETWORKS)
def test_features_equal_the_inputs_of_the_last_layer(name: str):
    options = {"transform_input": True, "init_weights": True} if name == "inception_v3" else {}
    network = randomize(models.get_model(name, weights=None, **options))
    with without_weights():
        backbone = Backbone(3, {"backbone": name}).eval()
    missing, unexpected = backbone.network.load_state_dict(network.state_dict(), strict=False)
    assert not missing
    assert len([key for key in unexpected if not key.startswith("AuxLogits.")]) == 2  # the last weight, the last bias
    x = images()
    with torch.no_grad():
        expected = features_of(network, x)
        # With random weights, some networks have features far from 1, computed with cancellation.
        torch.testing.assert_close(backbone(x), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_last_layer_of_squeezenet_is_a_convolution():
    network = models.squeezenet1_1().eval()
    with without_weights():
        backbone = Backbone(3, {"backbone": "squeezenet1_1"}).eval()
    backbone.network.load_state_dict(network.state_dict(), strict=False)
    x = images()
    assert backbone.n_outputs == 512
    torch.testing.assert_close(backbone(x), network.features(x).relu().mean(dim=(2, 3)))


@pytest.mark.parametrize("name", ["googlenet", "densenet121", "mnasnet0_5"])
def test_files_that_differ_from_the_state(name: str, weights: Path):
    """GoogLeNet has auxiliary heads, DenseNet old key names, MNASNet a version."""
    options = {"aux_logits": True, "init_weights": False, "transform_input": True} if name == "googlenet" else {}
    network = randomize(models.get_model(name, weights=None, **options))
    state = network.state_dict()
    for key in list(state):
        state[re.sub(r"(denselayer\d+\.(norm|conv))([12])", r"\1.\3", key)] = state.pop(key)
    if name == "densenet121":
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, weights / models.get_model_weights(name).IMAGENET1K_V1.url.rpartition("/")[2])
    with use_weights_dir(weights):
        backbone = Backbone(3, {"backbone": name})
    x = images()
    expected = features_of(network, x)
    torch.testing.assert_close(backbone(x), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_normalization_with_other_numbers_of_channels():
    """torchvision's own `transform_input` supports three channels only."""
    for channels in (1, 2, 4):
        with torch.device("meta"), without_weights():
            backbone = Backbone(channels, {"backbone": "inception_v3"})
            assert backbone(images(channels=channels)).shape == (2, 2048)
    with without_weights():
        shift = Backbone(4, {"backbone": "googlenet"}).shift.flatten()
    assert shift.tolist() == pytest.approx([-0.03, -0.088, -0.188, -0.03])


@pytest.fixture
def regnets_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute the widths of RegNets on the CPU, because the meta device has no values."""
    widths = BlockParams.from_init_params

    def compute(*args: object, **kwargs: object) -> BlockParams:
        with torch.device("cpu"):
            return widths(*args, **kwargs)

    monkeypatch.setattr(BlockParams, "from_init_params", compute)


@pytest.mark.slow
@pytest.mark.usefixtures("regnets_on_meta")
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_all_networks_of_torchvision(monkeypatch: pytest.MonkeyPatch):
    for name in ("normal_", "uniform_"):  # slow on the meta device, like the one below; none of them changes a shape
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, *args, **kwargs: tensor)
    monkeypatch.setattr(torch, "batch_norm", lambda x, *args: x)
    for name in models.list_models(module=models):
        with torch.device("meta"), without_weights():
            network, backbone = models.get_model(name, weights=None), Backbone(3, {"backbone": name})
            linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
            assert backbone.n_outputs == (linear[-1].in_features if linear else 512), name
            assert backbone(images()).shape == (2, backbone.n_outputs), name


@pytest.mark.parametrize(("name", "file"), [("vit_h_14", "vit_h_14_lc_swag"), ("regnet_y_128gf", "regnet_y_128gf_lc")])
@pytest.mark.usefixtures("regnets_on_meta")
def test_networks_without_v1_use_the_weights_for_224_pixels(name: str, file: str):
    """Their default weights are for 518 and 384 pixels."""
    with torch.device("meta"), pytest.raises(UsageError, match=f"^{file}.* downloading it failed"):
        Backbone(3, {"backbone": name})


# Networks of timm


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize("name", ["test_vit", TEST_VIT])
def test_timm_weights_file(name: str, suffix: str, weights: Path):
    file = weights / f"{TEST_VIT}{suffix}"
    state = timm.create_model("test_vit").state_dict()
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    with use_weights_dir(weights):
        backbone = Backbone(3, {"backbone": name}).eval()
    network = timm.create_model(
        "test_vit", pretrained=True, num_classes=0, img_size=224, pretrained_cfg_overlay={"file": str(file)}
    ).eval()
    x = images()
    own = (x * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None] - 0.5) / 0.5
    torch.testing.assert_close(backbone(x), network(own))
    assert backbone.n_outputs == network.num_features


def test_clip_uses_its_own_normalization():
    name = "vit_base_patch32_clip_224.openai"
    with without_weights():
        backbone = Backbone(3, {"backbone": name}).eval()
    x = torch.rand(2, 3, 224, 224)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    own, imagenet = [
        (x - torch.tensor(m)[:, None, None]) / torch.tensor(s)[:, None, None]
        for m, s in ((mean, std), (IMAGENET_MEAN, IMAGENET_STD))
    ]
    with torch.no_grad():
        torch.testing.assert_close(backbone(imagenet), backbone.network(own), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(backbone(imagenet), backbone.network(imagenet), rtol=1e-4, atol=1e-4)


def test_network_from_scratch_is_not_renormalized():
    assert not Backbone(3, {"backbone": "test_vit", "pretrained": False}).is_renormalized


def test_batch_norm_of_timm_is_frozen():
    with without_weights():
        backbone = Backbone(3, {"backbone": "test_efficientnet"})
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone(images())
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(before[name], buffer) for name, buffer in backbone.named_buffers())


def test_fixed_image_size_is_changed_to_224():
    for name in ("vit_small_patch14_dinov2.lvd142m", "swin_base_patch4_window12_384"):
        with torch.device("meta"), without_weights():
            backbone = Backbone(3, {"backbone": name})
            assert backbone(images()).shape == (2, backbone.n_outputs)


def test_networks_that_do_not_support_224_pixels():
    for name in ("crossvit_18_240", "halonet26t", "deepseek_vit_412m_enc"):
        with pytest.raises(UsageError, match=f"{name} does not support images of 224x224 pixels"):
            Backbone(3, {"backbone": name})


def test_missing_timm_weights(weights: Path):
    with use_weights_dir(weights), pytest.raises(UsageError) as error:
        Backbone(3, {"backbone": "test_vit"})
    assert str(error.value).startswith(f"timm failed to load the weights of {TEST_VIT} (")
    hint = f'; save them as {TEST_VIT}.safetensors in {weights}, or train from scratch: {{"pretrained": false}}'
    assert str(error.value).endswith(hint)
    with pytest.raises(UsageError, match="in the folder given by --weights_dir"):
        Backbone(3, {"backbone": "test_vit"})
    with pytest.raises(UsageError, match="No pretrained weights exist for botnet50ts_256"):
        Backbone(3, {"backbone": "botnet50ts_256"})


@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.touch(),
        lambda file: file.write_text("version https://git-lfs.github.com/spec/v1"),
        lambda file: torch.save(timm.create_model("test_vit2").state_dict(), file),
        lambda file: torch.save(timm.create_model("test_efficientnet").state_dict(), file),
        lambda file: file.write_bytes(pickle.dumps(Evil(file.with_name("evil")), protocol=2)),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_invalid_timm_weights_file(suffix: str, write, weights: Path):
    file = weights / f"{TEST_VIT}{suffix}"
    write(file)
    with use_weights_dir(weights), pytest.raises(UsageError) as error:
        Backbone(3, {"backbone": "test_vit"})
    assert str(error.value).startswith(f"{file} is not a weights file of {TEST_VIT} (")
    assert "\n" not in str(error.value)
    assert not (weights / "evil").exists()


# Names


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"backbone": "resnet51"}, "unknown backbone 'resnet51'; did you mean resnet"),
        ({"backbone": "ResNet50"}, "did you mean resnet50 or"),
        ({"backbone": "vit_small_patch14_dinov2.lvd14m"}, "did you mean vit_small_patch14_dinov2.lvd142m or"),
        ({"backbone": "Xqz"}, "unknown backbone 'Xqz'; see torchvision.models.list_models() and timm.list_models()"),
        ({"backbone": ""}, "unknown backbone ''; see"),
        ({"backbone": "fcn_resnet50"}, "unknown backbone 'fcn_resnet50'"),  # in torchvision, but not a classifier
        ({"backbone": "vgg11", "resnet18": True}, "resnet18 is true, but the backbone is 'vgg11'; omit one"),
        ({"backbone": "vgg11", "resnet50_augmix": True}, "resnet50_augmix is true, but the backbone is 'vgg11'"),
        ({"resnet18": True, "resnet50_augmix": True}, "resnet18 and resnet50_augmix are true, but select different"),
        ({"vit": True}, "vit is true, but dinov2 is false; set both"),
        ({"dinov2": True}, "dinov2 is true, but vit is false; set both"),
        ({"vit": True, "dinov2": True, "resnet18": True}, "resnet18 and vit are true, but select different networks"),
        ({"vit_attn_tune": True}, "vit_attn_tune is true, but vit is false"),
    ],
)
def test_invalid_names(hparams: dict, message: str):
    with pytest.raises(UsageError) as error:
        Backbone(3, hparams)
    assert message in str(error.value)
    assert len(str(error.value)) < 250


def test_without_timm(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for name, hint in [("test_vit", "see torchvision.models.list_models()"), ("resnet5", "did you mean resnet50")]:
        with pytest.raises(UsageError) as error:
            Backbone(3, {"backbone": name})
        assert hint in str(error.value)
        assert str(error.value).endswith("; for models from timm: pip install 'domainbed[timm]'")
    assert Backbone(3, {"backbone": "resnet18", "pretrained": False}).n_outputs == 512


def test_tag_selects_timm():
    """A name in both packages selects torchvision's network."""
    with torch.device("meta"), without_weights():
        assert isinstance(Backbone(3, {"backbone": "resnet50"}).network, models.ResNet)
        assert isinstance(Backbone(3, {"backbone": "resnet50.a1_in1k"}).network, timm.models.ResNet)


# The networks of DomainBed's flags

DINOV2 = "vit_base_patch14_dinov2.lvd142m"


@pytest.fixture
def small_dinov2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make timm create a narrow network with two attention heads in place of DINOv2's ViT-B/14."""
    create = timm.create_model

    def create_small(name: str, **kwargs: object) -> nn.Module:
        size = {"embed_dim": 32, "depth": 5, "num_heads": 2} if name.startswith("vit_base_patch14_dinov2") else {}
        return create(name, **kwargs, **size)

    monkeypatch.setattr(timm, "create_model", create_small)


def test_augmix_weights(weights: Path):
    state = timm.create_model("resnet50").state_dict()
    torch.save(state, weights / "resnet50.ram_in1k.pth")
    with use_weights_dir(weights):
        backbone = Backbone(3, {"resnet50_augmix": True}).eval()
    assert (backbone.n_outputs, backbone.is_frozen, backbone.is_renormalized) == (2048, True, False)
    loaded = backbone.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())
    with pytest.raises(UsageError, match=r"failed to load the weights of resnet50\.ram_in1k"):
        Backbone(3, {"resnet50_augmix": True})


@pytest.mark.usefixtures("small_dinov2")
def test_dinov2_features(weights: Path):
    """Class tokens of the last four blocks, and the mean patch token of the last, from a weights file."""
    network = timm.create_model(DINOV2, img_size=224, num_classes=0).eval()
    torch.save(network.state_dict(), weights / f"{DINOV2}.pth")
    hparams = {"vit": True, "dinov2": True, "resnet50_augmix": True, "resnet_dropout": 0.9, "vit_dropout": 0.25}
    with use_weights_dir(weights):
        backbone = Backbone(3, hparams)
    assert backbone.dropout.p == 0.25
    x = images()
    tokens = network.pos_drop(network._pos_embed(network.patch_embed(x)))
    outputs = []
    for block in network.blocks:
        tokens = block(tokens)
        outputs.append(network.norm(tokens))
    expected = torch.cat([*(o[:, 0] for o in outputs[-4:]), outputs[-1][:, 1:].mean(1)], dim=1)
    torch.testing.assert_close(backbone.eval()(x), expected)
    assert backbone.n_outputs == expected.shape[1] == 5 * 32


def test_dinov2_has_the_published_number_of_features():
    with torch.device("meta"), without_weights():
        backbone = Backbone(3, {"vit": True, "dinov2": True})
        assert backbone(images()).shape == (2, backbone.n_outputs) == (2, 3840)


@pytest.mark.usefixtures("small_dinov2")
@pytest.mark.parametrize("name", ["ERM", "SAM", "SAGM", "ANDMask", "MLDG", "Fish", "SMA"])
def test_only_attention_is_trained(name: str):
    flags = {"vit": True, "dinov2": True, "vit_attn_tune": True}
    torch.manual_seed(0)
    with without_weights():
        hparams = {**default_hparams(name, "PACS"), **flags, "lr": 0.01, "tau": 0.5}
        algorithm = get_algorithm_class(name)((3, 224, 224), 2, 3, hparams)
    before = {path: p.clone() for path, p in algorithm.featurizer.named_parameters()}
    algorithm.update([(images(), torch.tensor([0, 1])) for _ in range(3)])
    changed = {path for path, p in algorithm.featurizer.named_parameters() if not torch.equal(p, before[path])}
    attention = {path for path in before if ".attn." in path}
    assert changed <= attention
    assert {path for path in attention if path.endswith("weight")} <= changed


def test_flags_require_timm(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"resnet50_augmix requires timm; install it: pip install 'domainbed\[timm\]'"):
        Backbone(3, {"resnet50_augmix": True})
    with pytest.raises(UsageError, match="vit requires timm"):
        Backbone(3, {"vit": True, "dinov2": True})


def test_miro_freezes_the_batch_norm_of_its_oracle():
    with without_weights():
        hparams = {**default_hparams("MIRO", "PACS"), "resnet18": True, "freeze_bn": False}
        algorithm = get_algorithm_class("MIRO")((3, 224, 224), 2, 3, hparams).train()
    before = {name: buffer.clone() for name, buffer in algorithm.named_buffers()}
    algorithm.update([(images(), torch.tensor([0, 1])) for _ in range(3)])
    for name, buffer in algorithm.named_buffers():
        assert torch.equal(buffer, before[name]) == name.startswith("oracle"), name
