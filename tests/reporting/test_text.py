"""Text tables of small sweeps."""

import re
from pathlib import Path

from domainbed.reporting.formats.text import as_text
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import make_report
from tests.conftest import make_record, write_sweep

RUNS = [(e, t) for e in range(3) for t in range(2)]


def tables_of(tmp_path: Path, records: list[dict], done: bool = True) -> str:
    return as_text(make_report(load_sweep(str(write_sweep(tmp_path, records, done))), ReportOptions()))


def accuracy(env: int, trial: int) -> tuple[float, float, float]:
    return (0.7 + trial / 100, 0.6 + trial / 50, 0.1)


def test_unfinished_jobs_are_counted(tmp_path: Path):
    text = tables_of(tmp_path, [make_record(test_envs=(e,)) for e in range(3)], done=False)
    assert text.startswith("3 runs requested: 3 incomplete\n")


def test_cell_from_unfinished_run_is_marked(tmp_path: Path):
    write_sweep(tmp_path, [make_record(test_envs=(e,), trial_seed=t) for e, t in RUNS if e > 0])
    text = tables_of(tmp_path, [make_record(test_envs=(0,), trial_seed=t) for t in range(2)], done=False)
    lines = text.splitlines()
    row = next(line for line in lines if line.startswith("ERM"))
    assert re.split(r"  +", row)[1:] == ["50.0 +/- 0.0*~", "50.0 +/- 0.0", "50.0 +/- 0.0", "50.0 +/- 0.0*~"]
    notes = [
        "*: some of the requested runs are not done or not usable "
        "(ERM on +90%: 2 of 2 trials, 0 of 2 runs done (2 incomplete))",
        "~: includes unfinished runs, with their records so far",
    ]
    at = lines.index(row) + 1
    assert lines[at : at + 2] == notes
    averages = lines[lines.index("Averages") :]
    assert averages[3].split()[-2:] == ["50.0*~", "1.0*~"]
    assert averages[5] == notes[1]


def test_average_excludes_incomplete_trials(tmp_path: Path):
    records = [make_record(test_envs=(e,), trial_seed=t, in_acc=accuracy(e, t)) for e, t in RUNS if (e, t) != (2, 1)]
    row = next(line for line in tables_of(tmp_path, records).splitlines() if line.startswith("ERM"))
    assert row.split("  ")[-1] == "46.7 (n = 1)*"


def test_averages_list_missing_runs(tmp_path: Path):
    records = [make_record(test_envs=(e,), trial_seed=t) for e, t in RUNS if (e, t) != (2, 1)]
    records += [make_record("Other", test_envs=(e,), trial_seed=t) for e in range(3) for t in range(3)]
    text = tables_of(tmp_path, records)
    averages = text[text.index("Averages") :].splitlines()
    assert averages[3].split() == ["ERM", "50.0", "(n", "=", "1)*", "50.0", "+/-", "0.0", "50.0*", "1.0*"]
    assert averages[4] == (
        "*: some of the requested runs are not done or not usable "
        "(ERM on ColoredDigits: 1 of 2 trials, 5 of 6 runs done (1 not launched))"
    )


def test_known_datasets_come_first_in_published_order(tmp_path: Path):
    records = [
        make_record(dataset=d, test_envs=(e,), in_acc=(0.5,) * n, out_acc=(0.5,) * n)
        for d, n in (("Aardvarks", 3), ("RotatedMNIST", 6), ("ColoredMNIST", 3))
        for e in range(n)
    ]
    lines = tables_of(tmp_path, records).splitlines()
    assert [line for line in lines[:20] if line in ("Aardvarks", "RotatedMNIST", "ColoredMNIST")] == [
        "ColoredMNIST",
        "RotatedMNIST",
        "Aardvarks",
    ]
    header = lines[lines.index("Aardvarks") + 1]
    assert header.split() == ["Algorithm", "env0", "env1", "env2", "Avg"]
