"""One restart of the experiment: data, model, penalties and training.

The label is whether the digit is below 5; images have 14x14 pixels in one of two colors. In the two training
environments the color predicts the (noisy) label better than the shape does; in the test environment the correlation is
reversed. Each step uses the whole training set. All algorithms share the hyperparameters tuned by IRM's authors.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.fishr import STATISTICS, squared_distances
from domainbed.algorithms.irm import scale_derivative
from domainbed.algorithms.vrex import variance_of_risks
from domainbed.colored_mnist import PENALTIES, STEPS
from domainbed.datasets.mnist import MNIST, warn_if_incomplete
from domainbed.errors import UsageError
from domainbed.gradients import gradient_factors
from domainbed.landscape.distances import recorded_distances
from domainbed.landscape.domain import Domain, measure_domain
from domainbed.landscape.hessian import full_hessian
from domainbed.landscape.inconsistency import inconsistency_scores
from domainbed.seeding import seed_everything

LEARNING_RATE = 0.0004898536566546834
L2_WEIGHT = 0.00110794568
PENALTY_WEIGHT = 91257.18613115903
ANNEAL_STEP = 190  # the weight of the penalty is 1 before this step
N_TRAIN, N_TEST = 50_000, 10_000
COLOR_FLIPS = (0.2, 0.1)  # of the training environments
TEST_COLOR_FLIP = 0.9
HIDDEN_UNITS = 390
TRACK_EVERY = 10  # steps
EPSILON = 0.1  # of the inconsistency scores

# Features [n, HIDDEN_UNITS], logits [n, 1] and labels [n, 1] of each training environment.
Outputs: TypeAlias = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
Penalty: TypeAlias = Callable[[nn.Linear, Outputs], torch.Tensor]


@dataclass(frozen=True)
class ProofEnvironment:
    """Images [n, 2, 14, 14] in [0, 1] and labels [n, 1], 0 or 1, of the same dtype."""

    images: torch.Tensor
    labels: torch.Tensor

    def to(self, device: str) -> "ProofEnvironment":
        """Return a copy on the device."""
        return ProofEnvironment(self.images.to(device), self.labels.to(device))


class ProofMLP(nn.Module):
    """Two hidden layers and a classifier with one logit. A grayscale model sums the color channels."""

    def __init__(self, grayscale: bool) -> None:
        super().__init__()
        self.grayscale = grayscale
        self.hidden1 = nn.Linear((1 if grayscale else 2) * 14 * 14, HIDDEN_UNITS)
        self.hidden2 = nn.Linear(HIDDEN_UNITS, HIDDEN_UNITS)
        self.classifier = nn.Linear(HIDDEN_UNITS, 1)
        for layer in (self.hidden1, self.hidden2, self.classifier):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features [n, HIDDEN_UNITS] of images [n, 2, 14, 14]."""
        x = images.sum(1).flatten(1) if self.grayscale else images.flatten(1)
        return self.hidden2(self.hidden1(x).relu()).relu()


def summed_binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")


def risks(outputs: Outputs) -> torch.Tensor:
    """Return the mean binary cross-entropy of each environment."""
    return torch.stack([F.binary_cross_entropy_with_logits(logits, y) for _, logits, y in outputs])


def no_penalty(classifier: nn.Linear, outputs: Outputs) -> torch.Tensor:
    """Return zero (ERM)."""
    return outputs[0][0].new_zeros(())


def irm_penalty(classifier: nn.Linear, outputs: Outputs) -> torch.Tensor:
    """Return the mean squared derivative of the risks with respect to a scale of the logits.

    A full batch does not need the unbiased estimate from two halves.
    """
    risk = F.binary_cross_entropy_with_logits
    return torch.stack([scale_derivative(logits, y, risk) ** 2 for _, logits, y in outputs]).mean()


def vrex_penalty(classifier: nn.Linear, outputs: Outputs) -> torch.Tensor:
    """Return the squared difference of the two risks, which is four times their variance."""
    return 4 * variance_of_risks(risks(outputs))


def fishr_penalty(classifier: nn.Linear, outputs: Outputs, variant: str = "variance") -> torch.Tensor:
    """Return Fishr's penalty, summed over domains and coordinates.

    Covariances are divided by their number of rows, as in the experiments for Table 6 of the paper: their squared
    differences are averaged over entries.
    """
    factors = [gradient_factors(classifier, z, y, summed_binary_cross_entropy)[1] for z, _, y in outputs]
    distances = squared_distances(torch.stack([STATISTICS[variant](f) for f in factors]))
    return distances.mean((1, 2)).sum() if variant == "covariance" else distances.sum()


fishr_uncentered_penalty = partial(fishr_penalty, variant="uncentered")
fishr_covariance_penalty = partial(fishr_penalty, variant="covariance")


