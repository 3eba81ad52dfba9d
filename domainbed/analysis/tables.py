"""Tables of an analysis: a DataFrame each, and a short form of it for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from domainbed.analysis.measures import CALIBRATION_METRICS, SCALED, TEST, TRAINING, Measured, count_images
from domainbed.reporting.statistics import standard_error

AVERAGE = "Avg"
N_SHOWN = 5  # classes, confusions or images in the short form
GROUP = ["algorithm", "environment"]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: its name on the command line.
        title: its heading.
        headers, rows: its short form; rows start with text that names them.
        notes: what the cells are.
        frame: all of it.
    """

    name: str
    title: str
    headers: list[str]
    rows: list[list[str]]
    notes: list[str]
    frame: pd.DataFrame


def summarize(
    frame: pd.DataFrame, keys: Sequence[str], values: Sequence[str], environments: Sequence[str]
) -> pd.DataFrame:
    """Return means over trials with their standard errors, of each environment and of their average.

    Args:
        frame: one row per run, with the columns `keys`, "environment", "trial_seed" and `values`.
        keys: what to group by in addition to the environment; groups are in the order of their first rows.
        values: the columns to summarize.
        environments: those that the average requires, in order; only trials with all of them count.

    Returns:
        `keys`, "environment", `trials`, and for each value its mean and `VALUE_error`; NaN if undefined in a trial.
    """
    rows: list[dict[str, Any]] = []
    for key, group in frame.groupby(list(keys), sort=False):
        for environment in [*environments, *[AVERAGE] * (len(environments) > 1)]:
            names = environments if environment == AVERAGE else [environment]
            part = group[group["environment"].isin(names)]
            is_complete = part.groupby("trial_seed")["environment"].transform("size") == len(names)
            numbers = part[is_complete].sort_values("trial_seed", kind="stable")[list(values)].to_numpy(dtype=float)
            means = numbers.reshape(-1, len(names), len(values)).mean(1)  # [trials, values]
            if not len(means):
                continue
            row = dict(zip(keys, key, strict=True)) | {"environment": environment, "trials": len(means)}
            for value, of_trials in zip(values, means.T, strict=True):
                is_defined = bool(np.isfinite(of_trials).all())
                row[value] = of_trials.mean() if is_defined else np.nan
                row[f"{value}_error"] = standard_error(of_trials) if is_defined else np.nan
            rows.append(row)
    return pd.DataFrame(rows)


def format_mean(row: Any, name: str, scale: float = 1.0, decimals: int = 3) -> str:
    """Return a mean and its standard error as text, such as "70.5 +/- 0.4"; "-" if undefined."""
    mean, error = scale * row[name], scale * row[f"{name}_error"]
    if np.isnan(mean):
        return "-"
    return f"{mean:.{decimals}f}" + (f" +/- {error:.{decimals}f}" if row["trials"] > 1 else "")


def accuracy_table(runs: Sequence[Measured], environments: Sequence[str]) -> Table:
    """Return accuracies of several kinds on the test environment."""
    values = ["accuracy", "macro_f1", "worst_class_accuracy", "rejection_auroc"]
    frame = summarize(_rows(runs, TEST), ["algorithm"], values, environments)
    rows = [
        [row["algorithm"], row["environment"], *(format_mean(row, value, 100, 1) for value in values)]
        for row in frame.to_dict("records")
    ]
    notes = [
        "Percent, on the in split of the test environment; mean +/- standard error over trials. Macro F1: of "
        "all classes with images; worst class: the lowest accuracy on a class in each run; rejection: the area under "
        "the ROC curve of rejecting errors by their confidence (50: chance)."
    ]
    headers = ["Algorithm", "Test", "Accuracy", "Macro F1", "Worst class", "Rejection"]
    return Table("accuracy", "Accuracy", headers, rows, notes, frame)


