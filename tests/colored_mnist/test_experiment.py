"""The experiment compared with its published description, in float64 and with per-sample gradients."""

import pytest
import torch
from torch.nn import functional as F

from domainbed.colored_mnist import PENALTIES, STEPS, experiment
from domainbed.colored_mnist.experiment import (
    ANNEAL_STEP,
    L2_WEIGHT,
    LEARNING_RATE,
    PENALTY_WEIGHT,
    ProofEnvironment,
    ProofMLP,
    make_environments,
    train,
)
from domainbed.landscape import PREFIX, QUANTITIES
from domainbed.landscape.inconsistency import inconsistency_scores
from tests.algorithms.formulas import Adam

N_TRAIN, N_TEST = 40, 16


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch):
    """Return a few random images and digits, in float64."""
    monkeypatch.setattr(experiment, "N_TRAIN", N_TRAIN)
    monkeypatch.setattr(experiment, "N_TEST", N_TEST)
    torch.manual_seed(0)
    n = N_TRAIN + N_TEST
    images, digits = torch.rand(n, 14, 14, dtype=torch.float64), torch.randint(10, (n,))
    torch.set_default_dtype(torch.float64)
    yield images, digits
    torch.set_default_dtype(torch.float32)


def risk(logits, y):
    """Return the mean of -log σ(logit) for y = 1 and -log σ(-logit) for y = 0."""
    return -torch.where(y > 0, F.logsigmoid(logits), F.logsigmoid(-logits)).mean()


def gradients(z, logits, y):
    """Return each sample's gradient with respect to the classifier's weights and bias, [n, coordinates]."""
    residual = logits.sigmoid() - y
    return torch.stack([torch.cat([r * z_i, r]) for r, z_i in zip(residual, z, strict=True)])


def expected_penalty(algorithm, domains):
    if algorithm == "ERM":
        return torch.zeros(())
    if algorithm == "IRM":  # d/ds risk(s · logits) at s = 1, squared, averaged over domains
        return sum(((logits.sigmoid() - y) * logits).mean() ** 2 for _, logits, y in domains) / 2
    if algorithm == "VREx":
        first, second = (risk(logits, y) for _, logits, y in domains)
        return (first - second) ** 2
    statistics = []
    for domain in domains:
        g = gradients(*domain)
        centered = g - g.mean(0)
        statistics.append(
            {
                "Fishr": lambda c=centered: c.square().mean(0),
                "Fishr_uncentered": lambda g=g: g.square().mean(0),
                "Fishr_covariance": lambda c=centered: c.T @ c / len(c) / c.shape[1],
            }[algorithm]()
        )
    mean = (statistics[0] + statistics[1]) / 2
    return sum((statistic - mean).square().sum() for statistic in statistics)


@pytest.mark.parametrize("grayscale", [False, True])
@pytest.mark.parametrize("algorithm", list(PENALTIES))
def test_training_equals_description(algorithm: str, grayscale: bool, small, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(experiment, "ANNEAL_STEP", 3)
    # The same random stream gives the same environments and weights.
    torch.manual_seed(5)
    monkeypatch.setattr(experiment, "seed_everything", lambda seed: torch.manual_seed(seed))
    first, second, test, gray = make_environments(*small, label_flip=0.25)
    model = ProofMLP(grayscale)
    weights = list(model.parameters())
    adam = Adam(weights, LEARNING_RATE, 0.0)

    def forward(images):
        x = images.sum(1) if grayscale else images
        z = F.relu(x.flatten(1) @ weights[0].T + weights[1])
        z = F.relu(z @ weights[2].T + weights[3])
        return z, z @ weights[4].T + weights[5]

    steps = list(train(algorithm, *small, grayscale=grayscale, steps=7, seed=5))
    assert len(steps) == 7
    for step, metrics in enumerate(steps):
        domains = [(*forward(e.images), e.labels) for e in (first, second)]
        nll = (risk(*domains[0][1:]) + risk(*domains[1][1:])) / 2
        penalty = expected_penalty(algorithm, domains)
        weight = 0.0 if algorithm == "ERM" else PENALTY_WEIGHT if step >= 3 else 1.0
        loss = nll + L2_WEIGHT * sum(w.norm() ** 2 for w in weights) + weight * penalty
        loss = loss / weight if weight > 1 else loss
        expected = {"loss": loss, "nll": nll, "penalty": penalty}
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name], value.detach(), rtol=1e-9, atol=1e-13)
        if step < 6:
            adam.step(loss)

    def accuracy(*environments):
        correct = [(forward(e.images)[1] > 0) == (e.labels == 1) for e in environments]
        return torch.cat(correct).double().mean()

    assert steps[-1]["train_acc"] == pytest.approx(accuracy(first, second).item())
    assert steps[-1]["test_acc"] == pytest.approx(accuracy(test).item())
    assert steps[-1]["gray_acc"] == pytest.approx(accuracy(gray).item())


