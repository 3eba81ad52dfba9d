"""Training state of user-defined algorithms."""

import copy
import threading
import weakref

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from domainbed.algorithms import ERM, Algorithm
from domainbed.errors import UsageError
from domainbed.hparams_registry import default_hparams

HPARAMS = default_hparams("ERM", "ColoredDigits")


class Stateful(ERM):
    """An algorithm with state of every supported kind."""

    def __init__(self, *args):
        super().__init__(*args)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=2, gamma=0.5)
        self.several = [torch.optim.SGD(self.classifier.parameters(), lr=0.1, momentum=0.9) for _ in range(2)]
        self.history = {"losses": [], "best": None}
        self.scale = np.float64(1.0)
        self.center = torch.zeros(3)
        self.loss = F.cross_entropy
        self.register_buffer("q", torch.Tensor())  # filled by the first update, as in DomainBed's GroupDRO

    def update(self, minibatches, unlabeled=None):
        if not len(self.q):
            self.q = torch.ones(len(minibatches))
        losses = torch.stack([self.loss(self.predict(x), y) for x, y in minibatches])
        self.q = self.q * (0.1 * losses.detach()).exp()
        self.q = self.q / self.q.sum()
        for optimizer in (self.optimizer, *self.several):
            optimizer.zero_grad()
        (float(self.scale) * (self.q @ losses)).backward()
        for optimizer in (self.optimizer, *self.several):
            optimizer.step()
        self.scheduler.step()
        self.history["losses"] = [*self.history["losses"], losses.mean().item()]
        self.history["best"] = min(self.history["losses"])
        self.scale = self.scale * np.float64(0.9)
        self.center = self.center + self.q
        self.created_later = len(self.history["losses"])
        return {"loss": losses.mean().item()}


def make(algorithm_class: type[Algorithm] = Stateful) -> Algorithm:
    return algorithm_class((2, 8, 8), 3, 3, HPARAMS)


def batches(n: int):
    generator = torch.Generator().manual_seed(0)
    return [
        [(torch.rand(4, 2, 8, 8, generator=generator), torch.randint(3, (4,), generator=generator)) for _ in range(3)]
        for _ in range(n)
    ]


def test_state_of_every_kind_is_restored(tmp_path):
    original, restored = make(), make()
    for batch in batches(10)[:5]:
        original.update(batch)
    torch.save(original.training_state(), tmp_path / "state")
    restored.load_training_state(torch.load(tmp_path / "state", weights_only=True))
    for batch in batches(10)[5:]:
        assert original.update(batch) == restored.update(batch)
    assert restored.created_later == 10
    assert restored.history == original.history
    assert restored.scheduler.get_last_lr() == original.scheduler.get_last_lr()
    torch.testing.assert_close(restored.center, original.center, rtol=0, atol=0)
    assert restored.several[0].param_groups[0]["params"][0] is restored.classifier.weight


def test_loaded_state_is_a_copy():
    original, restored = make(), make()
    for batch in batches(2):
        original.update(batch)
    restored.load_training_state(original.training_state())
    before = copy.deepcopy(restored.training_state())
    for batch in batches(2):
        original.update(batch)
    after = restored.training_state()
    for name, value in before["modules"].items():
        assert torch.equal(value, after["modules"][name])
    moments = [state["attributes"]["optimizer"]["state"][0]["exp_avg"] for state in (before, after)]
    assert torch.equal(*moments)


@pytest.mark.parametrize(
    "value",
    [iter([1]), threading.Lock(), (n for n in ()), np.zeros(1, object), [weakref.ref(ERM), iter([])]],
    ids=lambda value: type(value).__name__,
)
def test_unsupported_state_is_rejected(value):
    algorithm = make(ERM)
    algorithm.memory = value
    with pytest.raises(
        UsageError, match=r"^self\.memory.* \(of type .* cannot be saved.*, so the job could not be resumed"
    ):
        algorithm.training_state()
