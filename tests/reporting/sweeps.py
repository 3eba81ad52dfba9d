"""A small sweep with every kind of hole, and what each format makes of it; the latter are kept in golden/.

`python -m tests.reporting.sweeps` writes these files anew; look at what `git diff` then shows.
"""

import itertools
import json
import tempfile
from pathlib import Path

import numpy as np

from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import Report, make_report
from domainbed.scripts.collect_results import FORMATS
from tests.conftest import make_record, write_sweep

GOLDEN = Path(__file__).parent / "golden"
ENDINGS = {
    "text": "txt",
    "markdown": "md",
    "latex": "tex",
    "latex-fragment": "fragment.tex",
    "csv": "csv",
    "json": "json",
}
TWO = ("ERM", "Fishr")


def golden_records() -> list[dict]:
    """ColoredMNIST with all pairs, PACS without; two trials, two draws; an algorithm whose name needs escaping."""
    rng = np.random.RandomState(0)
    records = []
    for dataset, n in (("ColoredMNIST", 3), ("PACS", 4)):
        singles = [(env,) for env in range(n)]
        pairs = list(itertools.combinations(range(n), 2)) if dataset == "ColoredMNIST" else []
        runs = itertools.product([*TWO, "50%_off & more"], singles + pairs, range(2), range(2), (0, 100))
        for algorithm, test_envs, trial, draw, step in runs:
            if algorithm not in TWO and (dataset == "PACS" or len(test_envs) > 1):
                continue
            accuracies = rng.randint(32, 64, (2, n)) / 64
            record = make_record(dataset, algorithm, test_envs, trial, draw, step, *map(tuple, accuracies))
            record["args"]["steps"] = 101
            records.append(record)
    return records


def write_golden_sweep(folder: Path) -> Path:
    """The sweep in a folder; what a sweep may suffer, it has suffered."""
    write_sweep(folder, golden_records())
    for name in ("PACS-ERM-3-1-0", "PACS-ERM-3-1-1", "PACS-Fishr-0-0-1"):  # a trial, and a draw, are not there
        for file in (folder / name).iterdir():
            file.unlink()
        (folder / name).rmdir()
    unfinished = folder / "ColoredMNIST-Fishr-2-0-0"
    (unfinished / "done").unlink()
    lines = (unfinished / "results.jsonl").read_text().splitlines()
    (unfinished / "results.jsonl").write_text(f"{lines[0]}\n{lines[1][:99]}")
    (folder / "ColoredMNIST-Fishr-1-1-1" / "done").unlink()
    (folder / "somebody's").mkdir()
    (folder / "somebody's" / "notes.txt").write_text("mine")
    (folder / "of tomorrow").mkdir()
    tomorrow = json.dumps(make_record("PACS") | {"schema_version": 2})
    (folder / "of tomorrow" / "results.jsonl").write_text(tomorrow)
    (folder / "empty").mkdir()
    (folder / "empty" / "results.jsonl").write_text("")
    return folder


def golden_report(folder: Path) -> Report:
    wanted = ReportOptions(compare_published=True, versus=("Fishr", "ERM"))
    return make_report(load_sweep(str(folder)), wanted)


def in_format(report: Report, name: str) -> str:
    """What a format makes of a report, wherever its sweep lies."""
    told, folder = FORMATS[name](report), str(report.sweep.folder)
    return told.replace(folder, "SWEEP").replace(folder.replace("_", r"\_"), "SWEEP")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        report = golden_report(write_golden_sweep(Path(folder)))
        for name, ending in ENDINGS.items():
            (GOLDEN / f"report.{ending}").write_text(in_format(report, name))