def test_constants_are_the_published_ones():
    assert (STEPS, ANNEAL_STEP, LEARNING_RATE, L2_WEIGHT) == (501, 190, 0.0004898536566546834, 0.00110794568)
    assert PENALTY_WEIGHT == 91257.18613115903
    model = ProofMLP(grayscale=False)
    assert [tuple(w.shape) for w in model.parameters()] == [(390, 392), (390,), (390, 390), (390,), (1, 390), (1,)]
    for layer in (model.hidden1, model.hidden2, model.classifier):
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert bound * 0.9 < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


@pytest.mark.parametrize("label_flip", [0.0, 0.25])
def test_environments(label_flip: float):
    """Labels and colors are flipped at the given rates; the color's channel holds the image, the other one zeros."""
    torch.manual_seed(0)
    digits = torch.randint(10, (60_000,))
    images = torch.arange(1.0, 60_001)[:, None, None].expand(-1, 2, 2)  # each image holds its own number
    environments = make_environments(images, digits, label_flip)
    assert [len(e.labels) for e in environments] == [25_000, 25_000, 10_000, 10_000]
    numbers = []
    for environment, color_flip in zip(environments, (0.2, 0.1, 0.9, None), strict=True):
        number = environment.images.amax((1, 2, 3)).long() - 1
        labels = environment.labels[:, 0]
        flipped = (labels != (digits[number] < 5)).float().mean()
        assert flipped == pytest.approx(label_flip, abs=0.02)
        channels = environment.images.sum((2, 3)) > 0
        if color_flip is None:
            assert channels.all()
            continue
        assert (channels.sum(1) == 1).all()
        assert (channels[:, 1] != labels).float().mean() == pytest.approx(color_flip, abs=0.02)
        numbers.append(number)
    training = torch.cat(numbers[:2]).sort().values
    assert torch.equal(training, torch.arange(50_000))
    assert torch.equal(numbers[2], torch.arange(50_000, 60_000))
    assert not torch.equal(numbers[0], numbers[0].sort().values)  # shuffled
    assert torch.equal(environments[2].labels, environments[3].labels)


def test_seed_determines_training(small):
    def train_seed(seed: int) -> dict:
        return list(train("Fishr", *small, steps=3, seed=seed))[-1]

    assert train_seed(1) == train_seed(1)
    assert train_seed(1) != train_seed(2)


def test_landscape_is_tracked_during_training_and_scored_at_the_end(small, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(experiment, "TRACK_EVERY", 2)
    untracked = list(train("Fishr", *small, steps=4, seed=1))
    tracked = list(train("Fishr", *small, steps=4, seed=1, track=True))
    names = {PREFIX + name for name in QUANTITIES}
    scores = {
        f"{quantity}_{domain_set}_{kind}"
        for quantity in ("inconsistency", "damping")
        for domain_set in ("training", "all")
        for kind in ("exact", "diagonal")
    }
    assert [set(b) - set(a) for a, b in zip(untracked, tracked, strict=True)] == [names, set(), names, names | scores]
    for a, b in zip(untracked, tracked, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_landscape_equals_per_sample_computation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(experiment, "EPSILON", 0.5)
    torch.manual_seed(2)
    environments = [
        ProofEnvironment(torch.rand(n, 2, 14, 14), torch.randint(2, (n, 1)).float()) for n in (30, 40, 50, 60)
    ]
    model = ProofMLP(grayscale=False)
    found = experiment.landscape_metrics(model, environments, with_scores=True)
    weights = torch.cat([model.classifier.weight[0], model.classifier.bias]).double().detach()
    expected = []
    for e in environments[:3]:
        with torch.no_grad():
            z = model.features(e.images).double()
        a = torch.cat([z, torch.ones(len(z), 1)], 1)
        p, y = (a @ weights).sigmoid(), e.labels[:, 0].double()
        g = (p - y)[:, None] * a
        risk = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
        hessian = (a * (p * (1 - p))[:, None]).T @ a / len(a)
        expected.append((risk, g.mean(0), g.var(0, correction=0), hessian))
    first, second, _ = expected
    for name, u, v in zip(QUANTITIES, first, second, strict=True):
        u, v = (x.diagonal() if name == "hessian_diagonal" else x for x in (u, v))
        assert found[PREFIX + name].item() == pytest.approx((u - v).square().sum().item(), rel=1e-9)
    risks, *_, hessians = zip(*expected, strict=True)
    scores = inconsistency_scores([r.item() for r in risks], hessians, [h.diagonal() for h in hessians], 2, 0.5)
    for (domain_set, kind), score in scores.items():
        assert found[f"inconsistency_{domain_set}_{kind}"].item() == pytest.approx(score.score, rel=1e-4)
        assert found[f"damping_{domain_set}_{kind}"].item() == pytest.approx(score.damping, rel=1e-4)
