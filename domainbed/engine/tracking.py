"""Trackers add entries to a job's records (`--track NAME`). This module imports neither torch nor matplotlib."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tqdm import tqdm

from domainbed.errors import UsageError
from domainbed.registry import Registry

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from domainbed.algorithms.base import Algorithm
    from domainbed.engine.config import JobConfig
    from domainbed.loading.base import Feed
    from domainbed.loading.splits import Split

NO_TRACKER = "nothing"


class Tracker(ABC):
    """Computes additional record entries from the algorithm's weights at each evaluation.

    A tracker neither changes the algorithm nor draws from a global random generator: apart from the additional entries,
    a tracked job equals an untracked one.

    Args:
        config: the job.
        algorithm: the algorithm being trained.
        splits: the split of each environment.
        feed: reads the images.

    Attributes:
        PREFIX: starts the name of each entry.
        CAPTION: describes the figure that `plot` returns.
        MIN_TRAINING_DOMAINS: a job with fewer training environments is not tracked.
    """

    PREFIX: ClassVar[str]
    CAPTION: ClassVar[str] = ""
    MIN_TRAINING_DOMAINS: ClassVar[int] = 1

    @abstractmethod
    def __init__(
        self, config: "JobConfig", algorithm: "Algorithm", splits: "Sequence[Split]", feed: "Feed"
    ) -> None: ...

    @staticmethod
    def check(algorithm: "Algorithm") -> None:
        """Raise UsageError if the algorithm cannot be tracked. The checks of a launch call this before jobs start."""
        return

    @abstractmethod
    def record(self) -> dict[str, float]:
        """Return the entries to add to the record of the current step."""

    @staticmethod
    def plot(records: "pd.DataFrame", styles: Mapping[str, Any], title: str = "") -> "Figure | None":
        """Plot the recorded entries of several runs over training.

        Args:
            records: columns `algorithm`, `folder` (identifies the run), `step`, and the recorded entries.
            styles: the `reporting.plots.style.Style` of each algorithm.
            title: the figure's title.

        Returns:
            The figure, or None if there is nothing to plot.
        """
        return None


def tracked_entries(tracker: Tracker) -> dict[str, float]:
    """Return the entries that a tracker adds to a record, without an effect on the random generators.

    Raises:
        UsageError: the tracker returns something else than numbers by name, or a name does not start with its PREFIX
            or is that of another entry of records.
    """
    from domainbed.engine.metrics import check_name  # imports torch
    from domainbed.seeding import get_rng_state, set_rng_state

    state = get_rng_state()
    entries = tracker.record()
    set_rng_state(state)
    name = type(tracker).__name__
    if not isinstance(entries, Mapping):
        raise UsageError(f"{name}.record must return a dict of numbers by name, not {entries!r}")
    for key, value in entries.items():
        if not isinstance(value, int | float):
            raise UsageError(f"{name}.record must return Python numbers; {key!r} is {value!r}")
        try:
            check_name(key)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{name}.record: {error}") from None
        if not key.startswith(tracker.PREFIX):
            raise UsageError(f"{name}.record: {key!r} must start with {tracker.PREFIX!r}, the tracker's PREFIX")
    return dict(entries)


TRACKERS: Registry[type[Tracker]] = Registry(
    "tracker", {"landscape": "domainbed.landscape.track:LandscapeTracker"}, group="domainbed.trackers"
)


def check_trackable(config: "JobConfig", algorithm: "Algorithm") -> None:
    """Raise UsageError if the tracker that `config.track` names is unknown or cannot track this algorithm."""
    if config.track != NO_TRACKER:
        tracker = TRACKERS[config.track]
        if not isinstance(getattr(tracker, "PREFIX", None), str):
            raise UsageError(f"{tracker.__name__} must define PREFIX, which starts the names of its entries")
        tracker.check(algorithm)


def make_tracker(
    config: "JobConfig", algorithm: "Algorithm", splits: "Sequence[Split]", feed: "Feed"
) -> Tracker | None:
    """Return the tracker that `config.track` names, or None if there is nothing to track.

    Raises:
        UsageError: the tracker is unknown or cannot track this algorithm.
    """
    if config.track == NO_TRACKER:
        return None
    check_trackable(config, algorithm)
    cls = TRACKERS[config.track]
    tracker = cls(config, algorithm, splits, feed)
    if len(config.environment_names()) - len(config.test_envs) < cls.MIN_TRAINING_DOMAINS:
        tqdm.write(
            f"--track {config.track} requires at least {cls.MIN_TRAINING_DOMAINS} training domains; nothing is tracked"
        )
        return None
    return tracker
