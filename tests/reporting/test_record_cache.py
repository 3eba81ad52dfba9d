"""The cache of records: only jobs that have changed are parsed again."""

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

from domainbed.model_selection import SELECTION_METHODS, select_records
from domainbed.records import RESULTS_FILE, read_job
from domainbed.reporting import folders, load, reading
from domainbed.reporting import record_cache as cache
from domainbed.reporting.formats.text import as_text
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import make_report
from tests.conftest import make_record, read_sweep, write_sweep


@pytest.fixture
def sweep_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a sweep whose cache has several files."""
    monkeypatch.setattr(load, "MIN_JOBS", 4)
    monkeypatch.setattr(load, "BATCH", 7)
    rng = np.random.RandomState(0)
    records = [
        make_record(dataset, algorithm, (env,), trial, draw, step, *map(tuple, rng.rand(2, 3)))
        for dataset, algorithm in itertools.product(("ColoredDigits", "Elsewhere"), ("ERM", "Fishr"))
        for env, trial, draw, step in itertools.product(range(3), range(2), range(2), (0, 100))
    ]
    return write_sweep(tmp_path / "sweep", records)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the names of parsed folders are added; parsing happens in this process."""
    names: list[str] = []
    read = reading._read

    def read_and_log(folder: Path):
        names.append(folder.name)
        return read(folder)

    monkeypatch.setattr(reading, "_read", read_and_log)
    monkeypatch.setattr(load, "cpu_count", lambda: 0.5)  # doubled, this is a single process
    return names


def cache_files(sweep: Path) -> list[Path]:
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


def test_second_load_parses_nothing(sweep_dir: Path, parsed: list[str]):
    first = load_sweep(str(sweep_dir))
    assert len(parsed) == 48
    parsed.clear()
    assert_same(first, load_sweep(str(sweep_dir)))
    assert parsed == []
    assert len(cache_files(sweep_dir)) == 7
    shutil.rmtree(cache.cache_folder(sweep_dir))
    assert_same(first, load_sweep(str(sweep_dir)))


def test_unchanged_sweep_loads_no_records(sweep_dir: Path, monkeypatch: pytest.MonkeyPatch):
    options = ReportOptions(interval="bootstrap")
    first = as_text(make_report(load_sweep(str(sweep_dir)), options))
    selected = {method: load_sweep(str(sweep_dir)).select(method) for method in SELECTION_METHODS}

    def refuse(*args: object) -> None:
        raise AssertionError("records were loaded")

    read_parts = load._read_parts
    monkeypatch.setattr(load, "_read_parts", refuse)
    second = load_sweep(str(sweep_dir))
    assert as_text(make_report(second, options)) == first
    for method in ("training-domain", "test-domain"):
        pd.testing.assert_frame_equal(second.select(method), selected[method])
        monkeypatch.setattr(load, "_read_parts", read_parts)
        pd.testing.assert_frame_equal(second.select(method), select_records(method, load_sweep(str(sweep_dir)).records))
        monkeypatch.setattr(load, "_read_parts", refuse)
    for path in cache.cache_folder(sweep_dir).glob("whole/*.arrow"):
        path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(AssertionError, match="records were loaded"):
        load_sweep(str(sweep_dir))


@pytest.mark.parametrize("change", ["record", "done", "time", "folder"])
def test_any_change_invalidates_cached_selection(sweep_dir: Path, change: str):
    before = load_sweep(str(sweep_dir))
    before.select("training-domain")
    job = sweep_dir / "ColoredDigits-ERM-0-0-0"
    if change == "record":
        write_sweep(sweep_dir, [make_record(step=200, in_acc=(0.123, 0, 0), out_acc=(1, 1, 1))])
    elif change == "done":
        (job / "done").unlink()
    elif change == "time":
        os.utime(job / RESULTS_FILE, (1, 1))
    else:
        shutil.rmtree(job)
    after = load_sweep(str(sweep_dir))
    assert after.state != before.state
    pd.testing.assert_frame_equal(after.select("training-domain"), select_records("training-domain", after.records))
    assert (0.123 in after.select("training-domain")["test_acc"].tolist()) == (change == "record")
    states = {path.name.partition("-")[0] for path in cache.cache_folder(sweep_dir).glob("whole/*.arrow")}
    assert states == {after.state}, "snapshots of other states are deleted"


