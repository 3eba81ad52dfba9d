"""`--track landscape`: distances between the training domains' risks, gradients and Hessians in each record."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from domainbed.engine.tracking import Tracker
from domainbed.errors import UsageError, one_line
from domainbed.landscape import PREFIX

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from domainbed.algorithms.base import Algorithm
    from domainbed.engine.config import JobConfig
    from domainbed.loading.base import Feed
    from domainbed.loading.splits import Split
    from domainbed.reporting.plots.style import Style

MAX_IMAGES = 512  # per training domain, the same ones at each evaluation


class LandscapeTracker(Tracker):
    """A tracker of the classifier's mean squared distances over pairs of training domains, on their in splits."""

    PREFIX: ClassVar[str] = PREFIX
    CAPTION: ClassVar[str] = (
        "Squared distances between the training domains' risks, gradients and Hessians. Faint lines are single runs, "
        "bold lines their geometric means."
    )
    MIN_TRAINING_DOMAINS: ClassVar[int] = 2

    @staticmethod
    def check(algorithm: "Algorithm") -> None:
        from domainbed.landscape.predictor import check_modules

        check_modules(algorithm)

    def __init__(self, config: "JobConfig", algorithm: "Algorithm", splits: "Sequence[Split]", feed: "Feed") -> None:
        from domainbed.landscape.extract import first_images, image_requests
        from domainbed.landscape.predictor import find_predictor
        from domainbed.loading.device_memory import explain_out_of_memory
        from domainbed.loading.photo_feed import explain_dead_worker
        from domainbed.seeding import get_rng_state, set_rng_state

        self._algorithm = algorithm
        self._feed = feed
        requests = image_requests(splits, "in", MAX_IMAGES, feed.batch_size)
        self._requests = [requests[env] for env in range(len(requests)) if env not in config.test_envs]
        state = get_rng_state()
        with explain_out_of_memory(), explain_dead_worker():
            x = first_images(feed, self._requests)
            self._predictor = find_predictor(_copy(algorithm), x)  # predict may change the state of training
        set_rng_state(state)

    def record(self) -> dict[str, float]:
        from domainbed.landscape.distances import recorded_distances
        from domainbed.landscape.domain import measure_domain
        from domainbed.landscape.extract import extract_classifier

        network, domains = extract_classifier(self._algorithm, self._predictor, self._feed, self._requests)
        return recorded_distances([measure_domain(network, domain) for domain in domains])

    @staticmethod
    def plot(records: "pd.DataFrame", styles: "Mapping[str, Style]", title: str = "") -> "Figure | None":
        from domainbed.landscape.plots import plot_distances_over_training

        return plot_distances_over_training(records, styles, title)


def _copy(algorithm: "Algorithm") -> "Algorithm":
    from domainbed.landscape.extract import copy_module

    try:
        return copy_module(algorithm)
    except Exception as error:  # of many types
        name = type(algorithm).__name__
        raise UsageError(
            f"--track landscape requires a copy of {name}, which cannot be made: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error
