"""`status --json` and `launch --json`."""

import json
from pathlib import Path

import pytest

from domainbed.sweep.json_output import status_object
from domainbed.sweep.log import requested_jobs
from domainbed.sweep.status import JobState
from tests.sweep.helpers import fail, jobs_of, launch_words, live_owner, log_only, main, write_lock
from tests.sweep.test_progress import LONG_AGO, example_sweep


def test_status_of_jobs_in_each_state(tmp_path: Path):
    statuses = example_sweep(tmp_path)
    jobs = list(statuses)
    content = status_object(tmp_path, statuses, {jobs[4].folder.name: "7_4 TIMEOUT"})
    assert json.loads(json.dumps(content, allow_nan=False)) == content | {
        "jobs": [{**job, "args": json.loads(json.dumps(job["args"]))} for job in content["jobs"]]
    }
    assert content["n_jobs"] == 8
    assert sum(content["states"].values()) == 8
    assert list(content["states"]) == [state.value for state in JobState]
    assert (content["step"], content["steps"], content["rate"]) == (190, 3700, 0.5)
    assert content["seconds_left"] == (3700 - 190) / 0.5
    erm, fishr = content["kinds"]
    assert (erm["algorithm"], erm["n_jobs"], erm["states"]["failed"], erm["step"]) == ("ERM", 7, 1, 190)
    assert (fishr["algorithm"], fishr["states"]["not launched"], fishr["rate"], fishr["blocked"]) == (
        *("Fishr", 1, None, None),
    )
    by_state = {job["state"]: job for job in content["jobs"][:7]}
    assert [(state, job["step"], job["seconds_left"]) for state, job in by_state.items()] == [
        ("not launched", 0, None),
        ("queued", 0, None),
        ("running", 0, None),
        ("incomplete", 30, None),
        ("failed", 0, None),
        ("done", 100, None),
    ]
    running = content["jobs"][2]
    assert (running["step"], running["rate"], running["seconds_left"]) == (60, 0.5, 80.0)
    assert running["process"] == {"pid": 12, "host": "node1", "slurm_job": "7_3"}
    assert by_state["incomplete"]["task_outcome"] == "7_4 TIMEOUT"
    assert by_state["failed"]["failure"] == {
        **{"reason": "RuntimeError: no", "times": 2, "host": "node3", "at": LONG_AGO},
    }
    assert by_state["done"]["args"] == jobs[6].config.args()
    assert by_state["done"]["folder"] == str(jobs[6].folder)


def test_status_command(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Its output is one line, whatever the files of the jobs contain."""
    jobs = log_only(launch_words(tmp_path / "sweep"))
    fail(jobs[0], "\x1b[2J\ud800")
    jobs[1].folder.mkdir()
    write_lock(jobs[1].folder, live_owner(step=2, seconds=float("nan")))
    assert main(["status", "--output_dir", tmp_path / "sweep", "--json", "--failed"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    content = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["output_dir"] == str(tmp_path / "sweep")
    assert [job["state"] for job in content["jobs"]] == ["failed", "running", "not launched"]
    assert content["jobs"][0]["failure"]["times"] == 1
    assert content["jobs"][1]["rate"] is None
    assert content["jobs"][2]["args"] == jobs[2].config.args()
    assert "spec" not in content["jobs"][2]["args"]
    assert [job["job"] for job in content["jobs"]] == [job.folder.name for job in requested_jobs(tmp_path / "sweep")]


def test_launch_prints_nothing_but_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = launch_words(tmp_path / "sweep", "--json")
    jobs = jobs_of(words)
    fail(jobs[0], "why")
    assert main(words) == 1
    output = capsys.readouterr()
    first, cost, *events, last = [json.loads(line) for line in output.out.splitlines()]
    assert (first["event"], first["n_jobs"], first["to_run"]) == ("launched", 3, [j.folder.name for j in jobs[1:]])
    assert first["states"] == {**dict.fromkeys((s.value for s in JobState), 0), "failed": 1, "not launched": 2}
    assert (cost["event"], cost["n_jobs"], cost["updates"], cost["n_models"]) == ("estimate", 2, 6, 2)
    assert [(event["event"], event["job"]) for event in events] == [("done", job.folder.name) for job in jobs[1:]]
    assert (last["event"], last["states"]["done"], last["exit_status"]) == ("ended", 2, 1)
    assert output.err.startswith(f"3 jobs in {tmp_path / 'sweep'}: 2 not launched, 1 failed\nSkipping failed jobs")

    assert main([*words, "--retry_failed"]) == 0
    assert main(words) == 0
    events = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert events == ["launched", "estimate", "done", "ended", "launched", "ended"]
    assert main([*words, "--estimate"]) == 0
    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["launched"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dry_run"], "error: --json cannot be combined with --dry_run, which prints commands\n"),
        (["--no_skip_confirmation"], "error: --json requires --skip_confirmation or --estimate\n"),
    ],
)
def test_options_that_exclude_json(tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture):
    assert main(launch_words(tmp_path / "sweep", "--json", *words)) == 2
    assert capsys.readouterr() == ("", message)
    assert not (tmp_path / "sweep").exists()
