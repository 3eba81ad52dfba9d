"""Jobs with a frozen backbone (`{"frozen": true}`), which train on features that are extracted from each image once."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domainbed.backbones import SELECTORS, Backbone, backbone_name, use_weights_dir, without_weights
from domainbed.datasets import Environment, FeatureEnvironment, FileEnvironment, MultipleDomainDataset
from domainbed.engine.config import JobConfig
from domainbed.engine.data import load_data
from domainbed.engine.evaluate import split_on_oom
from domainbed.engine.requirements import check_requirements
from domainbed.errors import UsageError
from domainbed.hparams import Hparams, Value
from domainbed.loading.base import Request
from domainbed.loading.feature_store import Extract, FeatureFile, feature_folder, fill
from domainbed.loading.image_cache import fingerprint
from domainbed.loading.photo_feed import FileImages, PhotoEnvironment, PhotoFeed
from domainbed.loading.splits import Split
from domainbed.seeding import seed_hash

DTYPES = ("float32", "float16")
PREPROCESSING_VERSION = "1"  # increase it when images are decoded, resized, cropped or augmented differently


class FeatureDataset(MultipleDomainDataset):
    """A dataset whose images are replaced with the features of a frozen backbone.

    Args:
        dataset: the dataset.
        environments: its environments.
        n_features: number of features of an image.
        backbone_weights: the hash of the weights that extracted them (`weights_hash`); "" if nothing is extracted.

    Attributes:
        image_shape: (channels, height, width) of the images.
    """

    def __init__(
        self,
        dataset: MultipleDomainDataset,
        environments: Sequence[Environment],
        n_features: int,
        backbone_weights: str = "",
    ) -> None:
        self.environments = environments
        self.backbone_weights = backbone_weights
        self.num_classes = dataset.num_classes
        self.class_names = dataset.class_names
        self.image_shape = dataset.input_shape
        self.input_shape = (n_features,)  # type: ignore[assignment]  # networks.Featurizer accepts both shapes


def load_inputs(
    config: JobConfig, hparams: Hparams, device: torch.device, check_stop: Callable[[], None] = lambda: None
) -> tuple[MultipleDomainDataset, list[Split]]:
    """Return what `data.load_data` returns, with the features of the images if the backbone is frozen.

    Args:
        config: the job.
        hparams: its hyperparameters.
        device: where the backbone computes features that the store does not have.
        check_stop: called between images; an exception that it raises ends the extraction, which a later call
            continues.

    Raises:
        UsageError: see `load_data`; the job cannot have a frozen backbone; or an image or the weights cannot be read.
    """
    dataset, splits = load_data(config, hparams)
    check_stop()
    if is_frozen(hparams):
        dataset = extract_features(config, hparams, dataset, device, check_stop)
    return dataset, splits


def is_frozen(hparams: Hparams) -> bool:
    """Return whether these hyperparameters freeze the backbone."""
    return bool(hparams.get("frozen", False))


def frozen_backbone(hparams: Hparams, weights_dir: str | None, channels: int = 3) -> Backbone:
    """Return the pretrained backbone in evaluation mode. Calls with equal arguments share one network.

    Raises:
        UsageError: it is unknown, or its weights are not available.
    """
    return _backbone(tuple((name, hparams[name]) for name in SELECTORS), weights_dir, channels)


@cache
def _backbone(selectors: tuple[tuple[str, Value], ...], weights_dir: str | None, channels: int) -> Backbone:
    with use_weights_dir(weights_dir), torch.random.fork_rng(devices=[]):
        return Backbone(channels, dict(selectors)).eval().requires_grad_(False)


@cache
def weights_hash(backbone: Backbone) -> str:
    """Return a hash of all parameters and buffers, also of those that are not saved, such as the normalization."""
    digest = hashlib.sha256()
    for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_frozen(config: JobConfig, hparams: Hparams, dataset: MultipleDomainDataset) -> None:
    """Raise UsageError if the job cannot have a frozen backbone."""
    if not hparams["pretrained"]:
        raise UsageError('a frozen backbone requires pretrained weights; remove "frozen": true or "pretrained": false')
    if not all(isinstance(environment, FileEnvironment) for environment in dataset):
        raise UsageError(f'"frozen": true requires photographs, which {config.dataset} does not have')
    if config.on_bad_image != "error":
        raise UsageError(
            '"frozen": true cannot replace broken images (--on_bad_image skip); list them in leave_out.txt '
            "(scripts.download --verify --write_leave_out)"
        )
    if hparams["feature_dtype"] not in DTYPES:
        raise UsageError(f"feature_dtype must be one of {', '.join(DTYPES)}, not {hparams['feature_dtype']!r}")
    if hparams["feature_views"] and not hparams["data_augmentation"]:
        raise UsageError('"feature_views" are augmented, which "data_augmentation": false excludes; remove one of them')
    if config.precision == "bf16":
        raise UsageError("--precision bf16 does not apply to the features of a frozen backbone; omit it")
    check_requirements(config, hparams, dataset)


def without_extraction(config: JobConfig, hparams: Hparams, dataset: MultipleDomainDataset) -> FeatureDataset:
    """Return the dataset of a job with a frozen backbone, with the shape of its features but without the features.

    Raises:
        UsageError: the job cannot have a frozen backbone.
    """
    check_frozen(config, hparams, dataset)
    with without_weights(), torch.device("meta"):
        backbone = Backbone(dataset.input_shape[0], hparams)
    return FeatureDataset(dataset, dataset.environments, backbone.n_outputs)


def image_shape(saved: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return (channels, height, width) of the images of a saved model, also if it was trained on their features."""
    channels, height, width = saved.get("image_shape") or saved["model_input_shape"]
    return channels, height, width


