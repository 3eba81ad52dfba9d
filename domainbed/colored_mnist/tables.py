"""The Colored MNIST proof of concept: its table, beside the published one, and its landscape."""

from collections.abc import Hashable, Mapping, Sequence
from importlib import resources
from typing import Any

import pandas as pd

from domainbed.landscape import PREFIX, QUANTITIES
from domainbed.reporting.layout import printed

COLUMNS = ("train", "test", "gray")


def published(label_flip: float) -> dict[Hashable, dict]:
    """The published accuracies in percent ("test_acc"), with their standard deviations, by algorithm."""
    file = resources.files("domainbed.colored_mnist") / "published.csv"
    with file.open(encoding="utf-8") as text:
        cells = pd.read_csv(text)
    return cells[cells["label_flip"] == label_flip].set_index("algorithm").to_dict("index")


def table(runs: Sequence[dict], algorithms: Sequence[str], restarts: int, label_flip: float, comparable: bool) -> str:
    """Mean ± standard deviation over restarts, in percent, the published ones, and the difference of the means.

    Args:
        runs: the restarts' accuracies ("algorithm", "train_acc", "test_acc", "gray_acc").
        algorithms: the rows; one without a run gets a row all the same.
        restarts: how many were asked for; a row of fewer is marked.
        label_flip: of these runs.
        comparable: whether the published table was made with these settings.
    """
    theirs = published(label_flip) if comparable else {}
    rows = []
    for algorithm in algorithms:
        mine = [run for run in runs if run["algorithm"] == algorithm]
        row = {"Algorithm": algorithm + ("" if len(mine) == restarts else f" ({len(mine)} of {restarts} restarts)")}
        for column in COLUMNS:
            accuracy = 100 * pd.Series([run[f"{column}_acc"] for run in mine], dtype=float)
            row[column] = f"{accuracy.mean():.1f} ± {accuracy.std(ddof=0):.1f}" if len(mine) else "X"
            if algorithm not in theirs:
                row |= {f"{column}, published": "-", f"{column}, difference": "-"}
                continue
            cell = theirs[algorithm]
            row[f"{column}, published"] = f"{cell[f'{column}_acc']:.1f} ± {cell[f'{column}_std']:.1f}"
            difference = accuracy.mean() - cell[f"{column}_acc"]
            row[f"{column}, difference"] = printed(difference, 1, "+") if len(mine) else "X"
        rows.append(row)
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True, tablefmt="github")


def landscape_table(runs: Sequence[Mapping[str, Any]], algorithms: Sequence[str]) -> str:
    """The landscape at the last step: distances and inconsistency scores, mean ± standard deviation over restarts.

    A star marks a score for which some restart's Hessian was damped.

    Args:
        runs: the restarts, tracked.
        algorithms: the columns.
    """
    scores = {
        f"inconsistency_{of}_{way}": f"inconsistency, {of} environments, {way} Hessians"
        for of in ("training", "all")
        for way in ("exact", "diagonal")
    }
    distances = {PREFIX + name: f"{words}, squared distance" for name, words in QUANTITIES.items()}
    rows = []
    for name, words in (distances | scores).items():
        row = {"": words}
        for algorithm in algorithms:
            of_algorithm = [run for run in runs if run["algorithm"] == algorithm]
            values = pd.Series([run[name] for run in of_algorithm], dtype=float)
            damped = any(run.get(name.replace("inconsistency", "damping")) for run in of_algorithm if name in scores)
            row[algorithm] = f"{values.mean():.3g} ± {values.std(ddof=0):.1g}{'*' * damped}" if len(values) else "X"
        rows.append(row)
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True, tablefmt="github")


def landscape_courses(runs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a look: `algorithm`, `folder` (the restart's number), `step`, and the distances."""
    return pd.DataFrame(
        [
            {"algorithm": run["algorithm"], "folder": i, **of_step}
            for i, run in enumerate(runs)
            for of_step in run["course"]
        ]
    )
