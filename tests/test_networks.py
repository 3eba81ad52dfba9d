import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from domainbed import networks
from domainbed.algorithms import ERM
from domainbed.backbones import Backbone
from domainbed.errors import UsageError
from domainbed.hparams_registry import default_hparams
from domainbed.networks import MLP, Classifier, Featurizer, register_featurizer


def test_mnist_cnn_equals_the_published_network():
    torch.manual_seed(0)
    network = Featurizer((2, 28, 28), {})
    x = torch.rand(3, 2, 28, 28)

    # An independent transcription of the protocol.
    expected = x
    for layer, (channels, stride) in enumerate([(64, 1), (128, 2), (128, 1), (128, 1)]):
        conv, norm = network.convs[layer], network.norms[layer]
        assert conv.weight.shape[0] == channels
        expected = F.relu(F.conv2d(expected, conv.weight, conv.bias, stride=stride, padding=1))
        expected = F.group_norm(expected, 8, norm.weight, norm.bias)
    expected = expected.mean(dim=(2, 3))

    assert network.n_outputs == 128
    torch.testing.assert_close(network(x), expected)
    n_parameters = (2 * 64 + 64 * 128 + 2 * 128 * 128) * 9 + (64 + 3 * 128) * 3
    assert sum(p.numel() for p in network.parameters()) == n_parameters


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 28), (2, 8, 8), (1, 8, 8)])
def test_number_of_channels(shape: tuple[int, int, int]):
    network = Featurizer(shape, {})
    assert network(torch.rand(2, *shape)).shape == (2, network.n_outputs)


def test_unknown_image_size_is_rejected():
    message = r"no featurizer for images of 32x16 pixels \(only for 8x8, 28x28, 224x224\); .*featurizer\(32, 16\)"
    with pytest.raises(UsageError, match=message):
        Featurizer((3, 32, 16), {})


def test_registered_featurizer_is_used_for_its_image_size(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(networks, "_FEATURIZERS", dict(networks._FEATURIZERS))

    @register_featurizer(32, 16)
    class Mean(nn.Module):
        def __init__(self, channels, hparams):
            super().__init__()
            self.n_outputs = channels

        def forward(self, x):
            return x.mean(dim=(2, 3))

    hparams = default_hparams("ERM", "ColoredMNIST")
    assert isinstance(Featurizer((3, 32, 16), hparams), Mean)
    algorithm = ERM((3, 32, 16), 5, 2, hparams)
    assert algorithm.predict(torch.rand(4, 3, 32, 16)).shape == (4, 5)
    with pytest.raises(UsageError, match="images of 8x8 pixels is already registered"):
        register_featurizer(8, 8)(Mean)


def test_photos_use_a_backbone():
    network = Featurizer((3, 224, 224), {"backbone": "shufflenet_v2_x0_5", "pretrained": False})
    assert isinstance(network, Backbone)
    assert network(torch.rand(2, 3, 224, 224)).shape == (2, network.n_outputs) == (2, 1024)


def test_small_images_do_not_import_backbones():
    code = (
        "import sys; from domainbed.networks import Featurizer; Featurizer((1, 28, 28), {}); "
        "print({'torchvision', 'timm', 'domainbed.backbones'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_classifier():
    assert Classifier(128, 10).weight.shape == (10, 128)
    nonlinear = Classifier(128, 10, is_nonlinear=True)
    assert [tuple(p.shape) for p in nonlinear.parameters() if p.ndim == 2] == [(64, 128), (32, 64), (10, 32)]
    assert nonlinear(torch.rand(2, 128)).shape == (2, 10)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_mlp(depth: int):
    torch.manual_seed(0)
    mlp = MLP(6, 4, {"mlp_width": 8, "mlp_depth": depth, "mlp_dropout": 0.5}).eval()
    weights, biases = list(mlp.parameters())[::2], list(mlp.parameters())[1::2]
    assert [tuple(w.shape) for w in weights] == [(8, 6), *[(8, 8)] * (depth - 2), (4, 8)]
    x = expected = torch.rand(3, 6)
    for w, b in zip(weights, biases, strict=True):
        expected = expected @ w.T + b
        expected = expected.clamp(min=0) if w is not weights[-1] else expected
    torch.testing.assert_close(mlp(x), expected)
    assert not torch.equal(mlp.train()(x), mlp(x))  # dropout


def test_mlp_with_one_layer_is_rejected():
    with pytest.raises(UsageError, match="mlp_depth must be at least 2"):
        MLP(6, 4, {"mlp_width": 8, "mlp_depth": 1, "mlp_dropout": 0.0})
