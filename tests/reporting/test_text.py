"""The printed tables of small sweeps, as they should look."""

import re
from pathlib import Path

from domainbed.records import load_records
from domainbed.reporting.text import report
from tests.conftest import make_record, write_sweep

RUNS = [(e, t) for e in range(3) for t in range(2)]


def tables_of(tmp_path: Path, records: list[dict], done: bool = True) -> str:
    return report(load_records(str(write_sweep(tmp_path, records, done)))[0])


def accuracy(env: int, trial: int) -> tuple[float, float, float]:
    return (0.7 + trial / 100, 0.6 + trial / 50, 0.1)


GOLDEN = """\
7 jobs with records, 7 of them done

==== Model selection: training-domain ====

ColoredDigits
Algorithm            +90%          +80%           -90%           Avg
-----------  ------------  ------------  -------------  ------------
ERM          70.5 +/- 0.4  61.0 +/- 0.7   10.0 +/- 0.0  47.2 +/- 0.4
Mixup                   X             X  30.0 +/- 0.0*             X
X: no run to choose from, or an average over such a cell
*: from fewer trials than there are: Mixup -90% 1 of 2
A single trial has no spread: its +/- 0.0 says nothing.

Averages
Algorithm      ColoredDigits    Avg
-----------  ---------------  -----
ERM             47.2 +/- 0.4   47.2
Mixup                      X      X
X: no run to choose from, or an average over such a cell

==== Model selection: leave-one-domain-out ====

No table: it needs the runs with each pair of test environments (sweep launch --leave_one_out).
"""


def test_tables_with_holes(tmp_path: Path):
    records = [make_record(test_envs=(e,), trial_seed=t, in_acc=accuracy(e, t)) for e, t in RUNS]
    records.append(make_record(algorithm="Mixup", test_envs=(2,), in_acc=(0.0, 0.0, 0.3)))
    text = tables_of(tmp_path, records)
    assert text.startswith(GOLDEN)
    assert "==== Model selection: test-domain ====" in text


def test_unfinished_jobs_are_counted(tmp_path: Path):
    text = tables_of(tmp_path, [make_record(test_envs=(e,)) for e in range(3)], done=False)
    assert text.startswith("3 jobs with records, 0 of them done, 3 unfinished\n")


def test_a_cell_from_an_unfinished_run_is_marked(tmp_path: Path):
    write_sweep(tmp_path, [make_record(test_envs=(e,), trial_seed=t) for e, t in RUNS if e > 0])
    text = tables_of(tmp_path, [make_record(test_envs=(0,), trial_seed=t) for t in range(2)], done=False)
    lines = text.splitlines()
    row = next(line for line in lines if line.startswith("ERM"))
    assert re.split(r"  +", row)[1:] == ["50.0 +/- 0.0~", "50.0 +/- 0.0", "50.0 +/- 0.0", "50.0 +/- 0.0~"]
    note = "~: from runs that are not finished; what they have recorded so far counts"
    assert lines[lines.index(row) + 1] == note
    averages = lines[lines.index("Averages") :]
    assert averages[3].split()[-1] == "50.0~"
    assert averages[4] == note


def test_a_trial_without_all_environments_has_no_average(tmp_path: Path):
    records = [make_record(test_envs=(e,), trial_seed=t, in_acc=accuracy(e, t)) for e, t in RUNS if (e, t) != (2, 1)]
    row = next(line for line in tables_of(tmp_path, records).splitlines() if line.startswith("ERM"))
    assert row.split("  ")[-1] == "46.7 +/- 0.0*"


def test_an_average_over_datasets_tells_what_it_rests_on(tmp_path: Path):
    records = [make_record(test_envs=(e,), trial_seed=t) for e, t in RUNS if (e, t) != (2, 1)]
    records += [make_record("Other", test_envs=(e,), trial_seed=t) for e in range(3) for t in range(3)]
    text = tables_of(tmp_path, records)
    averages = text[text.index("Averages") :].splitlines()
    assert averages[3].split() == ["ERM", "50.0", "+/-", "0.0*", "50.0", "+/-", "0.0", "50.0*"]
    assert averages[4] == "*: from fewer trials than there are: ERM ColoredDigits 1 of 2, ERM Avg 4 of 5"


def test_datasets_in_the_protocols_order_and_foreign_ones_behind(tmp_path: Path):
    records = [
        make_record(dataset=d, test_envs=(e,)) for d in ("Aardvarks", "RotatedMNIST", "ColoredMNIST") for e in range(3)
    ]
    lines = tables_of(tmp_path, records).splitlines()
    assert [line for line in lines[:20] if line in ("Aardvarks", "RotatedMNIST", "ColoredMNIST")] == [
        "ColoredMNIST",
        "RotatedMNIST",
        "Aardvarks",
    ]
    header = lines[lines.index("Aardvarks") + 1]
    assert header.split() == ["Algorithm", "env0", "env1", "env2", "Avg"]
