"""The collector on a sweep that DomainBed itself wrote, and on one with damage."""

import re
from pathlib import Path

from domainbed.scripts.collect_results import main
from tests.conftest import make_record, write_sweep


def test_domainbeds_own_sweep(tmp_path: Path, capsys):
    """Its records differ: test_envs may be in any order, `done` is missing in some, models and logs lie around."""
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
    # Each algorithm has a pair; of such pairs all are missed, 6 x 3 trials - 1.
    assert out.startswith("60 runs asked for: 17 done, 9 incomplete, 34 not launched\n")
    table = re.sub("[*~]", "", out[out.index("PACS\n") :]).splitlines()  # the marks of those without `done`
    assert table[1].split()[0] == "Algorithm"
    assert table[3].split() == ["ERM", *["80.0", "+/-", "0.0"] * 5]
    assert table[4].split() == ["Mixup", *["80.0", "+/-", "0.0"] * 5]


def test_damage_is_told_at_the_end_and_the_tables_come_all_the_same(tmp_path: Path, capsys):
    write_sweep(tmp_path, [make_record(test_envs=(e,)) for e in range(3)])
    damaged = next(tmp_path.glob("*/results.jsonl"))
    with open(damaged, "a") as file:
        file.write('{"step": 100, "env0_in')
    main(["--input_dir", str(tmp_path)])
    out, err = capsys.readouterr()
    problem = f"{damaged}: line 2 is not a whole record; left out\n"
    assert err == ""
    assert out.endswith(f"\n\nLeft out, or odd:\n{problem}")
    assert "50.0 +/- 0.0" in out
    main(["--input_dir", str(tmp_path), "--format", "csv"])  # which has no place for it
    out, err = capsys.readouterr()
    assert err.startswith("warning: leave-one-domain-out: No table: it needs the runs with each pair")
    assert err.endswith(f"warning: {problem}")
    assert len(out.splitlines()) == 1 + 2 * (4 + 3)  # two methods, a dataset and the averages
