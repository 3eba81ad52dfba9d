"""What was read before is not parsed again, and what has changed is."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbed.model_selection import SELECTION_METHODS, choose
from domainbed.records import RESULTS_FILE, read_job
from domainbed.reporting import folders, load, reading
from domainbed.reporting import record_cache as cache
from domainbed.reporting.formats.text import text
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import make_report
from tests.conftest import make_record, read_sweep, write_sweep


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep large enough for a cache of several files."""
    monkeypatch.setattr(load, "MANY", 4)
    monkeypatch.setattr(load, "LOT", 7)
    rng = np.random.RandomState(0)
    records = [
        make_record(dataset, algorithm, (env,), trial, draw, step, *map(tuple, rng.rand(2, 3)))
        for dataset, algorithm in itertools.product(("ColoredDigits", "Elsewhere"), ("ERM", "Fishr"))
        for env, trial, draw, step in itertools.product(range(3), range(2), range(2), (0, 100))
    ]
    return write_sweep(tmp_path / "sweep", records)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that were parsed, in a process of our own."""
    names: list[str] = []
    read = reading._read

    def noted(folder: Path):
        names.append(folder.name)
        return read(folder)

    monkeypatch.setattr(reading, "_read", noted)
    monkeypatch.setattr(load, "cpu_count", lambda: 0.5)  # twice that is one process: this one
    return names


def files(sweep: Path) -> list[Path]:
    return sorted(cache.cache_folder(sweep).glob("*.arrow"))


def assert_same(first: load.Sweep, second: load.Sweep) -> None:
    for name in ("records", "jobs", "runs"):
        a, b = getattr(first, name), getattr(second, name)
        keys = [
            c for c in ("folder", "step", "dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed") if c in a
        ]
        a, b = (frame.astype(object).sort_values(keys).reset_index(drop=True) for frame in (a, b))
        pd.testing.assert_frame_equal(a, b)
    assert sorted(first.problems) == sorted(second.problems)


def test_the_second_call_parses_nothing(many: Path, parsed: list[str]):
    first = load_sweep(str(many))
    assert len(parsed) == 48
    parsed.clear()
    assert_same(first, load_sweep(str(many)))
    assert parsed == []
    assert len(files(many)) == 7
    shutil.rmtree(cache.cache_folder(many))
    assert_same(first, load_sweep(str(many)))


def test_of_a_sweep_that_is_as_it_was_no_record_is_looked_at(many: Path, monkeypatch: pytest.MonkeyPatch):
    wanted = ReportOptions(bootstrap=True)
    first = text(make_report(load_sweep(str(many)), wanted))
    chosen = {method: load_sweep(str(many)).chosen(method) for method in SELECTION_METHODS}

    def refuse(*args: object) -> None:
        raise AssertionError("records were loaded")

    parts = load._parts
    monkeypatch.setattr(load, "_parts", refuse)
    second = load_sweep(str(many))
    assert text(make_report(second, wanted)) == first
    for method in ("training-domain", "test-domain"):
        pd.testing.assert_frame_equal(second.chosen(method), chosen[method])
        pd.testing.assert_frame_equal(second.chosen(method), choose(method, first_records(many, parts, monkeypatch)))
        monkeypatch.setattr(load, "_parts", refuse)
    for path in cache.cache_folder(many).glob("whole/*.arrow"):
        path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(AssertionError, match="records were loaded"):
        load_sweep(str(many))


def first_records(sweep: Path, parts, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The records, after all."""
    monkeypatch.setattr(load, "_parts", parts)
    return load_sweep(str(sweep)).records


@pytest.mark.parametrize("change", ["a record", "done", "a time", "a folder"])
def test_whatever_changes_makes_the_choice_anew(many: Path, change: str):
    before = load_sweep(str(many))
    before.chosen("training-domain")
    job = many / "ColoredDigits-ERM-0-0-0"
    if change == "a record":
        write_sweep(many, [make_record(step=200, in_acc=(0.123, 0, 0), out_acc=(1, 1, 1))])
    elif change == "done":
        (job / "done").unlink()
    elif change == "a time":
        os.utime(job / RESULTS_FILE, (1, 1))
    else:
        shutil.rmtree(job)
    after = load_sweep(str(many))
    assert after.state != before.state
    pd.testing.assert_frame_equal(after.chosen("training-domain"), choose("training-domain", after.records))
    assert (0.123 in after.chosen("training-domain")["test_acc"].tolist()) == (change == "a record")
    kept = {path.name.partition("-")[0] for path in cache.cache_folder(many).glob("whole/*.arrow")}
    assert kept == {after.state}, "what was found of other states is gone"


