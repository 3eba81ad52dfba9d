"""Agreement on the line: what the agreement of models out of domain says about their accuracies, without labels.

Over many models, agreement out of domain is often linear in agreement in domain once both are scaled by the probit,
with the slope and bias of the line of accuracies. Agreement requires no labels, so its line predicts accuracies
("Agreement-on-the-Line: Predicting the Performance of Neural Networks under Distribution Shift", Baek et al.,
NeurIPS 2022). Pure functions on arrays; accuracies and agreements are in [0, 1].
"""

import numpy as np
import pandas as pd

from domainbed.reporting.on_the_line import Line, fit_line, scale, unscale

MIN_POINTS = 3  # on a line: two are always on one


def fit_scaled_line(in_domain: np.ndarray | pd.Series, out_of_domain: np.ndarray | pd.Series) -> Line:
    """Fit the line of the probits of accuracies or agreements, `[n]`; NaN if n < MIN_POINTS, or if it is undefined."""
    if len(in_domain) < MIN_POINTS:
        return Line(*np.full(3, np.nan))
    return fit_line(scale(in_domain), scale(out_of_domain))


def predict_aline_s(in_domain: np.ndarray, line: Line) -> np.ndarray:
    """Return the accuracies out of domain that the line of agreements predicts (ALine-S).

    Args:
        in_domain: accuracies, `[n]`.
        line: of agreements (`fit_scaled_line`).
    """
    return unscale(line.slope * scale(in_domain) + line.intercept)


def predict_aline_d(
    in_domain: np.ndarray,
    pairs: np.ndarray,
    agreement_in_domain: np.ndarray,
    agreement_out_of_domain: np.ndarray,
    slope: float,
) -> np.ndarray:
    """Return the accuracies out of domain that the agreements of all pairs predict (ALine-D).

    The line of agreements and that of accuracies have the same slope and bias, so their difference cancels the bias: of
    each pair, the mean probit of accuracy out of domain is the probit of agreement out of domain, plus the slope times
    the difference between the mean probit of accuracy and that of agreement in domain. The solution by
    least squares is returned.

    Args:
        in_domain: accuracies, `[n]`.
        pairs: the positions of the models of each pair, `[m, 2]`.
        agreement_in_domain, agreement_out_of_domain: of each pair, `[m]`.
        slope: of the line of agreements.

    Returns:
        `[n]`; all NaN if the slope is, or if the pairs do not determine all accuracies.
    """
    n, m = len(in_domain), len(pairs)
    if np.isnan(slope) or m < n:
        return np.full(n, np.nan)
    means = np.zeros((m, n))
    means[np.arange(m)[:, None], pairs] = 0.5
    distance = means @ scale(in_domain) - scale(agreement_in_domain)
    solution, _, rank, _ = np.linalg.lstsq(means, scale(agreement_out_of_domain) + slope * distance, rcond=None)
    return unscale(solution) if rank == n else np.full(n, np.nan)
