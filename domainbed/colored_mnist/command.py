"""The Colored MNIST proof of concept: `python -m domainbed.scripts.colored_mnist --data_dir data --restarts 10`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed import cli
from domainbed.colored_mnist import PENALTIES, STEPS
from domainbed.engine.tracking import NO_TRACKER
from domainbed.errors import UsageError
from domainbed.files import make_folder
from domainbed.options import add_options, check_options, from_args, option


@dataclass(frozen=True)
class ProofOptions:
    """Options of the command."""

    data_dir: str = option(help="folder that contains MNIST/raw; MNIST is downloaded to it if missing", metavar="DIR")
    algorithm: tuple[str, ...] = option(
        ("ERM", "IRM", "VREx", "Fishr"), metavar="NAME", choices=tuple(PENALTIES), help="algorithms to train"
    )
    restarts: int = option(10, at_least=1, help="restarts per algorithm; restart r has seed --seed + r")
    seed: int = option(0, at_least=0, help="seed of the first restart")
    label_flip: float = option(0.25, at_least=0, at_most=1, help="probability of a wrong label")
    grayscale_model: bool = option(False, help="hide the color from the model")
    steps: int = option(STEPS, at_least=1, help="number of steps; the last one only evaluates")
    track: str = option(
        NO_TRACKER,
        choices=(NO_TRACKER, "landscape"),
        help="landscape: record the distances between the training environments' risks, gradients and Hessians every "
        "ten steps, and print and plot them; untracked restarts are trained again",
    )
    output_dir: str = option("runs/colored_mnist", help="folder for records.jsonl, one line per restart", metavar="DIR")
    workers: int | None = option(
        None, at_least=1, help="number of restarts to train at once", if_unset="one per CPU core; with a GPU, one"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "algorithm", tuple(dict.fromkeys(self.algorithm)))
        check_options(self)
        if self.seed + self.restarts > 2**32:
            raise UsageError(f"--seed must be at most 2**32 - --restarts, not {self.seed}")

    def settings(self) -> list[dict[str, Any]]:
        """Return the settings of each requested restart."""
        shared = {"label_flip": self.label_flip, "grayscale": self.grayscale_model, "steps": self.steps}
        return [
            {"algorithm": algorithm, **shared, "seed": self.seed + r}
            for r in range(self.restarts)
            for algorithm in self.algorithm
        ]


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("colored_mnist"),
        description="Train restarts of IRM's Colored MNIST experiment and print their accuracies next to the published "
        "ones. Restarts that are already in --output_dir are not trained again.",
        examples=("--data_dir data", "--data_dir data --algorithm ERM Fishr --restarts 3 --workers 1"),
    )
    add_options(p, ProofOptions)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    options = from_args(ProofOptions, parser().parse_args(argv))

    from domainbed.colored_mnist.experiment import load_mnist  # imports torch
    from domainbed.colored_mnist.runner import read_restarts, settings_of, train_restarts
    from domainbed.colored_mnist.tables import accuracy_table, load_published

    path = Path(options.output_dir) / "records.jsonl"
    is_tracked = options.track != NO_TRACKER
    finished = {settings_of(restart) for restart in read_restarts(path) if "course" in restart or not is_tracked}
    requested = options.settings()
    pending = [settings for settings in requested if settings_of(settings) not in finished]
    n_failed = 0
    if pending:
        load_mnist(options.data_dir)  # reports missing images before anything is started
        make_folder(path.parent)
        n_failed = train_restarts(pending, options.data_dir, options.workers, path, is_tracked)
    by_settings = {settings_of(restart): restart for restart in read_restarts(path)}
    restarts = [by_settings[settings_of(s)] for s in requested if settings_of(s) in by_settings]
    is_published_setting = not options.grayscale_model and options.steps == STEPS
    published = load_published(options.label_flip) if is_published_setting else {}
    print(accuracy_table(restarts, options.algorithm, options.restarts, published))
    print(f"\nAccuracies in percent, mean ± standard deviation over {options.restarts} restarts; records in {path}")
    if is_tracked:
        report_landscape([restart for restart in restarts if "course" in restart], options.algorithm, path.parent)
    return 1 if n_failed else 0


def report_landscape(restarts: Sequence[Mapping[str, Any]], algorithms: Sequence[str], output_dir: Path) -> None:
    """Print the landscape at the last step and plot the distances along training."""
    from domainbed.colored_mnist.tables import landscape_table, tracked_distances
    from domainbed.landscape.plots import plot_distances_over_training
    from domainbed.reporting.plots import save_figure
    from domainbed.reporting.plots.style import make_style

    print(f"\n{landscape_table(restarts, algorithms)}")
    styles = {name: make_style(i) for i, name in enumerate(algorithms)}
    figure = plot_distances_over_training(tracked_distances(restarts), styles, "Colored MNIST, IRM's setting")
    if figure is None:
        return
    caption = "Squared distances between the two training environments, for the classifier and all images."
    png, pdf = save_figure(figure, output_dir, "landscape", caption)
    print(f"\nAt the last step, mean ± standard deviation over restarts; plots over training: {png}, {pdf}")
