"""Loss landscapes, domain by domain: `python -m domainbed.scripts.landscape --run FOLDER`, or `--sweep my_sweep`."""

import argparse
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from domainbed import cli
from domainbed.errors import UsageError, suggest
from domainbed.files import atomic_write
from domainbed.landscape import IMAGES, LAYERS
from domainbed.model_selection import best_hparams, method_named
from domainbed.registry import import_modules
from domainbed.reporting.cells import algorithms_of, environment_names, environment_numbers
from domainbed.reporting.folders import LANDSCAPE_FOLDER
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import select_names

if TYPE_CHECKING:  # what imports torch is imported only once it is needed
    from domainbed.landscape.measure import Landscape

SELECT = "training-domain"
OUTPUT_HELP = (
    "for the JSON and the pictures: of a --run landscape.json and landscape-*, of a --sweep landscape-DATASET-ENV.json "
    f"and landscape-DATASET-ENV-* (default: the folder {LANDSCAPE_FOLDER} beside the model, or in the sweep)"
)


def parser() -> cli.Parser:
    p = cli.Parser(
        prog="python -m domainbed.scripts.landscape",
        description="Look at the loss around trained weights, domain by domain: risks, gradients, Hessians, how far "
        "apart they are between domains, and the inconsistency score.",
    )
    p.take_environments_for_values()
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", metavar="FOLDER", help="a job's folder, or one of the models in it (model.pkl)")
    which.add_argument("--sweep", metavar="DIR", help="a sweep's folder: the chosen run of each algorithm")
    p.add_argument("--select", metavar="METHOD", help=f"of a sweep: how runs are chosen (default: {SELECT})")
    p.add_argument("--dataset", metavar="NAME", help="of a sweep: which dataset (needed where it has several)")
    p.add_argument("--test_env", metavar="ENV", help="of a sweep: the number or name (default: all, one by one)")
    p.add_argument("--algorithms", nargs="+", metavar="NAME", help="of a sweep: which (default: all)")
    p.add_argument("--layers", default=LAYERS[0], help="which weights: classifier, or all of the network")
    p.add_argument("--split", default="in", help="which images: in (trained on) or out (held out)")
    p.add_argument(
        "--images",
        type=int,
        metavar="N",
        help=f"at most so many of each environment; 0: all (default: {IMAGES['classifier']} or, with --layers all, "
        f"{IMAGES['all']})",
    )
    p.add_argument("--epsilon", type=float, default=0.1, help="of the inconsistency score: risk that may be lost")
    p.add_argument("--data_dir", help="where the images are, if no longer where the jobs found them")
    p.add_argument("--output_dir", help=OUTPUT_HELP)
    p.add_argument("--no_slices", action="store_true", help="leave out the risks along lines and planes")
    cli.add_import_option(p)
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    check(args)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no ε gets a ?
    import_modules(args.imports)
    if args.run:
        one_run(args)
    else:
        side_by_side(args)


def check(args: argparse.Namespace) -> None:
    for name, known in (("layers", LAYERS), ("split", ("in", "out"))):
        if getattr(args, name) not in known:
            raise UsageError(f"unknown --{name} {getattr(args, name)!r}; {suggest(getattr(args, name), known)}")
    if args.images is not None and args.images < 0:
        raise UsageError(f"--images must be at least 0, not {args.images}")
    if not 0 <= args.epsilon < float("inf"):
        raise UsageError(f"--epsilon must be at least 0, not {args.epsilon}")
    if args.run and not Path(args.run).exists():
        raise UsageError(f"--run {args.run}: there is no such file or folder")
    if args.run and (args.select or args.dataset or args.test_env or args.algorithms):
        raise UsageError("--select, --dataset, --test_env and --algorithms choose from a --sweep; --run names one job")


def one_run(args: argparse.Namespace) -> None:
    """The landscape of one job's model."""
    from domainbed.engine.model import MODEL
    from domainbed.landscape.measure import as_json
    from domainbed.landscape.tables import as_text

    model = Path(args.run)
    if model.is_dir():
        model = model / MODEL
        if not model.exists():
            raise UsageError(f"--run {args.run} holds no {MODEL}: the job is not done, or ran with --skip_model_save")
    output_dir = made(Path(args.output_dir or model.parent / LANDSCAPE_FOLDER))
    landscape = look_at(args, model, with_slices=not args.no_slices)
    stem = "landscape" if model.name == MODEL else f"landscape-{model.stem}"
    written = write(output_dir, stem, as_json(landscape), {"": [landscape]})
    print(as_text(landscape))
    print(written)


