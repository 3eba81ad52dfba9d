"""The points and the table of agreement on the line (`line.py`): runs and pairs of runs of each test environment.

Two runs of different trials have few out-split images in common (with a holdout fraction of 0.2, 4% of all), so their
agreement in domain is noisy, which makes the slope of the line through all pairs too small. Therefore, the line through
pairs of the same trial is measured in addition.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from domainbed.analysis import metrics
from domainbed.analysis.line import MIN_POINTS, fit_scaled_line, predict_aline_d, predict_aline_s
from domainbed.analysis.measures import SCALED, Measured
from domainbed.analysis.runs import Outputs, find_common
from domainbed.analysis.tables import AVERAGE, Table
from domainbed.reporting.on_the_line import Line

RUN, PAIR = "run", "pair"  # kinds of points
MIN_IMAGES = 100  # in common; the agreement on fewer images says little
ACCURACY, AGREEMENT, SAME_TRIAL = "accuracy", "agreement", "same_trial"  # lines
BASELINES = ("in_domain", "confidence", f"confidence{SCALED}")  # predictions of accuracy
PREDICTIONS = {
    ACCURACY: BASELINES,
    AGREEMENT: ("aline_s", "aline_d"),
    SAME_TRIAL: ("aline_s_same_trial", "aline_d_same_trial"),
}

DESCRIPTIONS = {
    ACCURACY: "accuracy",
    AGREEMENT: "agreement",
    SAME_TRIAL: "agreement of the same trial",
}
COLUMNS = [
    *("environment", "kind", "algorithm", "trial_seed", "other", "other_trial_seed", "in_domain", "out_of_domain"),
    *("n_in_domain", "n_out_of_domain", "confidence", f"confidence{SCALED}"),
]


def select_points(points: pd.DataFrame, line: str) -> pd.DataFrame:
    """Return the points through which a line goes: runs, all pairs of runs, or pairs of runs of the same trial."""
    if line == SAME_TRIAL:
        return points[(points["kind"] == PAIR) & (points["trial_seed"] == points["other_trial_seed"])]
    return points[points["kind"] == (RUN if line == ACCURACY else PAIR)]


def line_points(runs: Sequence[Measured]) -> pd.DataFrame:
    """Return the accuracies of runs, the agreement of pairs of runs, and the accuracies predicted from them.

    In domain: on the out splits of the training environments, pooled. Out of domain: on the in split of the test
    environment. Two runs of different trials agree on the images that are in these splits of both, so that neither
    was trained on any of them; pairs with fewer than MIN_IMAGES of them are omitted.

    Returns:
        One row per run and per pair: `environment`, `kind`, `algorithm`, `trial_seed`, `other`, `other_trial_seed` (of
        pairs), `in_domain` and `out_of_domain` in [0, 1], the numbers of images `n_in_domain` and `n_out_of_domain`,
        and of runs, the mean confidence out of domain, before and after temperature scaling, and the accuracies that
        ALine-S and ALine-D predict from all pairs, and from those of the same trial.
    """
    frames = []
    for _, group in itertools.groupby(sorted(runs, key=_test_env), key=_test_env):
        members = list(group)
        of_runs = [{**_measure_run(run), "number": i} for i, run in enumerate(members)]
        of_pairs = [
            {**pair, "number": i, "other_number": j}
            for (i, a), (j, b) in itertools.combinations(enumerate(members), 2)
            if (pair := _measure_pair(a, b))
        ]
        points = pd.DataFrame([*of_runs, *of_pairs], columns=[*COLUMNS, "number", "other_number"])
        accuracies = select_points(points, ACCURACY)["in_domain"].to_numpy()
        for kind in (AGREEMENT, SAME_TRIAL):
            pairs = select_points(points, kind)
            agreement = pairs["in_domain"].to_numpy(), pairs["out_of_domain"].to_numpy()
            line = fit_scaled_line(*agreement)
            numbers = pairs[["number", "other_number"]].to_numpy(dtype=int)
            aline_s, aline_d = PREDICTIONS[kind]
            is_run = (points["kind"] == RUN).to_numpy()
            points.loc[is_run, aline_s] = predict_aline_s(accuracies, line)
            points.loc[is_run, aline_d] = predict_aline_d(accuracies, numbers, *agreement, float(line.slope))
        frames.append(points.drop(columns=["number", "other_number"]))
    return pd.concat(frames, ignore_index=True).astype({"other_trial_seed": "Int64"})


def _test_env(run: Measured) -> int:
    return int(run.run["test_env"])


def _measure_run(run: Measured) -> dict[str, Any]:
    return {
        **{name: run.run[name] for name in ("environment", "algorithm", "trial_seed")},
        "kind": RUN,
        "in_domain": float(run.validation.is_correct.mean()),
        "out_of_domain": float(run.outputs.is_correct.mean()),
        "n_in_domain": len(run.validation.labels),
        "n_out_of_domain": len(run.outputs.labels),
        "confidence": float(run.confidence[False].mean()),
        f"confidence{SCALED}": float(run.confidence[True].mean()),
    }


def _measure_pair(a: Measured, b: Measured) -> dict[str, Any] | None:
    """Return the agreement of two runs; None if they have too few images in common."""
    in_domain = _measure_agreement(a.validation, b.validation)
    out_of_domain = _measure_agreement(a.outputs, b.outputs)
    if in_domain is None or out_of_domain is None:
        return None
    return {
        **{name: a.run[name] for name in ("environment", "algorithm", "trial_seed")},
        "kind": PAIR,
        "other": b.run["algorithm"],
        "other_trial_seed": b.run["trial_seed"],
        **dict(zip(("in_domain", "n_in_domain"), in_domain, strict=True)),
        **dict(zip(("out_of_domain", "n_out_of_domain"), out_of_domain, strict=True)),
    }


def _measure_agreement(a: Outputs, b: Outputs) -> tuple[float, int] | None:
    """Return the agreement on the images in common, and their number; None if there are too few."""
    rows = find_common([a, b])
    if rows is None or len(rows[0]) < MIN_IMAGES:
        return None
    return metrics.agreement(a.predicted[rows[0]], b.predicted[rows[1]]), len(rows[0])


def line_table(points: pd.DataFrame, environments: Sequence[str]) -> Table:
    """Return the lines of accuracy and of agreement, and the errors of predicted accuracies, from `line_points`."""
    found, rows = [], []
    problems: dict[str, list[str]] = {}  # to the environments that have them
    for environment, group in points.groupby("environment", sort=False):
        row, of_environment = _measure_lines(group)
        found.append({"environment": environment, **row})
        for problem in of_environment:
            problems.setdefault(problem, []).append(str(environment))
        for line, number in ((ACCURACY, "runs"), (AGREEMENT, "pairs"), (SAME_TRIAL, "same_trial_pairs")):
            values = [_format(row[f"{line}_{value}"]) for value in ("slope", "bias", "r_squared")]
            names = [str(environment) if line == ACCURACY else "", line.replace("_", " ")]
            rows.append([*names, str(row[number]), *values, *_format_errors(row, line)])
    frame = pd.DataFrame(found)
    if len(environments) > 1 and set(frame["environment"]) == set(environments):
        errors = frame[[name for name in frame if str(name).startswith("mae_")]].mean(skipna=False).to_dict()
        frame = pd.concat([frame, pd.DataFrame([{"environment": AVERAGE, **errors}])], ignore_index=True)
        for line in PREDICTIONS:
            names = [AVERAGE if line == ACCURACY else "", line.replace("_", " ")]
            rows.append([*names, *[""] * 4, *_format_errors(errors, line)])
    frame = frame.astype(dict.fromkeys(("runs", "pairs", "same_trial_pairs"), "Int64"))
    notes = [
        "Lines through probits, out of domain (the in split of the test environment) on in domain (the out splits of "
        "the training environments, pooled): of the accuracies of runs; of the agreement of pairs of runs, which "
        "requires no labels out of domain, on the images that are in these splits of both; and of the agreement of "
        "pairs of the same trial, which have more such images.",
        "Then, mean absolute errors of predicted accuracies on the test environment, in percentage points, over runs: "
        "of ALine-S and ALine-D, by the line of agreement; of the accuracy in domain; and of the mean confidence on "
        "the test environment, before and after temperature scaling. Where R² of agreement is low, ALine has no basis.",
        *(f"{', '.join(names)}: {problem}." for problem, names in problems.items()),
    ]
    headers = ["Test", "Line", "Points", "Slope", "Bias", "R²", "ALine-S", "ALine-D", "In-domain"]
    return Table("line", "Agreement on the line", [*headers, "Confidence", "scaled"], rows, notes, frame)


def _measure_lines(points: pd.DataFrame) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a test environment, and why some of them are undefined."""
    selected = {line: select_points(points, line) for line in PREDICTIONS}
    runs = selected[ACCURACY]
    row: dict[str, Any] = {
        "runs": len(runs),
        "pairs": len(selected[AGREEMENT]),
        "same_trial_pairs": len(selected[SAME_TRIAL]),
    }
    problems = []
    for name, of_line in selected.items():
        line = fit_scaled_line(of_line["in_domain"], of_line["out_of_domain"])
        row |= {f"{name}_{value}": float(v) for value, v in zip(("slope", "bias", "r_squared"), line, strict=True)}
        errors = [float((runs[p] - runs["out_of_domain"]).abs().mean(skipna=False)) for p in PREDICTIONS[name]]
        row |= {f"mae_{p}": error for p, error in zip(PREDICTIONS[name], errors, strict=True)}
        if problem := _find_problem(line, len(of_line), name):
            problems.append(f"no line of {DESCRIPTIONS[name]}: {problem}")
        elif np.isnan(errors).any():
            problems.append(f"no ALine-D of {DESCRIPTIONS[name]}: the pairs do not determine the accuracy of every run")
    return row | {"problem": "; ".join(problems)}, problems


def _find_problem(line: Line, n: int, name: str) -> str:
    """Return why a line of n points is undefined; "" if it is not."""
    if n < MIN_POINTS:
        points = "runs" if name == ACCURACY else f"pairs with at least {MIN_IMAGES} images in common"
        return f"it requires {MIN_POINTS} {points}, and there {'is' if n == 1 else 'are'} {n}"
    return "all points have the same value in domain" if np.isnan(line.slope) else ""


def _format(value: float, scale: float = 1.0, decimals: int = 2) -> str:
    return "-" if np.isnan(value) else f"{scale * value:.{decimals}f}"


def _format_errors(row: dict[Any, Any], line: str) -> list[str]:
    cells = [_format(row[f"mae_{name}"], 100, 1) for name in PREDICTIONS[line]]
    return ["", "", *cells] if line == ACCURACY else cells