def test_new_changed_and_deleted_jobs(many: Path, parsed: list[str]):
    load_sweep(str(many))
    parsed.clear()
    write_sweep(
        many, [make_record("ColoredDigits", "CORAL", (0,)), make_record("ColoredDigits", "ERM", (0,), step=200)]
    )
    shutil.rmtree(many / "Elsewhere-Fishr-2-1-1")
    (many / "Elsewhere-Fishr-2-1-0" / "done").unlink()
    second = load_sweep(str(many))
    assert sorted(parsed) == ["ColoredDigits-CORAL-0-0-0", "ColoredDigits-ERM-0-0-0"]
    assert len(second.jobs) == 48
    assert not second.jobs.at["Elsewhere-Fishr-2-1-0", "done"]
    steps = second.records.loc[second.records["folder"] == "ColoredDigits-ERM-0-0-0", "step"]
    assert steps.tolist() == [0, 100, 200]
    shutil.rmtree(cache.cache_folder(many))
    assert_same(second, load_sweep(str(many)))


def test_a_job_of_the_same_size_and_another_time_is_new(many: Path, parsed: list[str]):
    load_sweep(str(many))
    parsed.clear()
    results = many / "ColoredDigits-ERM-0-0-0" / RESULTS_FILE
    lines = results.read_text().replace('"loss": 0.7', '"loss": 0.8').replace('"trial_seed": 0', '"trial_seed": 5')
    results.write_text(lines)
    os.utime(results, (1, 1))
    sweep = load_sweep(str(many))
    assert parsed == ["ColoredDigits-ERM-0-0-0"]
    assert sweep.jobs.at["ColoredDigits-ERM-0-0-0", "trial_seed"] == 5


def test_files_that_are_mostly_stale_go(many: Path, parsed: list[str]):
    load_sweep(str(many))
    before = set(files(many))
    for folder in sorted(many.glob("[CE]*"))[:24]:
        os.utime(folder / RESULTS_FILE, (1, 1))
    parsed.clear()
    load_sweep(str(many))
    assert len(parsed) >= 24
    after = set(files(many))
    assert after - before
    assert len(after) <= 2 * 48 / 4, "each file holds as many jobs as make one worth its while, or had twice as many"
    parsed.clear()
    load_sweep(str(many))
    assert parsed == []


