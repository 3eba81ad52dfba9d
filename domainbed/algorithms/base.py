"""The contract of an algorithm: DomainBed's interface, so that a class written for it drops in unchanged."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import nn

from domainbed.hparams_registry import Hparams

Minibatch: TypeAlias = tuple[torch.Tensor, torch.Tensor]


class Algorithm(nn.Module):
    """A way to train a network on several domains at once.

    Args:
        input_shape: (channels, height, width) of an image.
        num_classes: how many classes there are.
        num_domains: how many domains are trained on.
        hparams: the hyperparameters, by name.

    The job's seed is set before an algorithm is made; it is moved to its device afterwards, so make the optimizer in
    the constructor and keep tensors that are no parameters in buffers.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__()
        self.hparams = hparams

    @property
    def phase(self) -> str:
        """The branch of Python control flow that the next update takes ("warm-up", "discriminator", …).

        Two updates of one phase do the same operations on other numbers.
        """
        return "update"

    def update(
        self, minibatches: Sequence[Minibatch], unlabeled: Sequence[torch.Tensor] | None = None
    ) -> Mapping[str, torch.Tensor | float]:
        """One step of training.

        Args:
            minibatches: for each training domain images [n, *input_shape] and labels [n], on the algorithm's device.
            unlabeled: for each test domain images [n, *input_shape]; only in domain adaptation.

        Returns:
            Figures by name ("loss", "penalty", …), whose means since the last evaluation are recorded: detached
            0-dim tensors, left on the device so that nothing waits for it. (Floats are taken, too.)
        """
        raise NotImplementedError(f"{type(self).__name__} has no update")

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [n, num_classes] for images [n, *input_shape]."""
        raise NotImplementedError(f"{type(self).__name__} has no predict")
