import pytest
import torch

from domainbed.algorithms import get_algorithm_class
from domainbed.hparams_registry import default_hparams

DEFAULTS = default_hparams("DANN", "ColoredDigits")


@pytest.mark.parametrize(
    ("d_steps", "phases"), [(1, "gdgdgdgd"), (2, "dgddgddg"), (3, "ddgdddgd"), (7, "ddddddgd")], ids=str
)
def test_phases(d_steps: int, phases: str):
    """Counting from 1, update t trains the discriminator iff t % (1 + d) < d, and no other weights."""
    algorithm = get_algorithm_class("DANN")((2, 8, 8), 3, 3, {**DEFAULTS, "d_steps_per_g_step": d_steps})
    domains = [(torch.rand(6, 2, 8, 8), torch.randint(3, (6,))) for _ in range(3)]
    for phase in phases:
        assert algorithm.phase[0] == phase
        before = {name: p.detach().clone() for name, p in algorithm.named_parameters()}
        metrics = algorithm.update(domains)
        changed = {name.split(".")[0] for name, p in algorithm.named_parameters() if not torch.equal(p, before[name])}
        assert changed == ({"discriminator"} if phase == "d" else {"featurizer", "classifier"})
        assert ("loss" in metrics) == (phase == "g")
