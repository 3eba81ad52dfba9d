"""The interface of an algorithm: DomainBed's, so classes written for it work unchanged."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from domainbed.algorithms import state
from domainbed.hparams import Hparam, Hparams

Minibatch: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # images [n, *input_shape] and labels [n]
Minibatches: TypeAlias = Sequence[Minibatch]  # one per training domain
Unlabeled: TypeAlias = Sequence[torch.Tensor] | None  # images [n, *input_shape], one tensor per test domain
Metrics: TypeAlias = Mapping[str, torch.Tensor | float]


class Algorithm(nn.Module):
    """A method that trains a network on several domains at once.

    The job's seed is set before the constructor is called, and the algorithm is moved to its device afterwards.
    Create all modules and optimizers in the constructor, and register tensors that are not parameters as buffers.

    Args:
        input_shape: (channels, height, width) of the images.
        num_classes: number of classes.
        num_domains: number of training domains.
        hparams: values of the hyperparameters, by name.
    """

    HPARAMS: ClassVar[Mapping[str, Hparam]] = {}  # in addition to those in `hparams.SHARED`
    MIN_BATCH_SIZE: ClassVar[int] = 1  # images per domain that an update requires
    MIN_DOMAINS: ClassVar[int] = 1  # training domains that an update requires
    REQUIRES_PHOTOS: ClassVar[bool] = False  # whether it does not support datasets with SMALL_IMAGES
    REQUIRES_IMAGES: ClassVar[bool] = False  # whether it does not support features of a frozen backbone
    SUPPORTS_COMPILATION: ClassVar[bool] = True  # not if updates hook featurizers, differentiate twice, or keep graphs
    REQUIRES_FEATURIZER: ClassVar[bool] = False  # whether it does not support linear probes
    UNSAVED: ClassVar[Collection[str]] = ()  # attributes that checkpoints leave to the class's own `training_state`
    PREDICTS_BY_CLASSIFIER: ClassVar[bool] = True  # whether predict(x) is classifier(featurizer(x)), if it has these
    EVAL_BATCH_SIZE: ClassVar[int | None] = None  # images per batch of an evaluation; None: what is fastest
    _constructed: state.Constructed | None = None

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__()
        self.hparams = hparams

    @property
    def phase(self) -> str:
        """The branch of Python control flow that the next update takes ("warm-up", "discriminator", …).

        Updates of the same phase must run the same operations. On a GPU, the third update of each phase is captured and
        replayed in place of all later ones, so within a phase nothing may depend on Python numbers that change, such as
        an update count. An update that changes Python numbers is captured only if its class defines `phase`.
        """
        return "update"

    @property
    def caveat(self) -> str:
        """A warning about published behavior that may be unexpected with these hyperparameters; empty if none."""
        return ""

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        """Take one training step.

        Args:
            minibatches: images [n, *input_shape] and labels [n] of each training domain, on the algorithm's device.
            unlabeled: images [n, *input_shape] of each test domain; only in domain adaptation.

        Returns:
            Metrics by name ("loss", "penalty", …). Their means since the last evaluation are recorded; a non-finite
            value ends the job. Return detached 0-dim tensors to avoid a device synchronization; floats also work.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement update")

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits [n, num_classes] of images [n, *input_shape]."""
        raise NotImplementedError(f"{type(self).__name__} does not implement predict")

    def record_construction(self) -> None:
        """Record what the constructor made, so that `training_state` can tell what updates have changed since.

        The engine calls this method on the new algorithm, before its first update or `load_training_state`.
        """
        self._constructed = state.Constructed(self)

    def training_state(self) -> dict[str, Any]:
        """Return everything that the next updates depend on, except for the global random generators.

        The state consists of values that `torch.load` reads with `weights_only=True`. The README lists what it
        contains. Tensors are not copied.

        Raises:
            UsageError: a part of the state cannot be saved. The class must keep it in another form, or override this
                method and `load_training_state`.
        """
        return state.training_state(self, self._constructed)

    def late_buffers(self) -> list[str]:
        """Return the names of the buffers in `state_dict` that the constructor did not fill, but an update did."""
        if self._constructed is None:
            return []
        saved, constructed = self.state_dict(), self._constructed.buffers
        names = (name for name, _ in self.named_buffers(remove_duplicate=False))
        return [name for name in names if name in saved and name not in constructed]

    def load_training_state(self, saved: Mapping[str, Any]) -> None:
        """Restore a `training_state` into a new algorithm that was constructed with the same arguments."""
        state.load_training_state(self, saved, self._constructed)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load as `nn.Module` does, but give buffers their saved shapes and types (updates may fill them)."""
        for name, buffer in list(self.named_buffers()):
            saved = state_dict.get(name)
            if saved is not None and not is_lazy(buffer) and (saved.shape, saved.dtype) != (buffer.shape, buffer.dtype):
                module, _, leaf = name.rpartition(".")
                setattr(self.get_submodule(module), leaf, buffer.new_empty(saved.shape, dtype=saved.dtype))
        return super().load_state_dict(state_dict, *args, **kwargs)


