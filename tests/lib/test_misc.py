"""The helpers of `domainbed.lib` compute what their formulas say, and save their state."""

import math
import sys
from pathlib import Path
from statistics import fmean

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from domainbed.algorithms.eqrm import EQRM as BuiltinEQRM
from domainbed.algorithms.eqrm import kernel_quantile
from domainbed.hparams_registry import default_hparams
from domainbed.lib import misc
from domainbed.lib.fast_data_loader import FastDataLoader, InfiniteDataLoader
from domainbed.lib.losses import SupConLossLambda
from domainbed.lib.wide_resnet import Wide_ResNet
from tests.lib.their_algorithms import EQRM


def batches(*sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.full((n, 1), float(i)), torch.full((n,), i)) for i, n in enumerate(sizes)]


def test_pairs_form_a_cycle_over_all_domains_and_have_equal_lengths():
    for seed in range(5):
        torch.manual_seed(seed)
        pairs = misc.random_pairs_of_minibatches(batches(4, 7, 5))
        successors = {int(yi[0]): int(yj[0]) for (_, yi), (_, yj) in pairs}
        assert sorted(successors) == sorted(successors.values()) == [0, 1, 2]
        assert all(i != j for i, j in successors.items())
        assert all(len(xi) == len(yi) == len(xj) == len(yj) for (xi, yi), (xj, yj) in pairs)
        torch.manual_seed(seed)
        order = torch.randperm(3).tolist()  # the draw of the published code
        assert list(successors) == order


@pytest.mark.parametrize(("n_test", "n_pairs"), [(1, 3), (2, 2), (3, 1)])
def test_meta_test_domains_are_not_trained_on(n_test: int, n_pairs: int):
    pairs = misc.split_meta_train_test(batches(3, 3, 3, 3), n_test)
    train, test = ({int(pair[side][1][0]) for pair in pairs} for side in (0, 1))
    assert len(pairs) == len(train) == n_pairs
    assert not train & test
    assert len(test) == min(n_test, n_pairs)


def test_param_dict():
    a, b = misc.ParamDict(w=torch.tensor([1.0, 2.0])), {"w": torch.tensor([3.0, 6.0])}
    c = misc.ParamDict(a)
    c += 0.5 * (misc.ParamDict(b) - a)
    assert c["w"].tolist() == [2, 4]
    assert a["w"].tolist() == [1, 2]
    assert ((-a) / 2)["w"].tolist() == [-0.5, -1]
    with pytest.raises(TypeError):
        a + "b"


def test_moving_average():
    average = misc.MovingAverage(0.9)
    data = torch.tensor([[1.0, 2.0]], requires_grad=True)
    average.update({"a": data})
    assert average.state_dict()["data"]["a"].requires_grad is False
    expected = (0.9 * 0.1 * data + 0.1 * 2 * data) / 0.1
    restored = misc.MovingAverage(0.9)
    restored.load_state_dict(average.state_dict())
    for instance in (average, restored):
        torch.testing.assert_close(instance.update({"a": 2 * data})["a"], expected)


def test_average_of_weights():
    network = nn.Linear(1, 1)
    average = misc.ErmPlusPlusMovingAvg(network)
    average.sma_start_iter = 3
    for value in (10.0, 20.0, 1.0, 3.0):
        nn.init.constant_(network.weight, value)
        average.update_sma()
    assert average.network_sma.weight.item() == pytest.approx((20 + 1 + 3) / 3)
    restored = misc.ErmPlusPlusMovingAvg(nn.Linear(1, 1))
    restored.load_state_dict(average.state_dict())
    assert (restored.global_iter, restored.sma_count) == (4, 2)
    assert torch.equal(restored.network_sma.weight, average.network_sma.weight)


def test_projection_and_distances():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    squared = sum((p - q).square().sum() for p, q in zip(a.parameters(), b.parameters(), strict=True))
    torch.testing.assert_close(misc.distance(a, b), squared.sqrt())
    assert misc.proj(0.01, a, b) is a
    torch.testing.assert_close(misc.distance(a, b), torch.tensor(0.01))
    before = a.weight.clone()
    assert torch.equal(misc.proj(0.02, a, b).weight, before)
    first, second = (
        {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([0.0])},
        {"y": torch.tensor([3.0]), "x": torch.zeros(2)},
    )
    assert misc.l2_between_dicts(first, second).item() == pytest.approx((1 + 4 + 9) / 3)


def test_quantile_equals_the_builtin_eqrm():
    """Values and gradients of the loss, and a restored distribution."""
    hparams = {**default_hparams("EQRM", "ColoredDigits"), "eqrm_burnin_iters": 0}
    theirs, ours = EQRM((2, 8, 8), 2, 3, hparams), BuiltinEQRM((2, 8, 8), 2, 3, hparams)
    risks = torch.tensor([0.3, 0.9, 0.5], dtype=torch.float64, requires_grad=True)
    theirs.dist.estimate_parameters(risks)
    value = theirs.dist.icdf(theirs.alpha)
    spread = 1.06 * risks.std() * 3 ** (-1 / 5)
    ends = torch.distributions.Normal(torch.stack([risks.min(), risks.max()]), spread).icdf(theirs.alpha)
    assert ends[0] < value < ends[1]
    level = torch.distributions.Normal(risks, spread).cdf(value).mean()
    assert level.item() == pytest.approx(0.75, abs=1e-8)
    w = ((value - ends[0]) / (ends[1] - ends[0])).detach()
    (gradient,) = torch.autograd.grad(value, risks, retain_graph=True)
    (expected,) = torch.autograd.grad((1 - w) * ends[0] + w * ends[1], risks)
    torch.testing.assert_close(gradient, expected)
    restored = misc.Nonparametric()
    restored.load_state_dict(theirs.dist.state_dict())
    assert restored.icdf(theirs.alpha).item() == value.item()
    assert ours.hparams["eqrm_quantile"] == theirs.alpha
    same_risks = risks.detach().clone().requires_grad_()
    quantile = kernel_quantile(same_risks, theirs.alpha)
    assert quantile.item() == pytest.approx(value.item(), abs=1e-8)
    torch.testing.assert_close(torch.autograd.grad(quantile, same_risks)[0], gradient)


