"""What an algorithm requires of a job, checked before features are extracted and the algorithm is created."""

from typing import TYPE_CHECKING

from domainbed.algorithms import get_algorithm_class
from domainbed.datasets import MultipleDomainDataset
from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError
from domainbed.hparams import Hparams

if TYPE_CHECKING:  # importing this module must not import torch
    from domainbed.algorithms.base import Algorithm


def unmet_requirement(
    algorithm_class: "type[Algorithm]", num_domains: int, *, small_images: bool, images: bool, linear_probe: bool
) -> str:
    """Return what an algorithm requires that a job does not have; "" if nothing.

    Args:
        algorithm_class: the algorithm.
        num_domains: the number of training domains.
        small_images: whether the dataset is one of small images.
        images: whether the algorithm is trained on images, and not on features of a frozen backbone.
        linear_probe: whether only a linear classifier is trained on these features.
    """
    if num_domains < algorithm_class.MIN_DOMAINS:
        return f"at least {algorithm_class.MIN_DOMAINS} training domains, not {num_domains}"
    if algorithm_class.REQUIRES_PHOTOS and small_images:
        return "a dataset of photos, not of small images"
    if algorithm_class.REQUIRES_IMAGES and not images:
        return "images, not the features of a frozen backbone"
    if algorithm_class.REQUIRES_FEATURIZER and linear_probe:
        return "a trained featurizer, which linear probes do not have"
    return ""


def check_requirements(config: JobConfig, hparams: Hparams, dataset: MultipleDomainDataset) -> None:
    """Raise UsageError if the job's algorithm cannot be trained on a dataset, or on its features if it is frozen."""
    algorithm_class = get_algorithm_class(config.algorithm)
    unmet = unmet_requirement(
        algorithm_class,
        num_domains=len(dataset) - len(config.test_envs),
        small_images=dataset.SMALL_IMAGES,
        images=not hparams.get("frozen") and len(dataset.input_shape) > 1,
        linear_probe=bool(hparams.get("linear_probe")),
    )
    if hparams["batch_size"] < algorithm_class.MIN_BATCH_SIZE:
        unmet = f"a batch_size of at least {algorithm_class.MIN_BATCH_SIZE}, not {hparams['batch_size']}"
    if unmet:
        raise UsageError(f"{config.algorithm} requires {unmet}")
    if dataset.class_names is not None and len(dataset.class_names) != dataset.num_classes:
        raise UsageError(
            f"{config.dataset} has {dataset.num_classes} classes, but {len(dataset.class_names)} class_names"
        )
