"""The contract of an algorithm: DomainBed's interface, so that a class written for it drops in unchanged."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

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
    the constructor and keep tensors that are no parameters in buffers. What changes from update to update lies in the
    attributes that `training_state` takes, or the class has its own `training_state` and `load_training_state`.
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
            0-dim tensors, left on the device so that nothing waits for it. (Floats are taken, too.) One that is not
            finite ends the job.
        """
        raise NotImplementedError(f"{type(self).__name__} has no update")

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [n, num_classes] for images [n, *input_shape]."""
        raise NotImplementedError(f"{type(self).__name__} has no predict")

    def training_state(self) -> dict[str, Any]:
        """All that the next updates depend on (but for the random generators), as `torch.save` takes it.

        That is the `state_dict` of the modules (parameters, buffers) and, by name, each attribute that has a state_dict
        itself (optimizers, schedulers) or is plain: a number, a string, None, a tensor, or a list, tuple or dict of
        these. Its tensors are the algorithm's own, not copies.
        """
        attributes = {}
        for name, value in vars(self).items():
            if name in _NO_STATE:
                continue
            if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
                attributes[name] = value.state_dict()
            elif _is_plain(value):
                attributes[name] = value
        return {"modules": self.state_dict(), "attributes": attributes}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where an algorithm made with the same arguments was when its `training_state` was taken."""
        self.load_state_dict(state["modules"])
        for name, value in state["attributes"].items():
            current = getattr(self, name)
            if hasattr(current, "load_state_dict"):
                current.load_state_dict(value)
            else:
                setattr(self, name, value)


# What nn.Module keeps for itself, and what the constructor was given.
_NO_STATE = {*vars(nn.Module()), "hparams"}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | torch.Tensor)


def all_domains(minibatches: Sequence[Minibatch]) -> Minibatch:
    """The domains' batches as one: images and labels."""
    return torch.cat([x for x, _ in minibatches]), torch.cat([y for _, y in minibatches])


def by_domain(rows: torch.Tensor, minibatches: Sequence[Minibatch]) -> list[torch.Tensor]:
    """The rows [n, …] that belong to each domain's batch, of a tensor for all of them."""
    return list(rows.split([len(y) for _, y in minibatches]))


def domain_risks(logits: torch.Tensor, minibatches: Sequence[Minibatch]) -> torch.Tensor:
    """Each domain's mean cross-entropy, [domains], from the logits [n, classes] for all of them."""
    domains = zip(by_domain(logits, minibatches), minibatches, strict=True)
    return torch.stack([F.cross_entropy(part, y) for part, (_, y) in domains])