def saved_backbone(metadata: Mapping[str, Any]) -> Backbone:
    """Return the frozen backbone of a saved model.

    Args:
        metadata: the content of the model's file. The folder of weights that it names is ignored if it does not exist.

    Raises:
        UsageError: its weights are not available, or not those that extracted the features.
    """
    hparams, weights_dir = metadata["model_hparams"], metadata["args"].get("weights_dir")
    folder = weights_dir if weights_dir and Path(weights_dir).is_dir() else None
    backbone = frozen_backbone(hparams, folder, image_shape(metadata)[0])
    if weights_hash(backbone) != metadata["backbone_weights"]:
        raise UsageError(
            f"the weights of {backbone_name(hparams)} on this machine are not those that the model was trained with"
        )
    return backbone


def to_inputs(x: torch.Tensor, metadata: Mapping[str, Any]) -> torch.Tensor:
    """Return what the algorithm of a saved model predicts from: if it was trained on features, those of images.

    Args:
        x: normalized images [n, channels, height, width], or features [n, n_features], which are returned unchanged.
        metadata: the content of the model's file.

    Raises:
        UsageError: the weights of the frozen backbone are not available, or not those that extracted the features.
    """
    hparams = metadata["model_hparams"]
    if x.ndim == 2 or not is_frozen(hparams):
        return x
    backbone = saved_backbone(metadata).to(x.device)
    with torch.no_grad(), full_precision():
        return rounded(backbone(x), hparams)


def rounds_features(hparams: Hparams) -> bool:
    """Return whether jobs with these hyperparameters train on features that are rounded to float16."""
    return is_frozen(hparams) and hparams.get("feature_dtype") == "float16"


def rounded(features: torch.Tensor, hparams: Hparams) -> torch.Tensor:
    """Return features as jobs with these hyperparameters train on them."""
    return features.half().float() if rounds_features(hparams) else features


def check_backbone(metadata: Mapping[str, Any], dataset: MultipleDomainDataset, source: Path) -> None:
    """Check that the inputs of a dataset are what a saved model was trained on, before its bare algorithm gets them.

    Args:
        metadata: the content of the model's file.
        dataset: the dataset, with features if the backbone is frozen (`load_inputs`).
        source: the file, for messages.

    Raises:
        UsageError: one of them has features and the other has not, or they are those of other weights.
    """
    own = dataset.backbone_weights if isinstance(dataset, FeatureDataset) else None
    if metadata.get("backbone_weights") != own:
        raise UsageError(f"{source} was trained on other inputs than those here: the weights of its backbone differ")


