"""Tests of MLDG, ARM and MTL."""

import pytest
import torch
from scipy.stats import kstest

from domainbed.hparams_registry import default_hparams
from tests.algorithms import checks, formulas_meta
from tests.algorithms.test_all import batches

HPARAMS = {"MLDG": {"n_meta_test": 1, "mldg_beta": 0.7}, "MTL": {"mtl_ema": 0.9}}
WEIGHT_DECAY = {"weight_decay": 0.1, "lr": 0.01}


@pytest.mark.parametrize(
    ("name", "changes", "sizes"),
    [
        *((name, {}, (6, 6, 6)) for name in HPARAMS),
        *((name, WEIGHT_DECAY, (4, 7, 5)) for name in HPARAMS),
        *((name, {"nonlinear_classifier": True}, (6, 6)) for name in HPARAMS),
        ("MLDG", {"n_meta_test": 2}, (6, 6, 6)),
        ("MLDG", {"n_meta_test": 2}, (6, 6, 6, 6, 6)),
        ("MTL", {"mtl_noise": False}, (6, 6, 6)),
        ("MTL", {"mtl_noise": False, "mtl_ema": 1.0}, (6,)),
        ("MTL", {}, (6,)),
    ],
    ids=str,
)
def test_twenty_updates_equal_the_formula_in_float64(name: str, changes: dict, sizes: tuple[int, ...]):
    checks.assert_equals_formula(name, getattr(formulas_meta, name), {**HPARAMS[name], **changes}, sizes)


# MLDG


def test_pairs_of_mldg(monkeypatch: pytest.MonkeyPatch):
    """The first domains of the permutation are meta-train domains, paired with the last ones in turn."""
    algorithm = checks.make("MLDG", {"n_meta_test": 2}, 5)
    order = torch.tensor([3, 0, 4, 2, 1])
    monkeypatch.setattr("domainbed.algorithms.mldg.random_permutation", lambda n, device: order)
    seen = []
    algorithm.featurizer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0, 0, 0, 0].item()))
    algorithm.update([(torch.full((6, 2, 8, 8), float(e)), torch.zeros(6, dtype=torch.long)) for e in range(5)])
    assert seen == [3, 2, 0, 1, 4, 2]


@pytest.mark.parametrize(("n", "n_meta_test"), [(2, 2), (1, 1), (1, 2)])
def test_mldg_without_pairs_learns_nothing(n: int, n_meta_test: int):
    algorithm = checks.make("MLDG", {"n_meta_test": n_meta_test}, n)
    before = [p.detach().clone() for p in algorithm.parameters()]
    for domains in batches(5, (6,) * n):
        assert algorithm.update(domains)["loss"] == 0
    assert all(torch.equal(p, old) for p, old in zip(algorithm.parameters(), before, strict=True))
    assert "nothing is learned" in algorithm.caveat


def test_mldg_of_two_domains_learns_with_limited_meta_test():
    algorithm = checks.make("MLDG", {"limit_meta_test": True}, 2)
    assert (algorithm.n_meta_test, algorithm.caveat) == (1, "")
    limited = [algorithm, checks.make("MLDG", {"n_meta_test": 1}, 2)]
    limited[1].load_state_dict(algorithm.state_dict())
    for one in limited:
        torch.manual_seed(0)
        for domains in batches(5, (6, 6)):
            assert one.update(domains)["loss"] > 0
    assert all(torch.equal(p, q) for p, q in zip(*(one.parameters() for one in limited), strict=True))
    assert checks.make("MLDG", {"limit_meta_test": True}, 3).n_meta_test == 2