@pytest.mark.parametrize("damage", ["cut", "torn", "empty", "foreign", "a byte", "another version"])
def test_a_damaged_file_is_read_anew(many: Path, parsed: list[str], damage: str, monkeypatch: pytest.MonkeyPatch):
    whole = load_sweep(str(many))
    path = files(many)[0]
    part, content = cache.read(path), path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "torn":
        path.write_bytes(content[:100] + bytes(200) + content[300:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        path.write_bytes(b"no arrow " * 99)
    elif damage == "another version":
        monkeypatch.setattr(cache, "VERSION", b"of tomorrow")
    else:
        path.write_bytes(content[:-99] + bytes([content[-99] ^ 1]) + content[-98:])
    parsed.clear()
    assert_same(whole, load_sweep(str(many)))
    assert len(parsed) == (48 if damage == "another version" else part.jobs.num_rows)
    parsed.clear()
    assert_same(whole, load_sweep(str(many)))
    assert parsed == []


def test_a_small_sweep_leaves_nothing_behind(tmp_path: Path):
    write_sweep(tmp_path, [make_record()])
    load_sweep(str(tmp_path))
    assert not (tmp_path / ".sweep").exists()


def test_a_folder_that_is_not_ours_is_read_all_the_same(many: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(load, "cpu_count", lambda: 0.5)
    assert len(load_sweep(str(many)).jobs) == 48
    assert not (many / ".sweep").exists()


def test_several_collectors_at_once(many: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load, "cpu_count", lambda: 0.5)
    whole = load_sweep(str(many))
    for _ in range(5):
        shutil.rmtree(cache.cache_folder(many))
        with ThreadPoolExecutor(4) as pool:
            for sweep in pool.map(load_sweep, [str(many)] * 4):
                assert_same(whole, sweep)
        assert_same(whole, load_sweep(str(many)))  # from four files a part


@pytest.mark.slow
def test_many_processes_read_the_same(tmp_path: Path):
    """With the real sizes: 2,400 jobs are three lots, read by several processes, and kept."""
    records = [make_record(hparams_seed=h, in_acc=(h / 3000,) * 3) for h in range(2400)]
    sweep = write_sweep(tmp_path, records)
    command = [sys.executable, "-m", "domainbed.scripts.collect_results", "--input_dir", str(sweep)]
    outputs = []
    for _ in range(2):
        finished = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert finished.returncode == 0, finished.stderr
        outputs.append(finished.stdout)
    assert outputs[0] == outputs[1]
    assert "2,400 done" in outputs[0]
    assert len(files(sweep)) == 3
    assert load_sweep(str(sweep)).records["env0_in_acc"].sum() == pytest.approx(sum(range(2400)) / 3000)


def test_slow_folders_are_looked_at_by_many_threads(many: Path, monkeypatch: pytest.MonkeyPatch):
    quick = folders.scan_folders(many)
    monkeypatch.setattr(folders, "SLOW", 0.0)
    monkeypatch.setattr(folders, "LOT", 5)
    assert folders.scan_folders(many) == quick
    assert len(quick.signatures) == 48


# --- at once and one by one


def variations() -> st.SearchStrategy[list[dict]]:
    """A job's records, mostly as they should be."""
    odd = st.sampled_from(
        [
            {}, {}, {}, {"env1_in_acc": None}, {"env1_in_acc": "0.25"}, {"env1_in_acc": 1}, {"env9_in_acc": 0.5},
            {"step": 50.0}, {"step": "100"}, {"step": None}, {"bad_images": 3}, {"bad_images": "x"}, {"args": None},
            {"schema_version": 1}, {"schema_version": 2}, {"hparams": None}, {"environments": ["a", "b", "c"]},
            {"environments": 5}, {"loss": float("nan")}, {"env0_out_acc": float("inf")}, {"note": 'a "_acc" in a word'},
        ]
    )  # fmt: skip
    record = st.builds(
        lambda step, acc, trial, odd: make_record(step=step, trial_seed=trial, in_acc=(acc, 0.5, 0.5)) | odd,
        st.integers(0, 3).map(lambda i: 100 * i),
        st.floats(0, 1),
        st.sampled_from([0] * 9 + [1]),
        odd,
    )
    return st.lists(record, min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(records=variations(), in_order=st.booleans(), cut=st.integers(0, 40))
def test_at_once_is_as_one_by_one(tmp_path_factory: pytest.TempPathFactory, records, in_order: bool, cut: int):
    """Where the quick way takes a file at all, it finds what the careful way finds."""
    if in_order:
        records = sorted(records, key=lambda r: float(r["step"] or 0))
    data = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records).encode()
    data = data[:-cut] if cut in range(1, 5) else data
    folder = tmp_path_factory.mktemp("job")
    (folder / RESULTS_FILE).write_bytes(data)
    careful, problems = read_job(folder)
    expected_job, expected = reading._one_by_one(careful, problems)
    try:
        job, figures = reading._at_once(data)
    except (LookupError, TypeError, ValueError, OverflowError):
        return
    assert problems == []
    assert repr(job) == repr(expected_job)  # NaN equals nothing
    assert dict(zip(figures.names, figures.values.T.tolist(), strict=True)) == dict(
        zip(expected.names, expected.values.T.tolist(), strict=True)
    )


def test_the_quick_way_takes_what_is_as_it_should_be(tmp_path: Path):
    write_sweep(tmp_path, [make_record(step=s) | {"schema_version": 1, "loss": float(s)} for s in (0, 100, 200)])
    (results,) = tmp_path.glob(f"*/{RESULTS_FILE}")
    _, figures = reading._at_once(results.read_bytes())
    assert figures.names == ("step", *(f"env{i}_{part}_acc" for i in range(3) for part in ("in", "out")))
    assert figures.values[:, 0].tolist() == [0, 100, 200]


def test_a_job_that_goes_on_while_it_is_read_is_read_again(
    many: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch
):
    """Its signature is of before the reading, so that what came after makes it new."""
    results = many / "ColoredDigits-ERM-0-0-0" / RESULTS_FILE
    at_once = reading._at_once

    def meanwhile(data: bytes):
        if data == results.read_bytes():
            with open(results, "a") as file:
                file.write(json.dumps(make_record(step=200)) + "\n")
        return at_once(data)

    monkeypatch.setattr(reading, "_at_once", meanwhile)
    assert len(load_sweep(str(many)).records) == 96
    monkeypatch.setattr(reading, "_at_once", at_once)
    parsed.clear()
    assert len(load_sweep(str(many)).records) == 97
    assert parsed == ["ColoredDigits-ERM-0-0-0"]


def test_problems_are_kept_with_the_jobs(many: Path, parsed: list[str], tmp_path: Path):
    with open(many / "ColoredDigits-ERM-0-0-0" / RESULTS_FILE, "a") as file:
        file.write("{")
    _, problems = read_sweep(many)
    assert problems == [f"{many}/ColoredDigits-ERM-0-0-0/{RESULTS_FILE}: line 3 is not a whole record; left out"]
    parsed.clear()
    moved = many.rename(tmp_path / "elsewhere")
    assert read_sweep(moved)[1] == [p.replace(str(many), str(moved)) for p in problems]
    assert parsed == []
