"""Creating, saving and loading the model of a job."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from domainbed.algorithms import get_algorithm_class
from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.state import check_plain
from domainbed.backbones import use_weights_dir, without_weights
from domainbed.compute import enable_compilation, featurizers_of, set_precision
from domainbed.datasets import MultipleDomainDataset
from domainbed.engine.algorithm_checks import check_attributes, check_training_state, recorded_hparams
from domainbed.engine.algorithm_errors import locate_errors, location
from domainbed.engine.components import import_components
from domainbed.engine.config import JobConfig
from domainbed.engine.digest import init_digest
from domainbed.engine.frozen import FeatureDataset
from domainbed.engine.preprocessing import Preprocessing
from domainbed.engine.requirements import check_requirements
from domainbed.engine.trained_model import TrainedModel
from domainbed.errors import UsageError, one_line
from domainbed.files import atomic_write
from domainbed.hparams import Hparams
from domainbed.registry import is_builtin

MODEL_FILE = "model.pkl"  # in a job's folder; --save_model_every_checkpoint also saves model_step{step}.pkl

# An estimate: compiling takes up to a minute, loading what another job has compiled takes seconds.
MIN_STEPS_TO_COMPILE = 1000


def make_algorithm(config: JobConfig, hparams: Hparams, dataset: MultipleDomainDataset) -> Algorithm:
    """Return the job's algorithm, with its initial weights, for the dataset's training environments.

    Raises:
        UsageError: the algorithm rejects its hyperparameters or the size of the images, or keeps state that checkpoints
            cannot contain; or the dataset does not name each of its classes.
        AlgorithmError: the constructor of a user's algorithm fails.
    """
    algorithm_class = get_algorithm_class(config.algorithm)
    num_domains = len(dataset) - len(config.test_envs)
    check_requirements(config, hparams, dataset)
    with use_weights_dir(config.weights_dir), locate_errors(algorithm_class, lambda: "constructor"):
        try:
            algorithm = algorithm_class(dataset.input_shape, dataset.num_classes, num_domains, dict(hparams))
        except UsageError:
            raise
        except ValueError as error:
            where = "" if is_builtin(algorithm_class) else location(error, algorithm_class)
            raise UsageError(f"cannot create {config.algorithm} with these hyperparameters: {error}{where}") from error
        check_attributes(algorithm)
        if not (config.trust_checkpoint or is_builtin(algorithm_class)):
            check_plain(algorithm.training_state())
        if not is_builtin(algorithm_class):
            check_training_state(algorithm)
    return algorithm


def load_initial_weights(algorithm: Algorithm, config: JobConfig) -> None:
    """Copy parameters and the running statistics of batch norm from the model `config.init_from`, if one is given.

    Raises:
        UsageError: the file is not a model with these parameters, or has changed since the job was launched.
    """
    if config.init_from is None:
        return
    if init_digest(config.init_from) != config.init_digest:
        raise UsageError(f"--init_from {config.init_from} has changed since the job was launched; launch again")
    saved = _read(config.init_from)["model_dict"]
    statistics = {k: v for k, v in algorithm.named_buffers() if k.endswith(("running_mean", "running_var"))}
    try:
        with torch.no_grad():
            for name, tensor in {**dict(algorithm.named_parameters()), **statistics}.items():
                tensor.copy_(saved[name])
    except (KeyError, RuntimeError) as error:
        raise UsageError(
            f"--init_from {config.init_from} is not a model of {config.algorithm} on {config.dataset} "
            f"({type(error).__name__}: {one_line(error)})"
        ) from error


def check_compilation(config: JobConfig, algorithm: Algorithm) -> None:
    """Raise UsageError if compilation is requested and the algorithm says that it does not support it."""
    if config.compile == "on" and not algorithm.SUPPORTS_COMPILATION:
        raise UsageError(f"{type(algorithm).__name__} does not support --compile on; omit it, or pass --compile off")


def to_device(algorithm: Algorithm, config: JobConfig, device: torch.device) -> Algorithm:
    """Set precision and compilation as configured, and move the algorithm to the device.

    Raises:
        UsageError: the algorithm or the device does not support the configuration.
    """
    set_precision(config.precision, algorithm)
    check_compilation(config, algorithm)
    if config.compile == "on" and config.deterministic and device.type == "cuda":
        raise UsageError(
            "--compile on selects kernels by measured speed and cannot be combined with --deterministic on a GPU"
        )
    featurizers = featurizers_of(algorithm)
    if config.compile == "on" and not featurizers:
        raise UsageError(f"--compile on: {type(algorithm).__name__} has no featurizer that can be compiled")
    should_compile = config.compile == "on" or (
        config.compile == "auto"
        and device.type == "cuda"
        and not config.deterministic
        and config.steps >= MIN_STEPS_TO_COMPILE
        and is_builtin(type(algorithm))  # others may do what compilation does not support, without saying so
        and algorithm.SUPPORTS_COMPILATION
        and featurizers
    )
    reason = enable_compilation(featurizers, device) if should_compile else ""
    if reason and config.compile == "on":
        raise UsageError(f"--compile on: {reason}")
    if reason:
        tqdm.write(f"featurizers are not compiled: {reason}")
    return algorithm.to(device)


def save_model(
    path: Path,
    config: JobConfig,
    dataset: MultipleDomainDataset,
    environments: Sequence[str],
    algorithm: Algorithm,
) -> None:
    """Save the model, and what its users need to know of the dataset, atomically."""
    preprocessing = Preprocessing.of_dataset(dataset)
    saved = {
        "args": config.args(),
        "model_input_shape": tuple(dataset.input_shape),
        "model_num_classes": dataset.num_classes,
        "model_num_domains": len(dataset) - len(config.test_envs),
        "model_hparams": recorded_hparams(algorithm),
        "class_names": None if dataset.class_names is None else list(dataset.class_names),
        "environments": list(environments),
        "preprocessing": preprocessing and preprocessing.as_dict(),
        "model_dict": algorithm.state_dict(),
        "late_buffers": algorithm.late_buffers(),
    }
    if isinstance(dataset, FeatureDataset):
        saved["image_shape"] = tuple(dataset.image_shape)
        saved["backbone_weights"] = dataset.backbone_weights
    with atomic_write(path) as file:
        torch.save(saved, file)


def load_model(path: str | Path, device: str | torch.device = "cpu", trust_imports: bool = False) -> TrainedModel:
    """Load a saved model for prediction: `load_model("train_output/model.pkl").predict_images(["cat.jpg"])`.

    The model of a job with a frozen backbone accepts its features [n, n_features], too; its `algorithm`, only these.

    No code in the file is run. An algorithm of your own must be registered first, by importing its module.

    Args:
        path: a model.pkl saved by `domainbed.scripts.train`.
        device: the device to load it to.
        trust_imports: whether to import the modules that the file names, which runs their code.

    Raises:
        UsageError: the file does not exist, is not a model saved by train, or requires an algorithm that is not
            registered.
    """
    saved = _read(path)
    algorithm = new_algorithm(saved, path, trust_imports)
    with _explain_errors(path):
        for name in saved.get("late_buffers", ()):
            module, _, leaf = name.rpartition(".")
            algorithm.get_submodule(module).register_buffer(leaf, torch.empty_like(saved["model_dict"][name]))
        algorithm.load_state_dict(saved["model_dict"])
        algorithm.to(device)
        return TrainedModel(algorithm, {name: value for name, value in saved.items() if name != "model_dict"})


def new_algorithm(metadata: Mapping[str, Any], source: object, trust_imports: bool = False) -> Algorithm:
    """Return a saved algorithm without its weights.

    Args:
        metadata: the content of a model's file.
        source: the file, for messages.
        trust_imports: as in `load_model`.

    Raises:
        UsageError: the algorithm is not registered, or cannot be created.
    """
    with _explain_errors(source):
        args = metadata["args"]
        import_components(args, trust_imports, ["algorithm"], source)
        with without_weights():
            algorithm = get_algorithm_class(args["algorithm"])(
                tuple(metadata["model_input_shape"]),
                metadata["model_num_classes"],
                metadata["model_num_domains"],
                metadata["model_hparams"],
            )
        if not isinstance(algorithm, nn.Module) or not callable(getattr(algorithm, "predict", None)):
            raise UsageError(f"cannot load a model from {source}: {args['algorithm']} is not an nn.Module with predict")
        return algorithm


@contextmanager
def _explain_errors(source: object) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"cannot load a model from {source}: {type(error).__name__}: {one_line(error)}") from error


def _read(path: str | Path) -> dict[str, Any]:
    """Read what `save_model` wrote, with all tensors on the CPU."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that torch did not write
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"cannot load a model from {path}: {error.strerror or one_line(error)}") from error
    except MemoryError:
        raise  # says nothing about the file
    except Exception as error:  # torch's message would advise running any code in the file
        raise UsageError(f"{path} is not a model saved by train") from error
    if not isinstance(saved, dict) or not isinstance(saved.get("args"), dict) or "model_dict" not in saved:
        raise UsageError(f"{path} is not a model saved by train")
    return saved
