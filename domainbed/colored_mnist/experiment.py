"""The Colored MNIST proof of concept: the setting of IRM (Arjovsky et al., 2019), on which Fishr's Table 2 stands.

Digits below 5 against the others, on images of 14x14 pixels in one of two colours. In the two training environments the
colour tells the (noisy) label better than the shape does; in the test environment it tells the opposite. The whole
training set is one batch. The hyperparameters are those that IRM's authors tuned, for every algorithm.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.fishr import STATISTICS, squared_distances
from domainbed.algorithms.irm import scale_derivative
from domainbed.algorithms.vrex import variance_of_risks
from domainbed.datasets.mnist import MNIST, warn_if_incomplete
from domainbed.errors import UsageError
from domainbed.gradients import gradient_factors
from domainbed.landscape.distances import recorded_distances
from domainbed.landscape.domain import Domain, statistics
from domainbed.landscape.hessian import full_hessian
from domainbed.landscape.inconsistency import inconsistencies
from domainbed.seeding import seed_everything

STEPS = 501
LR = 0.0004898536566546834
L2 = 0.00110794568
PENALTY_WEIGHT = 91257.18613115903
ANNEAL_STEP = 190  # until which the penalty's weight is 1
N_TRAIN, N_TEST = 50_000, 10_000
COLOR_FLIPS = (0.2, 0.1)  # of the training environments
TEST_COLOR_FLIP = 0.9
WIDTH = 390
TRACK_EVERY = 10  # steps between two looks at the landscape
EPSILON = 0.1  # of its inconsistency score

# Of each training environment its features [n, WIDTH], logits [n, 1] and labels [n, 1] -> the penalty.
Outputs = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
Penalty = Callable[[nn.Linear, Outputs], torch.Tensor]


@dataclass(frozen=True)
class ProofEnvironment:
    """images [n, 2, 14, 14] in [0, 1], labels [n, 1] 0 or 1, of the same floating-point type."""

    images: torch.Tensor
    labels: torch.Tensor


class MLP(nn.Module):
    """Two hidden layers and, kept apart from these, the classifier: one logit. A gray model sums the colours."""

    def __init__(self, grayscale: bool) -> None:
        super().__init__()
        self.grayscale = grayscale
        self.hidden1 = nn.Linear((1 if grayscale else 2) * 14 * 14, WIDTH)
        self.hidden2 = nn.Linear(WIDTH, WIDTH)
        self.classifier = nn.Linear(WIDTH, 1)
        for layer in (self.hidden1, self.hidden2, self.classifier):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """[n, 2, 14, 14] -> [n, WIDTH].

        Matrices whose sides are multiples of 8 multiply faster, so two units of zeros are added on the way and taken
        off again: a step takes 1.0 s in place of 1.4 (MKL, one core of an AMD EPYC).
        """
        x = images.sum(1).flatten(1) if self.grayscale else images.flatten(1)
        add = -WIDTH % 8
        x = F.linear(x, F.pad(self.hidden1.weight, (0, 0, 0, add)), F.pad(self.hidden1.bias, (0, add))).relu_()
        weight = F.pad(self.hidden2.weight, (0, add, 0, add))
        return F.linear(x, weight, F.pad(self.hidden2.bias, (0, add))).relu_()[:, :WIDTH]


def summed_binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")


def no_penalty(classifier: nn.Linear, outputs: Outputs) -> torch.Tensor:
    return outputs[0][0].new_zeros(())


def irm_penalty(classifier: nn.Linear, outputs: Outputs) -> torch.Tensor:
    """The squared derivative on the whole batch: of so many samples it needs no unbiased estimate."""
    risk = F.binary_cross_entropy_with_logits
    return torch.stack([scale_derivative(logits, y, risk) ** 2 for _, logits, y in outputs]).mean()


def vrex_penalty(classifier: nn.Linear, outputs: Outputs) -> torch.Tensor:
    """The squared difference of the two risks, which is four times their variance."""
    return 4 * variance_of_risks(
        torch.stack([F.binary_cross_entropy_with_logits(logits, y) for _, logits, y in outputs])
    )


def fishr_penalty(variant: str) -> Penalty:
    """Fishr's, summed over domains and coordinates.

    The covariances are divided by their side, as in the experiments behind the paper's Table 6: of their squared
    differences this takes the mean over entries.
    """

    def penalty(classifier: nn.Linear, outputs: Outputs) -> torch.Tensor:
        factors = [gradient_factors(classifier, z, y, summed_binary_cross_entropy)[1] for z, _, y in outputs]
        distances = squared_distances(torch.stack([STATISTICS[variant](f) for f in factors]))
        return distances.mean((1, 2)).sum() if variant == "covariance" else distances.sum()

    return penalty


PENALTIES: dict[str, Penalty] = {
    "ERM": no_penalty,
    "IRM": irm_penalty,
    "VREx": vrex_penalty,
    "Fishr": fishr_penalty("variance"),
    "Fishr_uncentered": fishr_penalty("uncentered"),
    "Fishr_covariance": fishr_penalty("covariance"),
}


def load_mnist(data_dir: str) -> tuple[torch.Tensor, torch.Tensor]:
    """MNIST's 60,000 training images, every second pixel in [0, 1] [n, 14, 14], and digits [n]: all that is used.

    Raises:
        UsageError: MNIST is not there and can't be fetched, or is not complete.
    """
    MNIST.prepare(data_dir)
    images, digits = MNIST.load_images(data_dir)
    warn_if_incomplete(data_dir, len(images))
    n = N_TRAIN + N_TEST
    if len(images) < n:
        raise UsageError(f"--data_dir {data_dir} holds {len(images)} images of MNIST; {n} are needed")
    return torch.from_numpy(images[:n, ::2, ::2].astype(np.float32) / 255), torch.from_numpy(digits[:n])


def make_environments(images: torch.Tensor, digits: torch.Tensor, label_flip: float) -> list[ProofEnvironment]:
    """The two training environments, the test environment, and this one in gray (with both channels)."""
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
    """Labels [digit < 5], flipped at random; colours the labels, flipped at random; the other channel is zero."""
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
    """One restart: yields each step's loss, nll and penalty, 0-dim tensors, as they were before its update.

    The last step yields the accuracies train_acc, test_acc and gray_acc as well. They too are, as in IRM's experiment,
    those before the update, which is therefore left out.

    Args:
        algorithm: a name in PENALTIES.
        images, digits: from `load_mnist`, on the CPU.
        label_flip: the part of the labels that are wrong, in training and in test.
        grayscale: let the model see no colour.
        seed: decides environments and initial weights.
        track: every TRACK_EVERY steps, and at the last, yield `landscape`'s distances, then also its scores.
    """
    seed_everything(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    environments = [
        ProofEnvironment(e.images.to(device), e.labels.to(device))
        for e in make_environments(images, digits, label_flip)
    ]
    model = MLP(grayscale).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    training = environments[: len(COLOR_FLIPS)]
    for step in range(steps):
        outputs: Outputs = []
        for environment in training:
            z = model.features(environment.images)
            outputs.append((z, model.classifier(z), environment.labels))
        nll = torch.stack([F.binary_cross_entropy_with_logits(logits, y) for _, logits, y in outputs]).mean()
        penalty = PENALTIES[algorithm](model.classifier, outputs)
        weight = PENALTY_WEIGHT if step >= ANNEAL_STEP else 1.0
        if algorithm == "ERM":
            weight = 0.0
        loss = nll + L2 * torch.stack([(w**2).sum() for w in model.parameters()]).sum() + weight * penalty
        loss = loss / max(weight, 1.0)  # keeps the gradients, and so Adam's steps, as large as before
        figures = {"loss": loss.detach(), "nll": nll.detach(), "penalty": penalty.detach()}
        is_last = step == steps - 1
        if track and (step % TRACK_EVERY == 0 or is_last):
            figures |= landscape(model, environments, is_last)
        if is_last:
            yield {**figures, **accuracies(model, environments)}
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield figures


@torch.no_grad()
def accuracies(model: MLP, environments: list[ProofEnvironment]) -> dict[str, torch.Tensor]:
    """On the training environments together, the test environment and its gray twin."""
    correct = [((model.classifier(model.features(e.images)) > 0) == (e.labels > 0)).float() for e in environments]
    training, (test, gray) = correct[: len(COLOR_FLIPS)], correct[len(COLOR_FLIPS) :]
    return {"train_acc": torch.cat(training).mean(), "test_acc": test.mean(), "gray_acc": gray.mean()}


def landscape(model: MLP, environments: list[ProofEnvironment], with_scores: bool) -> dict[str, torch.Tensor]:
    """How far apart the classifier's risks, gradients and Hessians are in the two training environments, on all images.

    Args:
        with_scores: the inconsistency scores as well, between these and with the test environment.
    """
    n = len(COLOR_FLIPS)
    looked_at = environments[: n + 1 if with_scores else n]
    with torch.no_grad():
        domains = [Domain(model.features(e.images).double(), e.labels[:, 0].long()) for e in looked_at]
    classifier = copy.deepcopy(model.classifier).double()
    found = [statistics(classifier, domain) for domain in domains]
    figures = recorded_distances(found[:n])
    if with_scores:
        hessians = [full_hessian(classifier, domain) for domain in domains]
        diagonals = [s.hessian_diagonal for s in found]
        for (of, way), score in inconsistencies([s.risk for s in found], hessians, diagonals, n, EPSILON).items():
            figures |= {f"inconsistency_{of}_{way}": score.score, f"damping_{of}_{way}": score.damping}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}