def test_new_changed_and_deleted_jobs(sweep_dir: Path, parsed: list[str]):
    load_sweep(str(sweep_dir))
    parsed.clear()
    write_sweep(
        sweep_dir, [make_record("ColoredDigits", "CORAL", (0,)), make_record("ColoredDigits", "ERM", (0,), step=200)]
    )
    shutil.rmtree(sweep_dir / "Elsewhere-Fishr-2-1-1")
    (sweep_dir / "Elsewhere-Fishr-2-1-0" / "done").unlink()
    second = load_sweep(str(sweep_dir))
    assert sorted(parsed) == ["ColoredDigits-CORAL-0-0-0", "ColoredDigits-ERM-0-0-0"]
    assert len(second.jobs) == 48
    assert not second.jobs.at["Elsewhere-Fishr-2-1-0", "done"]
    steps = second.records.loc[second.records["folder"] == "ColoredDigits-ERM-0-0-0", "step"]
    assert steps.tolist() == [0, 100, 200]
    shutil.rmtree(cache.cache_folder(sweep_dir))
    assert_same(second, load_sweep(str(sweep_dir)))


def test_job_of_same_size_and_other_time_is_parsed_again(sweep_dir: Path, parsed: list[str]):
    load_sweep(str(sweep_dir))
    parsed.clear()
    results = sweep_dir / "ColoredDigits-ERM-0-0-0" / RESULTS_FILE
    lines = results.read_text().replace('"loss": 0.7', '"loss": 0.8').replace('"trial_seed": 0', '"trial_seed": 5')
    results.write_text(lines)
    os.utime(results, (1, 1))
    sweep = load_sweep(str(sweep_dir))
    assert parsed == ["ColoredDigits-ERM-0-0-0"]
    assert sweep.jobs.at["ColoredDigits-ERM-0-0-0", "trial_seed"] == 5


