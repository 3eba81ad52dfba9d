"""The options by which a command line names one cell of a sweep's tables, and that cell."""

from domainbed import cli
from domainbed.errors import UsageError, suggest
from domainbed.model_selection import SELECTION_METHODS
from domainbed.reporting.cells import environment_names, environment_numbers
from domainbed.reporting.load import Sweep
from domainbed.reporting.top_hparams import Cell, hparams_of, ranked_runs


def add_cell_options(p: cli.Parser) -> None:
    p.take_environments_for_values()
    p.add_argument("--input_dir", required=True, help="the sweep's folder, ours or DomainBed's")
    p.add_argument("--dataset", required=True, help="the table")
    p.add_argument("--algorithm", required=True, help="its row")
    p.add_argument("--test_env", required=True, help="its column: the environment's number, from 0, or its name")
    p.add_argument(
        "--selection",
        default="training-domain",
        metavar="METHOD",
        help=f"how runs are chosen: {', '.join(SELECTION_METHODS)}, or DomainBed's name of its class",
    )


def cell_of(sweep: Sweep, dataset: str, algorithm: str, test_env: str, selection: str) -> Cell:
    """The cell that the options name.

    Args:
        test_env: the environment's number or name.
        selection: the method's name.

    Raises:
        UsageError: the sweep has no records of it.
    """
    runs = sweep.runs[sweep.runs["folder"].notna()]
    for column, wanted in (("dataset", dataset), ("algorithm", algorithm)):
        if wanted not in set(runs[column]):
            where = f"{sweep.folder} has no such runs" + (f" on {dataset}" if column == "algorithm" else "")
            raise UsageError(f"--{column} {wanted}: {where}; {suggest(wanted, runs[column].unique())}")
        runs = runs[runs[column] == wanted]
    names = dict(enumerate(environment_names(sweep.jobs, dataset)))
    left_out = {env: names.get(env, f"env{env}") for (env, *others) in sorted(runs["test_envs"]) if not others}
    numbers = environment_numbers(names) | {str(env): env for env in left_out}
    number = numbers.get(test_env)
    if number is None or number not in left_out:
        hint = suggest(test_env, left_out.values())
        raise UsageError(
            f"--test_env {test_env}: {algorithm} has no records on {dataset} with this test environment alone; {hint}"
        )
    ranked = ranked_runs(sweep.runs, sweep.chosen(selection), dataset, algorithm, number)
    hparams = hparams_of(sweep.jobs, ranked)
    return Cell(dataset, algorithm, left_out[number], number, selection, ranked, hparams)
