"""Measure loss landscapes: `domainbed landscape --run FOLDER`, or `--input_dir DIR`."""

import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed import cli
from domainbed.errors import AlgorithmError, UsageError, suggest
from domainbed.files import atomic_write, make_folder
from domainbed.landscape import DEFAULT_IMAGES, LAYERS
from domainbed.model_selection import best_hparams, resolve_method
from domainbed.options import add_options, check_options, from_args, option
from domainbed.records import BEST_MODEL_FILE
from domainbed.registry import import_modules
from domainbed.reporting.cells import algorithms_of, environment_names, environment_numbers
from domainbed.terminal import ProgressBar, warn

if TYPE_CHECKING:  # imports torch and pandas
    import pandas as pd

    from domainbed.landscape.measure import Landscape
    from domainbed.reporting.load import Sweep

LANDSCAPE_FOLDER = "landscape"  # the name of the tracker, which the tables do not take for a job
DEFAULT_SELECTION = "training-domain"


@dataclass(frozen=True)
class LandscapeOptions:
    """Options of the command; either `run` or `input_dir` is set."""

    run: str | None = option(None, metavar="DIR", help="a job's folder, or one of the models in it (model.pkl)")
    input_dir: str | None = option(None, metavar="DIR", help="a sweep's folder: compare its algorithms' selected runs")
    selection: str | None = option(
        None, metavar="METHOD", help="selection method for the sweep's runs", if_unset=DEFAULT_SELECTION
    )
    dataset: str | None = option(
        None, metavar="NAME", help="dataset of the sweep", if_unset="the only one; required if there are several"
    )
    test_env: str | None = option(
        None, metavar="ENV", help="test environment of the sweep, by name or number", if_unset="each in turn"
    )
    algorithms: tuple[str, ...] | None = option(
        None, metavar="NAME", help="algorithms of the sweep to compare, or groups of them", if_unset="all"
    )
    layers: str = option(LAYERS[0], choices=LAYERS, help="layers to analyze; all: the whole network")
    split: str = option("in", choices=("in", "out"), help="split to measure: in (trained on) or out (held out)")
    images: int | None = option(
        None,
        metavar="N",
        at_least=0,
        help="maximum number of images per environment; 0: all",
        if_unset=f"{DEFAULT_IMAGES['classifier']}, or {DEFAULT_IMAGES['all']} with --layers all",
    )
    epsilon: float = option(
        0.1, at_least=0, below=float("inf"), help="increase of a domain's risk that the inconsistency scores tolerate"
    )
    data_dir: str | None = option(None, metavar="DIR", help="folder of the images, if they have moved since training")
    output_dir: str | None = option(
        None,
        metavar="DIR",
        help="folder for the JSON file and the plots: landscape.json and landscape-* for --run, "
        "landscape-DATASET-ENV.json and landscape-DATASET-ENV-* for --input_dir",
        if_unset=f"the folder {LANDSCAPE_FOLDER} next to the model or in the sweep",
    )
    slices: bool = option(True, help="compute the risks along lines and in planes")
    trust_imports: bool = option(False, help=cli.TRUST_IMPORTS_HELP)

    def __post_init__(self) -> None:
        check_options(self)
        if (self.run is None) == (self.input_dir is None):
            raise UsageError("specify either --run or --input_dir")
        if self.run is not None:
            if not Path(self.run).exists():
                raise UsageError(f"--run {self.run}: no such file or folder")
            if self.selection or self.dataset or self.test_env or self.algorithms:
                raise UsageError("--selection, --dataset, --test_env and --algorithms require --input_dir")


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("landscape"),
        description="Measure the loss landscape around trained weights: each domain's risk, gradient and Hessian, the "
        "distances between domains, and the inconsistency score.",
        examples=("--run train_output", "--input_dir runs/first --dataset ColoredDigits --algorithms ERM Fishr"),
    )
    add_options(p, LandscapeOptions)
    cli.add_import_option(p)
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    options = from_args(LandscapeOptions, args)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the terminal's encoding may lack ε
    import_modules(args.imports)
    if options.run:
        measure_run(options)
    else:
        measure_sweep(options)


