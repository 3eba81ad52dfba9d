"""collect_results on a sweep written by DomainBed, and on a damaged one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from domainbed.errors import UsageError
from domainbed.scripts.collect_results import main
from tests.conftest import make_record, write_sweep

REPORTING = Path(__file__).parents[2] / "domainbed" / "reporting"


def test_sweep_written_by_domainbed(tmp_path: Path, capsys):
    """Its folders differ: test_envs in any order, some without `done`, with models and logs."""
    records = []
    for algorithm in ("ERM", "Mixup"):
        for env in range(4):
            for trial in range(3):
                r = make_record("PACS", algorithm, (env,), trial, 0, 300, (0.8,) * 4, (0.9,) * 4)
                r["args"]["seed"] = trial * 1000 + env
                r["hparams"] |= {"data_augmentation": True, "resnet_dropout": 0.0}
                records.append(r)
        records.append(make_record("PACS", algorithm, (3, 1), 0, 0, 300, (0.8,) * 4, (0.9,) * 4))
    write_sweep(tmp_path, records)
    for job in sorted(tmp_path.iterdir())[::3]:
        (job / "done").unlink()
        (job / "out.txt").write_text("")
        (job / "err.txt").write_text("")
        (job / "model.pkl").write_bytes(b"\x80")
    main(["--input_dir", str(tmp_path)])
    out, err = capsys.readouterr()
    assert err == ""
    # Each algorithm has one pair, which implies all 6 pairs x 3 trials; the other 17 were not launched.
    assert out.startswith("60 runs requested: 17 done, 9 incomplete, 34 not launched\n")
    table = re.sub("[*~]", "", out[out.index("PACS\n") :]).splitlines()  # marks of jobs without `done`
    assert table[1].split()[0] == "Algorithm"
    assert table[3].split() == ["ERM", *["80.0", "+/-", "0.0"] * 5]
    assert table[4].split() == ["Mixup", *["80.0", "+/-", "0.0"] * 5]


def test_damage_is_reported_after_the_tables(tmp_path: Path, capsys):
    write_sweep(tmp_path, [make_record(test_envs=(e,)) for e in range(3)])
    damaged = next(tmp_path.glob("*/results.jsonl"))
    with open(damaged, "a") as file:
        file.write('{"step": 100, "env0_in')
    main(["--input_dir", str(tmp_path)])
    out, err = capsys.readouterr()
    problem = f"{damaged}: line 2 is not a complete record; skipped\n"
    assert err == ""
    assert out.endswith(f"\n\nWarnings:\n{problem}")
    assert "50.0 (n = 1)" in out
    main(["--input_dir", str(tmp_path), "--format", "csv"])  # it has no place for warnings
    out, err = capsys.readouterr()
    assert err.startswith("warning: leave-one-domain-out: No table: this method requires the runs with each pair")
    assert err.endswith(f"warning: {problem}")
    assert len(out.splitlines()) == 1 + 2 * (4 + 3)  # two methods, one dataset and the averages


@pytest.mark.slow
def test_example_selection_method_runs_as_shown(tmp_path: Path):
    (example,) = re.findall(r"```python\n(.*?)```", (REPORTING / "README.md").read_text(), flags=re.DOTALL)
    (tmp_path / "my_selection.py").write_text(example)
    last, earlier = (0.6, 0.9, 0.9), (0.5, 0.8, 0.8)
    records = [make_record(test_envs=(e,), step=s, in_acc=a) for e in range(3) for s, a in ((0, earlier), (100, last))]
    records += [make_record(test_envs=envs) for envs in ((0, 1), (0, 2), (1, 2))]
    write_sweep(tmp_path / "sweep", records)
    command = [sys.executable, "-m", "domainbed.scripts.collect_results", "--input_dir", "sweep"]
    command += ["--import", "my_selection", "--selection", "last-step"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "==== Model selection: last-step ====" in finished.stdout
    (row, _) = re.findall(r"^ERM .*$", finished.stdout, flags=re.MULTILINE)
    assert re.findall(r"(\d+\.\d) \(n = 1\)", row) == ["60.0", "90.0", "90.0", "80.0"]


def test_groups_of_algorithms(tmp_path: Path, capsys):
    """A group stands for its members with runs; one without any is rejected."""
    names = ("ERM", "IRM", "Fishr", "CORAL")
    write_sweep(tmp_path, [make_record("ColoredDigits", name, (env,)) for name in names for env in range(3)])

    def rows(*words: str) -> list[str]:
        main(["--input_dir", str(tmp_path), "--selection", "test-domain", "--algorithms", *words])
        lines = capsys.readouterr().out.splitlines()
        return list(dict.fromkeys(line.split()[0] for line in lines if line.startswith(names)))

    assert rows("gradients", "ERM") == ["IRM", "Fishr", "ERM"]
    assert sorted(rows("all")) == sorted(names)
    with pytest.raises(UsageError, match="--algorithms meta: this sweep has no such runs"):
        rows("meta")
