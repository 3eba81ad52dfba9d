"""The Hessian of a domain's risk: the whole matrix for small networks, the leading directions for any network."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from domainbed.landscape.domain import Domain, summed_loss

MAX_HESSIAN_SIZE = 3000  # coordinates; a Hessian of this size takes 72 MB, and the exact scores minutes
HESSIAN_CHUNK_SIZE = 256  # samples
EIGENVALUE_TOLERANCE = 1e-3  # relative, of the iterative solver


class FlatNetwork:
    """A network as a function of its weights as one vector.

    Attributes:
        weights: the network's weights, [coordinates].
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._shapes = {name: p.shape for name, p in network.named_parameters()}
        self.weights = torch.cat([p.detach().flatten() for p in network.parameters()])

    def unflatten(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parameters by name from a vector [coordinates]."""
        parts = weights.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def summed_loss(self, weights: torch.Tensor, domain: Domain) -> torch.Tensor:
        """Return the loss summed over the domain's samples at these weights, 0-dim."""
        return summed_loss(torch.func.functional_call(self._network, self.unflatten(weights), (domain.x,)), domain.y)


def full_hessian(network: nn.Module, domain: Domain) -> torch.Tensor:
    """Return the Hessian of the domain's risk at the network's weights, [coordinates, coordinates].

    Raises:
        ValueError: the network has more than MAX_HESSIAN_SIZE coordinates.
    """
    flat = FlatNetwork(network)
    n = len(flat.weights)
    if n > MAX_HESSIAN_SIZE:
        raise ValueError(f"a Hessian of {n} coordinates is too large; at most {MAX_HESSIAN_SIZE} are supported")
    hessian = flat.weights.new_zeros(n, n)
    for chunk in domain.split(HESSIAN_CHUNK_SIZE):
        hessian += torch.func.jacrev(torch.func.grad(flat.summed_loss))(flat.weights, chunk)
    hessian /= len(domain.y)
    return (hessian + hessian.T) / 2


def leading_directions(
    network: nn.Module, domains: Sequence[Domain], k: int, hessians: Sequence[torch.Tensor] | None = None
) -> torch.Tensor:
    """Return the k leading eigenvectors of the Hessian of the domains' mean risk, [coordinates, k].

    They are unit vectors in descending order of their eigenvalues; the largest entry of each is positive.

    Args:
        network: the Hessian is taken at its weights.
        hessians: the domains' full Hessians, if they have been computed.
    """
    flat = FlatNetwork(network)
    n = len(flat.weights)
    if n <= MAX_HESSIAN_SIZE:
        hessians = hessians or [full_hessian(network, domain) for domain in domains]
        mean = torch.stack(list(hessians)).double().mean(0)
        vectors = torch.linalg.eigh(mean).eigenvectors[:, -k:]
    else:
        from scipy.sparse.linalg import LinearOperator, eigsh  # slow to import

        hessian = LinearOperator((n, n), matvec=_mean_hessian_product(flat, domains), dtype=np.float64)
        start = np.random.RandomState(0).randn(n)  # the default start vector is random
        vectors = torch.from_numpy(eigsh(hessian, k, which="LA", v0=start, tol=EIGENVALUE_TOLERANCE)[1])
    vectors = vectors.flip(1)
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return (vectors * signs).to(flat.weights)


def _mean_hessian_product(flat: FlatNetwork, domains: Sequence[Domain]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that multiplies the mean of the domains' Hessians by a vector."""

    def multiply(vector: np.ndarray) -> np.ndarray:
        v = torch.from_numpy(vector.ravel()).to(flat.weights)
        weights = flat.weights.clone().requires_grad_()
        total = torch.zeros_like(v)
        for domain in domains:
            for chunk in domain.split(HESSIAN_CHUNK_SIZE):
                (gradient,) = torch.autograd.grad(flat.summed_loss(weights, chunk), weights, create_graph=True)
                (product,) = torch.autograd.grad(gradient @ v, weights)
                total += product / len(domain.y) / len(domains)
        return total.cpu().double().numpy()

    return multiply
