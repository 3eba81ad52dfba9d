"""Comparisons of all algorithms as text: plain sentences, and the tables behind them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from domainbed.reporting.cells import AVERAGE
from domainbed.reporting.comparisons import (
    MIN_DATASETS,
    BaselineComparison,
    DatasetComparisons,
    RankComparison,
    Significance,
)
from domainbed.reporting.layout import format_number
from domainbed.reporting.titles import Titles

MAX_NAMES = 8  # algorithms that one sentence names
UNKNOWN = "-"


class Findings(NamedTuple):
    """A table as text, the sentences that say what it shows, and a note on how it was computed."""

    title: str
    headers: list[str]
    rows: list[list[str]]
    sentences: list[str]
    note: str


def significance_findings(significance: Significance, titles: Titles, decimals: int) -> dict[str, Findings]:
    """Return the comparisons of a selection method's results as text: with the baseline, and of mean ranks."""
    return {
        "significance": _baseline_findings(significance, titles, decimals),
        "ranks": _rank_findings(significance, titles),
    }


def compare_sentence(comparison: BaselineComparison, n_datasets: int, titles: Titles, decimals: int) -> str:
    """Return the result of one comparison with the baseline as a sentence."""
    algorithm, baseline = titles(comparison.algorithm), titles(comparison.baseline)
    place = _place(comparison.dataset, n_datasets, titles)
    difference = f"difference {format_number(comparison.difference, decimals, '+')}"
    if comparison.trials == 1:
        return f"One trial is not enough to compare {algorithm} with {baseline} {place} ({difference})."
    numbers = f"({difference}, corrected p {format_p(comparison.corrected_p_value)})"
    if comparison.is_significant:
        side = "above" if comparison.difference > 0 else "below"
        return f"With {comparison.trials} trials, {algorithm} is {side} {baseline} {place} {numbers}."
    return (
        f"With {comparison.trials} trials, {algorithm} does not differ significantly from {baseline} {place} {numbers}."
    )


def format_p(p_value: float) -> str:
    """Return a p-value with its relation: "= 0.61", "< 0.001"."""
    if p_value < 0.001:
        return "< 0.001"
    return f"= {p_value:.2f}" if p_value >= 0.1 else f"= {p_value:.3f}"


