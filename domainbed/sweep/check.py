"""What can go wrong with jobs before any of them is begun."""

from collections.abc import Iterable

from domainbed.datasets import MultipleDomainDataset
from domainbed.sweep.job import Job


def check_jobs(jobs: Iterable[Job]) -> None:
    """See that each dataset can be read and split, and each algorithm be made for it.

    Raises:
        UsageError: one can't be.
    """
    from domainbed.engine.data import load_data  # imports torch
    from domainbed.engine.model import make_algorithm

    loaded: dict[tuple[str, str | None], MultipleDomainDataset] = {}
    for config in {(job.kind, job.config.data_dir): job.config for job in jobs}.values():
        which = config.dataset, config.data_dir
        if which not in loaded:
            loaded[which], _ = load_data(config)
        make_algorithm(config, loaded[which])