def measure_run(options: LandscapeOptions) -> None:
    """Measure, write and print the landscape of one job's model."""
    from domainbed.engine.model import MODEL_FILE
    from domainbed.landscape.measure import to_json
    from domainbed.landscape.tables import format_landscape

    model = Path(str(options.run))
    if model.is_dir():
        model = model / MODEL_FILE
        if not model.exists():
            best = model.with_name(BEST_MODEL_FILE)
            hint = f"pass --run {best}" if best.exists() else "the job is unfinished or ran with --skip_model_save"
            raise UsageError(f"--run {options.run}: no {MODEL_FILE} in this folder; {hint}")
    output_dir = make_output_dir(options, model.parent)
    landscape = measure(options, model, with_slices=options.slices)
    stem = "landscape" if model.name == MODEL_FILE else f"landscape-{model.stem}"
    title = f"{landscape.config.algorithm} on {landscape.config.dataset}"
    written = write(output_dir, stem, to_json(landscape), {"": [landscape]}, title)
    print(format_landscape(landscape))
    print(written)


def measure_sweep(options: LandscapeOptions) -> None:
    """Compare the landscapes of a sweep's selected runs, for each test environment.

    Models that cannot be measured are skipped with a warning.

    Raises:
        UsageError: none can be measured, or a class is not registered.
    """
    from domainbed.landscape.models import check_classes
    from domainbed.reporting.load import load_sweep

    selection = resolve_method(options.selection or DEFAULT_SELECTION)
    sweep = load_sweep(str(options.input_dir))
    warn(*sweep.problems)
    runs = select_runs(sweep, selection, options)
    check_classes(sweep.folder, runs, options.trust_imports)
    output_dir = make_output_dir(options, sweep.folder)
    dataset = runs["dataset"].iloc[0]
    stems = output_stems(dataset, environment_names(sweep.jobs, dataset))
    n_measured = 0
    for test_env in sorted(runs["test_env"].unique().tolist()):
        of_env = runs[runs["test_env"] == test_env]
        n_measured += compare_runs(sweep, selection, of_env, output_dir / stems[test_env], options)
    if not n_measured:
        raise UsageError(
            f"--input_dir {options.input_dir}: none of the selected runs has a model that can be measured; see the "
            "warnings"
        )


def select_runs(sweep: "Sweep", selection: str, options: LandscapeOptions) -> "pd.DataFrame":
    """Return the selected runs, restricted to the requested dataset, algorithms and environment.

    Raises:
        UsageError: there are none.
    """
    from domainbed.reporting.report import select_algorithms, select_names

    runs = best_hparams(sweep.select(selection))
    datasets = list(dict.fromkeys(runs["dataset"]))
    if not datasets:
        raise UsageError(f"--selection {selection} cannot choose any run of --input_dir {options.input_dir}")
    if options.dataset is None and len(datasets) > 1:
        raise UsageError(
            f"--input_dir {options.input_dir} has several datasets; choose a --dataset from {', '.join(datasets)}"
        )
    (dataset,) = select_names([options.dataset] if options.dataset else None, datasets, "--dataset")
    runs = runs[runs["dataset"] == dataset]
    algorithms = select_algorithms(options.algorithms, algorithms_of(runs))
    if options.test_env is not None:
        names = environment_names(sweep.jobs, dataset)
        numbers = environment_numbers({env: names[env] for env in sorted(runs["test_env"].unique())})
        if options.test_env not in numbers:
            raise UsageError(f"unknown --test_env {options.test_env!r}; {suggest(options.test_env, numbers)}")
        runs = runs[runs["test_env"] == numbers[options.test_env]]
    return runs[runs["algorithm"].isin(algorithms)]


def output_stems(dataset: str, environments: Sequence[str]) -> list[str]:
    """Return the stem of the files of each test environment, whichever of them are measured.

    A later environment whose name differs from an earlier one's only in what file names do not preserve is numbered.
    """
    from domainbed.reporting.plots.gallery import file_stem, unique_stem

    used: set[str] = set()
    return [unique_stem(file_stem(["landscape", dataset, name]), used) for name in environments]