@contextmanager
def full_precision() -> Iterator[None]:
    """Within a `with` block, do not round to TF32 on a GPU: features are shared by jobs of any --precision."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def extract_features(
    config: JobConfig,
    hparams: Hparams,
    dataset: MultipleDomainDataset,
    device: torch.device,
    check_stop: Callable[[], None] = lambda: None,
) -> FeatureDataset:
    """Return the dataset with the features of its images, which are extracted unless the store has them.

    The features of augmented views are extracted only for training environments.

    Raises:
        UsageError: an image or the weights cannot be read, or the store is full.
    """
    check_frozen(config, hparams, dataset)
    backbone = frozen_backbone(hparams, config.weights_dir, dataset.input_shape[0])
    weights = weights_hash(backbone)
    files: list[FeatureFile] = []
    extractors: list[Extract] = []
    n_views: list[int] = []
    for environment, name in zip(dataset, config.environment_names(), strict=True):
        assert isinstance(environment, FileEnvironment)
        folder = os.path.realpath(environment.folder)  # so that the same files always have the same features
        paths = [f"{folder}/{file}" for file in environment.files]
        photos = PhotoEnvironment(
            FileImages(paths),
            paths,
            environment.labels,
            np.zeros(len(paths), np.int8),
            environment.is_cropped,
            environment.is_resized_first,
        )
        feed = PhotoFeed([photos], dataset.input_shape[1:], device, workers=0)
        # Relative names: a copy of the dataset, such as on the disk of a node, has the same features.
        key = (fingerprint(paths, check_stop, folder), str(tuple(dataset.input_shape)), weights, PREPROCESSING_VERSION)
        views = 1 + (hparams["feature_views"] if environment.is_augmented else 0)
        n_views.append(views)
        for view in range(views):
            # Augmented images are rounded to integers on a CPU only.
            augmentation = (device.type, *augmentation_key(environment)) if view else ()
            stem = f"{config.dataset}-{name}-{backbone_name(hparams)}-view{view}"
            files.append(
                FeatureFile(
                    feature_folder(config.cache),
                    stem.replace("/", "_"),
                    (*key, str(view), *augmentation),
                    len(paths),
                    backbone.n_outputs,
                    hparams["feature_dtype"],
                )
            )
            extractors.append(partial(_extract, backbone, feed, device, view, check_stop))
    features = iter(fill(files, extractors, config.cache_gb, check_stop))
    backbone.to("cpu")  # the GPU's memory is for training
    environments = [
        FeatureEnvironment([next(features) for _ in range(views)], environment.labels, environment.image_names)
        for environment, views in zip(dataset, n_views, strict=True)
    ]
    return FeatureDataset(dataset, environments, backbone.n_outputs, weights)


def augmentation_key(environment: FileEnvironment) -> tuple[str, ...]:
    """Return the differences of an environment's augmentation from the published one; usually none."""
    differences = {"not cropped": not environment.is_cropped, "resized first": environment.is_resized_first}
    return tuple(name for name, differs in differences.items() if differs)


@torch.no_grad()
def _extract(
    backbone: Backbone,
    feed: PhotoFeed,
    device: torch.device,
    view: int,
    check_stop: Callable[[], None],
    start: int,
    stop: int,
) -> np.ndarray:
    """Return the features of the images start, …, stop - 1; view 0 is the image, the others are augmented."""
    # On a CPU, single images are fastest, and their features most reproducible.
    size = 1 if device.type == "cpu" else stop - start
    key = seed_hash("feature_views", view) if view else None
    requests = [
        [Request(0, np.arange(first, min(first + size, stop)), key, first)] for first in range(start, stop, size)
    ]
    network = backbone.to(device)
    rows = []
    with full_precision():
        for [(x, _)] in feed.batches(requests):
            check_stop()
            rows.append(split_on_oom(network, x).cpu())
    return torch.cat(rows).numpy()
