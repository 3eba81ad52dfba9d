"""Accuracy on the line as text: plain sentences, and the table behind them."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from domainbed.reporting.findings import UNKNOWN, Findings, list_names
from domainbed.reporting.layout import format_number
from domainbed.reporting.on_the_line import ALL, BETTER_HALF, CLIP, MIN_GROUPS, LineResult
from domainbed.reporting.titles import Titles

SETS_OF_RUNS = {ALL: "all algorithms", BETTER_HALF: "better half in domain"}
HEADERS = ["Dataset", "Test env", "Algorithm", "Runs", "Slope", "R²", "Effective robustness", "Outside"]


def line_findings(
    results: Sequence[LineResult],
    environments: Mapping[str, Sequence[str]],
    baseline: str,
    titles: Titles,
    decimals: int,
) -> Findings:
    """Return the comparisons of all runs with the line as text.

    Args:
        results: those of `on_the_line.compare_with_line`.
        environments: the names of each dataset's environments.
        baseline: the algorithm whose line predicts the accuracies of the others.
    """
    rows: list[list[str]] = []
    sentences: list[str] = []
    for (dataset, test_env), group in itertools.groupby(results, key=lambda r: (r.dataset, r.test_env)):
        environment = titles.environment(dataset, environments[dataset][test_env])
        own = list(group)
        for r in own:
            rows.append(
                [
                    *(titles(dataset), environment, SETS_OF_RUNS.get(r.algorithm) or titles(r.algorithm)),
                    *(str(r.runs), _with_interval(r.slope, r.slope_low, r.slope_high, 2)),
                    _with_interval(r.r_squared, r.r_squared_low, r.r_squared_high, 2),
                    _with_interval(
                        *(r.effective_robustness, r.effective_robustness_low, r.effective_robustness_high),
                        *(decimals, "+"),
                    ),
                    UNKNOWN if math.isnan(r.effective_robustness) else str(r.outside),
                ]
            )
        place = f"On {titles(dataset)}, test environment {environment}"
        sentences += _sentences(own, place, titles(baseline), titles)
    note = (
        "All runs, at the step selected by training-domain. Line: least squares of the accuracy on the test "
        "environment (in split) on the mean accuracy on the training environments (out splits), both as probits of "
        f"accuracies clipped to [{CLIP}, {1 - CLIP}] (Miller et al., 2021). Better half in domain: the runs whose "
        "in-domain accuracy is at least the median. The smaller range of their accuracies lowers R² and, as accuracies "
        f"have sampling errors, the slope. Effective robustness: mean accuracy above the line of {titles(baseline)}, "
        "in percentage points, of the runs within the range of its accuracies in domain. Its own runs need not follow "
        "the line at every accuracy, so small values may be due to the line's shape. Outside: the number of the other "
        f"runs (Taori et al., 2020). Neither is computed if {titles(baseline)} has fewer than {MIN_GROUPS} draws. "
        "[low, high]: 95% bootstrap interval over "
        f"the hyperparameter draws of all trials, if there are at least {MIN_GROUPS}; it is not corrected for the "
        "number of algorithms, and does not describe other trials."
    )
    return Findings("Accuracy on the line", HEADERS, rows, sentences, note)


def _sentences(results: Sequence[LineResult], place: str, baseline: str, titles: Titles) -> Iterator[str]:
    """Yield what the runs on one test environment show; the first results are those of all algorithms."""
    overall, better, *algorithms = results
    if math.isnan(overall.slope) or math.isnan(overall.r_squared):
        yield f"{place}: no line, because too few runs differ in accuracy ({overall.runs} in total)."
        return
    numbers = (
        f"slope {_with_interval(overall.slope, overall.slope_low, overall.slope_high, 2)}, "
        f"R² = {overall.r_squared:.2f} over {overall.runs} runs"
    )
    if math.isnan(overall.slope_low):
        yield f"{place}: fewer than {MIN_GROUPS} hyperparameter draws, too few for intervals ({numbers})."
    elif overall.slope_low <= 0 <= overall.slope_high:
        yield f"{place}: out-of-domain accuracy does not depend significantly on in-domain accuracy ({numbers})."
    else:
        verb = "rises" if overall.slope > 0 else "falls"
        if not (math.isnan(better.slope) or math.isnan(better.r_squared)):
            numbers += f"; in the better half in domain: slope {better.slope:.2f}, R² = {better.r_squared:.2f}"
        yield f"{place}: out-of-domain accuracy {verb} with in-domain accuracy ({numbers})."
    above = [r for r in algorithms if r.effective_robustness_low > 0]
    below = [r for r in algorithms if r.effective_robustness_high < 0]
    for side, apart in (("above", above), ("below", below)):
        if apart:
            names = list_names([f"{titles(r.algorithm)} ({r.effective_robustness:+.1f})" for r in apart])
            yield f"{place}: on average, {names} {_is(apart)} {side} the line of {baseline}'s runs."
    if not above and not below and any(not math.isnan(r.effective_robustness_low) for r in algorithms):
        yield f"{place}: no algorithm is significantly above or below the line of {baseline}'s runs."


def _is(items: Sequence[object]) -> str:
    return "is" if len(items) == 1 else "are"


def _with_interval(value: float, low: float, high: float, decimals: int, sign: str = "") -> str:
    """Return a number with its interval, if it has one: "0.92 [0.90, 0.94]"; "-" if it is NaN."""
    if math.isnan(value):
        return UNKNOWN
    text = format_number(value, decimals, sign)
    if math.isnan(low):
        return text
    low_text, high_text = (
        format_number(x, decimals + (x != 0 and round(x, decimals) == 0), sign)  # the sign must be visible
        for x in (low, high)
    )
    return f"{text} [{low_text}, {high_text}]"
