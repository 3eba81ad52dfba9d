"""The landscape of a trained model, measured; and all of it as JSON."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from domainbed.engine.config import JobConfig
from domainbed.engine.data import load_data
from domainbed.engine.feed import open_feed
from domainbed.engine.model import MODEL, load_job
from domainbed.errors import UsageError
from domainbed.landscape import IMAGES, LAYERS
from domainbed.landscape.distances import mean_over_pairs, pair_distances, relative_distances
from domainbed.landscape.domain import Statistics, statistics
from domainbed.landscape.hessian import HESSIAN_LIMIT, full_hessian
from domainbed.landscape.inconsistency import Inconsistency, inconsistencies
from domainbed.landscape.slices import Slices, n_risks, slices
from domainbed.landscape.view import classifier_view, network_view, requests_for
from domainbed.loading.photo_feed import explain_dead_worker
from domainbed.loading.residence import explain_out_of_memory


@dataclass(frozen=True)
class Landscape:
    """What the loss is like around one model, in each environment. Training environments come first.

    Attributes:
        model: the file.
        config: the job's.
        layers: of LAYERS, which weights are meant; `n_weights` says how many.
        part: which split the images are of.
        environments: the names.
        images: how many of each.
        n_training: how many of the environments were trained on.
        statistics: of each.
        scores: the inconsistency, by ("training" or "all" domains, "exact" or "diagonal" Hessians); exact where there
            are at most HESSIAN_LIMIT weights.
        epsilon: of these scores.
        slices: or None, where they were not wanted.
    """

    model: Path
    config: JobConfig
    layers: str
    n_weights: int
    part: str
    environments: list[str]
    images: list[int]
    n_training: int
    statistics: list[Statistics]
    scores: dict[tuple[str, str], Inconsistency]
    epsilon: float
    slices: Slices | None

    @property
    def labels(self) -> list[str]:
        """The environments as tables call them: in brackets those that were not trained on."""
        names = self.environments
        return [name if i < self.n_training else f"[{name}]" for i, name in enumerate(names)]

    def summary(self) -> dict[str, float]:
        """The figures by which models are compared, of the training domains: mean squared distances between these, by
        the names in QUANTITIES; the same as a part of the squared norm; the mean cosine; and the scores. Those that
        there are: of a single training domain, and of gradients that are all zero, some are not."""
        training = self.statistics[: self.n_training]
        figures = {name: mean_over_pairs(distances) for name, distances in pair_distances(training).items()}
        figures |= {f"{name}, relative": value for name, value in relative_distances(training).items()}
        figures["cosine"] = sum(s.cosine for s in training) / len(training)
        figures |= {score_name(of, way): score.score for (of, way), score in self.scores.items()}
        return {name: value for name, value in figures.items() if math.isfinite(value)}


def score_name(of: str, way: str) -> str:
    """What the summary calls a score."""
    return f"inconsistency, {of} domains, {way}"


def measure(
    model: Path,
    *,
    data_dir: str | None = None,
    layers: str = LAYERS[0],
    part: str = "in",
    images: int | None = None,
    epsilon: float = 0.1,
    with_slices: bool = True,
    progress: Callable[[int], Callable[[], object]] = lambda n: lambda: None,
) -> Landscape:
    """Look at the landscape around a model that a job left.

    Args:
        model: the file, such as model.pkl in a job's folder.
        data_dir: where the images are, if no longer where the job found them.
        layers: the classifier alone (in float64), or the whole network.
        part: the split that is looked at, "in" or "out".
        images: the most of each environment; 0 for all, None for what IMAGES says.
        epsilon: how much risk a domain may lose, in the inconsistency score.
        with_slices: whether risks along lines and planes are computed as well.
        progress: called with the number of risks to compute, gives what is called after each.

    Raises:
        UsageError: the file holds no model of ours, its images can't be read, it has no classifier, or it has diverged.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args, algorithm = load_job(model, device)
    config = JobConfig.of_args(args if data_dir is None else {**args, "data_dir": data_dir})
    dataset, splits = load_data(config)
    training = [env for env in range(len(dataset)) if env not in config.test_envs]
    order = [*training, *config.test_envs]
    names = [config.environment_names()[env] for env in order]
    most = IMAGES[layers] if images is None else images
    view = classifier_view if layers == "classifier" else network_view
    with explain_out_of_memory("fewer --images need less"), explain_dead_worker():
        feed = open_feed(config, dataset, splits, device)
        requests = requests_for(splits, part, most, feed.batch_size)
        network, domains = view(algorithm, feed, [requests[env] for env in order])
        n_weights = sum(p.numel() for p in network.parameters())
        found = [statistics(network, domain) for domain in domains]
        for name, s in zip(names, found, strict=True):
            figures = (torch.tensor(s.risk), s.gradient_mean, s.gradient_variance, s.hessian_diagonal)
            if not all(figure.isfinite().all() for figure in figures):
                raise UsageError(f"{model}: in {name} the risk or a derivative is not finite; these weights diverged")
        hessians = [full_hessian(network, domain) for domain in domains] if n_weights <= HESSIAN_LIMIT else None
        scores = inconsistencies(
            [s.risk for s in found], hessians, [s.hessian_diagonal for s in found], len(training), epsilon
        )
        cut = None
        if with_slices:
            tick = progress(n_risks(len(domains), len(training)))
            of_training = hessians and hessians[: len(training)]
            cut = slices(network, domains, names, len(training), of_training, tick=tick)
    images_of = [len(domain.y) for domain in domains]
    return Landscape(
        model, config, layers, n_weights, part, names, images_of, len(training), found, scores, epsilon, cut
    )