def test_mostly_stale_files_are_deleted(sweep_dir: Path, parsed: list[str]):
    load_sweep(str(sweep_dir))
    before = set(cache_files(sweep_dir))
    for folder in sorted(sweep_dir.glob("[CE]*"))[:24]:
        os.utime(folder / RESULTS_FILE, (1, 1))
    parsed.clear()
    load_sweep(str(sweep_dir))
    assert len(parsed) >= 24
    after = set(cache_files(sweep_dir))
    assert after - before
    assert len(after) <= 2 * 48 / 4, "no file has fewer than half of MIN_JOBS current jobs"
    parsed.clear()
    load_sweep(str(sweep_dir))
    assert parsed == []


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "empty", "foreign", "one byte", "other version"])
def test_jobs_in_damaged_file_are_parsed_again(
    sweep_dir: Path, parsed: list[str], damage: str, monkeypatch: pytest.MonkeyPatch
):
    expected = load_sweep(str(sweep_dir))
    path = cache_files(sweep_dir)[0]
    part, content = cache.load_part(path), path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "overwritten":
        path.write_bytes(content[:100] + bytes(200) + content[300:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        path.write_bytes(b"not Arrow " * 99)
    elif damage == "other version":
        monkeypatch.setattr(cache, "CACHE_VERSION", b"a later one")
    else:
        path.write_bytes(content[:-99] + bytes([content[-99] ^ 1]) + content[-98:])
    parsed.clear()
    assert_same(expected, load_sweep(str(sweep_dir)))
    assert len(parsed) == (48 if damage == "other version" else part.jobs.num_rows)
    parsed.clear()
    assert_same(expected, load_sweep(str(sweep_dir)))
    assert parsed == []


def test_small_sweep_is_not_cached(tmp_path: Path):
    write_sweep(tmp_path, [make_record()])
    load_sweep(str(tmp_path))
    assert not (tmp_path / ".sweep").exists()


def test_read_only_folder_is_loaded(sweep_dir: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(load, "cpu_count", lambda: 0.5)
    assert len(load_sweep(str(sweep_dir)).jobs) == 48
    assert not (sweep_dir / ".sweep").exists()


def test_concurrent_loads_agree(sweep_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load, "cpu_count", lambda: 0.5)
    expected = load_sweep(str(sweep_dir))
    for _ in range(5):
        shutil.rmtree(cache.cache_folder(sweep_dir))
        with ThreadPoolExecutor(4) as pool:
            for sweep in pool.map(load_sweep, [str(sweep_dir)] * 4):
                assert_same(expected, sweep)
        assert_same(expected, load_sweep(str(sweep_dir)))  # from up to four files per part


@pytest.mark.slow
def test_collect_results_with_processes(tmp_path: Path):
    """Use the actual sizes: 2,400 jobs are three batches, parsed by several processes and cached."""
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
    assert len(cache_files(sweep)) == 3
    assert load_sweep(str(sweep)).records["env0_in_acc"].sum() == pytest.approx(sum(range(2400)) / 3000)


def test_slow_folders_are_scanned_by_threads(sweep_dir: Path, monkeypatch: pytest.MonkeyPatch):
    expected = folders.scan_folders(sweep_dir)
    monkeypatch.setattr(folders, "SLOW", 0.0)
    monkeypatch.setattr(folders, "BATCH", 5)
    assert folders.scan_folders(sweep_dir) == expected
    assert len(expected.signatures) == 48


def records_with_flaws() -> st.SearchStrategy[list[dict]]:
    """Generate the records of a job, most of them without a flaw."""
    flaws = st.sampled_from(
        [
            {}, {}, {}, {"env1_in_acc": None}, {"env1_in_acc": "0.25"}, {"env1_in_acc": 1}, {"env9_in_acc": 0.5},
            {"step": 50.0}, {"step": "100"}, {"step": None}, {"bad_images": 3}, {"bad_images": "x"}, {"args": None},
            {"schema_version": 1}, {"schema_version": 2}, {"hparams": None}, {"environments": ["a", "b", "c"]},
            {"environments": 5}, {"loss": float("nan")}, {"env0_out_acc": float("inf")}, {"note": 'a "_acc" in a word'},
        ]
    )  # fmt: skip
    record = st.builds(
        lambda step, acc, trial, flaw: make_record(step=step, trial_seed=trial, in_acc=(acc, 0.5, 0.5)) | flaw,
        st.integers(0, 3).map(lambda i: 100 * i),
        st.floats(0, 1),
        st.sampled_from([0] * 9 + [1]),
        flaws,
    )
    return st.lists(record, min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(records=records_with_flaws(), in_order=st.booleans(), cut=st.integers(0, 40))
def test_strict_parser_agrees_with_lenient_one(
    tmp_path_factory: pytest.TempPathFactory, records, in_order: bool, cut: int
):
    """If the strict parser accepts a file, it returns the same as the lenient one."""
    if in_order:
        records = sorted(records, key=lambda r: float(r["step"] or 0))
    data = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records).encode()
    data = data[:-cut] if cut in range(1, 5) else data
    folder = tmp_path_factory.mktemp("job")
    (folder / RESULTS_FILE).write_bytes(data)
    parsed_records, problems = read_job(folder)
    expected_job, expected = reading._parse_leniently(parsed_records, problems)
    try:
        job, array = reading._parse_strictly(data)
    except (LookupError, TypeError, ValueError, OverflowError):
        return
    assert problems == []
    assert repr(job) == repr(expected_job)  # compares NaN as equal
    assert dict(zip(array.columns, array.values.T.tolist(), strict=True)) == dict(
        zip(expected.columns, expected.values.T.tolist(), strict=True)
    )


def test_strict_parser_accepts_flawless_records(tmp_path: Path):
    write_sweep(tmp_path, [make_record(step=s) | {"schema_version": 1, "loss": float(s)} for s in (0, 100, 200)])
    (results,) = tmp_path.glob(f"*/{RESULTS_FILE}")
    _, array = reading._parse_strictly(results.read_bytes())
    assert array.columns == ("step", *(f"env{i}_{part}_acc" for i in range(3) for part in ("in", "out")))
    assert array.values[:, 0].tolist() == [0, 100, 200]


def test_job_that_changes_while_read_is_read_again(sweep_dir: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch):
    """The signature is taken before reading: a record appended meanwhile changes it."""
    results = sweep_dir / "ColoredDigits-ERM-0-0-0" / RESULTS_FILE
    parse = reading._parse

    def append_and_parse(data: bytes):
        if data == results.read_bytes():
            with open(results, "a") as file:
                file.write(json.dumps(make_record(step=200)) + "\n")
        return parse(data)

    monkeypatch.setattr(reading, "_parse", append_and_parse)
    assert len(load_sweep(str(sweep_dir)).records) == 96
    monkeypatch.setattr(reading, "_parse", parse)
    parsed.clear()
    assert len(load_sweep(str(sweep_dir)).records) == 97
    assert parsed == ["ColoredDigits-ERM-0-0-0"]


def test_problems_are_cached(sweep_dir: Path, parsed: list[str], tmp_path: Path):
    with open(sweep_dir / "ColoredDigits-ERM-0-0-0" / RESULTS_FILE, "a") as file:
        file.write("{")
    _, problems = read_sweep(sweep_dir)
    assert problems == [f"{sweep_dir}/ColoredDigits-ERM-0-0-0/{RESULTS_FILE}: line 3 is not a complete record; skipped"]
    parsed.clear()
    moved = sweep_dir.rename(tmp_path / "elsewhere")
    assert read_sweep(moved)[1] == [p.replace(str(sweep_dir), str(moved)) for p in problems]
    assert parsed == []