def list_names(names: Sequence[str]) -> str:
    """Join names: "A", "A and B", "A, B and C"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _place(dataset: str, n_datasets: int, titles: Titles) -> str:
    return f"on average over {n_datasets} datasets" if dataset == AVERAGE else f"on {titles(dataset)}"


def _baseline_findings(significance: Significance, titles: Titles, decimals: int) -> Findings:
    baseline = titles(significance.baseline)
    rows: list[list[str]] = []
    sentences: list[str] = []
    for dataset in significance.datasets:
        for c in dataset.comparisons:
            numbers = [format_number(c.difference, decimals, "+"), *[UNKNOWN] * 4]
            if c.trials > 1:
                low, high = (format_number(x, decimals, "+") for x in (c.low, c.high))
                p_values = (format_p(p).removeprefix("= ") for p in (c.p_value, c.corrected_p_value, c.paired_p_value))
                numbers[1:] = [f"[{low}, {high}]", *p_values]
            rows.append([titles(c.dataset), titles(c.algorithm), *numbers, f"{c.pairs_won} of {c.pairs}"])
        sentences += _dataset_sentences(dataset, significance.baseline, titles, decimals)
    note = (
        f"Difference: the algorithm's average minus that of {baseline} in percentage points, over the trials in which "
        f"{baseline} has a result in every test environment. p: two-way layout of these averages with trials as "
        "blocks, which assumes that the differences between any two algorithms vary equally over trials. Algorithms "
        "that vary more than others violate it, and so do variants and ensembles of another one. Corrected: for the "
        "number of algorithms, on each dataset and with each selection method (Holm). Paired p: t-test of the "
        "differences in this row alone, without that assumption, not corrected. 95%: intervals that cover all "
        "differences on a dataset with this probability (Bonferroni). Pairs won: the trials "
        f"and test environments in which the algorithm is better than {baseline}; those of the same trial share draws "
        "and splits and are not independent, so the tests count trials, not pairs."
    )
    headers = ["Dataset", "Algorithm", "Difference", "95%", "p", "Corrected p", "Paired p", "Pairs won"]
    return Findings(f"Differences from {baseline}", headers, rows, sentences, note)


def _dataset_sentences(dataset: DatasetComparisons, baseline: str, titles: Titles, decimals: int) -> Iterator[str]:
    """Yield a sentence for each algorithm that differs from the baseline, and one for all others."""
    place = _place(dataset.dataset, dataset.n_datasets, titles)
    if not dataset.trials:
        yield f"No comparison {place}: {titles(baseline)} has no trial with a result in every test environment."
        return
    rest = [c for c in dataset.comparisons if not c.is_significant]
    for c in sorted(set(dataset.comparisons) - set(rest), key=lambda c: (c.corrected_p_value, c.p_value)):
        yield compare_sentence(c, dataset.n_datasets, titles, decimals)
    if len(rest) == 1:
        yield compare_sentence(rest[0], dataset.n_datasets, titles, decimals)
    elif rest:
        yield _rest_sentence(rest, len(dataset.comparisons), place, titles, decimals)
    if dataset.excluded:
        names = list_names([titles(name) for name in dataset.excluded])
        yield f"Not compared {place} (no result in some trials of {titles(baseline)}): {names}."


def _rest_sentence(
    rest: Sequence[BaselineComparison], n_compared: int, place: str, titles: Titles, decimals: int
) -> str:
    """Return a sentence about several algorithms that do not differ significantly from the baseline."""
    names = list_names([titles(c.algorithm) for c in rest])
    if len(rest) > MAX_NAMES:
        names = f"the {'other ' * (len(rest) < n_compared)}{len(rest)} algorithms"
    low, high = (format_number(f(c.difference for c in rest), decimals, "+") for f in (min, max))
    differences = f"differences from {low} to {high}"
    if rest[0].trials == 1:
        return f"One trial is not enough to compare {names} with {titles(rest[0].baseline)} {place} ({differences})."
    p_value = format_p(min(c.corrected_p_value for c in rest)).removeprefix("= ")
    return (
        f"With {rest[0].trials} trials, {names} do not differ significantly from {titles(rest[0].baseline)} {place} "
        f"({differences}, smallest corrected p = {p_value})."
    )


def _rank_findings(significance: Significance, titles: Titles) -> Findings:
    ranks, baseline = significance.ranks, significance.baseline
    rows = [[titles(name), f"{rank:.2f}"] for name, rank in ranks.ranks.items()]
    note = (
        "Mean rank: 1 is best; ties share their mean rank. Friedman's test asks whether any algorithms differ; if so, "
        "two of them differ if their mean ranks are at least the critical difference apart (Nemenyi; Demšar, 2006), "
        "which corrects for all pairs."
    )
    if ranks.unit != "dataset":
        note += (
            " Test environments of a dataset share training images, so they are not independent blocks: these tests "
            f"describe the sweep, and datasets are ranked instead if there are at least {MIN_DATASETS} of them."
        )
    return Findings(
        f"Mean ranks over {describe_blocks(ranks)}",
        ["Algorithm", "Mean rank"],
        rows if ranks.test else [],
        [*_rank_sentences(ranks, baseline, titles)],
        note if ranks.test else "",
    )


def describe_blocks(ranks: RankComparison) -> str:
    """Return what the ranks are averaged over: "7 datasets", "9 test environments of 2 datasets"."""
    text = f"{ranks.blocks} {ranks.unit}{'s' * (ranks.blocks != 1)}"
    if ranks.unit == "dataset":
        return text
    return f"{text} of {ranks.n_datasets} dataset{'s' * (ranks.n_datasets != 1)}"


def _rank_sentences(ranks: RankComparison, baseline: str, titles: Titles) -> Iterator[str]:
    place = f"Over {describe_blocks(ranks)}"
    if ranks.test is None:
        yield (
            f"Ranks are not compared: Friedman's test requires at least 3 algorithms with results in every "
            f"{ranks.unit} and at least 2 of these; there are {len(ranks.ranks)} and {ranks.blocks}."
        )
    else:
        test = f"Friedman's test, p {format_p(ranks.test.p_value)}"
        if not ranks.is_significant:
            yield f"{place}, the ranks of {len(ranks.ranks)} algorithms do not differ significantly ({test})."
        else:
            yield f"{place}, the ranks of {len(ranks.ranks)} algorithms differ ({test})."
            yield from _separated_sentences(ranks, baseline, place, titles)
    if ranks.excluded:
        names = list_names([titles(name) for name in ranks.excluded])
        yield f"Not ranked (no result in some {ranks.unit}s): {names}."


def _separated_sentences(ranks: RankComparison, baseline: str, place: str, titles: Titles) -> Iterator[str]:
    """Yield which algorithms rank above and below the baseline, if it is ranked."""
    limit = f"critical difference {ranks.critical_difference:.1f}"
    if baseline not in ranks.ranks:
        return
    own = ranks.ranks[baseline]
    for side, sign in (("above", 1), ("below", -1)):
        others = [name for name, rank in ranks.ranks.items() if sign * (own - rank) > 0]
        apart = [name for name in others if ranks.separates(name, baseline)]
        if apart:
            names = list_names([f"{titles(name)} ({ranks.ranks[name]:.1f})" for name in apart])
            verb = "ranks" if len(apart) == 1 else "rank"
            yield f"{place}, {names} {verb} {side} {titles(baseline)} ({own:.1f}; {limit})."
    if not any(ranks.separates(name, baseline) for name in ranks.ranks):
        name = titles(baseline)
        yield f"{place}, no algorithm's mean rank differs significantly from that of {name} ({own:.1f}; {limit})."
