import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from domainbed.backbones import Backbone
from domainbed.errors import UsageError
from domainbed.networks import MLP, Classifier, Featurizer


def test_mnist_cnn_is_the_published_network():
    torch.manual_seed(0)
    network = Featurizer((2, 28, 28), {})
    x = torch.rand(3, 2, 28, 28)

    # The protocol's sentence, written out a second time.
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
def test_any_number_of_channels(shape: tuple[int, int, int]):
    network = Featurizer(shape, {})
    assert network(torch.rand(2, *shape)).shape == (2, network.n_outputs)


def test_other_sizes_are_refused():
    with pytest.raises(UsageError, match="no featurizer for images of 32x32 pixels, only for 28x28, 8x8, 224x224"):
        Featurizer((3, 32, 32), {})


def test_photographs_get_a_backbone():
    network = Featurizer((3, 224, 224), {"backbone": "shufflenet_v2_x0_5", "pretrained": False})
    assert isinstance(network, Backbone)
    assert network(torch.rand(2, 3, 224, 224)).shape == (2, network.n_outputs) == (2, 1024)


def test_small_images_need_neither_torchvision_nor_timm():
    code = "import sys, domainbed.networks; print({'torchvision', 'timm'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_heads():
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


def test_an_mlp_of_one_layer_is_refused():
    with pytest.raises(UsageError, match="mlp_depth must be at least 2"):
        MLP(6, 4, {"mlp_width": 8, "mlp_depth": 1, "mlp_dropout": 0.0})
