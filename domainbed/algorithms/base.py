"""The contract of an algorithm: DomainBed's interface, so that a class written for it drops in unchanged."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from domainbed.errors import UsageError
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
    the constructor and keep tensors that are no parameters in buffers. Make every module in the constructor, too: only
    then can its state be loaded. What else changes from update to update lies in attributes, as `training_state` says.
    """

    MIN_BATCH_SIZE: ClassVar[int] = 1  # images of each domain, without which an update can't be computed

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__()
        self.hparams = hparams

    @property
    def phase(self) -> str:
        """The branch of Python control flow that the next update takes ("warm-up", "discriminator", …).

        Two updates of one phase do the same operations on other tensors; but the first may find its optimizer new. On a
        GPU a phase's third update is recorded, and replayed in place of all that follow. So nothing in them may depend
        on numbers of the host that change within the phase, such as a count of updates. (An update that changes such
        numbers is replayed only if its class defines `phase` itself.)
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

        That is the `state_dict` of the modules (parameters, buffers) and, by name, the attributes: what has a
        state_dict itself (optimizers, schedulers), numbers, strings, None, tensors, and lists, tuples and dicts of
        these. Functions and classes hold no state. Tensors are the algorithm's own, not copies.

        Raises:
            UsageError: an attribute is something else, so that the class needs a `training_state` of its own.
        """
        attributes = {n: _state_of(n, v) for n, v in vars(self).items() if n not in _NO_STATE and not callable(v)}
        return {"modules": self.state_dict(), "attributes": attributes}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where an algorithm made with the same arguments was when its `training_state` was taken."""
        self.load_state_dict(state["modules"])
        for name, value in copy.deepcopy(state["attributes"]).items():
            setattr(self, name, _restored(getattr(self, name, None), value))

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As of every module, but buffers take the shapes that they had (some are filled by the first update only)."""
        for name, buffer in list(self.named_buffers()):
            saved = state_dict.get(name)
            if saved is not None and saved.shape != buffer.shape:
                module, _, leaf = name.rpartition(".")
                setattr(self.get_submodule(module), leaf, buffer.new_empty(saved.shape))
        return super().load_state_dict(state_dict, *args, **kwargs)


# What nn.Module keeps for itself, and what the constructor was given.
_NO_STATE = {*vars(nn.Module()), "hparams"}


def _state_of(name: str, value: Any) -> Any:
    if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        return value.state_dict()
    if type(value) in (list, tuple):
        return type(value)(_state_of(name, item) for item in value)
    if isinstance(value, dict):
        return {key: _state_of(name, item) for key, item in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or type(value) in (bool, int, float, str, torch.Tensor):
        return value
    raise UsageError(
        f"the state of attribute {name!r}, a {type(value).__name__}, can't be saved; make it a buffer, or give the "
        "algorithm a training_state and load_training_state of its own"
    )


def _restored(current: Any, saved: Any) -> Any:
    """The saved state where `current` is: in that object itself, if it can load it."""
    if hasattr(current, "load_state_dict"):
        current.load_state_dict(saved)
        return current
    if type(current) in (list, tuple) and len(current) == len(saved):
        return type(current)(map(_restored, current, saved))
    if isinstance(current, dict) and isinstance(saved, dict):
        return {key: _restored(current.get(key), item) for key, item in saved.items()}
    if isinstance(current, torch.Tensor) and isinstance(saved, torch.Tensor):
        return saved.to(current.device)
    return saved


def predicted_classes(logits: torch.Tensor) -> torch.Tensor:
    """The class that each image's logits [n, classes] say, [n]; a single logit says class 1 where it is positive."""
    return logits.argmax(1) if logits.shape[1] > 1 else logits[:, 0] > 0


def concatenate(minibatches: Sequence[Minibatch]) -> Minibatch:
    """The domains' batches as one: images and labels."""
    return torch.cat([x for x, _ in minibatches]), torch.cat([y for _, y in minibatches])


def split_by_domain(rows: torch.Tensor, minibatches: Sequence[Minibatch]) -> list[torch.Tensor]:
    """The rows [n, …] that belong to each domain's batch, of a tensor for all of them."""
    return list(rows.split([len(y) for _, y in minibatches]))


def domain_risks(logits: torch.Tensor, minibatches: Sequence[Minibatch]) -> torch.Tensor:
    """Each domain's mean cross-entropy, [domains], from the logits [n, classes] for all of them."""
    domains = zip(split_by_domain(logits, minibatches), minibatches, strict=True)
    return torch.stack([F.cross_entropy(part, y) for part, (_, y) in domains])
