"""What an algorithm requires of a job's data, checked before features are extracted and the algorithm is created."""

from domainbed.algorithms import get_algorithm_class
from domainbed.datasets import MultipleDomainDataset
from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError
from domainbed.hparams import Hparams


def check_requirements(config: JobConfig, hparams: Hparams, dataset: MultipleDomainDataset) -> None:
    """Raise UsageError if the job's algorithm cannot be trained on a dataset, or on its features if it is frozen."""
    algorithm_class = get_algorithm_class(config.algorithm)
    num_domains = len(dataset) - len(config.test_envs)
    if hparams["batch_size"] < algorithm_class.MIN_BATCH_SIZE:
        raise UsageError(
            f"{config.algorithm} requires a batch_size of at least {algorithm_class.MIN_BATCH_SIZE}, "
            f"not {hparams['batch_size']}"
        )
    if num_domains < algorithm_class.MIN_DOMAINS:
        raise UsageError(
            f"{config.algorithm} requires at least {algorithm_class.MIN_DOMAINS} training domains, not {num_domains}"
        )
    if algorithm_class.REQUIRES_PHOTOS and dataset.SMALL_IMAGES:
        raise UsageError(f"{config.algorithm} requires a dataset of photos, not of small images")
    if algorithm_class.REQUIRES_IMAGES and (hparams.get("frozen") or len(dataset.input_shape) == 1):
        raise UsageError(f"{config.algorithm} requires images, not the features of a frozen backbone")
    if algorithm_class.REQUIRES_FEATURIZER and hparams.get("linear_probe"):
        raise UsageError(f"{config.algorithm} requires a trained featurizer, which linear probes do not have")
    if dataset.class_names is not None and len(dataset.class_names) != dataset.num_classes:
        raise UsageError(
            f"{config.dataset} has {dataset.num_classes} classes, but {len(dataset.class_names)} class_names"
        )
