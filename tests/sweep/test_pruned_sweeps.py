"""Pruned sweeps: which jobs stop, that nothing else changes, and that they resume as if they had never stopped."""

import os
import pickle
import random
import shlex
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import domainbed.engine.train
from domainbed.engine.control import JobControl
from domainbed.engine.interrupts import Pruned
from domainbed.engine.lock import LOCK_FILE
from domainbed.engine.train import train as train_job
from domainbed.errors import UsageError
from domainbed.model_selection import training_domain
from domainbed.pruning import PruneOptions
from domainbed.records import PruneDecision, append_record, is_pruned, read_job, read_pruned, validation_accuracy
from domainbed.reporting.formats.render import render
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import make_report
from domainbed.scripts import sweep_parser, train
from domainbed.sweep.job import Job
from domainbed.sweep.json_output import status_object
from domainbed.sweep.launchers import LAUNCHERS, accept_launcher
from domainbed.sweep.launchers.slurm_task import Task
from domainbed.sweep.log import log_launch, read_launches
from domainbed.sweep.peers import Pruner, best_accuracy, find_peers
from domainbed.sweep.status import JobState, read_status, survey
from tests.conftest import make_record
from tests.processes import wait_until
from tests.sweep.helpers import (
    jobs_of,
    launch_words,
    log_only,
    main,
    make_job,
    records,
    run_here,
    start_launch,
    states,
    steps_recorded,
)

GRID = ("--n_hparams", 6, "--n_trials", 1, "--test_envs", 0, "--steps", 301)
DONE, PRUNED = JobState.DONE, JobState.PRUNED


def words(folder: Path, *others: object, **hparams: object) -> list[str]:
    return launch_words(folder, *GRID, *others, **hparams)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """The jobs of the grid, by the names of their folders, if nothing is pruned."""
    folder, threads = tmp_path_factory.mktemp("full"), torch.get_num_threads()
    jobs = jobs_of(words(folder, launcher="local"))
    torch.set_num_threads(1)
    run_here(*jobs)
    torch.set_num_threads(threads)
    assert set(states(jobs)) == {DONE}
    return {job.folder.name: job for job in jobs}


def best(job: Job, step: int) -> float:
    return max(validation_accuracy(r) for r in read_job(job.folder)[0] if r["step"] <= step)


def check_pruned(jobs: Sequence[Job], full: dict[str, Job]) -> int:
    """Check jobs that are done or pruned, and return how many are pruned."""
    assert {*states(jobs)} <= {DONE, PRUNED}
    options = PruneOptions("asha", 2)
    by_name = {job.folder.name: job for job in jobs}
    finished = max(best(job, 300) for job in jobs if read_status(job.folder).state == DONE)
    n_pruned = 0
    for name, job in by_name.items():
        assert not (job.folder / LOCK_FILE).exists()
        assert records(full[name]).startswith(records(job))
        steps = steps_recorded(job)
        if decision := read_pruned(job.folder):
            n_pruned += 1
            assert steps == list(range(0, decision.step + 1, 100))
            assert decision.accuracy == best(job, decision.step) < finished
            assert decision.peers == {peer: best(by_name[peer], decision.step) for peer in decision.peers}
            assert options.should_stop(decision.accuracy, list(decision.peers.values()))
            assert (job.folder / "checkpoint.pt").exists()
        else:
            assert steps == [0, 100, 200, 300]
            assert not (job.folder / "checkpoint.pt").exists()
    return n_pruned


def assert_equals_full(jobs: Sequence[Job], full: dict[str, Job]) -> None:
    assert {job.folder.name: records(job) for job in jobs} == {name: records(job) for name, job in full.items()}


