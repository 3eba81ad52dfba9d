"""The loss of one domain at a network's weights: risk, gradient mean and variance, and Hessian diagonal.

A network is any module that maps inputs [n, …] to logits. The loss is the cross-entropy, or the binary cross-entropy if
there is a single logit. Coordinates are the elements of the network's parameters, flattened and concatenated.
"""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.base import predicted_classes
from domainbed.gradients import flatten

if TYPE_CHECKING:
    from backpack.extensions import DiagGGNExact, DiagHessian

CHUNK_SIZE = 1024  # samples per forward pass of a classifier
MAX_GRADIENT_ELEMENTS = 2**26  # elements of per-sample gradients held in memory at once


class Domain(NamedTuple):
    """Samples of one domain: the network's inputs [n, …] and integer labels [n]."""

    x: torch.Tensor
    y: torch.Tensor

    def split(self, size: int) -> Iterator["Domain"]:
        """Split the samples into chunks of at most `size` samples."""
        return map(Domain, self.x.split(size), self.y.split(size))


@dataclass(frozen=True)
class DomainStatistics:
    """The loss of one domain at a network's weights.

    Attributes:
        risk: mean loss over samples.
        accuracy: fraction of samples classified correctly.
        gradient_mean: mean of the per-sample gradients, [coordinates], on the CPU.
        gradient_variance: biased variance (divisor n) of the per-sample gradients, [coordinates], on the CPU.
        hessian_diagonal: diagonal of the risk's Hessian or of its approximation, [coordinates], on the CPU.
        curvature: "Hessian", or "GGN" if `hessian_diagonal` is that of the generalized Gauss-Newton matrix, which
            ignores the curvature of the network itself.
    """

    risk: float
    accuracy: float
    gradient_mean: torch.Tensor
    gradient_variance: torch.Tensor
    hessian_diagonal: torch.Tensor
    curvature: str

    @property
    def cosine(self) -> float:
        """Cosine between gradient variance and Hessian diagonal; NaN if one of them is zero."""
        v, h = self.gradient_variance, self.hessian_diagonal
        return (v @ h / (v.norm() * h.norm())).item()