def side_by_side(args: argparse.Namespace) -> None:
    """The landscapes of a sweep's chosen runs, algorithm by algorithm, for each test environment."""
    selection = method_named(args.select or SELECT)
    sweep = load_sweep(args.sweep)
    for problem in sweep.problems:
        print(f"warning: {problem}", file=sys.stderr)
    best = best_hparams(sweep.chosen(selection))
    datasets = list(dict.fromkeys(best["dataset"]))
    if not datasets:
        raise UsageError(f"--select {selection} can choose no run of --sweep {args.sweep}")
    if args.dataset is None and len(datasets) > 1:
        raise UsageError(f"--sweep {args.sweep} has several datasets; name a --dataset of {', '.join(datasets)}")
    (dataset,) = select_names([args.dataset] if args.dataset else None, datasets, "--dataset")
    best = best[best["dataset"] == dataset]
    algorithms = select_names(args.algorithms, algorithms_of(best), "--algorithms")
    names = environment_names(sweep.jobs, dataset)
    test_envs = sorted(best["test_env"].unique())
    if args.test_env is not None:
        numbers = environment_numbers({env: names[env] for env in test_envs})
        if args.test_env not in numbers:
            raise UsageError(f"unknown --test_env {args.test_env!r}; {suggest(args.test_env, numbers)}")
        test_envs = [numbers[args.test_env]]

    from domainbed.landscape.measure import as_json, models_of, or_null
    from domainbed.landscape.tables import side_by_side as compared
    from domainbed.landscape.tables import side_by_side_text
    from domainbed.reporting.plots.gallery import stem_of

    output_dir = made(Path(args.output_dir or Path(args.sweep, LANDSCAPE_FOLDER)))
    n = 0
    for test_env in test_envs:
        notes: list[str] = []
        landscapes: dict[str, list[Landscape]] = {}
        for algorithm in algorithms:
            runs = best[(best["algorithm"] == algorithm) & (best["test_env"] == test_env)]
            models = models_of(Path(args.sweep), sweep.records, runs, notes.append)
            of_trials = [look_at(args, model, not args.no_slices and i == 0) for i, model in enumerate(models)]
            landscapes |= {algorithm: of_trials} if of_trials else {}
        told = [f"{dataset}, test {names[test_env]}, runs that {selection} chose; {args.split} splits\n"]
        if landscapes:
            frame = compared(landscapes)
            found = {
                "selection": selection,
                "side_by_side": or_null(frame.to_dict("records")),
                "runs": {name: [as_json(each) for each in of_trials] for name, of_trials in landscapes.items()},
            }
            written = write(output_dir, stem_of(["landscape", dataset, names[test_env]]), found, landscapes)
            told += [
                side_by_side_text(frame),
                "mean +/- standard error over trials, of pairs of training domains unless it says all; * damped",
                written,
            ]
        print(*told, sep="\n")
        print(*notes, sep="\n")
        n += len(landscapes)
    if not n:
        raise UsageError(f"--sweep {args.sweep} holds no models of these runs: was it launched with --skip_model_save?")


def made(output_dir: Path) -> Path:
    """The folder, made where it is not there: told before all is measured, if it can't be."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{output_dir}: {error.strerror}; --output_dir names another folder") from error
    return output_dir


def look_at(args: argparse.Namespace, model: Path, with_slices: bool) -> "Landscape":
    """Measure, with a bar."""
    from domainbed.landscape.measure import measure

    with tqdm(desc="slices", unit="risk", disable=None, leave=False) as bar:

        def progress(n: int) -> Callable[[], object]:
            bar.reset(n)
            return bar.update

        return measure(
            model,
            data_dir=args.data_dir,
            layers=args.layers,
            part=args.split,
            images=args.images,
            epsilon=args.epsilon,
            with_slices=with_slices,
            progress=progress,
        )


def write(
    output_dir: Path, stem: str, found: Mapping[str, Any], landscapes: Mapping[str, Sequence["Landscape"]]
) -> str:
    """Write the JSON and the pictures. Returns where, in words."""
    from domainbed.landscape.plots import landscape_figures
    from domainbed.reporting.plots import write_files

    with atomic_write(output_dir / f"{stem}.json") as file:
        file.write(json.dumps(found, indent=1, allow_nan=False).encode())
    for name, caption, figure in landscape_figures(landscapes):
        write_files(figure, output_dir, f"{stem}-{name}", caption)
    return f"\n{output_dir / stem}.json, and pictures beside it as PNG and PDF\n"


if __name__ == "__main__":
    cli.run(main)
