"""The loss in one domain at a network's weights: its value, its gradient and how samples differ in it, its curvature.

A network is any module from inputs [n, …] to logits; a classifier is one whose inputs are features. With one logit the
loss is the binary cross-entropy, with more the cross-entropy. Coordinates are those of the network's parameters, in
their order, flattened.
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
from domainbed.gradients import flat

if TYPE_CHECKING:
    from backpack.extensions import DiagGGNExact, DiagHessian

CHUNK = 1024  # samples that go through a classifier at once
HELD = 2**26  # numbers of single samples' gradients that are held at once


class Domain(NamedTuple):
    """Samples of one domain: what the network takes [n, …], and labels [n], whole numbers from 0."""

    x: torch.Tensor
    y: torch.Tensor

    def chunks(self, n: int) -> Iterator["Domain"]:
        """The same, at most `n` samples at a time."""
        return map(Domain, self.x.split(n), self.y.split(n))


@dataclass(frozen=True)
class Statistics:
    """The loss of one domain at a network's weights.

    Attributes:
        risk: the mean loss of its samples.
        accuracy: the part of them that is classified right.
        gradient_mean: of the samples' gradients, [coordinates]; like the following, on the CPU.
        gradient_variance: their biased variance (divided by n), [coordinates].
        hessian_diagonal: that of the risk's Hessian, [coordinates].
        curvature: what that is: "Hessian" or, where BackPACK can't tell it, "GGN", the generalised Gauss-Newton matrix,
            which leaves the network's own curvature out.
    """

    risk: float
    accuracy: float
    gradient_mean: torch.Tensor
    gradient_variance: torch.Tensor
    hessian_diagonal: torch.Tensor
    curvature: str

    @property
    def cosine(self) -> float:
        """Between gradient variance and Hessian diagonal: 1 where they are proportional. NaN where one is zero."""
        v, h = self.gradient_variance, self.hessian_diagonal
        return (v @ h / (v.norm() * h.norm())).item()


def summed_loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The sum over samples of the loss, 0-dim, for logits [n, classes] or [n, 1] and labels [n]."""
    return _criterion(logits.shape[1])(logits, _targets(logits, y))


def statistics(network: nn.Module, domain: Domain) -> Statistics:
    """What the loss of this domain is like at the network's weights, which must act on each sample alone.

    A chain of layers (`nn.Sequential`, or one alone) goes through BackPACK, which knows the exact Hessian diagonal of
    most such layers and, of some more, the GGN's. Any other network goes sample by sample, with the GGN's diagonal.
    """
    with torch.no_grad():
        logits = [(network(x), y) for x, y in domain.chunks(CHUNK)]
        risk = sum(summed_loss(of_chunk, y).double() for of_chunk, y in logits)
        right = sum((predicted_classes(of_chunk) == y).sum() for of_chunk, y in logits)
    sums, curvature = _sums(network, domain)
    gradient, squared, diagonal = (each.cpu() / len(domain.y) for each in sums)
    return Statistics(
        float(risk) / len(domain.y), int(right) / len(domain.y), gradient, squared - gradient**2, diagonal, curvature
    )


class _Sums(NamedTuple):
    """Over samples: of the gradients, of their squares, and of the curvature's diagonals; each [coordinates]."""

    gradient: torch.Tensor
    squared: torch.Tensor
    diagonal: torch.Tensor


def _sums(network: nn.Module, domain: Domain) -> tuple[_Sums, str]:
    if _is_chain(network):
        from backpack.extensions import DiagGGNExact, DiagHessian  # a tenth of a second that most jobs need not wait

        for extension, curvature in ((DiagHessian, "Hessian"), (DiagGGNExact, "GGN")):
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("error", message="Extension saving to")
                    return _by_backpack(network, domain, extension()), curvature
            except (NotImplementedError, UserWarning):  # a layer that it does not know
                continue
    return _sample_by_sample(network, domain), "GGN"