def load_mnist(data_dir: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return MNIST's 60,000 training images, every second pixel, in [0, 1], [n, 14, 14], and digits [n].

    Raises:
        UsageError: MNIST is not in `data_dir` and cannot be downloaded, or is incomplete.
    """
    MNIST.prepare(data_dir)
    images, digits = MNIST.load_images(data_dir)
    warn_if_incomplete(data_dir, len(images))
    n = N_TRAIN + N_TEST
    if len(images) < n:
        raise UsageError(f"--data_dir {data_dir} has only {len(images)} MNIST images; {n} are required")
    return torch.from_numpy(images[:n, ::2, ::2].astype(np.float32) / 255), torch.from_numpy(digits[:n])


def make_environments(images: torch.Tensor, digits: torch.Tensor, label_flip: float) -> list[ProofEnvironment]:
    """Return the two training environments, the test environment, and its gray version (both channels equal)."""
    order = torch.randperm(N_TRAIN)
    train_images, train_digits = images[:N_TRAIN][order], digits[:N_TRAIN][order]
    training = [
        color(train_images[i::2], train_digits[i::2], label_flip, color_flip)
        for i, color_flip in enumerate(COLOR_FLIPS)
    ]
    test = color(images[N_TRAIN:], digits[N_TRAIN:], label_flip, TEST_COLOR_FLIP)
    gray = ProofEnvironment(images[N_TRAIN:, None].expand(-1, 2, -1, -1), test.labels)
    return [*training, test, gray]


def color(images: torch.Tensor, digits: torch.Tensor, label_flip: float, color_flip: float) -> ProofEnvironment:
    """Return an environment with randomly flipped labels [digit < 5], and colors that are randomly flipped labels."""
    labels = (digits < 5) ^ (torch.rand(len(digits)) < label_flip)
    colors = labels ^ (torch.rand(len(digits)) < color_flip)
    channels = torch.stack([~colors, colors], dim=1)
    return ProofEnvironment(images[:, None] * channels[:, :, None, None], labels.to(images.dtype)[:, None])


def train(
    algorithm: str,
    images: torch.Tensor,
    digits: torch.Tensor,
    *,
    label_flip: float = 0.25,
    grayscale: bool = False,
    steps: int = STEPS,
    seed: int = 0,
    track: bool = False,
) -> Iterator[dict[str, torch.Tensor]]:
    """Train one restart. As in IRM's experiment, the last step only evaluates.

    Args:
        algorithm: a name in PENALTIES.
        images, digits: the result of `load_mnist`, on the CPU.
        label_flip: probability of a wrong label, in training and test environments.
        grayscale: whether to hide the color from the model.
        steps: number of steps, including the last one.
        seed: decides environments and initial weights.
        track: whether to measure the loss landscape every TRACK_EVERY steps and at the last one.

    Yields:
        The metrics of each step before its update, as 0-dim tensors: loss, nll, penalty and, if tracked, the distances
        of `landscape_metrics`. The last step adds the accuracies and, if tracked, the inconsistency scores.
    """
    seed_everything(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    environments = [environment.to(device) for environment in make_environments(images, digits, label_flip)]
    model = ProofMLP(grayscale).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for step in range(steps):
        metrics, loss = compute_loss(algorithm, model, environments[: len(COLOR_FLIPS)], step)
        is_last = step == steps - 1
        if track and (step % TRACK_EVERY == 0 or is_last):
            metrics |= landscape_metrics(model, environments, with_scores=is_last)
        if is_last:
            yield metrics | accuracies(model, environments)
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield metrics


def compute_loss(
    algorithm: str, model: ProofMLP, training: Sequence[ProofEnvironment], step: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the metrics of a step, and its loss with gradients."""
    outputs: Outputs = []
    for environment in training:
        z = model.features(environment.images)
        outputs.append((z, model.classifier(z), environment.labels))
    nll = risks(outputs).mean()
    penalty = PENALTIES[algorithm](model.classifier, outputs)
    weight = PENALTY_WEIGHT if step >= ANNEAL_STEP else 1.0
    if algorithm == "ERM":
        weight = 0.0
    loss = nll + L2_WEIGHT * torch.stack([(w**2).sum() for w in model.parameters()]).sum() + weight * penalty
    loss = loss / max(weight, 1.0)  # keeps the scale of gradients and Adam's moments
    return {"loss": loss.detach(), "nll": nll.detach(), "penalty": penalty.detach()}, loss


@torch.no_grad()
def accuracies(model: ProofMLP, environments: Sequence[ProofEnvironment]) -> dict[str, torch.Tensor]:
    """Return the accuracies on the training environments together, the test environment, and its gray version."""
    correct = [((model.classifier(model.features(e.images)) > 0) == (e.labels > 0)).float() for e in environments]
    training, (test, gray) = correct[: len(COLOR_FLIPS)], correct[len(COLOR_FLIPS) :]
    return {"train_acc": torch.cat(training).mean(), "test_acc": test.mean(), "gray_acc": gray.mean()}


def landscape_metrics(
    model: ProofMLP, environments: Sequence[ProofEnvironment], with_scores: bool
) -> dict[str, torch.Tensor]:
    """Return the distances between the training environments' risks, gradients and Hessians, on all images.

    Args:
        model: the model; only its classifier's weights are considered.
        environments: the training environments, then the test environment.
        with_scores: whether to add the inconsistency scores, without and with the test environment.
    """
    n = len(COLOR_FLIPS)
    with torch.no_grad():
        domains = [
            Domain(model.features(e.images).double(), e.labels[:, 0].long())
            for e in environments[: n + 1 if with_scores else n]
        ]
    classifier = copy.deepcopy(model.classifier).double()
    statistics = [measure_domain(classifier, domain) for domain in domains]
    metrics = recorded_distances(statistics[:n])
    if with_scores:
        hessians = [full_hessian(classifier, domain) for domain in domains]
        diagonals = [s.hessian_diagonal for s in statistics]
        scores = inconsistency_scores([s.risk for s in statistics], hessians, diagonals, n, EPSILON)
        for (domain_set, kind), score in scores.items():
            metrics[f"inconsistency_{domain_set}_{kind}"] = score.score
            metrics[f"damping_{domain_set}_{kind}"] = score.damping
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}
