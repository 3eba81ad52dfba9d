"""Defaults and draws of the algorithms that DomainBed and related repositories add, against a transcription of them."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from numpy.random import RandomState

from domainbed.algorithms import ALGORITHMS
from domainbed.hparams_registry import default_hparams, resolve_hparams
from domainbed.seeding import seed_hash
from tests.test_hparams_registry import NAMES as FIRST_NAMES
from tests.test_hparams_registry import PHOTOS, SMALL, shared_defaults

Draws = dict[str, Callable[[RandomState], Any]]

MMD_GAMMA: Draws = {"mmd_gamma": lambda r: 10 ** r.uniform(-1, 1)}
CAD: Draws = {
    "lmbda": lambda r: r.choice([1e-4, 1e-3, 0.01, 0.1, 1, 10, 100]),
    "temperature": lambda r: r.choice([0.05, 0.1]),
}
IB: Draws = {
    "ib_lambda": lambda r: 10 ** r.uniform(-1, 5),
    "ib_penalty_anneal_iters": lambda r: int(10 ** r.uniform(0, 4)),
}


def shared(small: bool, dataset: str) -> tuple[dict[str, Any], Draws]:
    """Return the defaults and the draws of the hyperparameters that all algorithms share."""
    draws: Draws = {
        "resnet_dropout": lambda r: r.choice([0.0, 0.1, 0.5]),
        "vit_dropout": lambda r: r.choice([0.0, 0.1, 0.5]),
        "lr": lambda r: 10 ** (r.uniform(-4.5, -2.5) if small else r.uniform(-5, -3.5)),
        "weight_decay": lambda r: 0.0 if small else 10 ** r.uniform(-6, -2),
        "batch_size": lambda r: int(2 ** r.uniform(3, 9 if small else 5 if dataset == "DomainNet" else 5.5)),
    }
    return shared_defaults(small), draws


def rdm(small: bool, dataset: str) -> tuple[dict[str, Any], Draws]:
    is_domain_net, is_terra = dataset == "DomainNet", dataset == "TerraIncognita"
    is_large = is_domain_net or is_terra
    has_variance = not is_large and dataset != "OfficeHome"
    defaults = {
        "rdm_lambda": 0.5 if is_domain_net else 5,
        "rdm_penalty_anneal_iters": 2400 if is_domain_net else 1500,
        "variance_weight": 0.004 if has_variance else 0,
        "rdm_lr": 1.5e-5,
        "batch_size": 64 if small else 40 if is_large else 88,
    }
    ranges = {"DomainNet": (0.1, 1), "TerraIncognita": (1, 10), "PACS": (1, 10)}
    draws: Draws = {
        "rdm_lambda": lambda r: r.uniform(*ranges.get(dataset, (0.1, 10))),
        "rdm_penalty_anneal_iters": lambda r: int(r.uniform(1500, 3000) if is_domain_net else r.uniform(800, 2700)),
        "variance_weight": lambda r: r.uniform(0.001, 0.007) if has_variance else 0,
        "rdm_lr": lambda r: r.uniform(8e-6, 2e-5),
    }
    if not small:
        draws["batch_size"] = lambda r: int(r.uniform(30, 60) if is_large else r.uniform(70, 100))
    return defaults, draws


def urm(small: bool, dataset: str) -> tuple[dict[str, Any], Draws]:
    defaults = {
        "urm": "adversarial",
        "urm_adv_lambda": 0.1,
        "urm_generator_output": "tanh",
        "urm_discriminator_lr": 1e-3 if small else 5e-5,
        "urm_discriminator_hidden_layers": 1,
        "urm_discriminator_optimizer": "adam",
        "urm_discriminator_label_smoothing": 0,
    }
    draws: Draws = {
        "urm_adv_lambda": lambda r: r.uniform(0, 0.2),
        "urm_generator_output": lambda r: r.choice(["tanh", "relu"]),
        "urm_discriminator_lr": lambda r: 10 ** (r.uniform(-5.5, -3.5) if small else r.uniform(-6, -4.5)),
        "urm_discriminator_hidden_layers": lambda r: r.choice([1, 2, 3]),
        "urm_discriminator_label_smoothing": lambda r: r.uniform(0, 0),
    }
    return defaults, draws


def adrmx(small: bool, dataset: str) -> tuple[dict[str, Any], Draws]:
    defaults = {
        "cnt_lambda": 1,
        "dclf_lambda": 1,
        "disc_lambda": 0.75,
        "rmxd_lambda": 1,
        "mlp_dropout": 0,
        "d_steps_per_g_step": 2,
        "beta1": 0.5,
        "mlp_width": 256,
        "mlp_depth": 9,
        "lr": 3e-3 if small else 3e-5,
    }
    rates = [5e-4, 1e-3, 2e-3, 3e-3] if small else [2e-5, 3e-5, 4e-5, 5e-5]
    return defaults, {"mlp_depth": lambda r: r.choice([8, 9, 10]), "lr": lambda r: r.choice(rates)}


def cdann(small: bool, dataset: str) -> tuple[dict[str, Any], Draws]:
    defaults, draws = shared(small, dataset)
    own = {
        "lambda": 1,
        "lr_g": defaults["lr"],
        "lr_d": defaults["lr"],
        "weight_decay_g": 0,
        "weight_decay_d": 0,
        "d_steps_per_g_step": 1,
        "grad_penalty": 0,
        "beta1": 0.5,
        "mlp_width": 256,
        "mlp_depth": 3,
        "mlp_dropout": 0,
    }
    own_draws: Draws = {
        "lambda": lambda r: 10 ** r.uniform(-2, 2),
        "lr_g": draws["lr"],
        "lr_d": draws["lr"],
        "weight_decay_g": draws["weight_decay"],
        "weight_decay_d": lambda r: 10 ** r.uniform(-6, -2),
        "d_steps_per_g_step": lambda r: int(2 ** r.uniform(0, 3)),
        "grad_penalty": lambda r: 10 ** r.uniform(-2, 1),
        "beta1": lambda r: r.choice([0.0, 0.5]),
        "mlp_width": lambda r: int(2 ** r.uniform(6, 10)),
        "mlp_depth": lambda r: r.choice([3, 4, 5]),
        "mlp_dropout": lambda r: r.choice([0.0, 0.1, 0.5]),
    }
    return own, own_draws


def arm(small: bool, dataset: str) -> tuple[dict[str, Any], Draws]:
    if small:
        return {}, {}
    return {"batch_size": 8}, {"batch_size": lambda r: 8}


# Those that do not depend on the dataset: defaults and draws.
SAME: dict[str, tuple[dict[str, Any], Draws]] = {
    "GroupDRO": ({"groupdro_eta": 1e-2}, {"groupdro_eta": lambda r: 10 ** r.uniform(-3, -1)}),
    "EQRM": (
        {"eqrm_quantile": 0.75, "eqrm_burnin_iters": 2500, "eqrm_lr": 1e-6},
        {
            "eqrm_quantile": lambda r: r.uniform(0.5, 0.99),
            "eqrm_burnin_iters": lambda r: 10 ** r.uniform(2.5, 3.5),
            "eqrm_lr": lambda r: 10 ** r.uniform(-7, -5),
        },
    ),
    "TRM": (
        {"groupdro_eta": 1e-2, "cos_lambda": 1e-4, "iters": 200},
        {
            "groupdro_eta": lambda r: 10 ** r.uniform(-3, -1),
            "cos_lambda": lambda r: 10 ** r.uniform(-5, 0),
            "iters": lambda r: int(10 ** r.uniform(0, 4)),
        },
    ),
    "Mixup": ({"mixup_alpha": 0.2}, {"mixup_alpha": lambda r: 10 ** r.uniform(-1, 1)}),
    "SagNet": ({"sag_w_adv": 0.1}, {"sag_w_adv": lambda r: 10 ** r.uniform(-2, 1)}),
    "RSC": (
        {"rsc_f_drop_factor": 1 / 3, "rsc_b_drop_factor": 1 / 3},
        {"rsc_f_drop_factor": lambda r: r.uniform(0, 0.5), "rsc_b_drop_factor": lambda r: r.uniform(0, 0.5)},
    ),
    "SelfReg": ({}, {}),
    "MMD": ({"mmd_gamma": 1}, MMD_GAMMA),
    "CAD": ({"lmbda": 0.1, "temperature": 0.1, "is_normalized": False, "is_project": False, "is_flipped": True}, CAD),
    "CondCAD": (
        {"lmbda": 0.1, "temperature": 0.1, "is_normalized": False, "is_project": False, "is_flipped": True},
        CAD,
    ),
    "CausIRL_CORAL": ({"mmd_gamma": 1}, MMD_GAMMA),
    "CausIRL_MMD": ({"mmd_gamma": 1}, MMD_GAMMA),
    "Transfer": (
        {"t_lambda": 1, "delta": 2, "d_steps_per_g": 10, "gda": False, "lr_d": 1e-3, "weight_decay_d": 0, "beta1": 0.5},
        {
            "t_lambda": lambda r: 10 ** r.uniform(-2, 1),
            "delta": lambda r: r.uniform(0.1, 3),
            "d_steps_per_g": lambda r: r.choice([1, 2, 5]),
            "gda": lambda r: True,
            "lr_d": lambda r: 10 ** r.uniform(-4.5, -2.5),
            "weight_decay_d": lambda r: 10 ** r.uniform(-6, -2),
            "beta1": lambda r: r.choice([0.0, 0.5]),
        },
    ),
    "IGA": ({"penalty": 1000}, {"penalty": lambda r: 10 ** r.uniform(1, 5)}),
    "ANDMask": ({"tau": 1}, {"tau": lambda r: r.uniform(0.5, 1)}),
    "SANDMask": ({"tau": 1, "k": 10}, {"tau": lambda r: r.uniform(0, 1), "k": lambda r: 10 ** r.uniform(-3, 5)}),
    "SD": ({"sd_reg": 0.1}, {"sd_reg": lambda r: 10 ** r.uniform(-5, -1)}),
    "MLDG": (
        {"mldg_beta": 1, "n_meta_test": 2},
        {"mldg_beta": lambda r: 10 ** r.uniform(-1, 1), "n_meta_test": lambda r: r.choice([1, 2])},
    ),
    "MTL": ({"mtl_ema": 0.99}, {"mtl_ema": lambda r: r.choice([0.5, 0.9, 0.99, 1])}),
    "IB_ERM": ({"ib_lambda": 100, "ib_penalty_anneal_iters": 500}, IB),
    "IB_IRM": (
        {"ib_lambda": 100, "ib_penalty_anneal_iters": 500, "irm_lambda": 100, "irm_penalty_anneal_iters": 500},
        {
            **IB,
            "irm_lambda": lambda r: 10 ** r.uniform(-1, 5),
            "irm_penalty_anneal_iters": lambda r: int(10 ** r.uniform(0, 4)),
        },
    ),
    "ERMPlusPlus": (
        {"linear_lr": 5e-5, "linear_steps": 500, "lars": False},
        {"linear_lr": lambda r: 10 ** r.uniform(-5, -3.5)},
    ),
    "SMA": ({}, {}),
    "SAM": ({"rho": 0.05}, {"rho": lambda r: r.choice([0.01, 0.02, 0.05, 0.1])}),
    "SAGM": ({"alpha": 0.001}, {"alpha": lambda r: r.choice([0.01, 0.02, 0.05, 0.1])}),
    "MIRO": ({"ld": 0.1, "lr_mult": 10}, {}),
}
BY_DATASET = {"RDM": rdm, "URM": urm, "ADRMX": adrmx, "CDANN": cdann, "ARM": arm}
# Switches of this package, which are not drawn.
SWITCHES = {
    "TRM": {"trm_series": "code"},
    "MLDG": {"limit_meta_test": False},
    "ARM": {"train_context": False},
    "MTL": {"mtl_noise": True},
}
NAMES = [name for name in ALGORITHMS.builtin_names if name not in FIRST_NAMES]


def transcription(name: str, dataset: str) -> tuple[dict[str, Any], Draws]:
    """Return the defaults and the draws of all hyperparameters."""
    small = dataset in SMALL
    defaults, draws = shared(small, dataset)
    own, own_draws = BY_DATASET[name](small, dataset) if name in BY_DATASET else SAME[name]
    return {**defaults, **own, **SWITCHES.get(name, {})}, {**draws, **own_draws}


def test_every_algorithm_is_covered():
    assert sorted([*SAME, *BY_DATASET]) == sorted(NAMES)


@pytest.mark.parametrize("dataset", SMALL + PHOTOS)
@pytest.mark.parametrize("name", NAMES)
def test_defaults(name: str, dataset: str):
    defaults, draws = transcription(name, dataset)
    assert default_hparams(name, dataset) == defaults
    assert resolve_hparams(name, dataset, hparams_seed=0, trial_seed=3) == defaults
    assert draws.keys() <= defaults.keys()


@pytest.mark.parametrize("dataset", SMALL + PHOTOS)
@pytest.mark.parametrize("name", NAMES)
def test_draws(name: str, dataset: str):
    """Each hyperparameter is drawn from its own generator; its type is that of the default."""
    defaults, draws = transcription(name, dataset)
    for hparams_seed in range(1, 21):
        drawn = resolve_hparams(name, dataset, hparams_seed, trial_seed=2)
        seed = seed_hash(hparams_seed, 2)
        expected = {key: draw(RandomState(seed_hash(seed, key))) for key, draw in draws.items()}
        assert drawn == {**defaults, **expected}
        assert json.loads(json.dumps(drawn)) == drawn
        types = {key: type(value) for key, value in default_hparams(name, dataset).items()}
        assert {key: type(value) for key, value in drawn.items()} == types


# Draws of DomainBed's registry (b93c22a) with hparams_seed 5, trial_seed 0.
PUBLISHED = {
    ("GroupDRO", "groupdro_eta"): 0.0053050580120662895,
    ("TRM", "groupdro_eta"): 0.0053050580120662895,
    ("TRM", "cos_lambda"): 0.22651807369682977,
    ("TRM", "iters"): 71,
    ("EQRM", "eqrm_quantile"): 0.8870617384689228,
    ("EQRM", "eqrm_burnin_iters"): 1796.9680406014816,
    ("EQRM", "eqrm_lr"): 5.446187358500003e-07,
    ("URM", "urm_adv_lambda"): 0.17308273585423395,
    ("URM", "urm_discriminator_hidden_layers"): 2,
    ("URM", "urm_generator_output"): "relu",
    ("RDM", "rdm_lr"): 1.2655996210365943e-05,
    ("Mixup", "mixup_alpha"): 0.331373439739067,
    ("SagNet", "sag_w_adv"): 0.13082828266317784,
    ("RSC", "rsc_f_drop_factor"): 0.27730884173912707,
    ("RSC", "rsc_b_drop_factor"): 0.49401888513532144,
    ("MMD", "mmd_gamma"): 1.5836393001482263,
    ("CausIRL_CORAL", "mmd_gamma"): 1.5836393001482263,
    ("CausIRL_MMD", "mmd_gamma"): 1.5836393001482263,
    ("CAD", "lmbda"): 10,
    ("CAD", "temperature"): 0.1,
    ("CondCAD", "lmbda"): 10,
    ("CondCAD", "temperature"): 0.1,
    ("Transfer", "t_lambda"): 0.020845462880834064,
    ("Transfer", "delta"): 1.3320860672773234,
    ("Transfer", "d_steps_per_g"): 1,
    ("Transfer", "lr_d"): 5.7846372931035575e-05,
    ("Transfer", "gda"): True,
    ("ADRMX", "mlp_depth"): 8,
    ("IGA", "penalty"): 4449.423826168833,
    ("ANDMask", "tau"): 0.9185615767367684,
    ("SANDMask", "tau"): 0.8371231534735368,
    ("SANDMask", "k"): 56.38121644935379,
    ("SD", "sd_reg"): 8.217756540440354e-05,
    ("MLDG", "mldg_beta"): 0.4726422626128449,
    ("MLDG", "n_meta_test"): 2,
    ("MTL", "mtl_ema"): 0.9,
    ("IB_ERM", "ib_lambda"): 3.2917587403931643,
    ("IB_ERM", "ib_penalty_anneal_iters"): 592,
    ("IB_IRM", "ib_lambda"): 3.2917587403931643,
    ("IB_IRM", "ib_penalty_anneal_iters"): 592,
    ("IB_IRM", "irm_lambda"): 2640.1763536267918,
    ("IB_IRM", "irm_penalty_anneal_iters"): 643,
    ("ERMPlusPlus", "linear_lr"): 2.9289411036592353e-05,
}
PUBLISHED_BY_DATASET = {
    ("RDM", "ColoredMNIST"): {
        "rdm_lambda": 0.6087094612641301,
        "rdm_penalty_anneal_iters": 2583,
        "variance_weight": 0.002398877565143104,
    },
    ("RDM", "PACS"): {"rdm_lambda": 1.4624631466037545, "batch_size": 81},
    ("RDM", "DomainNet"): {
        "rdm_lambda": 0.14624631466037546,
        "rdm_penalty_anneal_iters": 2908,
        "batch_size": 41,
        "variance_weight": 0,
    },
    **{("URM", dataset): {"urm_discriminator_lr": 0.00012834866441076306} for dataset in SMALL},
    **{("URM", dataset): {"urm_discriminator_lr": 1.6080276617704168e-05} for dataset in PHOTOS},
    **{("ADRMX", dataset): {"lr": 0.003} for dataset in SMALL},
    **{("ADRMX", dataset): {"lr": 5e-05} for dataset in PHOTOS},
}


@pytest.mark.parametrize("dataset", SMALL + PHOTOS)
def test_draws_equal_the_published_code(dataset: str):
    for (name, key), expected in PUBLISHED.items():
        assert resolve_hparams(name, dataset, 5, 0)[key] == expected, (name, key)


@pytest.mark.parametrize(("name", "dataset"), PUBLISHED_BY_DATASET)
def test_draws_by_dataset_equal_the_published_code(name: str, dataset: str):
    drawn = resolve_hparams(name, dataset, 5, 0)
    expected = PUBLISHED_BY_DATASET[name, dataset]
    assert {key: drawn[key] for key in expected} == expected
