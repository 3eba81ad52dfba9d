"""MTL: domain generalization by marginal transfer learning (Blanchard, Deshmukh, Dogan, Lee and Scott, JMLR 2021)."""

import torch
from torch.nn import functional as F

from domainbed import networks
from domainbed.algorithms.base import (
    Algorithm,
    Metrics,
    Minibatches,
    Unlabeled,
    outputs_by_domain,
    split_by_domain,
    take_step,
)
from domainbed.hparams import Hparam, Hparams, one_of


class MTL(Algorithm):
    """Appends an embedding of the domain, a moving average of its mean features, to the features.

    The published code overwrites the embedding by Gaussian noise before it is used, in training and in prediction, and
    the published tables rest on this; `mtl_noise` false uses the embedding, in prediction that of the given batch. As
    published, `mtl_ema` is the weight of the *new* mean, and the loss is the sum of the domains' risks.
    """

    HPARAMS = {"mtl_ema": Hparam(0.99, one_of(0.5, 0.9, 0.99, 1.0), at_least=0, at_most=1), "mtl_noise": Hparam(True)}
    PREDICTS_BY_CLASSIFIER = False  # its classifier also takes the embedding
    embeddings: torch.Tensor  # [domains, d]

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer = networks.Featurizer(input_shape, hparams)
        d = self.featurizer.n_outputs
        self.classifier = networks.Classifier(2 * d, num_classes, is_nonlinear=hparams["nonlinear_classifier"])
        self.optimizer = torch.optim.Adam(
            [*self.featurizer.parameters(), *self.classifier.parameters()],
            lr=hparams["lr"],
            weight_decay=hparams["weight_decay"],
        )
        self.register_buffer("embeddings", torch.zeros(num_domains, d))
        self._noise_state: torch.Tensor | None = None
        if not hparams["mtl_noise"]:  # predictions depend on the batch
            self.EVAL_BATCH_SIZE = 64  # type: ignore[misc]  # DomainBed's

    @property
    def caveat(self) -> str:
        if not self.hparams["mtl_noise"]:
            return ""
        return 'the domain embedding is replaced by noise (as published); use it with {"mtl_noise": false}'

    def classify(self, z: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Return the logits of features [n, d] and the embedding [d] of their domain."""
        rows = torch.randn_like(z) if self.hparams["mtl_noise"] else embedding.expand_as(z)
        return self.classifier(torch.cat([z, rows], dim=1))

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        features = split_by_domain(outputs_by_domain(self.featurizer, minibatches), minibatches)
        means = torch.stack([z.mean(0) for z in features])
        ema = self.hparams["mtl_ema"]
        embeddings = ema * means + (1 - ema) * self.embeddings
        self.embeddings.copy_(embeddings.detach())
        losses = [
            F.cross_entropy(self.classify(z, embedding), y)
            for z, embedding, (_, y) in zip(features, embeddings, minibatches, strict=True)
        ]
        loss = torch.stack(losses).sum()
        take_step(self.optimizer, loss)
        return {"loss": loss.detach()}

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        z = self.featurizer(x)
        on_gpu = x.device.type == "cuda"
        # The noise must not change what later updates draw, and must not repeat itself in the batches of an evaluation.
        with torch.random.fork_rng(devices=[x.device] if on_gpu else []):
            if (state := self._noise_state) is not None:
                torch.cuda.set_rng_state(state, x.device) if on_gpu else torch.set_rng_state(state)
            logits = self.classify(z, z.mean(0))
            self._noise_state = torch.cuda.get_rng_state(x.device) if on_gpu else torch.get_rng_state()
        return logits

    def train(self, mode: bool = True) -> "MTL":
        self._noise_state = None  # each evaluation begins with the state of torch's generator
        return super().train(mode)
