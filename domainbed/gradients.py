"""Moments of a loss's per-sample gradients, differentiable themselves.

For a linear layer with inputs a [n, in] and δ = ∂(summed loss)/∂outputs [n, out], sample i's gradient is the outer
product of δ_i and (a_i, 1), the 1 for the bias. So the moments over samples are products of matrices, and no sample's
gradient is ever held: E[g²] = (δ²)ᵀ(a, 1)² / n, E[g] = δᵀ(a, 1) / n. (BackPACK's SumGradSquared computes the same.)
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

# (logits [n, …], labels [n, …]) -> the sum over samples.
SummedLoss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# Of each linear layer: inputs [n, in], with a last column of ones where the layer has a bias, and δ [n, out].
Factors: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]


def summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, reduction="sum")


def head_layers(head: nn.Module) -> list[nn.Module]:
    """The layers of a head that `gradient_factors` can take: linear ones, and between them any without parameters.

    Raises:
        ValueError: another layer has parameters.
    """
    layers = list(head) if isinstance(head, nn.Sequential) else [head]
    for layer in layers:
        if type(layer) is not nn.Linear and any(True for _ in layer.parameters()):
            raise ValueError(f"gradient variances are known for heads of linear layers only, not for {layer}")
    return layers


def gradient_factors(
    head: nn.Module, z: torch.Tensor, y: torch.Tensor, loss: SummedLoss = summed_cross_entropy
) -> tuple[torch.Tensor, Factors]:
    """The head's logits on features z [n, d], and what makes up the gradients of its linear layers.

    Where gradients are enabled, the factors can be differentiated with respect to z and the head's parameters.
    """
    inputs, outputs, x = [], [], z
    for layer in head_layers(head):
        a, x = x, layer(x)
        if isinstance(layer, nn.Linear):
            inputs.append(a if layer.bias is None else torch.cat([a, a.new_ones(len(a), 1)], dim=1))
            outputs.append(x)
    deltas = torch.autograd.grad(loss(x, y), outputs, create_graph=True)
    return x, list(zip(inputs, deltas, strict=True))


def split_factors(factors: Factors, sizes: Sequence[int]) -> list[Factors]:
    """The factors of each of several batches that went through the head together."""
    layers = [zip(a.split(sizes), delta.split(sizes), strict=True) for a, delta in factors]
    return [list(batch) for batch in zip(*layers, strict=True)]


def gradient_second_moment(factors: Factors) -> torch.Tensor:
    """E[g²] of every coordinate: [coordinates], layer after layer, of each its outputs × (inputs, bias)."""
    return torch.cat([((delta**2).T @ a**2 / len(a)).flatten() for a, delta in factors])


def gradient_variance(factors: Factors) -> torch.Tensor:
    """E[g²] − E[g]² (biased: divided by n) of every coordinate, in the same order."""
    mean = torch.cat([(delta.T @ a / len(a)).flatten() for a, delta in factors])
    return gradient_second_moment(factors) - mean**2


def gradient_covariance(factors: Factors) -> torch.Tensor:
    """E[(g − E[g])(g − E[g])ᵀ]: [coordinates, coordinates], in the same order. This one does hold the gradients."""
    g = torch.cat([(delta[:, :, None] * a[:, None, :]).flatten(1) for a, delta in factors], dim=1)
    g = g - g.mean(0)
    return g.T @ g / len(g)


def network_gradient_variance(
    network: nn.Module, x: torch.Tensor, y: torch.Tensor, loss: SummedLoss = summed_cross_entropy
) -> torch.Tensor:
    """The biased variance of the per-sample gradients over every layer, whatever it is: [all parameters].

    Samples must not act on one another (no batch norm in training mode). The n gradients are held at once.
    """
    parameters: dict[str, torch.Tensor] = dict(network.named_parameters())

    def loss_of(parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss(torch.func.functional_call(network, parameters, (x[None],)), y[None])

    of_each = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0, 0), randomness="different")
    with torch.compiler.set_stance("force_eager"):  # torch.compile knows nothing of single samples
        gradients = of_each(parameters, x, y)
    return flat(g.var(0, correction=0) for g in gradients.values())


def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """All coordinates of all tensors, one after the other."""
    return torch.cat([t.flatten() for t in tensors])
