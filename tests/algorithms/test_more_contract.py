"""What holds for every algorithm beyond those of test_all.py: state, no synchronization, capture, smallest inputs."""

import importlib
import io
from pathlib import Path

import pytest
import torch
from torch import nn

from domainbed import networks
from domainbed.algorithms import ALGORITHMS, get_algorithm_class
from domainbed.algorithms.base import Algorithm
from domainbed.hparams_registry import default_hparams
from domainbed.registry import is_builtin
from tests.algorithms import checks, formulas, test_all
from tests.algorithms.formulas import Formula
from tests.algorithms.test_all import NoSynchronization, batches, leaves

UPDATES = 20
RESUMED_AFTER = (0, 3, 5, 7, 8, 12)  # updates; before, at and after each change of phase

# Hyperparameters with which twenty updates reach every branch.
HPARAMS = {
    "GroupDRO": {"groupdro_eta": 0.3},
    "EQRM": {"eqrm_burnin_iters": 7.0, "eqrm_lr": 0.002},
    "URM": {"urm_adv_lambda": 0.7},
    "TRM": {"iters": 7},
    "Mixup": {},
    "SagNet": {},
    "RSC": {},
    "SelfReg": {},
    "MMD": {},
    "CDANN": {"d_steps_per_g_step": 2, "grad_penalty": 0.3, "mlp_dropout": 0.5, "mlp_width": 32},
    "CAD": {},
    "CondCAD": {},
    "CausIRL_CORAL": {},
    "CausIRL_MMD": {},
    "Transfer": {"d_steps_per_g": 2, "delta": 0.01},
    "RDM": {"rdm_penalty_anneal_iters": 7, "rdm_lr": 0.002},
    "ADRMX": {"mlp_width": 32},
    "IGA": {},
    "ANDMask": {"tau": 0.9},
    "SANDMask": {"tau": 0.5, "k": 1e-4},
    "SD": {},
    "MLDG": {"n_meta_test": 1},
    "ARM": {"batch_size": 6},
    "MTL": {},
    "IB_ERM": {"ib_penalty_anneal_iters": 7},
    "IB_IRM": {"irm_penalty_anneal_iters": 7, "ib_penalty_anneal_iters": 11},
    "ERMPlusPlus": {"linear_steps": 6, "linear_lr": 0.01},
    "SMA": {},
    "SAM": {},
    "SAGM": {},
    "MIRO": {"backbone": "resnet18"},
}
VARIANTS = [
    ("URM", {"urm_discriminator_optimizer": "sgd", "urm_discriminator_label_smoothing": 0.1}),
    ("TRM", {"iters": 7, "trm_series": "paper", "class_balanced": True}),
    ("CAD", {"is_flipped": False, "is_normalized": True}),
    ("Transfer", {"d_steps_per_g": 1, "gda": True}),
    ("Transfer", {"d_steps_per_g": 2, "resnet_dropout": 0.5}),
    ("IB_IRM", {"irm_penalty_anneal_iters": 11, "ib_penalty_anneal_iters": 7}),
    ("MLDG", {"n_meta_test": 2}),
    ("ARM", {"batch_size": 6, "train_context": True}),
    ("MTL", {"mtl_noise": False}),
]
CASES = [*HPARAMS.items(), *VARIANTS]
PHASES = {
    "EQRM": {"burn-in", "quantile"},
    "TRM": {"ERM", "transfer"},
    "CDANN": {"discriminator", "generator"},
    "RDM": {"warm-up", "matching"},
    "ADRMX": {"discriminator", "generator"},
    "IB_ERM": {"warm-up", "penalized"},
    "ERMPlusPlus": {"head", "network"},
}
THREE_PHASES = {"IRM warm-up, IB warm-up", "IRM penalized, IB penalized"}
# The domains and the images per domain that an update requires, if not 1 and 1.
SMALLEST = {
    "EQRM": (2, 1),
    "TRM": (2, 1),
    "SelfReg": (1, 2),
    "RDM": (2, 2),
    "MLDG": (2, 1),
    "IB_ERM": (1, 2),
    "IB_IRM": (1, 2),
}


def phases_of(name: str, hparams: dict) -> set[str]:
    if name == "IB_IRM":
        is_irm_first = hparams["irm_penalty_anneal_iters"] < hparams["ib_penalty_anneal_iters"]
        return THREE_PHASES | {"IRM penalized, IB warm-up" if is_irm_first else "IRM warm-up, IB penalized"}
    return PHASES.get(name, {"update"})


