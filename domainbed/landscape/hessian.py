"""A risk's whole Hessian, where a network is small, and its leading directions, where it is not."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from domainbed.landscape.domain import Domain, summed_loss

HESSIAN_LIMIT = 3000  # coordinates: 72 MB a domain, and minutes for the ratios of several
CHUNK = 256  # samples
TOLERANCE = 1e-3  # relative, of the eigenvalues of larger ones


class Flat:
    """A network as a function of its weights, one vector."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._shapes = {name: p.shape for name, p in network.named_parameters()}
        self.weights = torch.cat([p.detach().flatten() for p in network.parameters()])

    def named(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameters by name, of a vector of all [coordinates]."""
        parts = weights.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def summed_loss(self, weights: torch.Tensor, domain: Domain) -> torch.Tensor:
        """Over the domain's samples, at these weights, 0-dim."""
        return summed_loss(torch.func.functional_call(self._network, self.named(weights), (domain.x,)), domain.y)


def full_hessian(network: nn.Module, domain: Domain) -> torch.Tensor:
    """The Hessian of the domain's risk at the network's weights, [coordinates, coordinates].

    Raises:
        ValueError: the network has more than HESSIAN_LIMIT coordinates.
    """
    of_weights = Flat(network)
    n = len(of_weights.weights)
    if n > HESSIAN_LIMIT:
        raise ValueError(f"a Hessian of {n} coordinates is too large; at most {HESSIAN_LIMIT}")
    hessian = of_weights.weights.new_zeros(n, n)
    for chunk in domain.chunks(CHUNK):
        hessian += torch.func.jacrev(torch.func.grad(of_weights.summed_loss))(of_weights.weights, chunk)
    hessian /= len(domain.y)
    return (hessian + hessian.T) / 2


def leading_directions(
    network: nn.Module, domains: Sequence[Domain], k: int, hessians: Sequence[torch.Tensor] | None = None
) -> torch.Tensor:
    """The k orthogonal directions along which the mean of the domains' risks curves most, [coordinates, k].

    They are unit vectors, the first one first; the largest entry of each is positive. `hessians` are the domains' whole
    ones, where they are known already.
    """
    of_weights = Flat(network)
    n = len(of_weights.weights)
    if n <= HESSIAN_LIMIT:
        hessians = hessians or [full_hessian(network, domain) for domain in domains]
        mean = torch.stack(list(hessians)).double().mean(0)
        vectors = torch.linalg.eigh(mean).eigenvectors[:, -k:]
    else:
        from scipy.sparse.linalg import LinearOperator, eigsh  # a third of a second, only where it is needed

        hessian = LinearOperator((n, n), matvec=_product_with_mean(of_weights, domains), dtype=np.float64)
        start = np.random.RandomState(0).randn(n)  # or it would begin with another each time
        vectors = torch.from_numpy(eigsh(hessian, k, which="LA", v0=start, tol=TOLERANCE)[1])
    vectors = vectors.flip(1)
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return (vectors * signs).to(of_weights.weights)


def _product_with_mean(of_weights: Flat, domains: Sequence[Domain]) -> Callable[[np.ndarray], np.ndarray]:
    """The mean of the domains' Hessians times a vector."""

    def product(vector: np.ndarray) -> np.ndarray:
        v = torch.from_numpy(vector.ravel()).to(of_weights.weights)
        weights = of_weights.weights.clone().requires_grad_()
        total = torch.zeros_like(v)
        for domain in domains:
            for chunk in domain.chunks(CHUNK):
                (gradient,) = torch.autograd.grad(of_weights.summed_loss(weights, chunk), weights, create_graph=True)
                (of_chunk,) = torch.autograd.grad(gradient @ v, weights)
                total += of_chunk / len(domain.y) / len(domains)
        return total.cpu().double().numpy()

    return product
