import pytest
import torch

from domainbed.algorithms import get_algorithm_class
from domainbed.hparams_registry import default_hparams

DEFAULTS = default_hparams("DANN", "ColoredDigits")


@pytest.mark.parametrize(
    ("d_steps", "turns"), [(1, "gdgdgdgd"), (2, "dgddgddg"), (3, "ddgdddgd"), (7, "ddddddgd")], ids=str
)
def test_turns(d_steps: int, turns: str):
    """Counting from 1, update t is the discriminator's iff t % (1 + d) < d; each turn moves its own weights only."""
    algorithm = get_algorithm_class("DANN")((2, 8, 8), 3, 3, {**DEFAULTS, "d_steps_per_g_step": d_steps})
    domains = [(torch.rand(6, 2, 8, 8), torch.randint(3, (6,))) for _ in range(3)]
    for turn in turns:
        assert algorithm.phase[0] == turn
        before = {name: p.detach().clone() for name, p in algorithm.named_parameters()}
        figures = algorithm.update(domains)
        moved = {name.split(".")[0] for name, p in algorithm.named_parameters() if not torch.equal(p, before[name])}
        assert moved == ({"discriminator"} if turn == "d" else {"featurizer", "classifier"})
        assert ("loss" in figures) == (turn == "g")
