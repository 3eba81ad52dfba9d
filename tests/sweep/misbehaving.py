"""An algorithm that fails in the way its hyperparameters specify. (Imported by the workers under test.)"""

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
from domainbed.hparams import Hparam


@ALGORITHMS.register("Misbehaving")
class Misbehaving(Algorithm):
    """A linear network with dropout: fast, with results that depend on random generators and the optimizer's state."""

    # It misbehaves from update `at` on, and only while the file `cause` exists, if one is given.
    HPARAMS = {"how": Hparam("well"), "at": Hparam(0), "cause": Hparam("")}

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
        if how == "raise file":
            raise RuntimeError(f"out of {Path(self.hparams['cause']).read_text()} at {self.linear.weight[0, 0]:.3f}")
        if how == "usage":
            raise UsageError("not like this")
        if how == "exit":
            os._exit(3)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "leave a thread":
            threading.Thread(target=time.sleep, args=(600,)).start()
            raise RuntimeError("a thread is still running")
        if how == "leave a child":
            if (child := os.fork()) == 0:
                time.sleep(300)  # it inherits the open connection of its parent
                os._exit(0)
            Path(os.environ["TMPDIR"], "child").write_text(str(child))
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "slow":
            time.sleep(0.5)
        if how == "sleep":
            time.sleep(600)