def summed_loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the loss summed over samples, 0-dim, from logits [n, classes] or [n, 1] and labels [n]."""
    return _criterion(logits.shape[1])(logits, _targets(logits, y))


def measure_domain(network: nn.Module, domain: Domain) -> DomainStatistics:
    """Measure the loss of a domain at the network's weights.

    BackPACK differentiates chains of layers (`nn.Sequential`); it computes the exact Hessian diagonal for most layers,
    and the GGN's diagonal for others. All other networks are differentiated sample by sample, with the GGN's diagonal.

    Args:
        network: must process samples independently (no batch normalization in training mode).
    """
    with torch.no_grad():
        outputs = [(network(x), y) for x, y in domain.split(CHUNK_SIZE)]
        risk = sum(summed_loss(logits, y).double() for logits, y in outputs)
        correct = sum((predicted_classes(logits) == y).sum() for logits, y in outputs)
    sums, curvature = _sum_over_samples(network, domain)
    n = len(domain.y)
    gradient, squared, diagonal = (total.cpu() / n for total in sums)
    return DomainStatistics(float(risk) / n, int(correct) / n, gradient, squared - gradient**2, diagonal, curvature)


class _Sums(NamedTuple):
    """Sums over samples of the gradients, their squares and the curvature diagonals, each [coordinates]."""

    gradient: torch.Tensor
    squared: torch.Tensor
    diagonal: torch.Tensor


def _sum_over_samples(network: nn.Module, domain: Domain) -> tuple[_Sums, str]:
    if _is_chain(network):
        from backpack.extensions import DiagGGNExact, DiagHessian  # slow to import, and most jobs do not need it

        for extension, curvature in ((DiagHessian, "Hessian"), (DiagGGNExact, "GGN")):
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("error", message="Extension saving to")
                    return _sum_with_backpack(network, domain, extension()), curvature
            except (NotImplementedError, UserWarning):  # BackPACK does not support one of the layers
                continue
    return _sum_with_vmap(network, domain), "GGN"


def _is_chain(network: nn.Module) -> bool:
    """Return whether BackPACK can differentiate the network: a PyTorch layer, or a chain of distinct ones.

    Layers that work in place, have hooks or have frozen parameters are excluded.
    """
    layers = [module for _, module in network.named_modules(remove_duplicate=False)]
    return len(set(layers)) == len(layers) and all(
        (type(layer) is nn.Sequential or (_is_pytorch_layer(layer) and not list(layer.children())))
        and not getattr(layer, "inplace", False)
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and all(p.requires_grad for p in layer.parameters())
        for layer in layers
    )


def _is_pytorch_layer(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torch.nn.modules.")


def _sum_with_backpack(network: nn.Module, domain: Domain, curvature: "DiagHessian | DiagGGNExact") -> _Sums:
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    # PyTorch warns about inputs that require no gradient; if they did, backpropagation would take longer.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    network = extend(copy.deepcopy(network))
    sums: list[list[torch.Tensor]] = [[torch.zeros_like(p) for p in network.parameters()] for _ in _Sums._fields]
    for x, y in domain.split(CHUNK_SIZE):
        network.zero_grad()
        logits = network(x)
        with backpack(SumGradSquared(), curvature):
            extend(_criterion(logits.shape[1]))(logits, _targets(logits, y)).backward()
        for name, totals in zip(("grad", "sum_grad_squared", curvature.savefield), sums, strict=True):
            torch._foreach_add_(totals, [getattr(p, name) for p in network.parameters()])
    gradient, squared, diagonal = map(flatten, sums)
    return _Sums(gradient.detach(), squared, diagonal)


def _sum_with_vmap(network: nn.Module, domain: Domain) -> _Sums:
    """Sum over samples with vector-Jacobian products.

    With S Sᵀ the Hessian of a sample's loss with respect to its logits and J the Jacobian of the logits, the GGN is
    Jᵀ S Sᵀ J. Its diagonal is the sum of the squared rows of Sᵀ J.
    """
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    size = sum(p.numel() for p in parameters.values())
    max_rows = max(1, MAX_GRADIENT_ELEMENTS // size)

    def differentiate_sample(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        def compute_logits(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.func.functional_call(network, parameters, (x[None],))[0]

        logits, vjp = torch.func.vjp(compute_logits, parameters)  # type: ignore[misc]  # three values only with has_aux
        gradient = flatten(vjp(_logit_gradient(logits, y))[0].values())
        diagonal = torch.zeros_like(gradient)
        for rows in _logit_hessian_root(logits).split(max_rows):
            products = torch.func.vmap(vjp)(rows)[0]
            diagonal = diagonal + flatten((product**2).sum(0) for product in products.values())
        return gradient, gradient**2, diagonal

    sums = [next(iter(parameters.values())).new_zeros(size) for _ in _Sums._fields]
    with torch.no_grad():
        n_logits = network(domain.x[:1]).shape[1]
    chunk_size = max(1, MAX_GRADIENT_ELEMENTS // (size * min(n_logits, max_rows)))
    with torch.compiler.set_stance("force_eager"):  # torch.compile does not support vmap over samples
        for x, y in domain.split(chunk_size):
            for total, values in zip(sums, torch.func.vmap(differentiate_sample)(x, y), strict=True):
                total += values.sum(0)
    return _Sums(*sums)


def _logit_gradient(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a sample's loss with respect to its logits, [classes]."""
    if len(logits) == 1:
        return logits.sigmoid() - y
    return logits.softmax(0) - F.one_hot(y, len(logits)).to(logits.dtype)


def _logit_hessian_root(logits: torch.Tensor) -> torch.Tensor:
    """Return rows s_k = √p_k (e_k − p), [rows, classes], such that Σ s_k s_kᵀ is the Hessian in the logits."""
    if len(logits) == 1:
        p = logits.sigmoid()
        return (p * (1 - p)).sqrt()[None]
    p = logits.softmax(0)
    return p.sqrt()[:, None] * (torch.eye(len(p), dtype=p.dtype, device=p.device) - p)


def _criterion(n_logits: int) -> nn.Module:
    return nn.BCEWithLogitsLoss(reduction="sum") if n_logits == 1 else nn.CrossEntropyLoss(reduction="sum")


def _targets(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the labels in the form that the criterion expects."""
    return y[:, None].to(logits.dtype) if logits.shape[1] == 1 else y
