"""The kinds of plots of a sweep, by name. This module does not import matplotlib."""

from collections.abc import Collection, Sequence

from domainbed.engine.tracking import TRACKERS
from domainbed.errors import UsageError, suggest

KINDS = {
    "bars": "the algorithms side by side on each dataset",
    "ranks": "mean ranks, and which of them do not differ significantly",
    "in_out": "out-of-domain against in-domain accuracy, for all runs",
    "line": "the same on probit axes, with the line of the baseline",
    "metrics": "losses, penalties and other metrics over training",
    "curves": "accuracies over training, with the selected step",
    "hparams": "accuracy against each hyperparameter that has an effect, for all runs",
}


def all_kinds() -> list[str]:
    """Return the names of all kinds; a tracker that draws its records is one of its own."""
    return [*KINDS, *TRACKERS]


def check_kinds(kinds: Collection[str]) -> None:
    """Raise UsageError if one of the kinds does not exist."""
    for kind in kinds:
        if kind not in all_kinds():
            raise UsageError(f"--kind {kind}: no such plot; {suggest(kind, all_kinds())}")


def max_plots(kinds: Sequence[str], n_datasets: int, n_algorithms: int) -> int:
    """Return the largest number of plots of these kinds."""
    by_algorithm = sum(kind in ("curves", "hparams") for kind in kinds)
    by_sweep = sum(kind in ("bars", "ranks") for kind in kinds)
    return by_sweep + n_datasets * (len(kinds) - by_sweep - by_algorithm + by_algorithm * n_algorithms)
