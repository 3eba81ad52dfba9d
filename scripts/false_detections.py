"""How often do tests find a difference between an algorithm and itself? `scripts/false_detections.py --input_dir DIR`.

Each algorithm of a sweep is compared with itself: one random half of its hyperparameter draws with the other half. A
test of level 0.05 should find a difference in 5% of the comparisons.
"""

import argparse
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import permutation_test, ttest_1samp, wilcoxon

from domainbed.model_selection import best_hparams
from domainbed.reporting.cells import algorithms_of, benchmark_scores, datasets_of, testable_names
from domainbed.reporting.load import load_sweep
from domainbed.reporting.significance import compare_with_baseline
from domainbed.reporting.statistics import paired_difference


def sign_flip(differences: np.ndarray) -> float:
    """Return the p-value of the sign-flip test of all pairs of trial and test environment."""
    result = permutation_test(
        (differences.ravel(),), np.mean, permutation_type="samples", n_resamples=2**13, random_state=0, vectorized=True
    )
    return float(result.pvalue)


def bootstrap(differences: np.ndarray) -> float:
    """Return 0 if the bootstrap interval of the mean difference (`--versus`) excludes zero, 1 otherwise."""
    result = paired_difference(differences, np.zeros_like(differences))
    return float(result.low <= 0 <= result.high)


TESTS: dict[str, Callable[[np.ndarray], float]] = {  # of differences, [trials, environments]
    "bootstrap interval of the difference": bootstrap,
    "sign-flip test of all pairs": sign_flip,
    "Wilcoxon's signed-rank test of all pairs": lambda d: float(wilcoxon(d.ravel()).pvalue) if d.any() else 1.0,
    "paired t-test of trial averages": lambda d: float(ttest_1samp(d.mean(axis=1), 0).pvalue) if d.any() else 1.0,
}
TWO_WAY = "two-way layout of trial averages"


def random_half(runs: pd.DataFrame, rng: np.random.RandomState) -> np.ndarray:
    """Return which runs of an algorithm are in the first half: the same draws of a trial in all test environments."""
    in_half = {}
    for trial, draws in runs.groupby("trial_seed")["hparams_seed"]:
        names = rng.permutation(draws.unique())
        in_half |= {(trial, draw): i < len(names) // 2 for i, draw in enumerate(names)}
    return np.array([in_half[key] for key in zip(runs["trial_seed"], runs["hparams_seed"], strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("`")[0])
    parser.add_argument("--input_dir", required=True, metavar="DIR", help="the sweep's folder")
    parser.add_argument("--repeats", type=int, default=100, metavar="N", help="number of random halves (default: 100)")
    args = parser.parse_args()
    sweep = load_sweep(args.input_dir)
    for dataset in datasets_of(sweep.runs):
        environments = {dataset: testable_names(sweep.jobs, dataset)}
        for selection in ("training-domain", "test-domain"):
            selected = sweep.select(selection)
            selected = selected[selected["dataset"] == dataset]
            rng = np.random.RandomState(0)
            p_values: dict[str, list[float]] = {name: [] for name in (*TESTS, TWO_WAY)}
            for _ in range(args.repeats):
                halves: list[np.ndarray] = []
                for algorithm in algorithms_of(selected):
                    runs = selected[selected["algorithm"] == algorithm]
                    is_first = random_half(runs, rng)
                    for half in (runs[is_first], runs[~is_first]):
                        halves.append(benchmark_scores(best_hparams(half), environments, algorithm)[0].to_numpy())
                averages = np.column_stack([scores.mean(axis=1) for scores in halves])
                for i in range(0, len(halves), 2):
                    for name, test in TESTS.items():
                        p_values[name].append(test(halves[i] - halves[i + 1]))
                    p_values[TWO_WAY].append(compare_with_baseline(averages, i)[i].p_value)
            for name, values in p_values.items():
                print(f"{dataset}, {selection}, {name}: {np.mean(np.array(values) <= 0.05):.1%} of {len(values):,}")


if __name__ == "__main__":
    main()