def predicted_classes(logits: torch.Tensor) -> torch.Tensor:
    """Return the classes [n] predicted by logits [n, classes]; a single logit predicts class 1 if it is positive."""
    return logits.argmax(1) if logits.shape[1] > 1 else logits[:, 0] > 0


def concatenate(minibatches: Minibatches) -> Minibatch:
    """Return the images and the labels of all domains, concatenated."""
    return torch.cat([x for x, _ in minibatches]), torch.cat([y for _, y in minibatches])


def split_by_domain(rows: torch.Tensor, minibatches: Minibatches) -> list[torch.Tensor]:
    """Split a tensor [sum of n, …] with one row per image of `concatenate(minibatches)` into one tensor per domain."""
    return list(rows.split([len(y) for _, y in minibatches]))


def domain_risks(logits: torch.Tensor, minibatches: Minibatches) -> torch.Tensor:
    """Return the mean cross-entropy of each domain, [domains], given the logits of all images."""
    domains = zip(split_by_domain(logits, minibatches), minibatches, strict=True)
    return torch.stack([F.cross_entropy(part, y) for part, (_, y) in domains])


def separate_risks(network: nn.Module, minibatches: Minibatches) -> list[torch.Tensor]:
    """Return the mean cross-entropy of each domain, for methods that differentiate each risk by itself.

    Each domain passes through the network by itself, so that the gradient of its risk does not propagate zeros through
    the images of the others.
    """
    return [F.cross_entropy(network(x), y) for x, y in minibatches]


def outputs_by_domain(network: nn.Module, minibatches: Minibatches) -> torch.Tensor:
    """Return the network's outputs [sum of n, …] for `concatenate(minibatches)`, for methods that use it by domain.

    Batch norm in training mode normalizes the images of each domain by themselves, as in the published code, which
    passes each domain through the network separately. All others are faster at once.
    """
    if uses_batch_statistics(network):
        return torch.cat([network(x) for x, _ in minibatches])
    return network(concatenate(minibatches)[0])


def uses_batch_statistics(network: nn.Module) -> bool:
    """Return whether an output depends on the whole batch, because some batch norm is in training mode."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in network.modules())


def differentiable(z: torch.Tensor) -> torch.Tensor:
    """Return features with respect to which a loss can be differentiated, also if no trained layer computed them."""
    return z if z.requires_grad else z.detach().requires_grad_()


def domain_labels(minibatches: Minibatches) -> torch.Tensor:
    """Return the number of the domain of each image of `concatenate(minibatches)`, [sum of n]."""
    return torch.cat([torch.full_like(y, domain) for domain, (_, y) in enumerate(minibatches)])


def stack_domains(minibatches: Minibatches) -> Minibatch:
    """Return images [domains, n, *input_shape] and labels [domains, n], all batches cut to the smallest."""
    n = min(len(y) for _, y in minibatches)
    return torch.stack([x[:n] for x, _ in minibatches]), torch.stack([y[:n] for _, y in minibatches])


def random_permutation(n: int, device: torch.device) -> torch.Tensor:
    """Return a random permutation of 0, …, n - 1, drawn without synchronizing with the device."""
    return torch.rand(n, device=device, dtype=torch.float64).argsort()


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require gradients."""
    return [p for p in module.parameters() if p.requires_grad]


def take_step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """Take an optimizer step on a loss, with gradients for this optimizer's parameters alone."""
    optimizer.zero_grad()
    loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"] if p.requires_grad])
    optimizer.step()


def gradients_of(
    loss: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    *,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> list[torch.Tensor]:
    """Return the gradient of a 0-dim loss with respect to each parameter: zero for those that it does not depend on.

    Args:
        loss: 0-dim.
        parameters: tensors that require gradients. Some networks have parameters that their outputs do not depend on;
            with a zero gradient, an optimizer still decays these.
        retain_graph: keep the graph of the loss for another gradient. Default: `create_graph`.
        create_graph: make the gradients differentiable.
    """
    gradients = torch.autograd.grad(
        loss, parameters, retain_graph=retain_graph, create_graph=create_graph, materialize_grads=True
    )
    return list(gradients)


def take_step_along(optimizer: torch.optim.Optimizer, gradients: Mapping[nn.Parameter, torch.Tensor]) -> None:
    """Take an optimizer step with the given gradient of each parameter."""
    for parameter, gradient in gradients.items():
        # On a CPU, fused Adam ignores strides. Those of channels_last weights are lost in a stack, for example.
        is_same_layout = gradient.stride() == parameter.stride()
        parameter.grad = gradient if is_same_layout else torch.empty_like(parameter).copy_(gradient)
    optimizer.step()
