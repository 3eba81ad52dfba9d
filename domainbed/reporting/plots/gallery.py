"""All plots of a sweep."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from domainbed.engine.tracking import TRACKERS
from domainbed.model_selection import WITH_PAIRS, best_hparams, resolve_method
from domainbed.reporting.cells import (
    AVERAGE,
    Cell,
    algorithms_of,
    average_cells,
    environment_names,
    frozen_backbone,
    make_cells,
    testable_names,
)
from domainbed.reporting.comparisons import rank_algorithms
from domainbed.reporting.findings import describe_blocks, format_p, list_names
from domainbed.reporting.load import Sweep
from domainbed.reporting.plots.bars import plot_bars
from domainbed.reporting.plots.curves import plot_metrics, plot_training_curves
from domainbed.reporting.plots.ranks import plot_ranks
from domainbed.reporting.plots.scales import MAX_MAGNITUDE
from domainbed.reporting.plots.scatter import RHO, plot_hparams, plot_in_and_out, sample_hparams, without_ignored
from domainbed.reporting.plots.style import make_style
from domainbed.reporting.titles import Titles

Plot: TypeAlias = tuple[tuple[str, ...], str, Figure]  # the parts of its file name, its caption, and the figure


def all_figures(
    sweep: Sweep,
    selection: str,
    datasets: Sequence[str],
    algorithms: Sequence[str],
    warn: Callable[[str], object] = print,
    titles: Titles | None = None,
) -> Iterator[tuple[str, str, Figure]]:
    """Plot these datasets and algorithms, one figure at a time.

    Args:
        selection: the selection method, or the name of its class in DomainBed.
        warn: called with a message for each plot that cannot be drawn.
        titles: the printed names of algorithms, datasets and environments.

    Yields:
        The stem of the file name, unique among these figures; the caption; and the figure.

    Raises:
        UsageError: the selection method is unknown.
    """
    stems: set[str] = set()
    plots = _SweepPlots(sweep, resolve_method(selection), datasets, algorithms, warn, titles or Titles())
    for names, caption, figure in plots.draw_all():
        stem = file_stem(names)
        n = 1
        while stem.lower() in stems:  # the names differ only in characters that file names do not preserve
            n += 1
            stem = f"{file_stem(names)}-{n}"
        stems.add(stem.lower())
        yield stem, caption, figure
        del figure  # before the next one is drawn


def file_stem(names: Sequence[str]) -> str:
    """Join names to a file stem of limited length that consists of letters, digits, +, - and _."""
    return "-".join(re.sub(r"[^\w+-]+", "_", name)[:30] for name in names)


class _SweepPlots:
    """The plots of some datasets and algorithms; see `all_figures` for the arguments."""

    def __init__(
        self,
        sweep: Sweep,
        selection: str,
        datasets: Sequence[str],
        algorithms: Sequence[str],
        warn: Callable[[str], object],
        titles: Titles,
    ) -> None:
        self.sweep, self.selection = sweep, selection
        self.datasets, self.algorithms = datasets, algorithms
        self.warn, self.titles = warn, titles
        self.by_training_domain = self.select("training-domain")
        self.selected = self.select(selection)
        self.best = best_hparams(self.selected)
        self.backbones = {dataset: frozen_backbone(sweep.jobs, dataset) for dataset in datasets}
        self.environment_names = {dataset: environment_names(sweep.jobs, dataset) for dataset in datasets}
        # Numbered over all algorithms of the sweep: an algorithm has the same style in all plots of the sweep.
        all_styles = {name: make_style(i) for i, name in enumerate(algorithms_of(sweep.runs))}
        self.styles = {titles(name): all_styles[name] for name in algorithms}  # by printed name

    def select(self, selection: str) -> pd.DataFrame:
        """Return the record that a method selects from each run on these datasets with these algorithms."""
        selected = self.sweep.select(selection)
        return selected[selected["dataset"].isin(self.datasets) & selected["algorithm"].isin(self.algorithms)]

    def draw_all(self) -> Iterator[Plot]:
        """Draw the bar chart, and the plots of each dataset."""
        if self.best.empty:
            self.warn(f"no bar chart: {self.explain_empty(self.by_training_domain)}")
        else:
            yield self.draw_bars()
            yield from self.draw_ranks()
        for dataset in self.datasets:
            yield from self.draw_dataset(dataset)

    def draw_dataset(self, dataset: str) -> Iterator[Plot]:
        """Draw the plots of a dataset, and those of each algorithm on it."""
        runs = self.by_training_domain[self.by_training_domain["dataset"] == dataset]
        best = self.best[self.best["dataset"] == dataset]
        title = self.titles(dataset)
        if runs.empty:
            self.warn(f"no plots of {title}: {self.explain_empty(runs)}")
            return
        yield self.draw_in_and_out(dataset, runs)
        if best.empty:
            self.warn(f"no metrics, curves or hyperparameters of {title}: {self.explain_empty(runs)}")
            return
        yield from self.draw_metrics(dataset, best)
        for algorithm in self.algorithms:
            if (best["algorithm"] == algorithm).any():
                yield self.draw_curves(dataset, algorithm)
                yield from self.draw_hparams(dataset, algorithm)
            else:
                reason = self.explain_empty(runs[runs["algorithm"] == algorithm])
                self.warn(f"no curves or hyperparameters of {self.titles(algorithm)} on {title}: {reason}")

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells of the tables of all datasets."""
        testable = {dataset: testable_names(self.sweep.jobs, dataset) for dataset in self.datasets}
        return make_cells(self.sweep.runs, self.selected, self.selection, testable, self.algorithms, self.backbones)

    def draw_ranks(self) -> Iterator[Plot]:
        ranks = rank_algorithms(self.cells, self.algorithms)
        blocks = describe_blocks(ranks)
        if ranks.test is None:
            if len(self.algorithms) > 2:
                needs = f"3 algorithms with a result in every {ranks.unit}, and 2 of these"
                self.warn(f"no mean ranks: Friedman's test requires {needs}")
            return
        titles = self.titles
        figure = plot_ranks(
            {titles(name): rank for name, rank in ranks.ranks.items()},
            ranks.critical_difference,
            [[titles(name) for name in group] for group in ranks.groups],
            self.styles,
            f"Mean ranks over {blocks}, {self.selection} selection",
        )
        excluded = f" Not ranked: {list_names([*map(titles, ranks.excluded)])}." if ranks.excluded else ""
        caption = (
            f"Mean ranks of the algorithms over {blocks} (1 is best), with the runs selected by {self.selection}. "
            f"Thick bars join algorithms that do not differ by the critical difference of the Nemenyi test, or all of "
            f"them if Friedman's test finds no difference (here p {format_p(ranks.test.p_value)}).{excluded}"
            f"{self.unfinished_note(self.best)}"
        )
        yield ("ranks", self.selection), caption, figure

    def draw_bars(self) -> Plot:
        cells = average_cells(self.cells, self.backbones)
        accuracies = {
            (self.titles(cell.algorithm), self.titles(cell.column)): (
                cell.mean,
                cell.standard_error if cell.trials > 1 else np.nan,
            )
            for cell in cells
        }
        groups = [*self.datasets, AVERAGE] if len(self.datasets) > 1 else self.datasets
        caption = (
            f"Test accuracy of the runs selected by {self.selection}, averaged over each dataset's environments, with "
            f"the standard error over trials. X: missing.{self.unfinished_note(self.best)}"
        )
        title = f"Test accuracy, {self.selection} selection"
        return ("bars", self.selection), caption, plot_bars(accuracies, [*map(self.titles, groups)], self.styles, title)

    def draw_in_and_out(self, dataset: str, runs: pd.DataFrame) -> Plot:
        title = self.titles(dataset)
        caption = (
            f"Accuracy on the test environment (in split) against mean accuracy on the training environments (out "
            f"splits), for all {len(runs):,} runs on {title} at the step selected by training-domain. {RHO}: "
            f"Spearman's rank correlation.{self.unfinished_note(runs)}"
        )
        figure = plot_in_and_out(
            self.with_titles(runs),
            self.environments(dataset),
            self.styles,
            f"Out-of-domain against in-domain accuracy, {title}",
        )
        return ("in_out", dataset), caption, figure

    def draw_metrics(self, dataset: str, best: pd.DataFrame) -> Iterator[Plot]:
        """Draw the metrics recorded by the updates, and the entries recorded by each tracker."""
        title = self.titles(dataset)
        metrics = self.sweep.load_metrics(best["folder"])
        best = self.with_titles(best)
        figure = plot_metrics(
            metrics, best, self.environments(dataset), list(self.styles), f"Metrics over training, {title}"
        )
        if figure is None:
            self.warn(f"no metrics of {title}: the selected runs recorded none")
        else:
            caption = (
                f"Metrics recorded by the updates of the runs on {title} selected by {self.selection}: one line per "
                f"trial, with gaps at values that are not finite or above {MAX_MAGNITUDE:g}."
                f"{self.unfinished_note(best)}"
            )
            yield ("figures", dataset, self.selection), caption, figure
        with_algorithm = metrics.drop(columns="algorithm", errors="ignore").merge(best[["folder", "algorithm"]])
        for name in TRACKERS:
            tracker = TRACKERS[name]
            if not any(str(column).startswith(tracker.PREFIX) for column in metrics):
                continue
            figure = tracker.plot(with_algorithm, self.styles, title)
            if figure is not None:
                caption = (
                    f"{tracker.CAPTION} Runs on {title} selected by {self.selection}.{self.unfinished_note(best)}"
                ).lstrip()
                yield (name, dataset, self.selection), caption, figure

    def draw_curves(self, dataset: str, algorithm: str) -> Plot:
        best = self.best[(self.best["dataset"] == dataset) & (self.best["algorithm"] == algorithm)]
        title = f"{self.titles(algorithm)} on {self.titles(dataset)}"
        caption = (
            f"Accuracies of the runs of {title} selected by {self.selection}, one line per trial. Circles mark the "
            f"selected step.{self.unfinished_note(best)}"
        )
        figure = plot_training_curves(
            self.sweep.records, best, self.environments(dataset), f"Accuracy over training, {title}"
        )
        return ("curves", dataset, algorithm, self.selection), caption, figure

    def draw_hparams(self, dataset: str, algorithm: str) -> Iterator[Plot]:
        runs = self.selected[(self.selected["dataset"] == dataset) & (self.selected["algorithm"] == algorithm)]
        title = f"{self.titles(algorithm)} on {self.titles(dataset)}"
        hparams = without_ignored(self.sweep.load_hparams(runs["folder"]), dataset)
        samples = sample_hparams(algorithm, dataset)
        figure = plot_hparams(
            runs, hparams, self.environments(dataset), samples, f"Test accuracy by hyperparameter, {title}"
        )
        if figure is None:
            self.warn(f"no hyperparameters of {title}: none differ between its runs")
            return
        caption = (
            f"Test accuracy of all {len(runs):,} runs of {title} at the step selected by {self.selection}, against "
            f"each hyperparameter that has an effect and differs between them.{self.unfinished_note(runs)}"
        )
        yield ("hparams", dataset, algorithm, self.selection), caption, figure

    def with_titles(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Return the runs with the printed names of their algorithms."""
        return runs.assign(algorithm=runs["algorithm"].map(self.titles))

    def environments(self, dataset: str) -> dict[int, str]:
        """Return the printed name of each environment of a dataset, by number."""
        names = self.environment_names[dataset]
        return {env: self.titles.environment(dataset, name) for env, name in enumerate(names)}

    def explain_empty(self, by_training_domain: pd.DataFrame) -> str:
        """Return why the method selected no run, given the runs selected by training-domain."""
        if self.selection in WITH_PAIRS and len(by_training_domain):
            return f"{self.selection} requires runs with each pair of test environments (sweep launch --leave_one_out)"
        return "no run has a single test environment"

    def unfinished_note(self, runs: pd.DataFrame) -> str:
        """Return a sentence with the number of these runs that are not done, to append to a caption."""
        n = int((~self.sweep.jobs.loc[runs["folder"], "done"].astype(bool)).sum())
        return f" Includes {n:,} unfinished run{'s' * (n > 1)}, up to the last record." if n else ""
