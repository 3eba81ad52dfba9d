"""Fused Adam, which is used on a CPU, computes what the default implementation computes."""

import pytest
import torch

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.base import Algorithm, concatenate
from domainbed.algorithms.erm import ERM
from domainbed.engine.steps import fuse_adam
from domainbed.hparams_registry import default_hparams
from domainbed.registry import is_builtin

# Of the images of ColoredMNIST, whose network is channels_last; batches are small.
NAMES = [name for name in ALGORITHMS if is_builtin(ALGORITHMS[name]) and not ALGORITHMS[name].REQUIRES_PHOTOS]
SOON = {"iters": 1, "linear_steps": 0, "d_steps_per_g": 1, "d_steps_per_g_step": 1}  # so that all phases are reached


class StacksGradients(ERM):
    """Gives its optimizer gradients with default strides, as DomainBed's ANDMask does."""

    def update(self, minibatches, unlabeled=None):
        parameters = list(self.network.parameters())
        losses = [torch.nn.functional.cross_entropy(self.network(x), y) for x, y in minibatches]
        gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
        for parameter, *of_domains in zip(parameters, *gradients, strict=True):
            parameter.grad = torch.stack(of_domains).mean(0)
        self.optimizer.step()
        return {"loss": concatenate(minibatches)[0].mean()}


def train_for(algorithm_class: type[Algorithm], name: str, updates: int, *, is_fused: bool) -> list[torch.Tensor]:
    """Return the parameters after some updates in float64."""
    torch.manual_seed(0)
    hparams = default_hparams(name, "ColoredMNIST")
    hparams |= {key: value for key, value in SOON.items() if key in hparams}
    hparams |= {key: 1 for key in hparams if key.endswith("anneal_iters")}
    algorithm = algorithm_class((2, 28, 28), 2, 2, hparams).double()
    if is_fused:
        fuse_adam(algorithm, torch.device("cpu"))
    for update in range(updates):
        generator = torch.Generator().manual_seed(update)
        minibatches = [
            (
                torch.rand(4, 2, 28, 28, generator=generator, dtype=torch.float64),
                torch.tensor([0, 0, 1, 1]),
            )
            for _ in range(2)
        ]
        torch.manual_seed(update)
        algorithm.update(minibatches)
    return [p.detach() for p in algorithm.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_updates_of_channels_last_networks(name: str):
    default, fused = (train_for(ALGORITHMS[name], name, 3, is_fused=is_fused) for is_fused in (False, True))
    assert any(not p.is_contiguous() for p in default)
    torch.testing.assert_close(fused, default, rtol=1e-9, atol=1e-9)


def test_users_algorithms_may_set_gradients_with_other_strides():
    default, fused = (train_for(StacksGradients, "ERM", 3, is_fused=is_fused) for is_fused in (False, True))
    torch.testing.assert_close(fused, default, rtol=0, atol=0)
