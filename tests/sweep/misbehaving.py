"""An algorithm that comes to grief in the way its hyperparameters say. (Imported by the workers under test.)"""

import os
import signal
import threading
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.base import Algorithm, concatenate
from domainbed.errors import UsageError
from domainbed.hparams_registry import Hparam, register_hparams

# It does so from the update `at` on, and only while there is a file `cause`, where one is named.
register_hparams("Misbehaving", how=Hparam("well"), at=Hparam(0), cause=Hparam(""))


@ALGORITHMS.register("Misbehaving")
class Misbehaving(Algorithm):
    """A linear network with dropout, so that generators and an optimizer's state matter, and nothing takes long."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.linear = torch.nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], num_classes)
        self.optimizer = torch.optim.Adam(self.parameters(), 0.01)
        self.updates = 0

    def update(self, minibatches, unlabeled=None):
        if self.updates >= self.hparams["at"] and os.path.exists(self.hparams["cause"] or "/"):
            self.misbehave(self.hparams["how"])
        self.updates += 1
        x, y = concatenate(minibatches)
        loss = F.cross_entropy(self.linear(F.dropout(x.flatten(1))), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach() * (float("nan") if self.hparams["how"] == "nan" else 1.0)}

    def predict(self, x):
        return self.linear(x.flatten(1))

    def misbehave(self, how):
        print(f"about to do {how}")
        if how == "raise":
            raise RuntimeError(f"out of ideas at {self.updates}")
        if how == "raise in own words":
            raise RuntimeError(f"out of {Path(self.hparams['cause']).read_text()}, said {self.linear.weight[0, 0]:.3f}")
        if how == "usage":
            raise UsageError("not like this")
        if how == "exit":
            os._exit(3)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "leave a thread":
            threading.Thread(target=time.sleep, args=(600,)).start()
            raise RuntimeError("a thread goes on")
        if how == "leave a child":
            if os.fork() == 0:
                time.sleep(300)  # it holds all that its parent held open
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "slow":
            time.sleep(0.5)
        if how == "sleep":
            time.sleep(600)
