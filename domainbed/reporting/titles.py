"""Printed names of algorithms, datasets, environments and summary columns."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from domainbed.errors import UsageError, one_line, suggest
from domainbed.reporting.cells import AVERAGE, RANK


@dataclass(frozen=True)
class Titles:
    """The printed names; a name without an entry is printed as it is.

    Attributes:
        by_name: printed names, by name. An environment is looked up as DATASET/ENVIRONMENT first.
    """

    by_name: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, name: str) -> str:
        """Return the printed name of an algorithm, a dataset, AVERAGE or RANK."""
        return self.by_name.get(name, name)

    def environment(self, dataset: str, name: str) -> str:
        """Return the printed name of an environment, or of another column of the dataset's table."""
        return self.by_name.get(f"{dataset}/{name}", self(name))


def make_titles(
    rename: Collection[str], algorithms: Sequence[str], environments: Mapping[str, Sequence[str]]
) -> Titles:
    """Return the names given by `--rename OLD=NEW`.

    Args:
        rename: the values of the option.
        algorithms: the names of the sweep's algorithms.
        environments: the names of the environments of each of the sweep's datasets.

    Raises:
        UsageError: a value has no `=` or no new name, an old name is unknown or given twice, or two algorithms, two
            datasets or two environments of a dataset would have the same name.
    """
    if not rename:
        return Titles()
    names = [*algorithms, *environments, *(name for names in environments.values() for name in names), AVERAGE, RANK]
    names += [f"{dataset}/{name}" for dataset in environments for name in environments[dataset]]
    by_name: dict[str, str] = {}
    for text in rename:
        # A name may contain "=".
        old = max((name for name in names if text.startswith(f"{name}=")), key=len, default=text.partition("=")[0])
        new = one_line(text.removeprefix(f"{old}="))
        if not text.startswith(f"{old}=") or not new:
            raise UsageError(f"--rename {text!r}: expected OLD=NEW, such as 'Fishr=Fishr (ours)'")
        if old not in names:
            known = list(dict.fromkeys(names))
            raise UsageError(f"--rename {old}: no such algorithm, dataset or environment; {suggest(old, known)}")
        if old in by_name:
            raise UsageError(f"--rename {old}: given twice; remove one")
        by_name[old] = new
    titles = Titles(by_name)
    printed = {"algorithms": [titles(name) for name in algorithms], "datasets": [titles(name) for name in environments]}
    for dataset, columns in environments.items():
        printed[f"columns of {dataset}"] = [titles.environment(dataset, name) for name in (*columns, AVERAGE)]
    printed["columns of the averages"] = [*printed["datasets"], titles(AVERAGE), titles(RANK)]
    for kind, new_names in printed.items():
        if repeated := [name for name, n in Counter(new_names).items() if n > 1]:
            raise UsageError(f"--rename: two {kind} would be named {repeated[0]!r}; choose different names")
    return titles
