"""Measurement of the loss landscape around a trained model."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from domainbed.engine.components import import_components
from domainbed.engine.config import JobConfig
from domainbed.engine.feed import open_feed
from domainbed.engine.frozen import check_backbone, load_inputs
from domainbed.engine.model import load_model
from domainbed.errors import UsageError
from domainbed.landscape import DEFAULT_IMAGES, LAYERS
from domainbed.landscape.distances import mean_over_pairs, pair_distances, relative_distances
from domainbed.landscape.domain import Domain, DomainStatistics, measure_domain
from domainbed.landscape.extract import extract_classifier, extract_network, first_images, image_requests
from domainbed.landscape.hessian import MAX_HESSIAN_SIZE, full_hessian
from domainbed.landscape.inconsistency import Inconsistency, inconsistency_scores
from domainbed.landscape.predictor import find_predictor
from domainbed.landscape.slices import Slices, compute_slices
from domainbed.loading.device_memory import explain_out_of_memory
from domainbed.loading.photo_feed import explain_dead_worker


@dataclass(frozen=True)
class Landscape:
    """The loss around one model in each environment. Training environments come first.

    Attributes:
        model: the model's file.
        config: the job's arguments.
        layers: one of LAYERS.
        n_weights: number of weights of these layers.
        part: the split that was measured, "in" or "out".
        environments: name of each environment.
        images: number of images of each environment.
        n_training: number of training environments.
        statistics: the loss of each environment.
        scores: inconsistency scores by ("training" or "all" domains, "exact" or "diagonal" Hessians); exact ones only
            for at most MAX_HESSIAN_SIZE weights.
        epsilon: ε of the scores.
        slices: risks around the weights, or None if they were not requested.
    """

    model: Path
    config: JobConfig
    layers: str
    n_weights: int
    part: str
    environments: list[str]
    images: list[int]
    n_training: int
    statistics: list[DomainStatistics]
    scores: dict[tuple[str, str], Inconsistency]
    epsilon: float
    slices: Slices | None

    @property
    def labels(self) -> list[str]:
        """Environment names for tables and plots; those not trained on are in brackets."""
        return [name if i < self.n_training else f"[{name}]" for i, name in enumerate(self.environments)]

    @cached_property
    def squared_distances(self) -> dict[str, torch.Tensor]:
        """Squared distances between environments, [environments, environments], by the names in QUANTITIES."""
        return pair_distances(self.statistics)

    @cached_property
    def training_distances(self) -> dict[str, torch.Tensor]:
        """Squared distances between training environments, [training, training], by the names in QUANTITIES."""
        n = self.n_training
        return {name: distances[:n, :n] for name, distances in self.squared_distances.items()}

    @cached_property
    def relative_training_distances(self) -> dict[str, float]:
        """Relative distances between training environments, by the names in QUANTITIES."""
        return relative_distances(self.statistics[: self.n_training], self.training_distances)

    def summary(self) -> dict[str, float]:
        """Return the finite quantities by which models are compared.

        These are, over the training environments, the mean squared distances, the relative ones and the mean cosine;
        and the inconsistency scores.
        """
        training = self.statistics[: self.n_training]
        summary = {name: mean_over_pairs(distances) for name, distances in self.training_distances.items()}
        summary |= {f"{name}, relative": value for name, value in self.relative_training_distances.items()}
        summary["cosine"] = sum(s.cosine for s in training) / len(training)
        summary |= {score_name(*key): score.score for key, score in self.scores.items()}
        return {name: value for name, value in summary.items() if math.isfinite(value)}


def score_name(domain_set: str, hessians: str) -> str:
    """Return the name of a score in the summary."""
    return f"inconsistency, {domain_set} environments, {hessians}"


def measure_landscape(
    model: Path,
    *,
    data_dir: str | None = None,
    layers: str = LAYERS[0],
    part: str = "in",
    images: int | None = None,
    epsilon: float = 0.1,
    with_slices: bool = True,
    trust_imports: bool = False,
) -> Landscape:
    """Measure the loss landscape around a job's trained model.

    Args:
        model: the model's file, such as model.pkl in a job's folder.
        data_dir: the folder of the images, if it is not the one that the job used.
        layers: "classifier" (in float64), or "all" for the whole network.
        part: the split to measure, "in" or "out".
        images: maximum number of images per environment; 0 for all, None for DEFAULT_IMAGES.
        epsilon: ε of the inconsistency scores.
        with_slices: whether to compute the risks along lines and in planes.
        trust_imports: as in `load_model`.

    Raises:
        UsageError: the file is not a model saved by train, it requires classes that are not registered, its images
            cannot be read, the algorithm does not predict by a classifier, or the model diverged.
        AlgorithmError: `predict` of a user's class fails.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_model(model, device, trust_imports)
    args, algorithm = loaded.metadata["args"], loaded.algorithm
    import_components(args, trust_imports, ["dataset"], model)
    # Without the job's cache and processes: they are no part of the data, and the file may be someone else's.
    used = {f.name: args[f.name] for f in fields(JobConfig) if f.name in args and (f.compare or f.name == "data_dir")}
    config = JobConfig.from_recorded_args(used if data_dir is None else {**used, "data_dir": data_dir})
    dataset, splits = load_inputs(config, config.resolved_hparams(), device)
    check_backbone(loaded.metadata, dataset, model)
    training = [env for env in range(len(dataset)) if env not in config.test_envs]
    order = [*training, *config.test_envs]
    names = [config.environment_names()[env] for env in order]
    limit = DEFAULT_IMAGES[layers] if images is None else images
    extract = extract_classifier if layers == "classifier" else extract_network
    with explain_out_of_memory("reduce --images"), explain_dead_worker():
        feed = open_feed(config, dataset, splits, device)
        by_env = image_requests(splits, part, limit, feed.batch_size)
        requests = [by_env[env] for env in order]
        predictor = find_predictor(algorithm, first_images(feed, requests))
        network, domains = extract(algorithm, predictor, feed, requests)
        n_weights = sum(p.numel() for p in network.parameters())
        statistics = _measure_domains(network, domains, names, model)
        hessians = [full_hessian(network, domain) for domain in domains] if n_weights <= MAX_HESSIAN_SIZE else None
        scores = inconsistency_scores(
            [s.risk for s in statistics], hessians, [s.hessian_diagonal for s in statistics], len(training), epsilon
        )
        slices = None
        if with_slices:
            training_hessians = hessians and hessians[: len(training)]
            slices = compute_slices(network, domains, names, len(training), training_hessians)
    n_images = [len(domain.y) for domain in domains]
    return Landscape(
        model, config, layers, n_weights, part, names, n_images, len(training), statistics, scores, epsilon, slices
    )


