"""The modules by which algorithms predict."""

import copy

import pytest
import torch

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.arm import ARM
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.mtl import MTL
from domainbed.errors import AlgorithmError, UsageError
from domainbed.landscape.predictor import find_predictor
from domainbed.lib.misc import ErmPlusPlusMovingAvg
from tests.algorithms import checks

X = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
AVERAGED = ("average.network.0", "average.network.1")
NAMES = {"SMA": AVERAGED, "ERMPlusPlus": AVERAGED}


def make(cls: type) -> torch.nn.Module:
    with ALGORITHMS.temporarily(cls.__name__, cls):
        return checks.make(cls.__name__, {})


@pytest.mark.parametrize("name", [name for name in ALGORITHMS.builtin_names if not ALGORITHMS[name].REQUIRES_PHOTOS])
def test_builtin_algorithms(name: str):
    algorithm = checks.make(name, {})
    if not ALGORITHMS[name].PREDICTS_BY_CLASSIFIER:
        with pytest.raises(UsageError, match="does not predict by"):
            find_predictor(algorithm, X)
        return
    predictor = find_predictor(algorithm, X)
    assert predictor == NAMES.get(name, ("featurizer", "classifier"))
    assert algorithm.training
    assert not any(module._forward_hooks for module in algorithm.modules())


class Averaging(ERM, ErmPlusPlusMovingAvg):
    """As DomainBed's ERM++, without its constructor."""

    def __init__(self, *args):
        ERM.__init__(self, *args)
        ErmPlusPlusMovingAvg.__init__(self, self.network)

    def predict(self, x):
        self.network_sma.eval()
        return self.network_sma(x)


def test_average_of_domainbed_is_found_before_it_differs():
    assert find_predictor(make(Averaging), X) == ("network_sma.0", "network_sma.1")


class Functional(ERM):
    def predict(self, x):
        return torch.nn.functional.linear(self.featurizer(x), self.classifier.weight, self.classifier.bias)


def test_modules_need_not_be_called():
    assert find_predictor(make(Functional), X) == ("featurizer", "classifier")


class Random(ERM):
    def predict(self, x):
        return super().predict(x) + torch.randn(len(x), 1)


class ExtraClass(ERM):
    def predict(self, x):
        return torch.nn.functional.pad(super().predict(x), (0, 1))


class OtherWeights(ERM):
    """Does not call copies that could be found."""

    def __init__(self, *args):
        super().__init__(*args)
        self.hidden = [copy.deepcopy(self.network)]
        torch.nn.init.normal_(self.hidden[0][1].weight)

    def predict(self, x):
        return self.hidden[0](x)


class Exchanges(ERM):
    """Predicts with other weights than the modules', which are equal to these before the first update."""

    def __init__(self, *args):
        super().__init__(*args)
        self.average = {name: weight.detach().clone() for name, weight in self.network.named_parameters()}

    def predict(self, x):
        return torch.func.functional_call(self.network, self.average, (x,))


class UncheckedARM(ARM):
    PREDICTS_BY_CLASSIFIER = True


class UncheckedMTL(MTL):
    PREDICTS_BY_CLASSIFIER = True


@pytest.mark.parametrize("cls", [Random, ExtraClass, OtherWeights, Exchanges, UncheckedARM, UncheckedMTL])
def test_other_predictions_raise(cls: type):
    algorithm = make(cls)
    with pytest.raises(UsageError, match=rf"{cls.__name__} does not predict by classifier\(featurizer\(x\)\), so its"):
        find_predictor(algorithm, X)
    assert algorithm.training


def test_error_in_predict_is_located():
    class Broken(ERM):
        def predict(self, x):
            raise RuntimeError("not today")

    with pytest.raises(AlgorithmError, match=r"predict: RuntimeError: not today, in test_predictor\.py line"):
        find_predictor(make(Broken), X)


def test_diverged_model_has_a_predictor():
    algorithm = checks.make("ERM", {})
    torch.nn.init.constant_(algorithm.classifier.weight, torch.inf)
    assert find_predictor(algorithm, X) == ("featurizer", "classifier")
