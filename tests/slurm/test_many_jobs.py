"""Many jobs in several arrays, launched by several processes at once."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from domainbed.sweep.queue import slurm_folder
from tests.slurm.sweeps import Finished, Sweep, check_done_once, finish, log_of, undisturbed

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

ALGORITHMS = ["ERM", "CORAL", "DANN", "IRM", "VREx", "Fish", "Fishr"]
GRID = ["--algorithms", *ALGORITHMS, "--n_hparams", "1", "--n_trials", "3", "--steps", "3"]
OPTIONS = ["--jobs_per_task", "6", "--slurm_array_parallelism", "4", "--slurm_extra", "comment=of the tests", "nice"]


@dataclass
class Launched:
    """A sweep, and the output of its launches."""

    sweep: Sweep
    dry_run: Finished
    simultaneous: list[Finished]
    third: Finished


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    sweep = Sweep(tmp_path_factory.mktemp("many") / "jobs", *GRID, "--hparams", '{"batch_size": 8}')
    dry_run = sweep.launch(*OPTIONS, "--dry_run")
    assert not sweep.folder.exists(), "a dry run writes nothing"
    launches = [sweep.start_launch(*OPTIONS) for _ in range(2)]
    simultaneous = [finish(launch) for launch in launches]
    return Launched(sweep, dry_run, simultaneous, sweep.launch(*OPTIONS))


def test_one_of_three_launches_submits_all_jobs(many: Launched):
    launches = [*many.simultaneous, many.third]
    assert [(launch.status, launch.stderr) for launch in launches] == [(3, "")] * 3
    assert sorted("SLURM job" in launch.stdout for launch in many.simultaneous) == [False, True]
    assert "SLURM job" not in many.third.stdout
    submissions = many.sweep.submissions()
    assert [len(tasks) for tasks in submissions] == [5, 5, 1], "arrays of this cluster have at most 5 tasks"
    names = [name for tasks in submissions for jobs in tasks.values() for name in jobs]
    assert sorted(names) == sorted(job.folder.name for job in many.sweep.jobs)


def test_dry_run_prints_the_submitted_scripts(many: Launched):
    first, note = many.dry_run.stderr.splitlines()
    assert (many.dry_run.status, first) == (0, f"63 jobs in {many.sweep.folder}: 63 not launched")
    assert note.startswith("note: jobs that end during the warm-up of their algorithm")
    files = slurm_folder(many.sweep.folder).glob("*/*_submission.sh")
    scripts = [path.read_text() for path in sorted(files, key=lambda path: int(path.parent.name))]
    assert many.dry_run.stdout == "".join(f"{script}\n" for script in scripts)
    for line in ("--array=0-4%4", "--comment='of the tests'", "--nice\n", "--mem=1200M", "--gpus-per-node=1"):
        assert many.dry_run.stdout.count(f"#SBATCH {line}") >= 2


def test_each_job_is_trained_once(many: Launched, tmp_path: Path):
    sweep = many.sweep
    expected = undisturbed(sweep.jobs, tmp_path)
    sweep.wait_until_done()
    check_done_once(sweep, expected)
    assert all(log_of(job).count("\nargs: ") == 1 for job in sweep.jobs)
    again = sweep.launch(*OPTIONS)
    assert (again.status, again.stdout) == (0, f"63 jobs in {sweep.folder}: 63 done\n")