# ARM


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, (6, 6, 6)),
        (WEIGHT_DECAY, (4, 7, 5)),
        ({"nonlinear_classifier": True}, (6,)),
        ({"train_context": True}, (6, 6)),
    ],
    ids=str,
)
def test_twenty_updates_of_arm_equal_the_formula_in_float64(changes: dict, sizes: tuple[int, ...]):
    """With batch statistics in training, and running ones in predictions, of whole and of divided batches."""
    torch.manual_seed(0)
    algorithm = checks.make("ARM", {"batch_size": 6, **changes}).double()
    formula = formulas_meta.ARM(algorithm, algorithm.hparams)
    context, network = (
        [p.clone() for p in module.parameters()] for module in (algorithm.context_net, algorithm.network)
    )
    for t, domains in enumerate(batches(20, sizes, torch.float64)):
        algorithm.update(domains)
        formula.update(domains, t)
    for name in ("featurizer", "classifier", "context_net"):
        checks.assert_same_weights(getattr(algorithm, name), getattr(formula, name))
    assert not any(
        torch.allclose(p, old, atol=1e-4) for p, old in zip(algorithm.network.parameters(), network, strict=True)
    )
    is_trained = bool(changes.get("train_context"))
    assert is_trained != all(map(torch.equal, algorithm.context_net.parameters(), context))
    algorithm.eval()
    for n in (6, 12, 7, 1):
        x = torch.rand(n, 2, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(algorithm.predict(x), formula.logits(x), rtol=0, atol=1e-9)


def test_predictions_of_arm_depend_on_the_group():
    """Groups are consecutive images; all are one group if batch_size does not divide their number."""
    algorithm = checks.make("ARM", {"batch_size": 4}).eval()
    x = torch.rand(8, 2, 8, 8)
    whole = algorithm.predict(x)
    torch.testing.assert_close(whole, torch.cat([algorithm.predict(x[:4]), algorithm.predict(x[4:])]))
    assert not torch.allclose(whole[:7], algorithm.predict(x[:7]), atol=1e-6)


def test_arm_is_evaluated_on_64_images():
    algorithm = checks.make("ARM", {})
    assert algorithm.EVAL_BATCH_SIZE == 64
    assert algorithm.support_size == algorithm.hparams["batch_size"]
    assert default_hparams("ARM", "PACS")["batch_size"] == default_hparams("ARM", "DomainNet")["batch_size"] == 8


def test_caveat_of_arm():
    assert "context network is not trained" in checks.make("ARM", {}).caveat
    assert checks.make("ARM", {"train_context": True}).caveat == ""


# MTL


def inputs_of_the_head(algorithm, run) -> list[torch.Tensor]:
    """Return the inputs of the head while `run` is called."""
    seen: list[torch.Tensor] = []
    handle = algorithm.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    run()
    handle.remove()
    return seen


def test_noise_of_mtl_is_gaussian_and_new_for_each_sample():
    algorithm = checks.make("MTL", {})
    x = torch.rand(64, 2, 8, 8)
    torch.manual_seed(0)
    seen = [
        *inputs_of_the_head(algorithm, lambda: algorithm.update(batches(1, (64, 64, 64))[0])),
        *inputs_of_the_head(algorithm, lambda: algorithm.predict(x)),
    ]
    noise = torch.cat([rows[:, 32:] for rows in seen]).flatten()
    assert noise.unique().numel() > 0.99 * noise.numel()
    assert kstest(noise.numpy(), "norm").pvalue > 0.01


def test_predictions_of_mtl_with_noise_are_random():
    """And differ between the batches of an evaluation, which starts with the state of torch's generator."""
    algorithm = checks.make("MTL", {}).eval()
    x = torch.rand(6, 2, 8, 8)
    first, second = algorithm.predict(x), algorithm.predict(x)
    assert not torch.equal(first, second)
    algorithm.eval()
    assert torch.equal(algorithm.predict(x), first)
    assert torch.equal(algorithm.predict(x), second)
    torch.rand(())
    algorithm.eval()
    assert not torch.equal(algorithm.predict(x), first)


def test_batches_of_mtl_have_a_fixed_size_if_predictions_depend_on_them():
    assert checks.make("MTL", {"mtl_noise": False}).EVAL_BATCH_SIZE == 64
    assert checks.make("MTL", {}).EVAL_BATCH_SIZE is None


def test_embedding_of_mtl_without_noise():
    """The moving average in training, the mean of the given batch in predictions."""
    algorithm = checks.make("MTL", {"mtl_noise": False, "mtl_ema": 0.5})
    domains = batches(1)[0]
    means = [algorithm.featurizer(x).mean(0).detach() for x, _ in domains]
    seen = inputs_of_the_head(algorithm, lambda: algorithm.update(domains))
    for rows, mean, embedding in zip(seen, means, algorithm.embeddings, strict=True):
        torch.testing.assert_close(rows[:, 32:], (0.5 * mean).expand(6, -1))
        torch.testing.assert_close(embedding, 0.5 * mean)
    x = domains[0][0]
    (rows,) = inputs_of_the_head(algorithm, lambda: algorithm.predict(x))
    torch.testing.assert_close(rows[:, 32:], algorithm.featurizer(x).mean(0).expand(6, -1))


def test_caveat_of_mtl():
    assert "replaced by noise" in checks.make("MTL", {}).caveat
    assert checks.make("MTL", {"mtl_noise": False}).caveat == ""
