"""Defaults and draws compared with an independent transcription of the protocol's table."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainbed.algorithms import ALGORITHMS, Algorithm, get_algorithm_class
from domainbed.datasets import DATASETS, MultipleDomainDataset
from domainbed.errors import UsageError
from domainbed.hparams import ABSENT, PROTOCOLS, SHARED, Hparam, uniform
from domainbed.hparams_registry import default_hparams, hparams_of, random_hparams, resolve_hparams
from domainbed.seeding import seed_hash

NAMES = ["ERM", "CORAL", "DANN", "IRM", "VREx", "Fish", "Fishr"]
SMALL = ["ColoredDigits", "RotatedDigits", "ColoredMNIST", "RotatedMNIST"]
BUILTIN = [name for name in ALGORITHMS if ALGORITHMS[name].__module__.startswith("domainbed.")]
PHOTOS = ["VLCS", "PACS", "OfficeHome", "TerraIncognita", "DomainNet"]


def test_draw_equals_domainbeds():
    """Fishr on ColoredMNIST, hparams_seed 5, trial_seed 0."""
    drawn = resolve_hparams("Fishr", "ColoredMNIST", hparams_seed=5, trial_seed=0)
    assert drawn["batch_size"] == 39
    assert drawn["lambda"] == 8089.489683014979
    assert drawn["lr"] == 0.00023968517445719083
    assert drawn["penalty_anneal_iters"] == 4264
    assert drawn["ema"] == 0.9269723464224017
    assert drawn["resnet_dropout"] == 0.5


DEFAULTS = {
    "ERM": {},
    "CORAL": {"mmd_gamma": 1.0},
    "IRM": {"irm_lambda": 100.0, "irm_penalty_anneal_iters": 500},
    "VREx": {"vrex_lambda": 10.0, "vrex_penalty_anneal_iters": 500},
    "Fish": {"meta_lr": 0.5},
    "Fishr": {"lambda": 1000.0, "penalty_anneal_iters": 1500, "ema": 0.95, "variant": "variance"},
    "DANN": {
        "lambda": 1.0,
        "weight_decay_d": 0.0,
        "grad_penalty": 0.0,
        "d_steps_per_g_step": 1,
        "beta1": 0.5,
        "mlp_width": 256,
        "mlp_depth": 3,
        "mlp_dropout": 0.0,
        "weight_decay_g": 0.0,
    },
}


def shared_defaults(small: bool) -> dict[str, object]:
    """Return the defaults of the hyperparameters that all algorithms share, on small images or photos."""
    return {
        "data_augmentation": True,
        "resnet18": False,
        "resnet50_augmix": False,
        "freeze_bn": True,
        "vit": False,
        "dinov2": False,
        "vit_attn_tune": False,
        "resnet_dropout": 0.0,
        "vit_dropout": 0.0,
        "class_balanced": False,
        "nonlinear_classifier": False,
        "lr": 1e-3 if small else 5e-5,
        "weight_decay": 0.0,
        "batch_size": 64 if small else 32,
        **({} if small else {"backbone": "resnet50", "pretrained": True, "frozen": False}),
    }


@pytest.mark.parametrize("dataset", SMALL + PHOTOS)
@pytest.mark.parametrize("algorithm", NAMES)
def test_defaults(algorithm: str, dataset: str):
    small = dataset in SMALL
    lr = 1e-3 if small else 5e-5
    expected = {
        **shared_defaults(small),
        **DEFAULTS[algorithm],
        **({"lr_g": lr, "lr_d": lr} if algorithm == "DANN" else {}),
    }
    assert default_hparams(algorithm, dataset) == expected
    assert resolve_hparams(algorithm, dataset, hparams_seed=0, trial_seed=3) == expected


def expected_draw(name: str, dataset: str, r: np.random.RandomState):
    """Draw a value according to the protocol's table."""
    small = dataset in SMALL
    if name in ("lr", "lr_g", "lr_d"):
        return 10 ** r.uniform(-4.5, -2.5) if small else 10 ** r.uniform(-5, -3.5)
    if name == "batch_size":
        return int(2 ** r.uniform(3, 9 if small else 5 if dataset == "DomainNet" else 5.5))
    if name in ("weight_decay", "weight_decay_g"):
        return 0.0 if small else 10 ** r.uniform(-6, -2)
    if name in ("resnet_dropout", "vit_dropout", "mlp_dropout"):
        return r.choice([0.0, 0.1, 0.5])
    if name in ("irm_lambda", "vrex_lambda"):
        return 10 ** r.uniform(-1, 5)
    if name in ("irm_penalty_anneal_iters", "vrex_penalty_anneal_iters"):
        return int(10 ** r.uniform(0, 4))
    return {
        "mmd_gamma": lambda: 10 ** r.uniform(-1, 1),
        "weight_decay_d": lambda: 10 ** r.uniform(-6, -2),
        "grad_penalty": lambda: 10 ** r.uniform(-2, 1),
        "d_steps_per_g_step": lambda: int(2 ** r.uniform(0, 3)),
        "beta1": lambda: r.choice([0.0, 0.5]),
        "mlp_width": lambda: int(2 ** r.uniform(6, 10)),
        "mlp_depth": lambda: r.choice([3, 4, 5]),
        "meta_lr": lambda: r.choice([0.05, 0.1, 0.5]),
        "penalty_anneal_iters": lambda: int(r.uniform(0, 5000)),
        "ema": lambda: r.uniform(0.90, 0.99),
    }[name]()