@pytest.fixture(autouse=True)
def early_averages_and_small_backbones(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Start averages within twenty updates, and give MIRO the ResNet that it requires for images of 8x8 pixels."""
    for module in ("sma", "ermplusplus"):
        monkeypatch.setattr(f"domainbed.algorithms.{module}.START", 10)
    callspec = getattr(request.node, "callspec", None)
    if callspec and callspec.params.get("name") == "MIRO":
        monkeypatch.setitem(networks._FEATURIZERS, (8, 8), networks._backbone)
        monkeypatch.setattr("torchvision.models.resnet.ResNet", checks.NarrowResNet)


def test_every_algorithm_is_covered():
    assert [*test_all.HPARAMS, *HPARAMS] == list(ALGORITHMS.builtin_names)


def test_every_algorithm_has_a_formula():
    names = {"formulas", *(path.stem for path in Path(__file__).parent.glob("formulas_*.py"))}
    modules = [importlib.import_module(f"tests.algorithms.{name}") for name in names]
    classes = {key for module in modules for key, value in vars(module).items() if is_formula(value)}
    assert set(ALGORITHMS.builtin_names) <= classes


def is_formula(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Formula) and value is not formulas.Formula


@pytest.mark.parametrize(("name", "hparams"), CASES, ids=str)
def test_restored_algorithm_equals_uninterrupted(name: str, hparams: dict):
    """Bit for bit, after several numbers of updates. The engine restores the random generators."""
    torch.manual_seed(0)
    whole = checks.make(name, hparams)
    files, expected = {}, []
    for t, domains in enumerate(batches(UPDATES)):
        if t in RESUMED_AFTER:
            torch.save(whole.training_state(), files.setdefault(t, io.BytesIO()))
        expected.append(update(whole, domains, t))
    for k, file in files.items():
        torch.manual_seed(7)
        fresh = checks.make(name, hparams)
        fresh.load_training_state(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        assert [update(fresh, batches(UPDATES)[t], t) for t in range(k, UPDATES)] == expected[k:]
        checks.assert_same_state(whole, fresh)


def update(algorithm: Algorithm, domains, t: int) -> tuple[str, dict[str, float]]:
    """Return the phase and the metrics of an update whose random draws depend on t alone."""
    phase = algorithm.phase
    torch.manual_seed(t)
    return phase, {key: value.item() for key, value in algorithm.update(domains).items()}


@pytest.mark.parametrize(("name", "hparams"), CASES, ids=str)
def test_update_does_not_synchronize_or_create_modules(name: str, hparams: dict, monkeypatch: pytest.MonkeyPatch):
    """On the meta device, which has no values that the host could read and branch on."""
    with torch.device("meta"):
        algorithm = checks.make(name, hparams)
    domains = [[(x.to("meta"), y.to("meta")) for x, y in batch] for batch in batches_for(name)]
    assert run_without_synchronization(algorithm, domains, monkeypatch) == phases_of(name, hparams)


@pytest.mark.parametrize(("name", "hparams"), CASES, ids=str)
def test_update_runs_no_synchronizing_operation(name: str, hparams: dict, monkeypatch: pytest.MonkeyPatch):
    """With values, on which some code paths depend."""
    algorithm = checks.make(name, hparams)
    assert run_without_synchronization(algorithm, batches_for(name), monkeypatch) == phases_of(name, hparams)


def batches_for(name: str):
    """Return batches for some updates of every phase."""
    return batches(13 if len(phases_of(name, HPARAMS[name])) > 1 else 3)


def run_without_synchronization(algorithm: Algorithm, domains, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Run updates, fail if they synchronize or create a module, and return their phases."""

    def fail(self, *args, **kwargs):
        raise AssertionError("update created a module")

    phases = set()
    with monkeypatch.context() as patch, NoSynchronization():
        patch.setattr(nn.Module, "__init__", fail)
        for batch in domains:
            phases.add(algorithm.phase)
            for metric in algorithm.update(batch).values():
                assert metric.shape == ()
                assert not metric.requires_grad
                assert metric.device == batch[0][0].device
    return phases


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("name", "hparams"), CASES, ids=str)
def test_update_does_not_synchronize_with_a_gpu(name: str, hparams: dict):
    algorithm = checks.make(name, hparams).cuda()
    domains = [[(x.cuda(), y.cuda()) for x, y in batch] for batch in batches(UPDATES)]
    seen = set()
    for batch in domains:
        phase = algorithm.phase
        # Libraries may synchronize on first use.
        torch.cuda.set_sync_debug_mode("error" if phase in seen else "default")
        try:
            metrics = algorithm.update(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        seen.add(phase)
        assert all(metric.is_cuda for metric in metrics.values())


@pytest.mark.parametrize(("name", "hparams"), CASES, ids=str)
def test_captured_updates_equal_eager_updates(name: str, hparams: dict):
    checks.assert_captured_equals_eager(name, hparams, phases_of(name, hparams))


@pytest.mark.parametrize(("name", "hparams"), HPARAMS.items(), ids=str)
def test_smallest_input(name: str, hparams: dict):
    """The declared numbers are those of the published code, and updates of that size have finite results."""
    smallest = domains, size = SMALLEST.get(name, (1, 1))
    algorithm_class = get_algorithm_class(name)
    assert smallest == (algorithm_class.MIN_DOMAINS, algorithm_class.MIN_BATCH_SIZE)
    algorithm = checks.make(name, hparams, domains)
    for batch in batches(UPDATES, (size,) * domains):
        for key, metric in algorithm.update(batch).items():
            assert metric.isfinite(), key
    for key, value in algorithm.state_dict().items():
        assert value.isfinite().all(), key


class WithUnusedParameter(networks.MNIST_CNN):
    """A featurizer whose output does not depend on one of its parameters, as those of some pretrained networks."""

    def __init__(self, channels: int, hparams: dict) -> None:
        super().__init__((channels, 8, 8), (16, 32, 32))
        self.unused = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize("name", [name for name in (*test_all.HPARAMS, *HPARAMS) if name != "MIRO"])
def test_parameters_that_no_output_depends_on(name: str, monkeypatch: pytest.MonkeyPatch):
    """The updates are those of the same network without them, but for the order of sums."""
    histories = []
    for is_added in (False, True):
        if is_added:
            monkeypatch.setitem(networks._FEATURIZERS, (8, 8), WithUnusedParameter)
        torch.manual_seed(0)
        algorithm = checks.make(name, {**test_all.HPARAMS, **HPARAMS}[name])
        torch.manual_seed(1)
        histories.append([dict(algorithm.update(batch)) for batch in batches(UPDATES)])
        logits = algorithm.eval().predict(batches(1)[0][0][0]).detach()
        histories.append([{"logits": logits}])
        unused = [p for key, p in algorithm.named_parameters() if key.endswith("unused")]
        assert bool(unused) == is_added
        assert all(p.isfinite().all() for p in unused)
    torch.testing.assert_close(histories[:2], histories[2:])


BUILTIN = {name: cls for name in ALGORITHMS if is_builtin(cls := ALGORITHMS[name])}
PROBES = [name for name, cls in BUILTIN.items() if not (cls.REQUIRES_IMAGES or cls.REQUIRES_FEATURIZER)]


@pytest.mark.parametrize("name", PROBES)
def test_linear_probes_train(name: str):
    """On features of a frozen backbone, which are inputs without gradients."""
    hparams = default_hparams(name, "PACS", frozen=True) | {"frozen": True, "linear_probe": True}
    hparams |= {key: value for key, value in {"grad_penalty": 1.0, "gda": False, "tau": 0.0}.items() if key in hparams}
    algorithm = ALGORITHMS[name]((12,), 3, 3, hparams)
    before = torch.nn.utils.parameters_to_vector(algorithm.parameters()).clone()
    for _ in range(2):
        algorithm.update([(torch.rand(6, 12), torch.randint(3, (6,))) for _ in range(3)])
    assert not torch.equal(torch.nn.utils.parameters_to_vector(algorithm.parameters()), before)
    assert algorithm.eval().predict(torch.rand(5, 12)).shape == (5, 3)


@pytest.mark.parametrize(("name", "hparams"), CASES, ids=str)
def test_evaluation_changes_no_state(name: str, hparams: dict):
    """Neither that of the algorithm nor of torch's random generator, which MTL uses in predictions."""
    algorithm = checks.make(name, hparams)
    for batch in batches(2):
        algorithm.update(batch)
    algorithm.eval()
    before = {path: torch.as_tensor(leaf).clone() for path, leaf in leaves(algorithm.training_state())}
    generator = torch.get_rng_state()
    with torch.no_grad():
        logits = algorithm.predict(batches(1)[0][0][0])
    assert logits.shape == (6, 3)
    assert torch.equal(generator, torch.get_rng_state())
    algorithm.eval()  # ends the evaluation
    for path, leaf in leaves(algorithm.training_state()):
        assert torch.equal(torch.as_tensor(leaf), before[path]), path