def models_of(
    sweep_dir: Path, records: pd.DataFrame, runs: pd.DataFrame, tell: Callable[[str], object]
) -> Iterator[Path]:
    """The models that chosen runs left: that of the chosen step where it was kept, else the last.

    Args:
        records: the sweep's.
        runs: the chosen ones: `algorithm`, `trial_seed`, `folder`, `step`.
        tell: is called with a line for each that is not of the chosen step, or not there.
    """
    for run in runs.itertuples():
        folder = sweep_dir / str(run.folder)
        last = records["step"][records["folder"] == run.folder].max()
        if (model := folder / f"model_step{run.step}.pkl").exists():
            yield model
        elif (model := folder / MODEL).exists():
            if last != run.step:
                tell(
                    f"{run.algorithm}, trial {run.trial_seed}: the weights of the last step, {last}, for those of the "
                    f"chosen one, {run.step}, were not kept (launch --save_model_every_checkpoint keeps them)"
                )
            yield model
        else:
            tell(f"{run.algorithm}, trial {run.trial_seed}: {folder} holds no model; left out")


def as_json(landscape: Landscape) -> dict[str, Any]:
    """All that is known of one model, but for vectors of the weights' length, of which there are the norms.

    A figure that is not finite is null.
    """
    found: dict[str, Any] = {
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
        "squared_distances": {name: m.tolist() for name, m in pair_distances(landscape.statistics).items()},
        "inconsistency": [
            {"of": of, "hessians": way, **asdict(score)} for (of, way), score in landscape.scores.items()
        ],
        "summary": landscape.summary(),
    }
    if cut := landscape.slices:
        found["slices"] = {
            "at": cut.at.tolist(),
            "lines": {name: risks.tolist() for name, risks in cut.lines.items()},
            "plane_at": cut.plane_at.tolist(),
            "planes": {name: risks.tolist() for name, risks in cut.planes.items()},
        }
    return or_null(found)


def or_null(value: Any) -> Any:
    """What JSON can tell: None for each number in it that is not finite."""
    if isinstance(value, dict):
        return {name: or_null(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