def _measure_domains(
    network: nn.Module, domains: Sequence[Domain], names: Sequence[str], model: Path
) -> list[DomainStatistics]:
    statistics = [measure_domain(network, domain) for domain in domains]
    for name, s in zip(names, statistics, strict=True):
        values = (torch.tensor(s.risk), s.gradient_mean, s.gradient_variance, s.hessian_diagonal)
        if not all(value.isfinite().all() for value in values):
            raise UsageError(f"{model}: the risk in {name} or one of its derivatives is not finite; the model diverged")
    return statistics


def to_json(landscape: Landscape) -> dict[str, Any]:
    """Return the landscape as a JSON object, with norms in place of vectors and null for non-finite numbers."""
    content: dict[str, Any] = {
        "model": str(landscape.model),
        "args": landscape.config.args(),
        "layers": landscape.layers,
        "n_weights": landscape.n_weights,
        "part": landscape.part,
        "epsilon": landscape.epsilon,
        "environments": landscape.environments,
        "n_training": landscape.n_training,
        "images": landscape.images,
        "domains": [
            {
                "risk": s.risk,
                "accuracy": s.accuracy,
                "gradient_norm": s.gradient_mean.norm().item(),
                "gradient_variance_sum": s.gradient_variance.sum().item(),
                "gradient_variance_norm": s.gradient_variance.norm().item(),
                "hessian_trace": s.hessian_diagonal.sum().item(),
                "hessian_diagonal_norm": s.hessian_diagonal.norm().item(),
                "curvature": s.curvature,
                "cosine": s.cosine,
            }
            for s in landscape.statistics
        ],
        "squared_distances": {name: m.tolist() for name, m in landscape.squared_distances.items()},
        "inconsistency": [
            {"of": domain_set, "hessians": hessians, **asdict(score)}
            for (domain_set, hessians), score in landscape.scores.items()
        ],
        "summary": landscape.summary(),
    }
    if slices := landscape.slices:
        content["slices"] = {
            "at": slices.line_positions.tolist(),
            "lines": {name: risks.tolist() for name, risks in slices.lines.items()},
            "plane_at": slices.plane_positions.tolist(),
            "planes": {name: risks.tolist() for name, risks in slices.planes.items()},
        }
    return non_finite_to_none(content)


def non_finite_to_none(value: Any) -> Any:
    """Return a copy of nested dicts and lists with None in place of floats that are not finite."""
    if isinstance(value, dict):
        return {name: non_finite_to_none(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [non_finite_to_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