NOT_DRAWN = {
    "data_augmentation": True,
    "backbone": "resnet50",
    "pretrained": True,
    "frozen": False,
    "resnet18": False,
    "resnet50_augmix": False,
    "freeze_bn": True,
    "vit": False,
    "dinov2": False,
    "vit_attn_tune": False,
    "class_balanced": False,
    "nonlinear_classifier": False,
    "variant": "variance",
}


@given(
    algorithm=st.sampled_from(NAMES),
    dataset=st.sampled_from(SMALL + PHOTOS),
    hparams_seed=st.integers(1, 1000),
    trial_seed=st.integers(0, 10),
)
def test_draws(algorithm: str, dataset: str, hparams_seed: int, trial_seed: int):
    drawn = resolve_hparams(algorithm, dataset, hparams_seed, trial_seed)
    assert set(drawn) == set(default_hparams(algorithm, dataset))
    for name, value in drawn.items():
        r = np.random.RandomState(seed_hash(seed_hash(hparams_seed, trial_seed), name))
        if name in NOT_DRAWN:
            assert value == NOT_DRAWN[name]
        elif name == "lambda":
            assert value == 10 ** (r.uniform(-2, 2) if algorithm == "DANN" else r.uniform(1, 4))
        else:
            assert value == expected_draw(name, dataset, r)
        assert type(value) is type(default_hparams(algorithm, dataset)[name]), name
    assert json.loads(json.dumps(drawn)) == drawn


def test_additional_hyperparameter_changes_no_draw():
    class Extended(get_algorithm_class("Fish")):
        HPARAMS = {**get_algorithm_class("Fish").HPARAMS, "new": Hparam(0.0, uniform(0, 1))}

    before = random_hparams("Fish", "PACS", seed=99)
    with ALGORITHMS.temporarily("Fish", Extended):
        after = random_hparams("Fish", "PACS", seed=99)
    assert after.pop("new") != 0
    assert after == before


def test_variants_for_datasets():
    class Varied(Algorithm):
        HPARAMS = {
            "a": Hparam(1.0, datasets={"DomainNet": Hparam(2.0), "ColoredMNIST": Hparam(3.0)}),
            "b": Hparam(1, small_images=Hparam(2)),
            "c": Hparam(True, small_images=ABSENT),
            "lr": Hparam(0.5),  # overrides the shared declaration
        }

    class Inherited(Varied):
        pass

    with ALGORITHMS.temporarily("Varied", Inherited):
        for dataset, expected in {
            "PACS": {"a": 1.0, "b": 1, "c": True},
            "DomainNet": {"a": 2.0, "b": 1, "c": True},
            "RotatedMNIST": {"a": 1.0, "b": 2},
            "ColoredMNIST": {"a": 3.0, "b": 2},
        }.items():
            expected = {**default_hparams("ERM", dataset), "lr": 0.5, **expected}
            assert default_hparams("Varied", dataset) == expected


def test_dataset_declares_small_images():
    class Small(MultipleDomainDataset):
        SMALL_IMAGES = True

    with DATASETS.temporarily("Small", Small):
        assert default_hparams("DANN", "Small") == default_hparams("DANN", "RotatedMNIST")


def test_numpy_draws_become_python_numbers():
    """JSON cannot represent NumPy scalars."""

    class Mine(Algorithm):
        HPARAMS = {"depth": Hparam(3, lambda r: r.choice([3, 4, 5])), "rate": Hparam(0.1, lambda r: r.uniform())}

    with ALGORITHMS.temporarily("Mine", Mine):
        drawn = random_hparams("Mine", "PACS", seed=1)
    assert (type(drawn["depth"]), type(drawn["rate"])) == (int, float)
    assert "lr" in drawn


def test_class_without_declarations_has_the_shared_hyperparameters():
    with ALGORITHMS.temporarily("Plain", Algorithm):
        assert default_hparams("Plain", "PACS") == default_hparams("ERM", "PACS")
    assert default_hparams("Unregistered", "Unregistered") == default_hparams("ERM", "PACS")


