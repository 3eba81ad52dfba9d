"""How many images of each split a model gets right."""

from collections.abc import Sequence

import torch

from domainbed.algorithms.base import Algorithm
from domainbed.loading.resident import ResidentImages
from domainbed.loading.splits import Split

# Images at a time. A CPU is fastest while a layer's activations fit into its cache, a GPU with many.
BATCH = {"cpu": 64, "cuda": 2048}


@torch.no_grad()  # not inference_mode: an algorithm may adapt itself in predict
def accuracies(
    algorithm: Algorithm, environments: Sequence[ResidentImages], splits: Sequence[Split]
) -> dict[str, float]:
    """The accuracy on every part of every environment, by the name it has in records (`env0_in_acc`, …).

    Each image is seen once. A single logit (of an algorithm that has but one) says class 1 where it is positive.
    """
    algorithm.eval()
    correct = [_correct(algorithm, environment) for environment in environments]
    algorithm.train()
    return {
        f"env{i}_{name}_acc": correct[i][torch.from_numpy(part)].double().mean().item()
        for i, split in enumerate(splits)
        for name, part in split.parts().items()
    }


def _correct(algorithm: Algorithm, environment: ResidentImages) -> torch.Tensor:
    """Which of an environment's images the model gets right: bool [n], on the CPU."""
    device = environment.labels.device
    correct = []
    for indices in torch.arange(len(environment), device=device).split(BATCH.get(device.type, 256)):
        x, y = environment.batch(indices)
        logits = algorithm.predict(x)
        predicted = logits.argmax(1) if logits.shape[1] > 1 else logits[:, 0] > 0
        correct.append(predicted == y)
    return torch.cat(correct).cpu()
