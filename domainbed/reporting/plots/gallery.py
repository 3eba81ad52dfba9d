"""A sweep -> all its pictures, one after another."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import pandas as pd
from matplotlib.figure import Figure

from domainbed.model_selection import WITH_PAIRS, best_hparams, method_named
from domainbed.reporting.cells import AVERAGE, algorithms_of, average_cells, environment_names, make_cells
from domainbed.reporting.load import Sweep
from domainbed.reporting.plots.bars import bars
from domainbed.reporting.plots.curves import distance_courses, figure_courses, training_curves
from domainbed.reporting.plots.scatter import RHO, draws, hparams_scatter, in_and_out
from domainbed.reporting.plots.style import make_style

# What a picture's name is made of, its caption, and the figure.
Picture: TypeAlias = tuple[tuple[str, ...], str, Figure]


def all_figures(
    sweep: Sweep,
    selection: str,
    datasets: Sequence[str],
    algorithms: Sequence[str],
    tell: Callable[[str], object] = print,
) -> Iterator[tuple[str, str, Figure]]:
    """The pictures of these datasets and algorithms, each made when it is asked for.

    Args:
        selection: the selection method, or DomainBed's name of its class.
        tell: is called with a line for what can't be drawn, with the reason.

    Yields:
        A stem for the file's name, which no other of these pictures has, a caption, and the figure.

    Raises:
        UsageError: there is no such selection method.
    """
    taken: set[str] = set()
    for names, caption, figure in _Gallery(sweep, method_named(selection), datasets, algorithms, tell).pictures():
        stem = stem_of(names)
        n = 1
        while stem.lower() in taken:  # names that differ only in what a file's name can't tell
            n += 1
            stem = f"{stem_of(names)}-{n}"
        taken.add(stem.lower())
        yield stem, caption, figure
        del figure  # before the next is made


def stem_of(names: Sequence[str]) -> str:
    """A file's name made of these: letters, digits, +, - and _ alone, and not too long for any file system."""
    return "-".join(re.sub(r"[^\w+-]+", "_", name)[:30] for name in names)


