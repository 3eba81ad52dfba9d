"""The launch log of a sweep."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from domainbed.errors import UsageError
from domainbed.sweep.grid import Grid, RunKey
from domainbed.sweep.log import launch_files, log_launch, read_launches, requested_jobs, run_states
from domainbed.sweep.status import JobState
from tests.sweep.helpers import jobs_of, launch_words, main, states


def grid(**others) -> Grid:
    defaults = {"datasets": ["ColoredDigits"], "algorithms": ["ERM"], "n_hparams": 1, "n_trials": 1, "imports": ()}
    return Grid.from_args({**defaults, **others})


def test_equal_launches_are_logged_once(tmp_path: Path):
    log_launch(tmp_path, grid())
    log_launch(tmp_path, grid())
    assert len(requested_jobs(tmp_path)) == 3
    log_launch(tmp_path, grid(n_trials=2))  # the jobs of the first trial are the same
    assert len(requested_jobs(tmp_path)) == 6
    log_launch(tmp_path, grid(datasets=["RotatedDigits"]))
    kinds = {job.kind for job in requested_jobs(tmp_path)}
    assert kinds == {("ColoredDigits", "ERM"), ("RotatedDigits", "ERM")}
    assert len(list((tmp_path / ".sweep" / "launches").iterdir())) == 3


def test_launches_are_ordered_by_their_last_occurrence(tmp_path: Path):
    for hours, steps in enumerate((3, 5)):
        before = launch_files(tmp_path)
        log_launch(tmp_path, grid(steps=steps))
        (new,) = set(launch_files(tmp_path)) - set(before)
        os.utime(new, (1e9 + 3600 * hours,) * 2)
    assert [launch.job_args["steps"] for launch, _ in read_launches(tmp_path)] == [3, 5]
    log_launch(tmp_path, grid(steps=3))
    assert [launch.job_args["steps"] for launch, _ in read_launches(tmp_path)] == [5, 3]


def test_simultaneous_launches_are_logged_once(tmp_path: Path):
    for i in range(30):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(log_launch, [tmp_path / str(i)] * 8, [grid()] * 8))
        assert len(requested_jobs(tmp_path / str(i))) == 3
        assert len(list((tmp_path / str(i) / ".sweep" / "launches").iterdir())) == 1


def test_launches_with_and_without_averaging_are_separate_runs(tmp_path: Path):
    for averaging in ("none", "swad", "none"):
        log_launch(tmp_path, grid(averaging=averaging))
    jobs = requested_jobs(tmp_path)
    assert len(jobs) == 6
    assert {job.kind[1] for job in jobs} == {"ERM", "ERM+SWAD"}
    assert next(str(job) for job in jobs if job.config.averaging == "swad").startswith("ERM+SWAD on ColoredDigits, ")
    seeds = [{job.config.seed for job in jobs if job.config.averaging == name} for name in ("none", "swad")]
    assert seeds[0] == seeds[1], "both train the same way"
    done = {RunKey("ColoredDigits", "ERM", (env,), 0, 0) for env in range(3)}
    for run in done:
        job = grid().job(run, tmp_path)
        job.folder.mkdir()
        (job.folder / "done").touch()
    states = run_states(tmp_path, done, warn=pytest.fail)
    assert states == dict.fromkeys(done, JobState.DONE) | {
        run._replace(algorithm="ERM+SWAD"): JobState.NOT_LAUNCHED for run in done
    }


def test_folder_without_launches(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "no" / "such"):
        with pytest.raises(UsageError, match="contains no sweep; run `sweep launch` first"):
            requested_jobs(folder)


def test_status_covers_all_launches_of_a_moved_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    first = launch_words(Path("sweep"))
    assert main(first) == 0
    assert main(launch_words(Path("sweep"), "--algorithms", "ERM", "--hparams", '{"batch_size": 4}')) == 0
    shutil.move("sweep", tmp_path / "else where")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    capsys.readouterr()
    assert main(["status", "--output_dir", "../else where"]) == 0
    assert capsys.readouterr().out == (
        "Dataset        Algorithm      done    updates    updates/s    time left\n"
        "-------------  -----------  ------  ---------  -----------  -----------\n"
        "ColoredDigits  Misbehaving       3      100 %\n"
        "ColoredDigits  ERM               3      100 %\n"
        "6 of 6 jobs done; 18 of 18 updates\n"
    )
    words = [word if word != "sweep" else str(tmp_path / "else where") for word in first]
    assert main(words) == 0
    assert states(jobs_of(words)) == [JobState.DONE] * 3
    assert not (tmp_path / "other" / "sweep").exists()


def test_logged_paths_are_absolute(tmp_path: Path, small_mnist_dir: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path(small_mnist_dir).parent)
    words = launch_words(tmp_path / "sweep", "--datasets", "ColoredMNIST", "--data_dir", "data", "--cache", "c")
    with pytest.warns(UserWarning, match="has 120 images"):
        assert main(words) == 0
    monkeypatch.chdir("/")
    assert [job.config.data_dir for job in requested_jobs(tmp_path / "sweep")] == [small_mnist_dir] * 3
    assert [job.config.cache for job in requested_jobs(tmp_path / "sweep")] == [str(tmp_path / "c")] * 3


def test_unconfirmed_launch_is_not_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    words = [word for word in launch_words(tmp_path / "sweep") if word != "--skip_confirmation"]
    monkeypatch.setattr("builtins.input", lambda question: "no")
    assert main(words) == 2
    assert capsys.readouterr().err == "error: nothing was launched\n"
    assert main([*words, "--command_launcher", "dummy"]) == 0
    assert not (tmp_path / "sweep").exists()


def test_invalid_launches_are_skipped_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(launch_words(tmp_path / "sweep")) == 0
    (good,) = (tmp_path / "sweep" / ".sweep" / "launches").glob("*.json")
    arguments = json.loads(good.read_text())
    bad = {
        "gone": arguments | {"datasets": ["Gone"]},
        "of_another_version": arguments | {"no_such_option": 1},
        "torn": None,
        "list": [],
    }
    bad["of_text"] = arguments | {"n_trials": "5"}
    bad["with_a_control_character"] = arguments | {"algorithms": ["ERM\33[2J"]}
    bad["of_no_steps"] = arguments | {"steps": 0}
    for name, content in bad.items():
        good.with_name(f"{name}.json").write_text("{" if content is None else json.dumps(content))
    capsys.readouterr()
    assert main(["status", "--output_dir", tmp_path / "sweep"]) == 0
    output = capsys.readouterr()
    assert "3 of 3 jobs done" in output.out
    for name in bad:
        path = good.with_name(f"{name}.json")
        assert output.err.count(f"warning: skipping the launch recorded in {path}: ") == 1
    good.unlink()
    assert main(["cancel", "--output_dir", tmp_path / "sweep"]) == 2
    assert capsys.readouterr().err.endswith(f"error: none of the launches into {tmp_path / 'sweep'} can be read\n")


def test_launch_of_a_finished_sweep_is_logged(tmp_path: Path):
    words = launch_words(tmp_path / "sweep")
    assert main(words) == 0
    shutil.rmtree(tmp_path / "sweep" / ".sweep")
    assert main(words) == 0
    assert main(["status", "--output_dir", tmp_path / "sweep"]) == 0


@pytest.mark.parametrize(
    "test_envs",
    [
        [[0, 1], [99]],
        [[0], [-1]],
        [[0], []],
        [[0, 0]],
        [[0, 1, 2]],
        [["0"]],
        [[0, "1"]],
        [[0.0]],
        [[True]],
        [0],
        3,
        "01",
    ],
    ids=str,
)
def test_launch_with_forged_test_environments_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture, test_envs: object
):
    """Even if only one of its sets is invalid."""
    log_launch(tmp_path, grid())
    (path,) = launch_files(tmp_path)
    logged = json.loads(path.read_text())
    assert logged["test_envs"] == []
    path.with_name("forged.json").write_text(json.dumps({**logged, "test_envs": test_envs}))
    assert len(requested_jobs(tmp_path)) == 3
    assert "warning: skipping the launch recorded in" in capsys.readouterr().err
