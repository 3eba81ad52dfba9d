import copy
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import domainbed
from domainbed.algorithms import get_algorithm_class
from domainbed.hparams_registry import default_hparams

PACKAGE = Path(domainbed.__file__).parent
DEFAULTS = default_hparams("ERM", "ColoredMNIST")


@pytest.mark.parametrize("hparams", [{}, {"nonlinear_classifier": True}, {"weight_decay": 0.1, "lr": 0.01}])
def test_twenty_updates_equal_the_formula_in_float64(hparams: dict):
    """Adam (Kingma and Ba, Algorithm 1; L2 added to the gradient), written out, on the mean cross-entropy."""
    hparams = {**DEFAULTS, **hparams}
    torch.manual_seed(0)
    algorithm = get_algorithm_class("ERM")((1, 8, 8), 10, 3, hparams).double()
    network = copy.deepcopy(algorithm.network)
    parameters = list(network.parameters())
    m, v = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
    for t in range(1, 21):
        batches = [(torch.rand(n, 1, 8, 8).double(), torch.randint(10, (n,))) for n in (4, 4, 4)]
        metrics = algorithm.update(batches)

        # The mean over all images is the mean over domains of equal batches.
        loss = sum(F.cross_entropy(network(x), y) for x, y in batches) / len(batches)
        assert metrics["loss"].item() == pytest.approx(loss.item(), abs=1e-10)
        for i, (p, g) in enumerate(zip(parameters, torch.autograd.grad(loss, parameters), strict=True)):
            g = g + hparams["weight_decay"] * p.detach()
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            step = hparams["lr"] * (m[i] / (1 - 0.9**t)) / ((v[i] / (1 - 0.999**t)).sqrt() + 1e-8)
            p.data -= step
    for ours, expected in zip(algorithm.network.parameters(), parameters, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def test_metrics_are_detached_and_stay_on_the_device(monkeypatch: pytest.MonkeyPatch):
    algorithm = get_algorithm_class("ERM")((1, 8, 8), 10, 2, DEFAULTS)
    batches = [(torch.rand(4, 1, 8, 8), torch.randint(10, (4,))) for _ in range(2)]

    def watch(name: str):
        original = getattr(torch.Tensor, name)

        def watched(self, *args, **kwargs):
            caller = sys._getframe(1).f_code.co_filename  # torch's Adam reads its step counter, which lies on the host
            assert PACKAGE not in Path(caller).parents, f"{caller} made the host wait for the device by {name}"
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, watched)

    for name in ("item", "__bool__", "__float__", "tolist", "cpu", "numpy", "nonzero"):
        watch(name)
    metrics = algorithm.update(batches)
    assert metrics["loss"].shape == ()
    assert not metrics["loss"].requires_grad
    assert algorithm.phase == "update"