class _Gallery:
    """The pictures of some datasets and algorithms; see all_figures for the arguments."""

    def __init__(
        self,
        sweep: Sweep,
        selection: str,
        datasets: Sequence[str],
        algorithms: Sequence[str],
        tell: Callable[[str], object],
    ) -> None:
        self.sweep, self.selection = sweep, selection
        self.datasets, self.algorithms = datasets, algorithms
        self.tell = tell
        self.by_training_domain = self.chosen_by("training-domain")
        self.chosen = self.chosen_by(selection)
        self.best = best_hparams(self.chosen)
        self.names = {dataset: environment_names(sweep.jobs, dataset) for dataset in datasets}
        # The looks are those among all algorithms of the sweep, so that each looks alike in all its pictures.
        of_all = {name: make_style(i) for i, name in enumerate(algorithms_of(sweep.runs))}
        self.looks = {name: of_all[name] for name in algorithms}

    def chosen_by(self, selection: str) -> pd.DataFrame:
        """What a method chooses from these datasets' and algorithms' runs."""
        chosen = self.sweep.chosen(selection)
        return chosen[chosen["dataset"].isin(self.datasets) & chosen["algorithm"].isin(self.algorithms)]

    def pictures(self) -> Iterator[Picture]:
        """All of them."""
        if self.best.empty:
            self.tell(f"no bars: {self.why_none(self.by_training_domain)}")
        else:
            yield self.bars()
        for dataset in self.datasets:
            yield from self.of_dataset(dataset)

    def bars(self) -> Picture:
        """The algorithms side by side."""
        cells = average_cells(
            make_cells(self.sweep.runs, self.chosen, self.names, self.algorithms, self.selection in WITH_PAIRS)
        )
        caption = (
            f"Test accuracy of the runs that {self.selection} chose, averaged over each dataset's environments, with "
            f"the standard error over trials; an X is a missing figure.{self.unfinished(self.best)}"
        )
        groups = [*self.datasets, AVERAGE] if len(self.datasets) > 1 else self.datasets
        figure = bars(cells, groups, self.looks, f"Model selection: {self.selection}")
        return ("bars", self.selection), caption, figure

    def of_dataset(self, dataset: str) -> Iterator[Picture]:
        """Those of one dataset, and of each algorithm on it."""
        runs = self.by_training_domain[self.by_training_domain["dataset"] == dataset]
        best = self.best[self.best["dataset"] == dataset]
        if runs.empty:
            self.tell(f"no picture of {dataset}: {self.why_none(runs)}")
            return
        yield self.in_and_out(dataset, runs)
        if best.empty:
            self.tell(f"no figures, curves and hyperparameters of {dataset}: {self.why_none(runs)}")
            return
        yield from self.figures(dataset, best)
        for algorithm in self.algorithms:
            if (best["algorithm"] == algorithm).any():
                yield self.curves(dataset, algorithm)
                yield from self.hparams(dataset, algorithm)
            else:
                why = self.why_none(runs[runs["algorithm"] == algorithm])
                self.tell(f"no curves and hyperparameters of {algorithm} on {dataset}: {why}")

    def in_and_out(self, dataset: str, runs: pd.DataFrame) -> Picture:
        """Accuracy out of the domain against that within."""
        caption = (
            f"Accuracy on the test environment (in split) against mean accuracy on the training environments (out "
            f"splits), for all {len(runs):,} runs on {dataset} at the step that training-domain chose; {RHO} is "
            f"Spearman's rank correlation.{self.unfinished(runs)}"
        )
        return ("in_out", dataset), caption, in_and_out(runs, self.environments(dataset), self.looks, dataset)

    def figures(self, dataset: str, best: pd.DataFrame) -> Iterator[Picture]:
        """The figures that the updates recorded, and how far apart the domains were, where that was tracked."""
        recorded = self.sweep.figures(best["folder"])
        figure = figure_courses(recorded, best, self.environments(dataset), self.algorithms, dataset)
        if figure is None:
            self.tell(f"no figures of {dataset}: the chosen runs recorded none")
        else:
            caption = (
                f"The figures that updates recorded in the runs on {dataset} that {self.selection} chose, a line a "
                f"trial, with a gap where a value is not finite.{self.unfinished(best)}"
            )
            yield ("figures", dataset, self.selection), caption, figure
        of_algorithms = recorded.drop(columns="algorithm", errors="ignore").merge(best[["folder", "algorithm"]])
        figure = distance_courses(of_algorithms, self.looks, dataset)
        if figure is not None:
            caption = (
                f"Squared distances between the training domains' risks, gradients and Hessians in the runs on "
                f"{dataset} that {self.selection} chose, one faint line each; strong lines are their geometric means."
                f"{self.unfinished(best)}"
            )
            yield ("landscape", dataset, self.selection), caption, figure

    def curves(self, dataset: str, algorithm: str) -> Picture:
        """The accuracies of the chosen runs."""
        best = self.best[(self.best["dataset"] == dataset) & (self.best["algorithm"] == algorithm)]
        what = f"{algorithm} on {dataset}"
        caption = (
            f"Accuracies of the runs of {what} that {self.selection} chose, a line a trial; a ring marks the step that "
            f"was chosen.{self.unfinished(best)}"
        )
        figure = training_curves(self.sweep.records, best, self.environments(dataset), what)
        return ("curves", dataset, algorithm, self.selection), caption, figure

    def hparams(self, dataset: str, algorithm: str) -> Iterator[Picture]:
        """Accuracy against the hyperparameters."""
        runs = self.chosen[(self.chosen["dataset"] == dataset) & (self.chosen["algorithm"] == algorithm)]
        what = f"{algorithm} on {dataset}"
        hparams = self.sweep.hparams(runs["folder"])
        figure = hparams_scatter(runs, hparams, self.environments(dataset), draws(algorithm, dataset), what)
        if figure is None:
            self.tell(f"no hyperparameters of {what}: none differs between its runs")
            return
        caption = (
            f"Test accuracy of all {len(runs):,} runs of {what} at the step that {self.selection} chose, against each "
            f"hyperparameter that differs between them.{self.unfinished(runs)}"
        )
        yield ("hparams", dataset, algorithm, self.selection), caption, figure

    def environments(self, dataset: str) -> dict[int, str]:
        """The names of a dataset's environments, by number."""
        return dict(enumerate(self.names[dataset]))

    def why_none(self, by_training_domain: pd.DataFrame) -> str:
        """Why the method chose no run, given those that training-domain chose."""
        if self.selection in WITH_PAIRS and len(by_training_domain):
            return f"{self.selection} needs the runs with each pair of test environments (sweep launch --leave_one_out)"
        return "there is no run with a single test environment"

    def unfinished(self, runs: pd.DataFrame) -> str:
        """How many of these runs are not done, as a sentence to add."""
        n = (~self.sweep.jobs.loc[runs["folder"], "done"].astype(bool)).sum()
        return f" Of these runs, {n:,} are not finished; what they have recorded so far is shown." if n else ""