def test_pruned_sweep_from_launch_to_table(tmp_path: Path, full: dict[str, Job], capsys: pytest.CaptureFixture):
    folder = tmp_path / "pruned"
    prune = words(folder, "--prune", "asha")
    jobs = jobs_of(prune)
    assert [job.folder.name for job in jobs] == list(full), "pruning does not change the identity of jobs"
    assert main(prune) == 0, capsys.readouterr().err
    n = check_pruned(jobs, full)
    # Draw after draw: a job is compared with those before it.
    reached: dict[int, list[float]] = {100: [], 200: []}
    for job in jobs:
        expected = 300
        for step, peers in reached.items():
            accuracy = best(full[job.folder.name], step)
            is_stopped = PruneOptions("asha").should_stop(accuracy, peers)
            peers.append(accuracy)
            if is_stopped:
                expected = step
                break
        assert steps_recorded(job)[-1] == expected
    assert 0 < n < 6

    output = capsys.readouterr().out
    assert f"{n} pruned, {6 - n} done after" in output
    assert "with --prune, this is an upper bound" in output
    assert main(["status", "--output_dir", folder]) == 0
    saved = 6 * 301 - sum(steps_recorded(job)[-1] + 1 for job in jobs)
    assert f"{6 - n} of 6 jobs done, {n} pruned, which saves {saved:,} updates;" in capsys.readouterr().out
    shown = status_object(folder, survey(jobs), {})
    assert shown["states"]["pruned"] == n
    assert shown["step"] == shown["steps"] == 6 * 301 - saved
    for job, item in zip(jobs, shown["jobs"], strict=True):
        decision = read_pruned(job.folder)
        assert item["pruned"] == (vars(decision) if decision else None)

    # Neither launch runs pruned jobs again.
    assert main(prune) == 0
    assert main(words(folder)) == 3, "without --prune, they are not finished"
    assert "Skipping pruned jobs (`--unprune` resumes them)" in capsys.readouterr().out
    assert check_pruned(jobs, full) == n

    # The table selects the same run as if pruned runs counted, and says that they are missing.
    loaded = load_sweep(str(folder))
    report = make_report(loaded, ReportOptions(selection=("training-domain", "test-domain")))
    for section in report.sections:
        (cell,) = [c for t in section.tables if t.name == "ColoredDigits" for c in t.cells if c.column == "+90%"]
        assert cell.mark == "^"
        assert cell.counts == f"1 of 1 trials, {6 - n} of 6 runs done ({n} pruned)"
        assert loaded.jobs.loc[section.best["folder"], "done"].all()
    everything = training_domain(loaded.records).sort_values("val_acc")
    assert report.sections[0].best["folder"].item() == everything["folder"].iloc[-1]
    assert report.notes[0].startswith(f"{n} of 6 runs were pruned (asha, factor 2, grace 0.1): ")
    assert report.notes[0].endswith(
        "With test-domain, cells may differ more: these methods might have selected pruned runs."
    )

    # They resume as if they had never stopped.
    assert main(words(folder, "--unprune")) == 0
    assert set(states(jobs)) == {DONE}
    assert_equals_full(jobs, full)
    assert load_sweep(str(folder)).select("training-domain")["folder"].nunique() == 6
    assert capsys.readouterr().out.count("Resuming from checkpoint at step") == n


def test_unpruned_job_has_the_weights_of_a_full_one(tmp_path: Path):
    """Not only its records."""
    weights = []
    for name, prune_at in (("full", ()), ("pruned", (1, 2, 3))):
        job = make_job(tmp_path / name, steps=5)
        for step in prune_at:
            decision = PruneDecision(step, "a rule", 0.5, {"peer": 0.6})
            with pytest.raises(Pruned, match=f"pruned at step {step}: 1 of 1 other draws are better"):
                train_job(job.config, JobControl(should_prune={step: decision}.get))
            assert steps_recorded(job)[-1] == step
            assert read_pruned(job.folder) == decision
            assert not (job.folder / "checkpoint_previous.pt").exists()
        train_job(job.config)
        assert read_status(job.folder).state == DONE
        assert not is_pruned(job.folder)
        weights.append(torch.load(job.folder / "model.pkl", weights_only=True)["model_dict"])
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_killed_and_simultaneous_launches(tmp_path: Path, full: dict[str, Job], seed: int):
    """Two launches at once, one of which is killed with its workers at a random time, and a third one."""
    folder = tmp_path / "sweep"
    prune = words(folder, "--prune", "asha", "--workers", 1, launcher="local")
    jobs = jobs_of(prune)
    killed, other = (start_launch(prune, tmp_path / f"{i}.log") for i in range(2))
    wait_until(lambda: any((job.folder / "results.jsonl").exists() for job in jobs))
    time.sleep(random.Random(seed).random())
    with suppress(ProcessLookupError):  # the other one may have left it nothing to do
        os.kill(killed.pid, signal.SIGKILL)
    for job in jobs:
        if (owner := read_status(job.folder).owner) and owner.parent == killed.pid:
            with suppress(ProcessLookupError):
                os.kill(owner.pid, signal.SIGKILL)
    killed.join()
    other.join()
    assert main(prune) == 0, (tmp_path / "1.log").read_text()
    assert 0 < check_pruned(jobs, full) < 6


