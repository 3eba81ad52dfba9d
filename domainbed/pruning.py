"""Pruning: rules by which a run of a sweep stops early, because it is behind the other draws of its trial.

The draws of a trial are the runs with the same dataset, algorithm, test environments and trial. They are compared by
their best training-domain validation accuracy so far, at the same step; the test environment never counts.

With both rules, the run that is ahead of all others at a step is not stopped there. A run that is stopped is behind a
run that has reached the same step, so it is behind one that no rule stops, and training-domain selection over all
checkpoints prefers that one. (What a pruned run would have reached later is unknown.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from domainbed.options import check_options, option

NO_PRUNING = "none"
MIN_PEERS = 4  # other draws at a step before the median of their accuracies is compared


@dataclass(frozen=True)
class PruneOptions:
    """A rule and its parameters. `domainbed replay` shows what rules would have saved and changed in finished sweeps.

    Raises:
        UsageError: a value is not allowed.
    """

    prune: str = option(
        NO_PRUNING,
        help="stop jobs whose training-domain validation accuracy is behind that of the other draws of their trial. "
        "asha: after 1/F, 1/F², … of the steps, keep only the top 1/F of the draws so far (F: --prune_factor); median: "
        f"at any evaluation, stop jobs below the median of at least {MIN_PEERS} other draws. --unprune resumes stopped "
        "jobs",
        choices=(NO_PRUNING, "asha", "median"),
    )
    prune_factor: int = option(2, help="reduction factor F of --prune asha", metavar="F", at_least=2)
    prune_grace: float = option(
        0.1, help="fraction of a job's steps before which it is not pruned", metavar="FRACTION", at_least=0, below=1
    )

    def __post_init__(self) -> None:
        check_options(self)

    def __str__(self) -> str:
        factor = f", factor {self.prune_factor}" if self.prune == "asha" else ""
        return f"{self.prune}{factor}, grace {self.prune_grace:g}"

    def rungs(self, steps: Sequence[int]) -> set[int]:
        """Return the steps after whose evaluation runs are compared; never the last.

        Args:
            steps: the steps after which a run is evaluated, in ascending order.
        """
        last = steps[-1]
        start = self.prune_grace * last
        candidates = set(steps)
        if self.prune == "asha":
            candidates = set()
            target = last / self.prune_factor
            while target >= max(start, 1):
                candidates.add(min(step for step in steps if step >= target))
                target /= self.prune_factor
        return {step for step in candidates if start <= step < last}

    def should_stop(self, accuracy: float, peers: Sequence[float]) -> bool:
        """Return whether a run stops at a rung.

        `asha` is ASHA (Li et al., MLSys 2020) with stopping instead of promotion; `median` is the median stopping rule
        of Vizier (Golovin et al., KDD 2017).

        Args:
            accuracy: its best validation accuracy so far.
            peers: those of the other draws that have reached the rung, at the rung.
        """
        if self.prune == "median":
            return len(peers) >= MIN_PEERS and accuracy < median(peers)
        n_reached = len(peers) + 1
        n_better = sum(peer > accuracy for peer in peers)
        return n_reached >= self.prune_factor and n_better >= n_reached // self.prune_factor
