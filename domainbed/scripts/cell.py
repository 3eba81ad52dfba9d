"""The options that name one cell of a sweep's tables."""

from typing import TYPE_CHECKING

from domainbed import cli
from domainbed.errors import UsageError, suggest
from domainbed.model_selection import SELECTION_METHODS
from domainbed.reporting.cells import environment_names, environment_numbers

if TYPE_CHECKING:
    from domainbed.reporting.load import Sweep
    from domainbed.reporting.top_hparams import CellRuns


def add_cell_options(p: cli.Parser) -> None:
    """Add --input_dir, --dataset, --algorithm, --test_env and --selection."""
    p.add_argument(
        "--input_dir", required=True, metavar="DIR", help="the sweep's folder, written by this package or by DomainBed"
    )
    p.add_argument("--dataset", required=True, metavar="NAME", help="dataset of the cell (its table)")
    p.add_argument("--algorithm", required=True, metavar="NAME", help="algorithm of the cell (its row)")
    p.add_argument(
        "--test_env", required=True, metavar="ENV", help="test environment of the cell (its column), by name or number"
    )
    p.add_argument(
        "--selection",
        default="training-domain",
        metavar="METHOD",
        help=f"the selection method: {', '.join(SELECTION_METHODS)}, or its class name in DomainBed",
    )


def find_cell(sweep: "Sweep", dataset: str, algorithm: str, test_env: str, selection: str) -> "CellRuns":
    """Return the runs behind a cell.

    Args:
        sweep: the sweep.
        dataset: name of the dataset.
        algorithm: name of the algorithm.
        test_env: number or name of the test environment.
        selection: name of the selection method.

    Raises:
        UsageError: the sweep has no records for this cell.
    """
    from domainbed.reporting.top_hparams import CellRuns, decode_hparams, ranked_runs  # imports pandas

    runs = sweep.runs[sweep.runs["folder"].notna()]
    for column, name in (("dataset", dataset), ("algorithm", algorithm)):
        if name not in set(runs[column]):
            scope = f" on {dataset}" if column == "algorithm" else ""
            hint = suggest(name, runs[column].unique())
            raise UsageError(f"--{column} {name}: {sweep.folder} has no such runs{scope}; {hint}")
        runs = runs[runs[column] == name]
    names = dict(enumerate(environment_names(sweep.jobs, dataset)))
    test_envs = {env: names.get(env, f"env{env}") for (env, *others) in sorted(runs["test_envs"]) if not others}
    numbers = environment_numbers(names) | {str(env): env for env in test_envs}
    number = numbers.get(test_env)
    if number is None or number not in test_envs:
        hint = suggest(test_env, test_envs.values())
        raise UsageError(
            f"--test_env {test_env}: {algorithm} has no runs on {dataset} with this single test environment; {hint}"
        )
    ranked = ranked_runs(sweep.runs, sweep.select(selection), dataset, algorithm, number)
    hparams = decode_hparams(sweep.jobs, ranked)
    pruned = set(sweep.jobs.index[sweep.jobs["pruned"]])
    return CellRuns(dataset, algorithm, test_envs[number], number, selection, ranked, hparams, pruned)
