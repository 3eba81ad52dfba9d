"""The model that a job leaves, and how to have it back."""

import warnings
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from domainbed.algorithms import get_algorithm_class
from domainbed.algorithms.base import Algorithm
from domainbed.backbones import untrained, weights_in
from domainbed.compute import featurizers_of, set_compiled, set_precision
from domainbed.datasets import MultipleDomainDataset
from domainbed.engine.capturable import is_ours
from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError, one_line
from domainbed.files import atomic_write
from domainbed.registry import import_modules

MODEL = "model.pkl"  # in a job's folder; after an evaluation, model_step{step}.pkl

# Steps; an estimate. To compile takes up to a minute, to load what another job compiled some seconds.
WORTH_COMPILING = 1000


def make_algorithm(config: JobConfig, dataset: MultipleDomainDataset) -> Algorithm:
    """The job's algorithm with its initial weights, for the dataset's training environments.

    Raises:
        UsageError: it refuses its hyperparameters or the images' size.
    """
    algorithm_class = get_algorithm_class(config.algorithm)
    num_domains = len(dataset) - len(config.test_envs)
    hparams = config.resolved_hparams()
    if hparams["batch_size"] < algorithm_class.MIN_BATCH_SIZE:
        raise UsageError(
            f"{config.algorithm} needs a batch_size of at least {algorithm_class.MIN_BATCH_SIZE}, "
            f"not {hparams['batch_size']}"
        )
    try:
        with weights_in(config.weights_dir):
            return algorithm_class(dataset.input_shape, dataset.num_classes, num_domains, hparams)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{config.algorithm} can't be made with these hyperparameters: {error}") from error


def to_device(algorithm: Algorithm, config: JobConfig, device: torch.device) -> Algorithm:
    """Bring the algorithm to its device, where it will compute as the job asks.

    Raises:
        UsageError: it can't compute like that.
    """
    set_precision(config.precision, algorithm)
    if config.compile == "on" and config.deterministic and device.type == "cuda":
        raise UsageError("--compile on chooses kernels by their speed, so that it can't be --deterministic on a GPU")
    is_compiled = config.compile == "on" or (
        config.compile == "auto"
        and device.type == "cuda"
        and not config.deterministic
        and config.steps >= WORTH_COMPILING
        and is_ours(type(algorithm))  # another might differentiate a featurizer twice, which compiled ones can't
    )
    reason = set_compiled(featurizers_of(algorithm), device) if is_compiled else ""
    if reason and config.compile == "on":
        raise UsageError(f"--compile on: {reason}")
    if reason:
        tqdm.write(f"featurizers are not compiled: {reason}")
    return algorithm.to(device)


def save_model(path: Path, config: JobConfig, dataset: MultipleDomainDataset, algorithm: Algorithm) -> None:
    """Write the model whole or not at all."""
    saved = {
        "args": config.args(),
        "model_input_shape": tuple(dataset.input_shape),
        "model_num_classes": dataset.num_classes,
        "model_num_domains": len(dataset) - len(config.test_envs),
        "model_hparams": dict(algorithm.hparams),
        "model_dict": algorithm.state_dict(),
    }
    with atomic_write(path) as file:
        torch.save(saved, file)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Algorithm:
    """A saved model, ready to predict: `load_model("train_output/model.pkl").predict(images)`.

    Args:
        path: a model.pkl that `domainbed.scripts.train` wrote.
        device: where to put it.

    Raises:
        UsageError: there is no such file, or it holds no model of ours.
    """
    return load_job(path, device)[1]


def load_job(path: str | Path, device: str | torch.device = "cpu") -> tuple[dict[str, Any], Algorithm]:
    """The arguments of the job that left a model, as they stand in its records, and that model; see `load_model`."""
    saved = _read(path)
    args = saved["args"]
    try:
        import_modules(args.get("imports", ()))
        with untrained():
            algorithm = get_algorithm_class(args["algorithm"])(
                saved["model_input_shape"],
                saved["model_num_classes"],
                saved["model_num_domains"],
                saved["model_hparams"],
            )
        algorithm.load_state_dict(saved["model_dict"])
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"cannot load a model from {path}: {type(error).__name__}: {one_line(error)}") from error
    return args, algorithm.to(device).eval()


def _read(path: str | Path) -> dict[str, Any]:
    """What `save_model` wrote, its tensors on the CPU.

    Raises:
        UsageError: the file can't be read, or something else wrote it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are not torch's
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"cannot load a model from {path}: {error.strerror or one_line(error)}") from error
    except MemoryError:
        raise  # that says nothing of the file
    except Exception as error:  # whose words advise to run whatever code is in the file
        raise UsageError(f"{path} holds no model that train wrote") from error
    if not isinstance(saved, dict) or not isinstance(saved.get("args"), dict) or "model_dict" not in saved:
        raise UsageError(f"{path} holds no model that train wrote")
    return saved
