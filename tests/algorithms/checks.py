"""Checks shared by the tests of the families of algorithms."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import ResNet

from domainbed.algorithms import get_algorithm_class
from domainbed.algorithms.base import Algorithm
from domainbed.backbones import without_weights
from domainbed.engine.steps import CapturedSteps
from domainbed.hparams_registry import default_hparams
from tests.algorithms.test_all import batches, leaves
from tests.engine.tape import Tape

UPDATES = 20


class NarrowResNet(ResNet):
    """A ResNet of torchvision with an eighth of the channels in its blocks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fc = nn.Linear(64, 1)

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 8, *args, **kwargs)


def make(name: str, hparams: Mapping[str, Any], num_domains: int = 3) -> Algorithm:
    """Return an algorithm for 8x8 images and three classes, with these changes to its default hyperparameters."""
    defaults = default_hparams(name, "PACS" if name == "MIRO" else "ColoredDigits")  # MIRO requires a backbone
    assert hparams.keys() <= defaults.keys(), hparams.keys() - defaults.keys()
    with without_weights():
        return get_algorithm_class(name)((2, 8, 8), 3, num_domains, {**defaults, **hparams})


def parameters_of(value: nn.Module | torch.Tensor) -> list[torch.Tensor]:
    """Return the parameters of a module, or none of a tensor."""
    return list(value.parameters()) if isinstance(value, nn.Module) else []


def tensors_of(value: nn.Module | torch.Tensor) -> list[torch.Tensor]:
    """Return the parameters and buffers of a module, or a tensor itself."""
    tensors = [*value.parameters(), *value.buffers()] if isinstance(value, nn.Module) else [value]
    return [tensor.detach() for tensor in tensors]


def assert_equals_formula(
    name: str,
    formula_class: Any,
    hparams: Mapping[str, Any],
    sizes: tuple[int, ...] = (6, 6, 6),
    unchanged: tuple[str, ...] = (),
) -> None:
    """Assert that twenty updates in float64 equal a formula's.

    Both draw the same random numbers. A formula's `COMPARED` names the attributes (modules or tensors) of the algorithm
    that are compared with its own. Parameters must change, but for those of the modules named `unchanged`.
    """
    torch.manual_seed(0)
    algorithm = make(name, hparams, len(sizes)).double()
    formula = formula_class(algorithm, algorithm.hparams)
    trained = [(key, p) for key in formula.COMPARED for p in parameters_of(getattr(algorithm, key)) if p.requires_grad]
    before = [p.detach().clone() for _, p in trained]
    for t, domains in enumerate(batches(UPDATES, sizes, torch.float64)):
        torch.manual_seed(t)
        algorithm.update(domains)
        torch.manual_seed(t)
        formula.update(domains, t)
    for key in formula.COMPARED:
        actual, expected = (tensors_of(getattr(side, key)) for side in (algorithm, formula))
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=1e-10, msg=lambda m, key=key: f"{key}: {m}")
    for (key, p), old in zip(trained, before, strict=True):
        assert torch.allclose(p, old, rtol=0, atol=1e-4) == (key in unchanged), key
    x = batches(1, dtype=torch.float64)[0][0][0]
    torch.testing.assert_close(algorithm.predict(x), formula.logits(x), rtol=0, atol=1e-9)


def assert_same_state(first: Algorithm, second: Algorithm, ignored: str = "") -> None:
    """Assert that two training states are equal bit for bit, except for paths with the key `ignored`."""
    states = [
        {path: leaf for path, leaf in leaves(algorithm.training_state()) if ignored not in path}
        for algorithm in (first, second)
    ]
    assert states[0].keys() == states[1].keys()
    for path, value in states[0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][path])), path


def assert_captured_equals_eager(name: str, hparams: Mapping[str, Any], phases: set[str]) -> None:
    """Assert that updates can be captured, with the stand-in for CUDA graphs, and replay bit for bit."""
    torch.manual_seed(0)
    eager = make(name, hparams)
    for value in vars(eager).values():
        if isinstance(value, torch.optim.Adam):  # the implementation that the stand-in uses
            for group in value.param_groups:
                group["fused"] = True
    captured = copy.deepcopy(eager)
    torch.manual_seed(5)
    expected = [{k: v.item() for k, v in eager.update(batch).items()} for batch in batches(UPDATES)]
    tape = Tape()
    steps = CapturedSteps(captured, tape)
    torch.manual_seed(5)
    metrics = [{k: float(v) for k, v in steps.update(batch).items()} for batch in batches(UPDATES)]
    assert steps.reason == ""
    assert tape.captured == len(phases)
    assert tape.replayed == UPDATES - 2 * len(phases)
    assert metrics == expected
    assert_same_state(captured, eager, ignored="param_groups")


def assert_single_domain_is_erm(name: str, hparams: Mapping[str, Any]) -> None:
    """Assert that twenty updates of a single domain, in float64, are those of ERM."""
    updated = []
    for algorithm_name, changes in ((name, hparams), ("ERM", {})):
        torch.manual_seed(0)
        algorithm = make(algorithm_name, changes, 1).double()
        for batch in batches(UPDATES, (6,), torch.float64):
            algorithm.update(batch)
        updated.append([*algorithm.featurizer.parameters(), *algorithm.classifier.parameters()])
    for actual, expected in zip(*updated, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def assert_same_weights(actual: nn.Module, expected: nn.Module, tolerance: float = 1e-10) -> None:
    """Assert that the parameters and buffers of two modules are equal, except for counters."""
    states = [
        {key: value for key, value in module.state_dict().items() if value.is_floating_point()}
        for module in (actual, expected)
    ]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=0, atol=tolerance, msg=lambda m, key=key: f"{key}: {m}")
