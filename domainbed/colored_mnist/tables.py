"""Tables of the restarts: accuracies next to the published ones, and the loss landscape."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import pandas as pd

from domainbed.landscape import PREFIX, QUANTITIES
from domainbed.reporting.layout import format_number

ENVIRONMENTS = ("train", "test", "gray")


def load_published(label_flip: float) -> Mapping[Any, Mapping[Any, Any]]:
    """Return the published accuracies and standard deviations in percent (`test_acc`, `test_std`) of each algorithm."""
    file = resources.files("domainbed.colored_mnist") / "published.csv"
    with file.open(encoding="utf-8") as text:
        published = pd.read_csv(text)
    return published[published["label_flip"] == label_flip].set_index("algorithm").to_dict("index")


def accuracy_table(
    restarts: Sequence[Mapping[str, Any]],
    algorithms: Sequence[str],
    n_restarts: int,
    published: Mapping[Any, Mapping[Any, Any]],
) -> str:
    """Return a Markdown table of mean ± standard deviation over restarts in percent, next to the published values.

    Args:
        restarts: finished restarts (`algorithm`, `train_acc`, `test_acc`, `gray_acc`).
        algorithms: the rows; an algorithm without finished restarts gets X marks.
        n_restarts: number of requested restarts; rows with fewer say so.
        published: the result of `load_published`; may be empty.
    """
    rows = []
    for algorithm in algorithms:
        finished = [restart for restart in restarts if restart["algorithm"] == algorithm]
        n = len(finished)
        row = {"Algorithm": algorithm if n == n_restarts else f"{algorithm} ({n} of {n_restarts} restarts)"}
        for environment in ENVIRONMENTS:
            accuracy = 100 * pd.Series([restart[f"{environment}_acc"] for restart in finished], dtype=float)
            row[environment] = _with_deviation(accuracy, ".1f", ".1f")
            if algorithm not in published:
                row |= {f"{environment}, published": "-", f"{environment}, difference": "-"}
                continue
            mean, std = published[algorithm][f"{environment}_acc"], published[algorithm][f"{environment}_std"]
            row[f"{environment}, published"] = f"{mean:.1f} ± {std:.1f}"
            row[f"{environment}, difference"] = format_number(accuracy.mean() - mean, 1, "+") if n else "X"
        rows.append(row)
    return _to_markdown(rows)


def landscape_table(restarts: Sequence[Mapping[str, Any]], algorithms: Sequence[str]) -> str:
    """Return a Markdown table of distances and inconsistency scores at the last step: mean ± standard deviation.

    An asterisk marks a score for which the Hessian of some restart was damped.

    Args:
        restarts: tracked restarts.
        algorithms: the columns.
    """
    titles = {PREFIX + name: f"{title}, squared distance" for name, title in QUANTITIES.items()} | {
        f"inconsistency_{domain_set}_{kind}": f"inconsistency, {domain_set} environments, {kind} Hessians"
        for domain_set in ("training", "all")
        for kind in ("exact", "diagonal")
    }
    rows = []
    for name, title in titles.items():
        row = {"": title}
        for algorithm in algorithms:
            finished = [restart for restart in restarts if restart["algorithm"] == algorithm]
            values = pd.Series([restart[name] for restart in finished], dtype=float)
            damping = name.replace("inconsistency", "damping")
            is_damped = damping != name and any(restart.get(damping) for restart in finished)
            mark = "*" * is_damped
            row[algorithm] = _with_deviation(values, ".3g", ".1g") + mark
        rows.append(row)
    return _to_markdown(rows)


def _with_deviation(values: pd.Series, mean_format: str, deviation_format: str) -> str:
    """Return the mean ± the standard deviation of the restarts as text; the mean alone of one, and X of none."""
    if values.empty:
        return "X"
    deviation = f" ± {values.std(ddof=0):{deviation_format}}" if len(values) > 1 else ""
    return f"{values.mean():{mean_format}}{deviation}"


def tracked_distances(restarts: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the distances along training: `algorithm`, `folder` (index of the restart), `step`, and the distances."""
    return pd.DataFrame(
        [
            {"algorithm": restart["algorithm"], "folder": i, **distances}
            for i, restart in enumerate(restarts)
            for distances in restart["course"]
        ]
    )


def _to_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True, tablefmt="github")
