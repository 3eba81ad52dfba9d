"""TRM: transfer risk minimization (Xu and Jaakkola, "Learning Representations that Support Robust Transfer", 2021)."""

import torch
from torch import nn
from torch.nn import functional as F

from domainbed import networks
from domainbed.algorithms.base import Algorithm, Metrics, Minibatches, Unlabeled, concatenate, split_by_domain
from domainbed.hparams import Hparam, Hparams, int_power, power

PROBE_STEPS, PROBE_LR = 30, 0.1
SERIES_TERMS = 10
SERIES_LIMIT = 10.0  # the series is cut once an entry of its sum exceeds this


class TRM(Algorithm):
    """Penalizes how badly each domain's own optimal linear head ("probe") transfers to the other domains.

    From update `iters` on, probes h_Q are fitted to the features of one domain each. With c_i the risk of h_Q in domain
    i, W its weight, and α_Q the domains' weights (raised exponentially where c_i is high),
    term_Q = Σ_{i≠Q} α_Qi c_i − cos_lambda ⟨v, ∂c_Q/∂W⟩, where v approximates H⁻¹ ∂(Σ α_Qi c_i)/∂W, H = ∂²c_Q/∂W², by a
    Neumann series. The loss is CE + the mean of term_Q over Q (Algorithm 1).

    `trm_series` is "code" for the series of the published code, 2 v_1 + v_2 + … + v_10 with v_k = (I − H)^k g, which
    results from an in-place operation, and weights α that are raised before they multiply the risks; or "paper" for
    g + v_1 + … + v_10, and α raised afterwards.
    """

    HPARAMS = {
        "cos_lambda": Hparam(1e-4, power(10, -5, 0), at_least=0),
        "iters": Hparam(200, int_power(10, 0, 4), at_least=0),
        "groupdro_eta": Hparam(1e-2, power(10, -3, -1), at_least=0),
        "trm_series": Hparam("code"),
    }
    MIN_DOMAINS = 2
    REQUIRES_FEATURIZER = True
    alpha: torch.Tensor  # [domains Q, domains i]

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        if hparams["trm_series"] not in ("code", "paper"):
            raise ValueError(f'trm_series must be "code" or "paper", not {hparams["trm_series"]!r}')
        self.featurizer = networks.Featurizer(input_shape, hparams)
        self.classifier = nn.Linear(self.featurizer.n_outputs, num_classes)
        self.probes = nn.ModuleList(nn.Linear(self.featurizer.n_outputs, num_classes) for _ in range(num_domains))
        self.probes.requires_grad_(False)
        self.register_buffer("alpha", 1 - torch.eye(num_domains))
        options = {"lr": hparams["lr"], "weight_decay": hparams["weight_decay"]}
        self.optimizer_f = torch.optim.Adam(self.featurizer.parameters(), **options)
        self.optimizer_c = torch.optim.Adam(self.classifier.parameters(), **options)
        self.update_count = 0

    @property
    def phase(self) -> str:
        return "ERM" if self.update_count < self.hparams["iters"] else "transfer"

    @property
    def caveat(self) -> str:
        if self.hparams["trm_series"] == "paper":
            return ""
        return 'the Neumann series is the published code\'s, which differs from the paper; {"trm_series": "paper"}'

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.featurizer(x))

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = concatenate(minibatches)
        z = self.featurizer(x)
        nll = F.cross_entropy(self.classifier(z), y)
        loss, metrics = nll, {"nll": nll.detach()}
        if self.phase == "transfer":
            if self.hparams["class_balanced"]:
                for probe in self.probes:
                    weight, _ = probe.parameters()
                    weight.copy_(self.classifier.weight.detach())
            domains = list(zip(split_by_domain(z, minibatches), [y for _, y in minibatches], strict=True))
            for probe, (z_e, y_e) in zip(self.probes, domains, strict=True):
                fit_probe(probe, z_e.detach(), y_e)
            self.alpha.div_(self.alpha.sum(1, keepdim=True))
            terms = [self.transfer_term(q, domains) for q in range(len(domains))]
            penalty, reported = (torch.stack(values).mean() for values in zip(*terms, strict=True))
            loss = nll + penalty
            metrics["trm_loss"] = reported.detach()
        for optimizer in (self.optimizer_f, self.optimizer_c):
            optimizer.zero_grad()
        loss.backward()
        for optimizer in (self.optimizer_f, self.optimizer_c):
            optimizer.step()
        self.update_count += 1
        return metrics

    def transfer_term(
        self, q: int, domains: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return term_Q to minimize, and its value before α_Q is raised; raise α_Q."""
        probe = self.probes[q]
        others = [i for i in range(len(domains)) if i != q]
        risks = torch.stack([F.cross_entropy(probe(z), y) for z, y in domains])
        gradients = [probe_gradient(probe, z, y) for z, y in domains]
        old = self.alpha[q].clone()
        g = torch.stack([old[i] * gradients[i].detach() for i in others]).sum(0)
        v = self.inverse_hessian_product(probe, domains[q][0].detach(), g)
        alignment = self.hparams["cos_lambda"] * (v * gradients[q]).sum()
        self.alpha[q].mul_((self.hparams["groupdro_eta"] * old * risks.detach()).exp())
        new = old if self.hparams["trm_series"] == "paper" else self.alpha[q].clone()
        # α_QQ is 0, so the domain itself has no weight.
        return new @ risks - alignment, old @ risks - alignment

    def inverse_hessian_product(self, probe: nn.Module, z: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """Approximate H⁻¹ g [classes, d] for the risk of a probe on features z [n, d]."""
        p = probe(z).softmax(1)
        is_paper = self.hparams["trm_series"] == "paper"
        total = g if is_paper else torch.zeros_like(g)
        keeps_adding = torch.ones((), dtype=torch.bool, device=g.device)
        for k in range(SERIES_TERMS):
            u = p * (z @ g.T)
            g = g - (u - p * u.sum(1, keepdim=True)).T @ z / len(z)
            term = g if is_paper or k > 0 else 2 * g
            total = total + torch.where(keeps_adding, term, 0)
            keeps_adding = keeps_adding & (total.abs().max() <= SERIES_LIMIT)
        return total


def probe_gradient(probe: nn.Module, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a probe's risk with respect to its weight, [classes, d], differentiable in z."""
    return probe_residuals(probe, z, y).T @ z / len(z)


def probe_residuals(probe: nn.Module, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return softmax − onehot [n, classes]."""
    logits = probe(z)
    return logits.softmax(1) - (y[:, None] == torch.arange(logits.shape[1], device=y.device)).to(logits.dtype)


@torch.no_grad()
def fit_probe(probe: nn.Module, z: torch.Tensor, y: torch.Tensor) -> None:
    """Fit a probe to features z [n, d] by gradient descent."""
    weight, bias = probe.parameters()
    for _ in range(PROBE_STEPS):
        delta = probe_residuals(probe, z, y) / len(z)
        weight.sub_(PROBE_LR * delta.T @ z)
        bias.sub_(PROBE_LR * delta.sum(0))
