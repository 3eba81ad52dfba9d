"""One-dimensional distributions in DomainBed's EQRM, estimated from the domains' risks."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution, Normal

EPS = 1e-16


class Distribution1D:
    """A distribution whose parameters are estimated from data.

    Args:
        dist_function: (*parameters) -> a distribution of `torch.distributions`.
    """

    def __init__(self, dist_function: Callable[..., Distribution] | None = None) -> None:
        self.dist: Distribution | None = None
        self.dist_function = dist_function

    @property
    def parameters(self) -> list[Any]:
        raise NotImplementedError

    def create_dist(self) -> Distribution:
        if self.dist_function is None:
            raise NotImplementedError(f"{type(self).__name__} has no dist_function")
        return self.dist_function(*self.parameters)

    def estimate_parameters(self, x: torch.Tensor) -> None:
        raise NotImplementedError

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        return self.create_dist().log_prob(x)

    def cdf(self, x: torch.Tensor) -> torch.Tensor:
        return self.create_dist().cdf(x)

    def icdf(self, q: Any) -> torch.Tensor:
        return self.create_dist().icdf(q)

    def sample(self, n: int = 1) -> torch.Tensor:
        self.dist = self.dist or self.create_dist()
        return self.dist.sample(torch.Size([] if n == 1 else [n]))

    def sample_n(self, n: int = 10) -> torch.Tensor:
        return self.sample(n)


def continuous_bisect_fun_left(f: Callable[[Any], Any], v: Any, lo: Any, hi: Any, n_steps: int = 32) -> Any:
    """Return the midpoint of the interval in which an increasing function exceeds `v`, after `n_steps` halvings."""
    middle = 0.5 * (lo + hi)
    for _ in range(n_steps):
        lo, hi = (lo, middle) if f(middle) > v else (middle, hi)
        previous, middle = middle, 0.5 * (lo + hi)
        if middle == previous:
            break
    return middle


class Kernel(nn.Module):
    """A kernel with bandwidth `bw`, centered at each of the training points."""

    def __init__(self, bw: Any = None) -> None:
        super().__init__()
        self.bw = 0.05 if bw is None else bw

    def _diffs(self, test_Xs: torch.Tensor, train_Xs: torch.Tensor) -> torch.Tensor:
        """Return all differences, [test, train, …]."""
        return test_Xs[:, None] - train_Xs[None]

    def forward(self, test_Xs: torch.Tensor, train_Xs: torch.Tensor) -> torch.Tensor:
        """Return the density at each of the test points, [test]."""
        raise NotImplementedError

    def sample(self, train_Xs: torch.Tensor) -> torch.Tensor:
        """Return one random point per training point."""
        raise NotImplementedError


class GaussianKernel(Kernel):
    """A normal density with standard deviation `bw`."""

    def forward(self, test_Xs: torch.Tensor, train_Xs: torch.Tensor) -> torch.Tensor:
        squared = self._diffs(test_Xs, train_Xs).square()
        squared = squared.flatten(2).sum(2) if squared.ndim > 2 else squared
        variance = torch.as_tensor(self.bw) ** 2
        return (torch.exp(-squared / (2 * variance)) / torch.sqrt(2 * math.pi * variance)).mean(dim=1)

    def sample(self, train_Xs: torch.Tensor) -> torch.Tensor:
        return train_Xs + torch.randn_like(train_Xs) * self.bw

    def cdf(self, test_Xs: torch.Tensor, train_Xs: torch.Tensor) -> torch.Tensor:
        """Return the distribution function of the mixture, averaged over the test points."""
        scale = torch.ones(len(train_Xs), device=test_Xs.device) * self.bw
        return Normal(train_Xs, scale).cdf(test_Xs.reshape(-1, 1).expand(-1, len(train_Xs))).mean()


def estimate_bandwidth(x: torch.Tensor, method: str = "silverman") -> torch.Tensor:
    """Return the bandwidth of a kernel density estimate on `x` [n] by Silverman's rule or the Gaussian optimum."""
    spread = x.std()
    if method == "silverman":
        interquartile_range = torch.quantile(x, 0.75) - torch.quantile(x, 0.25)
        return 0.9 * torch.minimum(spread, interquartile_range / 1.34) * len(x) ** -0.2
    if method.lower() == "gauss-optimal":
        return 1.06 * spread * len(x) ** -0.2
    raise ValueError(f"unknown method {method!r}; choose silverman or Gauss-optimal")


class KernelDensityEstimator(nn.Module):
    """A kernel density estimate on the points `train_Xs` [n]."""

    def __init__(
        self, train_Xs: torch.Tensor, kernel: str = "gaussian", bw_select: str | None = "Gauss-optimal"
    ) -> None:
        super().__init__()
        if kernel.lower() != "gaussian":
            raise NotImplementedError(f"unknown kernel {kernel!r}; choose gaussian")
        self.train_Xs = train_Xs
        self.bw = None if bw_select is None else estimate_bandwidth(train_Xs, bw_select)
        self.kernel = GaussianKernel(self.bw)

    @property
    def device(self) -> torch.device:
        return self.train_Xs.device

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.kernel(x, self.train_Xs)

    def cdf(self, x: torch.Tensor) -> torch.Tensor:
        return self.kernel.cdf(x, self.train_Xs)

    def sample(self, num_samples: int) -> torch.Tensor:
        chosen = torch.randint(len(self.train_Xs), (num_samples,), device=self.device)
        return self.kernel.sample(self.train_Xs[chosen])


class Nonparametric(Distribution1D):
    """The empirical distribution of some points or, with `use_kde`, a kernel density estimate on them."""

    def __init__(self, use_kde: bool = True, bw_select: str = "Gauss-optimal") -> None:
        super().__init__()
        self.use_kde = use_kde
        self.bw_select = bw_select
        self.bw: torch.Tensor | None = None
        self.data: torch.Tensor | None = None  # sorted
        self.kde: KernelDensityEstimator | None = None

    @property
    def parameters(self) -> list[Any]:
        return []

    def estimate_parameters(self, x: torch.Tensor) -> None:
        """Replace the points by `x` [n]."""
        self.data = x.sort().values
        if self.use_kde:
            self.kde = KernelDensityEstimator(self.data, bw_select=self.bw_select)
            self.bw = estimate_bandwidth(self.data, self.bw_select).reshape(1)

    def icdf(self, q: Any) -> torch.Tensor:
        """Return the quantile of level q; a negative q is the logarithm of 1 minus the level.

        Gradients flow through the ends of the interval in which the quantile is searched.
        """
        if self.data is None:
            raise ValueError("call estimate_parameters first")
        if not self.use_kde:
            return torch.quantile(self.data, float(q))
        assert self.bw is not None
        assert self.kde is not None
        if q < 0:
            return (self.data + self.bw * math.sqrt(-2 * q)).mean()
        lo, hi = (Normal(end, self.bw[0]).icdf(q) for end in (self.data[0], self.data[-1]))
        return continuous_bisect_fun_left(self.kde.cdf, q, lo, hi)

    def state_dict(self) -> dict[str, Any]:
        return {"data": None if self.data is None else self.data.detach().clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["data"] is not None:
            self.estimate_parameters(state["data"])