def compare_runs(sweep: "Sweep", selection: str, runs: "pd.DataFrame", path: Path, options: LandscapeOptions) -> int:
    """Measure, write and print the landscapes of the selected runs of one dataset and test environment.

    Args:
        sweep: the sweep.
        selection: the selection method.
        runs: the selected runs.
        path: the start of the paths of all files that are written.
        options: the options of the command.

    Returns:
        The number of algorithms measured.
    """
    from domainbed.landscape.measure import non_finite_to_none, to_json
    from domainbed.landscape.models import find_models
    from domainbed.landscape.tables import compare_algorithms, format_comparison
    from domainbed.reporting.report import select_algorithms

    dataset = runs["dataset"].iloc[0]
    test_env = environment_names(sweep.jobs, dataset)[runs["test_env"].iloc[0]]
    landscapes: dict[str, list[Landscape]] = {}

    def warn_of_run(message: str) -> None:
        warn(f"test {test_env}, {message}")

    selected = select_algorithms(options.algorithms, algorithms_of(sweep.runs))
    available = set(runs["algorithm"])  # some may have no runs with this test environment
    for algorithm in (name for name in selected if name in available):
        models = find_models(sweep.folder, sweep.records, runs[runs["algorithm"] == algorithm], selection, warn_of_run)
        trials: list[Landscape] = []
        for trial, model in ProgressBar(models.items(), f"{algorithm}, {test_env}", unit="model", leave=False):
            try:
                trials.append(measure(options, model, with_slices=options.slices and not trials))
            except (AlgorithmError, UsageError) as error:
                warn_of_run(f"{algorithm}, trial {trial}: {error}; skipped")
        if trials:
            landscapes[algorithm] = trials
    if not landscapes:
        return 0
    comparison = compare_algorithms(landscapes)
    content = {
        "selection": selection,
        "side_by_side": non_finite_to_none(comparison.to_dict("records")),
        "runs": {algorithm: [to_json(trial) for trial in trials] for algorithm, trials in landscapes.items()},
    }
    written = write(path.parent, path.name, content, landscapes, f"{dataset}, test {test_env}")
    print(
        f"{dataset}, test {test_env}, runs selected by {selection}; {options.split} splits\n",
        format_comparison(comparison),
        "mean +/- standard error over trials; averaged over pairs of training environments unless noted; *: damped",
        written,
        sep="\n",
    )
    return len(landscapes)


def make_output_dir(options: LandscapeOptions, parent: Path) -> Path:
    """Create and return the output folder.

    Raises:
        UsageError: it cannot be created or is not writable.
    """
    output_dir = Path(options.output_dir or parent / LANDSCAPE_FOLDER)
    make_folder(output_dir)
    return output_dir


def measure(options: LandscapeOptions, model: Path, with_slices: bool) -> "Landscape":
    from domainbed.landscape.measure import measure_landscape

    return measure_landscape(
        model,
        data_dir=options.data_dir,
        layers=options.layers,
        part=options.split,
        images=options.images,
        epsilon=options.epsilon,
        with_slices=with_slices,
        trust_imports=options.trust_imports,
    )


def write(
    output_dir: Path, stem: str, content: Mapping[str, Any], landscapes: Mapping[str, Sequence["Landscape"]], title: str
) -> str:
    """Write the JSON file and the plots, whose titles end with `title`. Return a message that says where they are."""
    from domainbed.landscape.plots import landscape_figures
    from domainbed.reporting.plots import save_figure

    with atomic_write(output_dir / f"{stem}.json") as file:
        file.write(json.dumps(content, indent=1, allow_nan=False).encode())
    for name, caption, figure in landscape_figures(landscapes, title):
        save_figure(figure, output_dir, f"{stem}-{name}", caption)
    return f"\nWrote {output_dir / stem}.json and plots (PNG, PDF) next to it.\n"
