"""A small sweep with all kinds of gaps. golden/ contains its report in several formats.

`python -m tests.reporting.sweeps` rewrites golden/; review the result with `git diff`.
"""

import itertools
import json
import tempfile
from pathlib import Path

import numpy as np

from domainbed.reporting.formats.render import render
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import Report, make_report
from tests.conftest import make_record, write_sweep

GOLDEN = Path(__file__).parent / "golden"
FILES = {"text": "report.txt", "markdown": "report.md", "latex-fragment": "report.fragment.tex", "csv": "report.csv"}
ALGORITHMS = ("ERM", "Fishr")


def golden_records() -> list[dict]:
    """Return records of ColoredMNIST with all pairs and PACS without, with two trials and two hyperparameter draws.

    One algorithm, on ColoredMNIST only, has a name that needs escaping.
    """
    rng = np.random.RandomState(0)
    records = []
    for dataset, n in (("ColoredMNIST", 3), ("PACS", 4)):
        singles = [(env,) for env in range(n)]
        pairs = list(itertools.combinations(range(n), 2)) if dataset == "ColoredMNIST" else []
        runs = itertools.product([*ALGORITHMS, "50%_off & more"], singles + pairs, range(2), range(2), (0, 100))
        for algorithm, test_envs, trial, draw, step in runs:
            if algorithm not in ALGORITHMS and (dataset == "PACS" or len(test_envs) > 1):
                continue
            accuracies = rng.randint(32, 64, (2, n)) / 64
            record = make_record(dataset, algorithm, test_envs, trial, draw, step, *map(tuple, accuracies))
            record["args"]["steps"] = 101
            records.append(record)
    return records


def write_golden_sweep(folder: Path) -> Path:
    """Write the records to a folder, and damage them: missing, unfinished, torn, foreign and empty files."""
    write_sweep(folder, golden_records())
    for name in ("PACS-ERM-3-1-0", "PACS-ERM-3-1-1", "PACS-Fishr-0-0-1"):  # a whole trial, and one draw
        for file in (folder / name).iterdir():
            file.unlink()
        (folder / name).rmdir()
    unfinished = folder / "ColoredMNIST-Fishr-2-0-0"
    (unfinished / "done").unlink()
    lines = (unfinished / "results.jsonl").read_text().splitlines()
    (unfinished / "results.jsonl").write_text(f"{lines[0]}\n{lines[1][:99]}")
    (folder / "ColoredMNIST-Fishr-1-1-1" / "done").unlink()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "notes.txt").write_text("not a job")
    (folder / "future").mkdir()
    future_record = json.dumps(make_record("PACS") | {"schema_version": 2})
    (folder / "future" / "results.jsonl").write_text(future_record)
    (folder / "empty").mkdir()
    (folder / "empty" / "results.jsonl").write_text("")
    return folder


def golden_report(folder: Path, selection: tuple[str, ...] = ()) -> Report:
    options = ReportOptions(selection, compare="published", versus=("Fishr", "ERM"))
    return make_report(load_sweep(str(folder)), options)


def formatted(report: Report, name: str) -> str:
    """Return a report in a format, with its folder's path replaced by SWEEP."""
    content, folder = render(report, name, Path()), str(report.sweep.folder)
    return content.replace(folder, "SWEEP").replace(folder.replace("_", r"\_"), "SWEEP")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        report = golden_report(write_golden_sweep(Path(folder)), ("training-domain", "leave-one-domain-out"))
        for name, file in FILES.items():
            (GOLDEN / file).write_text(formatted(report, name))