def _is_chain(network: nn.Module) -> bool:
    """Whether it is one of torch's layers, or such layers one after another, as BackPACK can see through them.

    Nothing may happen that no module stands for, none may be there twice, overwrite what it is given or have hooks, and
    all parameters must take gradients.
    """
    layers = [module for _, module in network.named_modules(remove_duplicate=False)]
    return len(set(layers)) == len(layers) and all(
        (type(layer) is nn.Sequential or (_is_torchs(layer) and not list(layer.children())))
        and not getattr(layer, "inplace", False)
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and all(p.requires_grad for p in layer.parameters())
        for layer in layers
    )


def _is_torchs(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torch.nn.modules.")


def _by_backpack(network: nn.Module, domain: Domain, curvature: "DiagHessian | DiagGGNExact") -> _Sums:
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    # It says so of inputs that need no gradient. (If they did, it would go on into them, at some cost.)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    network = extend(copy.deepcopy(network))
    sums: list[list[torch.Tensor]] = [[torch.zeros_like(p) for p in network.parameters()] for _ in _Sums._fields]
    for x, y in domain.chunks(CHUNK):
        network.zero_grad()
        logits = network(x)
        with backpack(SumGradSquared(), curvature):
            extend(_criterion(logits.shape[1]))(logits, _targets(logits, y)).backward()
        for name, of_parameters in zip(("grad", "sum_grad_squared", curvature.savefield), sums, strict=True):
            torch._foreach_add_(of_parameters, [getattr(p, name) for p in network.parameters()])
    gradient, squared, diagonal = map(flat, sums)
    return _Sums(gradient.detach(), squared, diagonal)


def _sample_by_sample(network: nn.Module, domain: Domain) -> _Sums:
    """By vector-Jacobian products of each sample alone.

    With S Sᵀ the Hessian of a sample's loss in its logits, and J the logits' Jacobian, the GGN is Jᵀ S Sᵀ J: its
    diagonal is the sum of the squares of Sᵀ J's rows. The gradient is another such row.
    """
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    size = sum(p.numel() for p in parameters.values())

    def of_sample(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        def logits_at(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.func.functional_call(network, parameters, (x[None],))[0]

        logits, pull_back = torch.func.vjp(logits_at, parameters)  # type: ignore[misc]  # three with has_aux alone
        gradient = flat(pull_back(_delta(logits, y))[0].values())
        diagonal = torch.zeros_like(gradient)
        for rows in _root_of_hessian(logits).split(max(1, HELD // size)):
            products = torch.func.vmap(pull_back)(rows)[0]
            diagonal = diagonal + flat((product**2).sum(0) for product in products.values())
        return gradient, gradient**2, diagonal

    sums = [next(iter(parameters.values())).new_zeros(size) for _ in _Sums._fields]
    with torch.no_grad():
        rows = network(domain.x[:1]).shape[1]
    at_once = max(1, HELD // (size * min(rows, max(1, HELD // size))))
    with torch.compiler.set_stance("force_eager"):  # torch.compile knows nothing of single samples
        for x, y in domain.chunks(at_once):
            for total, of_each in zip(sums, torch.func.vmap(of_sample)(x, y), strict=True):
                total += of_each.sum(0)
    return _Sums(*sums)


def _delta(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The derivative of a sample's loss in its logits [classes]."""
    if len(logits) == 1:
        return logits.sigmoid() - y
    return logits.softmax(0) - F.one_hot(y, len(logits)).to(logits.dtype)


def _root_of_hessian(logits: torch.Tensor) -> torch.Tensor:
    """Rows s_k [·, classes] with Σ s_k s_kᵀ the Hessian of a sample's loss in its logits: √p_k (e_k − p)."""
    if len(logits) == 1:
        p = logits.sigmoid()
        return (p * (1 - p)).sqrt()[None]
    p = logits.softmax(0)
    return p.sqrt()[:, None] * (torch.eye(len(p), dtype=p.dtype, device=p.device) - p)


def _criterion(n_logits: int) -> nn.Module:
    return nn.BCEWithLogitsLoss(reduction="sum") if n_logits == 1 else nn.CrossEntropyLoss(reduction="sum")


def _targets(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Labels as the criterion wants them."""
    return y[:, None].to(logits.dtype) if logits.shape[1] == 1 else y
