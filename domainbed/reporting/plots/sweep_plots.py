"""Draws the plots of a sweep, each with its caption and the data that it shows."""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from domainbed.engine.tracking import TRACKERS
from domainbed.model_selection import WITH_PAIRS, best_hparams
from domainbed.reporting.cells import (
    AVERAGE,
    PARTIAL_MARK,
    PRUNED_MARK,
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
from domainbed.reporting.layout import MARKS
from domainbed.reporting.load import Sweep
from domainbed.reporting.on_the_line import scale
from domainbed.reporting.plots.bars import plot_bars
from domainbed.reporting.plots.curves import curve_values, metric_values, plot_metrics, plot_training_curves
from domainbed.reporting.plots.line import plot_line
from domainbed.reporting.plots.ranks import plot_ranks
from domainbed.reporting.plots.scales import MAX_MAGNITUDE
from domainbed.reporting.plots.scatter import (
    RHO,
    plot_hparams,
    plot_in_and_out,
    sample_hparams,
    varying_hparams,
    without_ignored,
)
from domainbed.reporting.plots.style import make_style
from domainbed.reporting.titles import Titles


class Drawing(NamedTuple):
    """A plot whose file name, which consists of `names`, may not be unique."""

    names: tuple[str, ...]
    caption: str
    figure: Figure
    data: pd.DataFrame


class SweepPlots:
    """The plots of some datasets and algorithms; see `draw_plots` for the arguments."""

    def __init__(
        self,
        sweep: Sweep,
        selection: str,
        datasets: Sequence[str],
        algorithms: Sequence[str],
        warn: Callable[[str], object],
        titles: Titles,
        baseline: str,
        kinds: Collection[str],
    ) -> None:
        self.sweep, self.selection = sweep, selection
        self.datasets, self.algorithms = datasets, algorithms
        self.warn, self.titles = warn, titles
        self.baseline, self.kinds = baseline, kinds
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

    def draw_all(self) -> Iterator[Drawing]:
        """Draw the plots of the sweep, and those of each dataset."""
        if self.best.empty:
            if self.is_requested("bars", "ranks"):
                self.warn(f"no bar chart: {self.explain_empty(self.by_training_domain)}")
        else:
            if self.is_requested("bars"):
                yield self.draw_bars()
            if self.is_requested("ranks"):
                yield from self.draw_ranks()
        for dataset in self.datasets:
            yield from self.draw_dataset(dataset)

    def is_requested(self, *kinds: str) -> bool:
        """Return whether any of these kinds was requested."""
        return any(kind in self.kinds for kind in kinds)

    def draw_dataset(self, dataset: str) -> Iterator[Drawing]:
        """Draw the plots of a dataset, and those of each algorithm on it."""
        runs = self.by_training_domain[self.by_training_domain["dataset"] == dataset]
        best = self.best[self.best["dataset"] == dataset]
        title = self.titles(dataset)
        if not self.is_requested("in_out", "line", "metrics", "curves", "hparams", *TRACKERS):
            return
        if runs.empty:
            self.warn(f"no plots of {title}: {self.explain_empty(runs)}")
            return
        if self.is_requested("in_out"):
            yield self.draw_in_and_out(dataset, runs)
        if self.is_requested("line"):
            yield self.draw_line(dataset, runs)
        if not self.is_requested("metrics", "curves", "hparams", *TRACKERS):
            return
        if best.empty:
            self.warn(f"no metrics, curves or hyperparameters of {title}: {self.explain_empty(runs)}")
            return
        if self.is_requested("metrics", *TRACKERS):
            yield from self.draw_metrics(dataset, best)
        for algorithm in self.algorithms:
            if (best["algorithm"] == algorithm).any():
                if self.is_requested("curves"):
                    yield self.draw_curves(dataset, algorithm)
                if self.is_requested("hparams"):
                    yield from self.draw_hparams(dataset, algorithm)
            elif self.is_requested("curves", "hparams"):
                reason = self.explain_empty(runs[runs["algorithm"] == algorithm])
                self.warn(f"no curves or hyperparameters of {self.titles(algorithm)} on {title}: {reason}")

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells of the tables of all datasets."""
        testable = {dataset: testable_names(self.sweep.jobs, dataset) for dataset in self.datasets}
        return make_cells(self.sweep.runs, self.selected, self.selection, testable, self.algorithms, self.backbones)

    def draw_ranks(self) -> Iterator[Drawing]:
        ranks = rank_algorithms(self.cells, self.algorithms)
        blocks = describe_blocks(ranks)
        if ranks.test is None:
            if len(self.algorithms) > 2 or "bars" not in self.kinds:  # expected of two algorithms, unless requested
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
        partial = {c.algorithm for c in self.cells if {PARTIAL_MARK, PRUNED_MARK} & {*c.mark}} & {*ranks.ranks}
        incomplete = f" Not all requested runs: {list_names([*map(titles, sorted(partial))])}." if partial else ""
        excluded = f" Not ranked: {list_names([*map(titles, ranks.excluded)])}." if ranks.excluded else ""
        caption = (
            f"Mean ranks of the algorithms over {blocks} (1 is best), with the runs selected by {self.selection}. "
            f"Thick bars join algorithms that do not differ by the critical difference of the Nemenyi test, or all of "
            f"them if Friedman's test finds no difference (here p {format_p(ranks.test.p_value)}).{excluded}"
            f"{incomplete}{self.unfinished_note(self.best)}"
        )
        data = {"mean_rank": ranks.ranks, "critical_difference": dict.fromkeys(ranks.ranks, ranks.critical_difference)}
        # One column per group, with 1 for its members.
        data |= {f"group_{i}": dict.fromkeys(group, 1) for i, group in enumerate(ranks.groups, start=1)}
        frame = pd.DataFrame(data, index=list(ranks.ranks)).rename(titles).rename_axis("algorithm").reset_index()
        yield Drawing(("ranks", self.selection), caption, figure, frame)

    def draw_bars(self) -> Drawing:
        cells = average_cells(self.cells, self.backbones)
        accuracies = {
            (self.titles(cell.algorithm), self.titles(cell.column)): (
                cell.mean,
                cell.standard_error if cell.trials > 1 else np.nan,
            )
            for cell in cells
        }
        groups = [*self.datasets, AVERAGE] if len(self.datasets) > 1 else self.datasets
        marks = {(self.titles(c.algorithm), self.titles(c.column)): c.mark for c in cells if c.column in groups}
        meanings = [meaning for mark, meaning in MARKS.items() if any(mark in text for text in marks.values())]
        caption = (
            f"Test accuracy of the runs selected by {self.selection}, averaged over each dataset's environments, with "
            f"the standard error over trials. {'; '.join(['X: missing', *meanings])}."
        )
        title = f"Test accuracy, {self.selection} selection"
        groups = [*map(self.titles, groups)]
        data = pd.DataFrame(
            [(*key, *numbers) for key, numbers in accuracies.items() if key[1] in groups],
            columns=["algorithm", "dataset", "mean", "standard_error"],
        )
        figure = plot_bars(accuracies, groups, self.styles, title, marks, "; ".join(meanings))
        return Drawing(("bars", self.selection), caption, figure, data)

    def draw_in_and_out(self, dataset: str, runs: pd.DataFrame) -> Drawing:
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
        return Drawing(("in_out", dataset), caption, figure, self.accuracies(dataset, runs))

    def draw_line(self, dataset: str, runs: pd.DataFrame) -> Drawing:
        title, baseline = self.titles(dataset), self.titles(self.baseline)
        figure = plot_line(
            self.with_titles(runs), self.environments(dataset), self.styles, baseline, f"Accuracy on the line, {title}"
        )
        has_line = any(line.get_gid() == "line" for ax in figure.axes for line in ax.lines)
        line = f"Line: least squares of the runs of {baseline}, dotted outside their range. " if has_line else ""
        caption = (
            f"Accuracy on the test environment (in split) against mean accuracy on the training environments (out "
            f"splits), on probit axes, for all {len(runs):,} runs on {title} at the step selected by training-domain. "
            f"{line}R²: of the line through all runs."
            f"{self.unfinished_note(runs)}"
        )
        data = self.accuracies(dataset, runs)
        probits = {f"{name}_probit": scale(data[name] / 100) for name in ("in_domain", "out_of_domain")}
        return Drawing(("line", dataset), caption, figure, data.assign(**probits))

    def accuracies(self, dataset: str, runs: pd.DataFrame) -> pd.DataFrame:
        """Return the accuracies of runs on a dataset in and out of domain, in percent, with what identifies a run."""
        data = self.identify(dataset, runs)
        return data.assign(in_domain=100 * runs["val_acc"], out_of_domain=100 * runs["test_acc"])

    def identify(self, dataset: str, runs: pd.DataFrame) -> pd.DataFrame:
        """Return what identifies runs on a dataset: algorithm, test environment, trial, draw, folder, selected step."""
        data = self.with_titles(runs)[["algorithm", "test_env", "trial_seed", "hparams_seed", "folder", "step"]]
        return data.assign(test_env=data["test_env"].map(self.environments(dataset)))

    def describe(self, dataset: str, values: pd.DataFrame, best: pd.DataFrame) -> pd.DataFrame:
        """Return values of runs with the names of their test environments, their trials and draws."""
        seeds = best[["folder", "trial_seed", "hparams_seed"]]
        values = values.assign(test_env=values["test_env"].map(self.environments(dataset)))
        return values.merge(seeds, on="folder", how="left")

    def draw_metrics(self, dataset: str, best: pd.DataFrame) -> Iterator[Drawing]:
        """Draw the metrics recorded by the updates, and the entries recorded by each tracker."""
        title = self.titles(dataset)
        metrics = self.sweep.load_metrics(best["folder"])
        best = self.with_titles(best)
        figure = None
        if self.is_requested("metrics"):
            figure = plot_metrics(
                metrics, best, self.environments(dataset), list(self.styles), f"Metrics over training, {title}"
            )
            if figure is None:
                self.warn(f"no metrics of {title}: the selected runs recorded none")
        if figure is not None:
            caption = (
                f"Metrics recorded by the updates of the runs on {title} selected by {self.selection}: one line per "
                f"trial, with gaps at values that are not finite or above {MAX_MAGNITUDE:g}."
                f"{self.unfinished_note(best)}"
            )
            values = metric_values(metrics, best, list(self.styles))
            yield Drawing(("metrics", dataset, self.selection), caption, figure, self.describe(dataset, values, best))
        with_algorithm = metrics.drop(columns="algorithm", errors="ignore").merge(best[["folder", "algorithm"]])
        for name in filter(self.is_requested, TRACKERS):
            tracker = TRACKERS[name]
            entries = [column for column in metrics if str(column).startswith(tracker.PREFIX)]
            if not entries:
                continue
            figure = tracker.plot(with_algorithm, self.styles, title)
            if figure is not None:
                caption = (
                    f"{tracker.CAPTION} Runs on {title} selected by {self.selection}.{self.unfinished_note(best)}"
                ).lstrip()
                data = with_algorithm[["algorithm", "folder", "step", *entries]]
                yield Drawing((name, dataset, self.selection), caption, figure, data)

    def draw_curves(self, dataset: str, algorithm: str) -> Drawing:
        best = self.best[(self.best["dataset"] == dataset) & (self.best["algorithm"] == algorithm)]
        title = f"{self.titles(algorithm)} on {self.titles(dataset)}"
        caption = (
            f"Accuracies of the runs of {title} selected by {self.selection}, one line per trial. Circles mark the "
            f"selected step.{self.unfinished_note(best)}"
        )
        environments = self.environments(dataset)
        figure = plot_training_curves(self.sweep.records, best, environments, f"Accuracy over training, {title}")
        data = self.describe(dataset, curve_values(self.sweep.records, best, environments), best)
        return Drawing(("curves", dataset, algorithm, self.selection), caption, figure, data)

    def draw_hparams(self, dataset: str, algorithm: str) -> Iterator[Drawing]:
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
        data = self.identify(dataset, runs).assign(test_accuracy=100 * runs["test_acc"]).set_index("folder", drop=False)
        values = pd.DataFrame(varying_hparams(hparams)).reindex(data.index)
        yield Drawing(
            ("hparams", dataset, algorithm, self.selection), caption, figure, pd.concat([data, values], axis="columns")
        )

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