def test_a_job_killed_before_it_is_marked_is_compared_again(
    tmp_path: Path, full: dict[str, Job], monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "sweep"
    prune = words(folder, "--prune", "asha")
    jobs = jobs_of(prune)

    class Killed(BaseException):
        pass

    def die(folder, decision):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(domainbed.engine.train, "mark_pruned", die)
        with pytest.raises(Killed):
            main(prune)
    (killed,) = (job for job in jobs if read_status(job.folder).state == JobState.INCOMPLETE)
    before = (killed.folder / "results.jsonl").read_bytes()
    assert main(prune) == 0
    assert read_status(killed.folder).state == PRUNED
    assert (killed.folder / "results.jsonl").read_bytes() == before
    assert check_pruned(jobs, full) > 0


def test_functions_of_command_lines_prune(tmp_path: Path, full: dict[str, Job]):
    folder = tmp_path / "sweep"
    statuses = []

    def run_commands(commands):
        for command in commands:
            statuses.append(train.main(shlex.split(command)[3:]))

    with LAUNCHERS.temporarily("commands", accept_launcher("commands", run_commands)):
        prune = words(folder, "--prune", "asha", launcher="commands")
        assert main(prune) == 0
    jobs = jobs_of(prune)
    n = check_pruned(jobs, full)
    assert n > 0
    assert statuses == [0] * 6
    (first, *_) = [job for job in jobs if read_pruned(job.folder)]
    before = (first.folder / "results.jsonl").read_bytes()
    assert train.main(replace(first, pruning=PruneOptions("asha")).command()[3:]) == 0, "as if submitted twice"
    assert (first.folder / "results.jsonl").read_bytes() == before
    assert train.main(replace(first, pruning=None).command()[3:]) == 0, "by hand, it runs to its end"
    assert records(first) == records(full[first.folder.name])
    assert read_status(first.folder).state == DONE


def test_requeued_slurm_task_skips_pruned_jobs(tmp_path: Path, full: dict[str, Job], monkeypatch: pytest.MonkeyPatch):
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.setenv(name, "1")
    prune = words(tmp_path, "--prune", "asha")
    log_launch(tmp_path, sweep_parser.grid_of(sweep_parser.parse_args(prune)))
    jobs = pickle.loads(pickle.dumps(jobs_of(prune)))
    siblings = {jobs[0].kind: [job.folder.name for job in jobs]}
    ended = Task(60)(jobs, siblings)
    n = check_pruned(jobs, full)
    assert list(ended.values()).count("pruned") == n > 0
    assert Task(60)(jobs, siblings) == {}
    assert check_pruned(jobs, full) == n


def test_archives_and_deletion(tmp_path: Path, full: dict[str, Job], capsys: pytest.CaptureFixture):
    folder, archive = tmp_path / "sweep", tmp_path / "sweep.tar.xz"
    prune = words(folder, "--prune", "asha")
    assert main(prune) == 0
    jobs = jobs_of(prune)
    n = check_pruned(jobs, full)
    assert main(["export", "--output_dir", folder, "--archive", archive]) == 0
    assert f"6 jobs written to {archive}" in capsys.readouterr().out

    shutil.unpack_archive(archive, tmp_path / "unpacked")
    reports = [make_report(load_sweep(str(path)), ReportOptions()) for path in (folder, tmp_path / "unpacked")]
    first, second = (render(report, "text", tmp_path) for report in reports)
    assert first == second

    again = words(tmp_path / "again", "--prune", "asha", "--import_results", archive)
    assert main(again) == 0
    imported = jobs_of(again)
    assert states(imported) == states(jobs)
    for before, after in zip(jobs, imported, strict=True):
        assert records(before) == records(after)
        assert read_pruned(before.folder) == read_pruned(after.folder)
    assert "6 jobs imported" in capsys.readouterr().out
    unpruned = words(tmp_path / "again", "--unprune")  # without checkpoints, they start over
    assert main(unpruned) == 0
    assert_equals_full(imported, full)

    assert main(words(tmp_path / "complete", "--import_results", archive)) == 0
    output = capsys.readouterr().out
    assert f"{6 - n} jobs imported" in output
    assert f"{n} that are pruned (`--prune` imports them)" in output
    assert_equals_full(jobs_of(words(tmp_path / "complete")), full)

    delete = ["delete_incomplete", "--output_dir", folder, "--skip_confirmation"]
    assert main(delete) == 0
    assert states(jobs).count(PRUNED) == n
    assert main([*delete, "--pruned"]) == 3
    assert states(jobs).count(JobState.NOT_LAUNCHED) == n
    assert states(jobs).count(DONE) == 6 - n


# --- peers

NAMES = st.sampled_from(["absent", "empty", "torn", "behind", "NaN", "no accuracy", "a folder", "good", "ahead"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(NAMES, st.integers(0, 8), st.integers(0, 8)), min_size=5, max_size=5), st.integers(0, 8))
def test_only_usable_peers_count(tmp_path_factory, peers: list[tuple[str, int, int]], own: int):
    """Damaged and missing records are ignored, and accuracies of the test environment never count."""
    folder = tmp_path_factory.mktemp("peers")
    args = sweep_parser.parse_args(words(folder, "--prune", "asha"))
    log_launch(folder, sweep_parser.grid_of(args))
    first, *others = jobs_of(words(folder, "--prune", "asha"))
    usable = []
    write(first, (0, own), (100, own))
    for job, (kind, accuracy, test_accuracy) in zip(others, peers, strict=True):
        steps = {"behind": (0,), "ahead": (0, 100, 200)}.get(kind, (0, 100))
        if kind != "absent":
            write(job, *((step, accuracy) for step in steps), test_accuracy=test_accuracy)
        file = job.folder / "results.jsonl"
        if kind == "empty":
            file.write_bytes(b"")
        elif kind == "torn":
            file.write_bytes(file.read_bytes()[:-5])
        elif kind == "NaN":
            file.write_text(file.read_text().replace(f'"env1_out_acc": {accuracy / 8}', '"env1_out_acc": NaN'))
        elif kind == "no accuracy":
            file.write_text(file.read_text().replace("_out_acc", "_acc"))
        elif kind == "a folder":
            file.unlink()
            file.mkdir()
        if kind in ("good", "ahead"):
            usable.append(accuracy / 8)
            assert best_accuracy(job.folder, 100) == accuracy / 8
        else:
            assert best_accuracy(job.folder, 100) is None
    decision = Pruner(first)(100)
    assert Pruner(first)(0) is None, "not a rung"
    assert (decision is not None) == PruneOptions("asha").should_stop(own / 8, usable)
    assert decision is None or sorted(decision.peers.values()) == sorted(usable)


def write(job: Job, *evaluations: tuple[int, int], test_accuracy: int = 4) -> None:
    job.folder.mkdir(parents=True)
    for step, accuracy in evaluations:
        out = (test_accuracy / 8, accuracy / 8, accuracy / 8)
        append_record(job.folder, make_record("ColoredDigits", "Misbehaving", (0,), 0, 0, step, out, out))


def test_peers_are_the_draws_of_all_launches_with_the_same_arguments(tmp_path: Path):
    """Also those that another machine launched; not those with another number of steps, and none of a broken log."""

    def log(*others: object) -> list[Job]:
        launch = words(tmp_path, "--prune", "asha", *others)
        log_launch(tmp_path, sweep_parser.grid_of(sweep_parser.parse_args(launch)))
        assert read_launches(tmp_path)[-1][0].pruning == PruneOptions("asha"), "the log says so"
        return jobs_of(launch)

    first = log("--n_hparams", 2)
    second = log("--n_hparams_from", 2, "--n_hparams", 5)
    log("--steps", 201)
    log("--seed", 1)
    (tmp_path / ".sweep" / "launches" / "broken.json").write_text("{")
    for job in (*first, *second):
        assert set(find_peers(job)) == {other.folder.name for other in (*first, *second)}


# --- mistakes


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"step": 1}', b'{"step": 1, "rule": "r", "accuracy": "high", "peers": {}}']
)
def test_damaged_decision(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture):
    """The job is pruned, but nobody knows why."""
    (job, *_) = log_only(words(tmp_path, "--prune", "asha"))
    write(job, (0, 4), (100, 4))
    (job.folder / "pruned.json").write_bytes(content)
    assert read_pruned(job.folder) is None
    assert read_status(job.folder).state == PRUNED
    assert status_object(tmp_path, survey([job]), {})["jobs"][0]["pruned"] == {}
    assert load_sweep(str(tmp_path)).rules == []
    assert main(["export", "--output_dir", tmp_path, "--archive", tmp_path / "a.tar.xz"]) == 2
    assert "pruned.json is damaged" in capsys.readouterr().err


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture):
    for options, message in {
        ("--prune", "asha", "--unprune"): "--unprune cannot be combined with --prune: it runs all jobs to their end",
        ("--prune", "median", "--averaging", "swad"): "--averaging swad: only its last record counts",
    }.items():
        assert main(words(tmp_path, *options)) == 2
        assert message in capsys.readouterr().err
    pairs = launch_words(tmp_path, "--leave_one_out", "--prune", "asha")
    assert main(pairs) == 2
    assert "--prune cannot be combined with --leave_one_out: leave-one-domain-out" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--prune compares the jobs of a sweep, but --output_dir train_output is not"):
        train.main(["--dataset", "ColoredDigits", "--prune", "asha"])
    assert not any(tmp_path.iterdir())