def calibration_table(runs: Sequence[Measured], environments: Sequence[str]) -> Table:
    """Return the calibration on training environments and on the test environment, before and after scaling."""
    values = [name + suffix for name in CALIBRATION_METRICS for suffix in ("", SCALED)]
    values = ["temperature", *values]
    frames = []
    for domain in (TRAINING, TEST):
        frames.append(summarize(_rows(runs, domain), ["algorithm"], values, environments).assign(domain=domain))
    columns = [*GROUP, "domain", "trials", *(name + end for name in values for end in ("", "_error"))]
    frame = pd.concat(frames)[columns].reset_index(names="row").sort_values("row", kind="stable").drop(columns="row")
    rows = []
    for row in frame.to_dict("records"):
        cells = [format_mean(row, value) for value in ("nll", f"nll{SCALED}", "brier", f"brier{SCALED}")]
        for suffix in ("", SCALED):
            cells.append(f"{format_mean(row, f'ece{suffix}', 100, 1)} ({100 * row[f'ece_if_calibrated{suffix}']:.1f})")
        is_first = row["domain"] == TRAINING
        names = [row["algorithm"] if is_first else "", row["environment"] if is_first else ""]
        rows.append([*names, row["domain"], *cells, format_mean(row, "temperature", decimals=2) if is_first else ""])
    notes = [
        "On training: the out splits of the training environments, pooled; test: the in split of the test environment. "
        "Scaled: after the logits are divided by the temperature that fits those out splits best.",
        "NLL in nats; Brier from 0 to 2. ECE in percent, in 15 bins of equal mass; in parentheses, what perfectly "
        "calibrated models of the same confidences would show, because this estimator is biased upwards.",
    ]
    headers = ["Algorithm", "Test", "On", "NLL", "scaled", "Brier", "scaled", "ECE", "scaled", "Temperature"]
    return Table("calibration", "Calibration", headers, rows, notes, frame.reset_index(drop=True))


def classes_table(runs: Sequence[Measured], environments: Sequence[str]) -> Table:
    """Return the accuracy on each class."""
    classes = runs[0].classes
    per_class = [
        {**run.run, "class": name, "accuracy": accuracy}
        for run in runs
        for name, accuracy in zip(classes, run.class_accuracies, strict=True)
    ]
    frame = summarize(pd.DataFrame(per_class), ["algorithm", "class"], ["accuracy"], environments)
    rows = []
    for (algorithm, environment), group in frame.groupby(GROUP, sort=False):
        worst = group.sort_values("accuracy", kind="stable").head(N_SHOWN).to_dict("records")
        cells = [f"{row['class']} {format_mean(row, 'accuracy', 100, 1)}" for row in worst if row["trials"]]
        rows.append([str(algorithm), str(environment), *cells])
    notes = ["Percent, on the in split of the test environment; the classes with the lowest accuracies."]
    headers = ["Algorithm", "Test", "Worst class", *[""] * (min(N_SHOWN, len(classes)) - 1)]
    return Table("classes", "Accuracies of classes", headers, rows, notes, frame)


def confusion_table(runs: Sequence[Measured], environments: Sequence[str]) -> Table:
    """Return confusion matrices, summed over trials."""
    classes = runs[0].classes
    sums: dict[tuple[str, str], np.ndarray] = {}
    for run in runs:
        key = run.run["algorithm"], run.run["environment"]
        sums[key] = sums.get(key, np.zeros_like(run.confusion)) + run.confusion
    frames, rows = [], []
    order = {name: i for i, name in enumerate(dict.fromkeys(algorithm for algorithm, _ in sums))}
    for (algorithm, environment), matrix in sorted(
        sums.items(), key=lambda item: (order[item[0][0]], list(environments).index(item[0][1]))
    ):
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        pairs = [(a, b) for a in classes for b in classes]
        frame = pd.DataFrame(pairs, columns=["class", "predicted"])
        frame = frame.assign(images=matrix.ravel(), share=share.ravel())
        frames.append(frame.assign(algorithm=algorithm, environment=environment))
        errors = share * (1 - np.eye(len(classes)))
        largest = np.argsort(-errors, axis=None, kind="stable")[:N_SHOWN]
        cells = [f"{pairs[i][0]} > {pairs[i][1]} {100 * errors.flat[i]:.0f}" for i in largest if errors.flat[i] > 0]
        rows.append([algorithm, environment, *cells])
    notes = [
        "class > predicted class: the percentage of the class's images, over all trials, on the in split of the test "
        "environment; the largest ones."
    ]
    headers = ["Algorithm", "Test", "Confusion", *[""] * (max(map(len, rows)) - 3)]
    frame = pd.concat(frames)[[*GROUP, "class", "predicted", "images", "share"]].reset_index(drop=True)
    return Table("confusion", "Confusions", headers, rows, notes, frame)


