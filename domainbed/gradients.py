"""Differentiable moments of the per-sample gradients of a loss.

For a linear layer with inputs a [n, in] and δ = ∂(summed loss)/∂outputs [n, out], the gradient of sample i is the outer
product of δ_i and (a_i, 1), with 1 for the bias. The moments over samples are therefore matrix products that need no
per-sample gradients: E[g²] = (δ²)ᵀ(a, 1)² / n, E[g] = δᵀ(a, 1) / n. (BackPACK's SumGradSquared does the same.)
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

# (logits [n, …], labels [n, …]) -> sum of the losses of all samples.
SummedLoss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# For each linear layer, its inputs [n, in], with a column of ones appended if it has a bias, and δ [n, out].
Factors: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]


def summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, reduction="sum")


def head_layers(head: nn.Module) -> list[nn.Module]:
    """Return the layers of a head for `gradient_factors`: linear layers, and layers without parameters.

    Raises:
        ValueError: another layer has parameters.
    """
    layers = list(head) if isinstance(head, nn.Sequential) else [head]
    for layer in layers:
        if type(layer) is not nn.Linear and any(True for _ in layer.parameters()):
            raise ValueError(f"gradient variances are supported only for heads of linear layers, not for {layer}")
    return layers


def gradient_factors(
    head: nn.Module, z: torch.Tensor, y: torch.Tensor, loss: SummedLoss = summed_cross_entropy
) -> tuple[torch.Tensor, Factors]:
    """Return the head's logits for features z [n, d], and the factors of the gradients of its linear layers.

    If gradients are enabled, the factors are differentiable with respect to z and the head's parameters.
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
    """Split the factors of concatenated batches into the factors of each batch."""
    layers = [zip(a.split(sizes), delta.split(sizes), strict=True) for a, delta in factors]
    return [list(batch) for batch in zip(*layers, strict=True)]


def gradient_second_moment(factors: Factors) -> torch.Tensor:
    """Return E[g²], [coordinates]: layer by layer, each in the order outputs × (inputs, bias)."""
    return torch.cat([((delta**2).T @ a**2 / len(a)).flatten() for a, delta in factors])


def gradient_variance(factors: Factors) -> torch.Tensor:
    """Return the biased variance E[g²] − E[g]² (divisor n), [coordinates], in the same order."""
    mean = torch.cat([(delta.T @ a / len(a)).flatten() for a, delta in factors])
    return gradient_second_moment(factors) - mean**2


def gradient_covariance(factors: Factors) -> torch.Tensor:
    """Return E[(g − E[g])(g − E[g])ᵀ], [coordinates, coordinates], in the same order.

    Unlike the other moments, it needs the memory of all per-sample gradients.
    """
    g = torch.cat([(delta[:, :, None] * a[:, None, :]).flatten(1) for a, delta in factors], dim=1)
    g = g - g.mean(0)
    return g.T @ g / len(g)


def network_gradient_variance(
    network: nn.Module, x: torch.Tensor, y: torch.Tensor, loss: SummedLoss = summed_cross_entropy
) -> torch.Tensor:
    """Return the biased variance of the per-sample gradients of all trained parameters of any network, [parameters].

    Samples must be independent (no batch norm in training mode). All n gradients are in memory at once.
    """
    parameters: dict[str, torch.Tensor] = {n: p for n, p in network.named_parameters() if p.requires_grad}

    def sample_loss(parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss(torch.func.functional_call(network, parameters, (x[None],)), y[None])

    sample_gradients = torch.func.vmap(torch.func.grad(sample_loss), in_dims=(None, 0, 0), randomness="different")
    with torch.compiler.set_stance("force_eager"):  # compiled featurizers do not support vmap
        gradients = sample_gradients(parameters, x, y)
    return flatten(g.var(0, correction=0) for g in gradients.values())


def flatten(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the elements of all tensors, concatenated: [elements]."""
    return torch.cat([t.flatten() for t in tensors])
