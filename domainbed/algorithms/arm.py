"""ARM-CML: adaptive risk minimization with a context network (Zhang et al., NeurIPS 2021)."""

import torch

from domainbed import networks
from domainbed.algorithms.erm import ERM
from domainbed.hparams import SHARED, Hparam, Hparams


class ARM(ERM):
    """Gives the network one more channel: a context map, averaged over a group of images of the same domain.

    A group is `batch_size` consecutive images if that divides the number of images, else all of them, so accuracies
    depend on how evaluation batches images; as in the published code, it takes 64 at a time.

    In the published code the optimizer does not hold the context network, which keeps its initial weights;
    `train_context` trains it, as in the paper.
    """

    HPARAMS = {
        "batch_size": Hparam(8, small_images=SHARED["batch_size"].small_images, at_least=1, at_most=2**20),
        "train_context": Hparam(False),
    }
    EVAL_BATCH_SIZE = 64
    REQUIRES_IMAGES = True
    PREDICTS_BY_CLASSIFIER = False  # its featurizer also takes the context

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        channels, height, width = input_shape
        super().__init__((channels + 1, height, width), num_classes, num_domains, hparams)
        self.context_net = networks.ContextNet(input_shape)
        if hparams["train_context"]:
            self.optimizer.add_param_group({"params": list(self.context_net.parameters())})
        else:
            self.context_net.requires_grad_(False)
        self.support_size = hparams["batch_size"]

    @property
    def caveat(self) -> str:
        if self.hparams["train_context"]:
            return ""
        return 'the context network is not trained (as published); train it with {"train_context": true}'

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        n, _, height, width = x.shape
        size = self.support_size if n % self.support_size == 0 else n
        context = self.context_net(x).view(-1, size, 1, height, width).mean(1, keepdim=True)
        context = context.expand(-1, size, -1, -1, -1).reshape(n, 1, height, width)
        return self.network(torch.cat([x, context], dim=1))