def agreement_table(pairs: pd.DataFrame, environments: Sequence[str]) -> Table | None:
    """Return how far pairs of algorithms agree, from `measures.measure_agreement`; None without pairs."""
    if pairs.empty:
        return None
    values = ["agreement", "error_consistency"]
    frame = summarize(pairs, ["algorithm", "other"], values, environments)
    rows = [
        [
            f"{row['algorithm']}, {row['other']}",
            row["environment"],
            format_mean(row, "agreement", 100, 1),
            format_mean(row, "error_consistency", 1, 2),
        ]
        for row in frame.to_dict("records")
    ]
    notes = [
        "Agreement: the percentage of images of the same trial on which both predict the same class. Consistency: "
        "Cohen's kappa between the correctness of their predictions; 0: agreement by chance, given their accuracies; "
        "1: perfect agreement; undefined if both classify all images correctly, or none."
    ]
    return Table("agreement", "Agreement", ["Algorithms", "Test", "Agreement", "Consistency"], rows, notes, frame)


def images_table(extremes: pd.DataFrame, runs: Sequence[Measured], environments: Sequence[str]) -> Table:
    """Return the images that all runs fail, or one algorithm alone solves, from `measures.find_extremes`."""
    seen = count_images(runs)
    rows = []
    for environment in environments:
        of_environment = extremes[extremes["environment"] == environment]
        for outcome, group in of_environment.groupby("outcome"):
            examples = [f"{row['image']} ({row['label']})" for row in group.head(3).to_dict("records")]
            share = 100 * len(group) / seen[environment]
            rows.append([environment, str(outcome), f"{len(group):,} ({share:.1f}%)", ", ".join(examples)])
    notes = [
        "All fail: images that no run of any algorithm classifies correctly, in any trial whose in split has them; "
        "only X: that all runs of X do, and no run of another algorithm. With their classes; three of each kind. "
        "Trials in which an algorithm has no run are left out. Where labels depend on the trial, an image counts once "
        "per label."
    ]
    return Table("images", "Images", ["Test", "Outcome", "Images", "Such as"], rows, notes, extremes)


def ensembles_table(ensembles: pd.DataFrame, environments: Sequence[str]) -> Table | None:
    """Return ensembles beside their members, from `measures.measure_ensemble`; None without ensembles."""
    if ensembles.empty:
        return None
    values = ["accuracy", "member_accuracy", "nll", "member_nll", "ece", "member_ece"]
    sizes = ensembles.groupby("kind")["n_members"].agg(["min", "max"])
    frame = summarize(ensembles, ["kind", "algorithm"], values, environments)
    rows = [
        [
            row["kind"],
            row["algorithm"],
            row["environment"],
            *(format_mean(row, value, 100, 1) for value in values[:2]),
            *(format_mean(row, value) for value in values[2:4]),
            *(format_mean(row, value, 100, 1) for value in values[4:]),
        ]
        for row in frame.to_dict("records")
    ]
    described = {
        "draws": "all hyperparameter draws of a trial, each at its selected step, on the test environment's in split",
        "trials": "the selected runs of all trials, on all images of the test environment that they predicted",
    }
    notes = [
        f"{kind}: the mean of the probabilities of {_range(*sizes.loc[kind])} runs: {described[kind]}."
        for kind in described
        if kind in sizes.index
    ]
    notes.append("Members: the mean of the members' own values, on the same images.")
    headers = ["Over", "Algorithm", "Test", "Accuracy", "members", "NLL", "members", "ECE", "members"]
    return Table("ensembles", "Ensembles", headers, rows, notes, frame)


def runs_frame(runs: Sequence[Measured]) -> pd.DataFrame:
    """Return the metrics of each run, one row per domain."""
    return pd.DataFrame([row for run in runs for row in run.rows])


def _rows(runs: Sequence[Measured], domain: str) -> pd.DataFrame:
    frame = runs_frame(runs)
    return frame[frame["domain"] == domain]


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"