def test_overrides():
    hparams = resolve_hparams("ERM", "PACS", 0, 0, '{"lr": 1, "batch_size": 5, "resnet18": true}')
    assert (hparams["lr"], hparams["batch_size"], hparams["resnet18"]) == (1.0, 5, True)
    assert type(hparams["lr"]) is float
    hparams = resolve_hparams("ERM", "PACS", 5, 0, '{"backbone": "vit_b_16", "pretrained": false}')
    assert (hparams["backbone"], hparams["pretrained"]) == ("vit_b_16", False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("{'lr': 1}", "is not JSON"),
        ("lr=1", "is not JSON"),
        ("[1]", "must be a JSON object"),
        pytest.param("[" * 100_000, "is not JSON", id="nested"),
        ('{"learning_rate": 1}', "ERM has no hyperparameter 'learning_rate'"),
        ('{"batchsize": 1}', "did you mean batch_size?"),
        ('{"mmd_gamma": 1}', "ERM has no hyperparameter 'mmd_gamma'"),
        ('{"batch_size": "64"}', "batch_size must be of type int, like 64, not '64'"),
        ('{"batch_size": 64.5}', "batch_size must be of type int"),
        ('{"batch_size": true}', "batch_size must be of type int"),
        ('{"batch_size": 0}', "batch_size must be at least 1"),
        ('{"resnet18": 1}', "resnet18 must be of type bool, like false"),
        ('{"backbone": "resnet50"}', "ERM has no hyperparameter 'backbone'"),  # ColoredMNIST has small images
        ('{"lr": null}', "lr must be of type float"),
        ('{"lr": NaN}', "lr must be a finite number, not nan"),
        ('{"lr": 1e999}', "lr must be a finite number, not inf"),
        ('{"lr": 0}', "--hparams lr must be above 0 and at most 1,000,000, not 0.0"),
        ('{"weight_decay": 1e300}', "--hparams weight_decay must be at least 0 and at most 1,000,000, not 1e+300"),
        ('{"batch_size": 100000000000000000000}', "batch_size must be a 64-bit integer; it is too large"),
        ('{"batch_size": 2000000}', "--hparams batch_size must be at least 1 and at most 1,048,576, not 2000000"),
        ('{"resnet_dropout": 1.5}', "--hparams resnet_dropout must be at least 0 and at most 1, not 1.5"),
        pytest.param('{"lr": 1' + "0" * 400 + "}", "lr must be a finite number; it is too large", id="large"),
    ],
)
def test_invalid_overrides(overrides: str, message: str):
    with pytest.raises(UsageError, match="--hparams") as error:
        resolve_hparams("ERM", "ColoredMNIST", 0, 0, overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("algorithm", "overrides", "message"),
    [
        ("DANN", '{"mlp_width": 0}', "--hparams mlp_width must be at least 1 and at most 65,536, not 0"),
        ("DANN", '{"mlp_width": -1}', "mlp_width must be at least 1"),
        ("DANN", '{"lambda": -0.5}', "--hparams lambda must be at least 0, not -0.5"),
        ("Fishr", '{"ema": -1}', "--hparams ema must be at least 0 and at most 1, not -1.0"),
        ("RDM", '{"batch_size": 0}', "batch_size must be at least 1"),  # declared per dataset
    ],
)
def test_bounds_of_algorithms(algorithm: str, overrides: str, message: str):
    with pytest.raises(UsageError) as error:
        resolve_hparams(algorithm, "PACS", 0, 0, overrides)
    assert message in str(error.value)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize("algorithm", BUILTIN)
def test_every_number_has_a_lower_bound(algorithm: str):
    for dataset in DATASETS:
        for name, hparam in hparams_of(algorithm, dataset).items():
            if is_number(hparam.default):
                assert (hparam.at_least, hparam.above) != (None, None), name


@given(algorithm=st.sampled_from(BUILTIN), dataset=st.sampled_from(SMALL + PHOTOS), seed=st.integers(0, 2**31))
def test_defaults_and_draws_are_within_bounds(algorithm: str, dataset: str, seed: int):
    declared = hparams_of(algorithm, dataset)
    for hparams in (default_hparams(algorithm, dataset), random_hparams(algorithm, dataset, seed)):
        for name, value in hparams.items():
            if is_number(value):
                declared[name].check(name, value)


def test_variants_have_the_bounds_of_the_declaration():
    hparam = Hparam(1.0, small_images=Hparam(2.0), datasets={"DomainNet": Hparam(3.0)}, at_most=3)
    for variant in (
        hparam,
        hparam.variant("PACS", False),
        hparam.variant("X", True),
        hparam.variant("DomainNet", True),
    ):
        with pytest.raises(UsageError, match="a must be at most 3, not 4"):
            variant.check("a", 4)


@pytest.mark.parametrize("hparams_seed", [0, 5])
def test_protocol_changes_defaults_that_are_not_drawn(hparams_seed: int):
    published = resolve_hparams("ERM", "PACS", hparams_seed, 0)
    head = resolve_hparams("ERM", "PACS", hparams_seed, 0, protocol="head")
    assert head == {**published, "resnet50_augmix": True, "freeze_bn": False}
    overrides = '{"freeze_bn": true, "resnet50_augmix": false}'
    assert resolve_hparams("ERM", "PACS", hparams_seed, 0, overrides, "head") == published
    assert all(SHARED[name].draw is None for defaults in PROTOCOLS.values() for name in defaults)