def test_kernel_density_integrates_to_one():
    kde = misc.KernelDensityEstimator(torch.tensor([0.0, 1.0, 3.0]))
    grid = torch.linspace(-20, 24, 20_001)
    assert torch.trapezoid(kde(grid), grid).item() == pytest.approx(1, abs=1e-4)
    below = grid[grid <= 1.5]
    assert kde.cdf(torch.tensor(1.5)).item() == pytest.approx(float(torch.trapezoid(kde(below), below)), abs=1e-2)
    assert kde.sample(7).shape == (7,)
    x = torch.tensor([0.0, 1.0, 2.0, 10.0])
    assert misc.estimate_bandwidth(x).item() == pytest.approx(0.9 * (4.0 - 0.75) / 1.34 * 4**-0.2)
    with pytest.raises(ValueError, match="unknown method 'scott'"):
        misc.estimate_bandwidth(x, "scott")


@pytest.mark.parametrize("lamda", [0.0, 0.3, 0.5, 1.0])
def test_contrastive_loss_weights_pairs_by_domain(lamda: float):
    """`lamda` within a domain, 1 - `lamda` between two (ADRMX), pair by pair."""
    torch.manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1)
    labels, domains = [0, 0, 1, 1, 0, 2], [0, 1, 0, 1, 0, 1]
    total, n = 0.0, 0
    for i in range(6):
        pairs = {
            j: (lamda if domains[i] == domains[j] else 1 - lamda) * math.exp(float(z[i] @ z[j]) / 0.07)
            for j in range(6)
            if j != i
        }
        logs = [math.log(p / (1e-5 + sum(pairs.values())) + 1e-5) for j, p in pairs.items() if labels[j] == labels[i]]
        if logs:
            total, n = total - fmean(logs), n + 1
    loss = SupConLossLambda(lamda)(z, torch.tensor(labels), torch.tensor(domains))
    assert loss.item() == pytest.approx(total / (n + 1), abs=1e-12)


def test_lars():
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([1.0]))
    optimizer = misc.LARS([weight, bias], lr=0.1, weight_decay=0.5)
    weight.grad, bias.grad = torch.tensor([[1.0, 0.0]]), torch.tensor([2.0])
    optimizer.step()
    update = torch.tensor([[2.5, 2.0]])
    torch.testing.assert_close(weight.data, torch.tensor([[3.0, 4.0]]) - 0.1 * 0.001 * 5 / update.norm() * update)
    assert bias.item() == pytest.approx(1 - 0.1 * 2)


def test_balanced_weights_split_and_accuracy():
    dataset = TensorDataset(torch.arange(6.0)[:, None], torch.tensor([0, 0, 0, 0, 1, 1]))
    weights = misc.make_weights_for_balanced_classes(dataset)
    assert weights.tolist() == pytest.approx([1 / 8] * 4 + [1 / 4] * 2)
    first, second = misc.split_dataset(dataset, 2, seed=3)
    assert sorted(float(x) for part in (first, second) for x, _ in part) == list(range(6))
    assert (len(first), len(second)) == (2, 4)

    class Zero(nn.Module):
        def predict(self, x):
            return torch.tensor([[1.0, 0.0]]).expand(len(x), -1)

    network = Zero().eval()
    loader = [(x[None], y[None]) for x, y in dataset]
    assert misc.accuracy(network, loader, None, "cpu") == pytest.approx(4 / 6)
    assert misc.accuracy(network, loader, weights, "cpu") == pytest.approx(0.5)
    assert network.training


def test_printing(capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", misc.Tee(str(tmp_path / "out.txt"), "w"))
    misc.print_row(["a", 0.5, 3], colwidth=5)
    misc.print_row(["a", "b"], colwidth=2, latex=True)
    misc.print_separator()
    printed = "a      0.500  3     \na  & b  \\\\\n" + "=" * 80 + "\n"
    assert (tmp_path / "out.txt").read_text() == capsys.readouterr().out == printed


def test_loaders():
    dataset = TensorDataset(torch.arange(10))
    infinite = iter(InfiniteDataLoader(dataset, torch.tensor([1.0] + [0.0] * 9), batch_size=4, num_workers=0))
    assert [next(infinite)[0].tolist() for _ in range(5)] == [[0] * 4] * 5
    fast = FastDataLoader(dataset, batch_size=4, num_workers=0)
    assert len(fast) == 3
    for _ in range(2):
        assert sorted(int(i) for (part,) in fast for i in part) == list(range(10))


def test_wide_resnet():
    network = Wide_ResNet((3, 32, 32), 16, 2, 0.0)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, network.n_outputs) == (2, 128)
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in network.modules()) == 13  # and shortcuts
    with pytest.raises(ValueError, match="must be 6 n"):
        Wide_ResNet((3, 32, 32), 15, 2, 0.0)
    assert not network.conv1.bias.any()
