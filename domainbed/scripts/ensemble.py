"""Combine the trained models of a sweep: `python -m domainbed.scripts.ensemble --input_dir my_sweep --method eoa`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from domainbed import cli
from domainbed.options import add_options, check_options, from_args, option
from domainbed.registry import import_modules
from domainbed.sweep.ensemble import METHODS, Selection, count_unfinished, find_groups, run_ensembles
from domainbed.terminal import warn


@dataclass(frozen=True)
class EnsembleOptions:
    """The options of the command."""

    input_dir: str = option(help="the sweep's folder", metavar="DIR")
    method: str = option(
        help="diwa_uniform: the mean of the weights of each trial's runs; diwa_restricted: of those that do not lower "
        "the validation accuracy; diwa_all_trials: of the runs of all trials; ensemble: the mean of the logits of each "
        "trial's runs; eoa: of the runs of all trials, which must have been trained with SMA",
        choices=tuple(METHODS),
        metavar="NAME",
    )
    datasets: tuple[str, ...] = option((), help="datasets whose runs to combine", metavar="NAME", if_unset="all")
    algorithms: tuple[str, ...] = option(
        (),
        help="algorithms whose runs to combine, by their names in tables, such as ERM or ERM+SMA",
        metavar="NAME",
        if_unset="all",
    )
    output_dir: str | None = option(None, help="folder for the results", metavar="DIR", if_unset="--input_dir")
    data_dir: str | None = option(None, help="folder of the datasets", metavar="DIR", if_unset="the recorded one")
    trust_imports: bool = option(False, help=cli.TRUST_IMPORTS_HELP)

    def __post_init__(self) -> None:
        check_options(self)


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("ensemble"),
        description="Combine the best models of a sweep's finished runs, for each dataset, algorithm and test "
        "environment, and write the results as runs that collect_results shows as rows such as ERM+DiWA-uniform. "
        "Ensembles that exist are skipped. The runs must have been launched with --save_best_model, and those whose "
        "weights are averaged also with --init_from.",
        examples=(
            "--input_dir runs/diwa --method diwa_uniform",
            "--input_dir runs/sma --method eoa --data_dir data",
        ),
    )
    add_options(p, EnsembleOptions)
    cli.add_import_option(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    options = from_args(EnsembleOptions, args)
    import_modules(args.imports)
    input_dir = Path(options.input_dir)
    output_dir = Path(options.output_dir or input_dir)
    selection = Selection(options.datasets, options.algorithms)
    groups = find_groups(input_dir, output_dir, options.method, selection, options.trust_imports)
    if n := count_unfinished(input_dir, options.method, selection):
        warn(
            f"{n:,} requested run{'s are' if n > 1 else ' is'} not done and not part of the ensembles; run this "
            "command again later to include them"
        )
    print(f"{len(groups)} ensembles of {sum(len(group.members) for group in groups)} runs", flush=True)
    n_evaluated = run_ensembles(groups, options.method, options.data_dir)
    print(f"{n_evaluated} evaluated, {len(groups) - n_evaluated} existed")
    return 0


if __name__ == "__main__":
    cli.run(main)
