"""Recomputing a cell: equal records, differing records, and errors."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from domainbed.errors import UsageError
from domainbed.records import read_job
from domainbed.reporting.recomputed import EXPLANATION
from domainbed.scripts import recompute, sweep
from domainbed.sweep.launchers import LAUNCHERS
from tests.sweep.helpers import LauncherHere, launch_words

pytestmark = pytest.mark.usefixtures("quick_workers")

CELL = ["--dataset", "ColoredDigits", "--algorithm", "Misbehaving", "--test_env", "-90%"]


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    """`--command_launcher here` runs jobs in this process, with one thread, like `recompute`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with LAUNCHERS.temporarily("here", LauncherHere):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def original(here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 24 jobs: three environments and their pairs, two draws, two trials."""
    folder = tmp_path_factory.mktemp("original") / "sweep"
    assert sweep.main(launch_words(folder, "--leave_one_out", "--n_hparams", 2, "--n_trials", 2)) == 0
    return folder


@pytest.fixture
def repeated(original: Path, tmp_path: Path) -> Path:
    """A folder in which all runs of the cell have been trained again, with the same records."""
    folder = tmp_path / "again"
    for path in original.glob("*/done"):
        if read_job(path.parent)[0][0]["args"]["test_envs"] == [2]:
            shutil.copytree(path.parent, folder / path.parent.name)
    return folder


def recompute_cell(original: Path, folder: Path, *words: str) -> int:
    return recompute.main(["--input_dir", str(original), "--output_dir", str(folder), *CELL, *words])


def change(folder: Path, edit: Callable[[list[dict]], object]) -> None:
    """Rewrite a job's records."""
    records, _ = read_job(folder)
    edit(records)
    (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def folder_of(sweep_dir: Path, **args) -> Path:
    """Return the folder of the job with these arguments."""
    (found,) = [
        path.parent
        for path in sweep_dir.glob("*/done")
        if args.items() <= json.loads((path.parent / "results.jsonl").read_text().splitlines()[0])["args"].items()
    ]
    return found


@pytest.mark.slow
def test_records_are_reproduced(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """By worker processes. The second time, nothing is trained."""
    assert recompute_cell(original, tmp_path / "again") == 0
    output = capsys.readouterr().out
    assert f"4 runs to retrain in {tmp_path / 'again'}: 4 not launched" in output
    assert "4 of 4 runs reproduced their records bit for bit, except for times and memory.\n" in output
    mean, repeated_mean = output.partition("Original: ")[2].split("\nRepeated: ")
    assert repeated_mean == f"{mean}, from the same run and step in each trial\n"
    assert recompute_cell(original, tmp_path / "again") == 0
    second = capsys.readouterr().out
    assert second.startswith(f"4 runs to retrain in {tmp_path / 'again'}: 4 done\nMisbehaving on ColoredDigits")
    assert second.endswith(output[output.index("Misbehaving on ColoredDigits, test environment") :])
    assert not list((tmp_path / "again").glob("*/model.pkl"))


@pytest.mark.slow
def test_pairs_are_trained_for_leave_one_domain_out(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert recompute_cell(original, tmp_path / "again", "--selection", "leave-one-domain-out") == 0
    output = capsys.readouterr().out
    assert "12 of 12 runs reproduced their records" in output  # (2), (0, 2), (1, 2), of two draws and two trials
    seen = {tuple(read_job(path.parent)[0][0]["args"]["test_envs"]) for path in (tmp_path / "again").glob("*/done")}
    assert seen == {(2,), (0, 2), (1, 2)}


def test_differences_are_reported(original: Path, repeated: Path, capsys: pytest.CaptureFixture):
    """Even of a single bit."""
    one_bit = folder_of(repeated, test_envs=[2], hparams_seed=0, trial_seed=0)
    lost = folder_of(repeated, test_envs=[2], hparams_seed=1, trial_seed=0)
    other = folder_of(repeated, test_envs=[2], hparams_seed=1, trial_seed=1)
    loss = read_job(one_bit)[0][1]["loss"]
    change(one_bit, lambda records: records[1].update(loss=loss * (1 + 2**-52), step_time=5.0))
    change(lost, lambda records: records.pop(1))
    accuracy = read_job(other)[0][1]["env2_in_acc"]
    change(other, lambda records: records[1].update(env2_in_acc=accuracy + 0.125))
    assert recompute_cell(original, repeated) == 1
    output = capsys.readouterr().out
    assert "1 of 4 runs reproduced their records bit for bit" in output
    table = output[output.index("---\n") + 4 : output.index(f"\n\n{EXPLANATION}")]
    assert [line.split() for line in table.splitlines()] == [
        ["0", "0", "2", "2", "loss", str(loss), str(loss * (1 + 2**-52)), "0.00"],
        ["0", "1", "2", "2", "step", "2", "-", "0.00"],
        ["1", "1", "2", "2", "env2_in_acc", str(accuracy), str(accuracy + 0.125), "12.50"],
    ]


def test_different_selection_is_reported(original: Path, repeated: Path, capsys: pytest.CaptureFixture):
    for draw in (0, 1):
        best = folder_of(repeated, test_envs=[2], hparams_seed=draw, trial_seed=0)
        change(best, lambda records, draw=draw: records[draw].update(env0_out_acc=1.0, env1_out_acc=1.0 - draw / 8))
    assert recompute_cell(original, repeated) == 1
    assert "from different runs or steps (see list_top_hparams)" in capsys.readouterr().out


def test_times_memory_and_additional_metrics_may_differ(original: Path, repeated: Path, capsys: pytest.CaptureFixture):
    for path in list(repeated.glob("*/done")):
        change(path.parent, lambda records: [r.update(step_time=9.0, mem_gb=9.0, penalty=1.0) for r in records])
    assert recompute_cell(original, repeated) == 0
    assert "4 of 4 runs" in capsys.readouterr().out


@pytest.mark.slow
def test_failed_runs_are_retried(here: None, tmp_path: Path, capsys: pytest.CaptureFixture):
    cause = tmp_path / "cause"
    original = tmp_path / "original"
    assert sweep.main(launch_words(original, how="raise", cause=str(cause))) == 0
    cause.touch()
    assert recompute_cell(original, tmp_path / "again") == 1
    output = capsys.readouterr()
    assert "FAILED Misbehaving on ColoredDigits, test -90%" in output.err
    assert "Not all runs are done (1 failed); run the same command to resume" in output.err
    cause.unlink()
    assert recompute_cell(original, tmp_path / "again") == 0


def test_incomplete_runs_are_skipped(original: Path, repeated: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """In both cells, even if their records are the best."""
    part = Path(shutil.copytree(original, tmp_path / "part"))
    unfinished = folder_of(part, test_envs=[2], hparams_seed=1, trial_seed=1)
    change(unfinished, lambda records: records[0].update(env0_out_acc=1.0, env1_out_acc=1.0, env2_in_acc=0.0))
    (unfinished / "done").unlink()
    shutil.rmtree(repeated / unfinished.name)
    assert recompute_cell(part, repeated) == 0
    output = capsys.readouterr()
    assert output.err == "warning: skipping 1 of the cell's 4 runs, which are not done\n"
    assert "3 of 3 runs reproduced their records" in output.out
    assert "from the same run and step in each trial" in output.out


@pytest.mark.parametrize("where", [".", "../sweep", "in/it", "link"])
def test_output_dir_inside_input_dir(original: Path, where: str, tmp_path: Path):
    folder = original / where
    if where == "link":
        folder = tmp_path / "link"
        folder.symlink_to(original)
    with pytest.raises(UsageError, match="is inside --input_dir"):
        recompute_cell(original, folder)


def test_cell_without_finished_runs(original: Path, tmp_path: Path):
    half = Path(shutil.copytree(original, tmp_path / "half"))
    for path in list(half.glob("*/done")):
        path.unlink()
    with pytest.raises(UsageError, match=r"none of the cell's runs in .*half is done"):
        recompute_cell(half, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_output_dir_with_other_runs(original: Path, repeated: Path, tmp_path: Path):
    """They would be part of the repeated cell."""
    elsewhere = Path(shutil.copytree(original, tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match="elsewhere contains other runs; choose an empty folder"):
        recompute_cell(original, elsewhere)
    shutil.copytree(original / ".sweep" / "launches", repeated / ".sweep" / "launches")
    with pytest.raises(UsageError, match="again contains other runs; choose an empty folder"):
        recompute_cell(original, repeated)


def test_selection_method_that_cannot_select(here: None, tmp_path: Path):
    original = tmp_path / "original"
    assert sweep.main(launch_words(original)) == 0
    with pytest.raises(
        UsageError, match=r"from which leave-one-domain-out selects no record: it requires runs with each"
    ):
        recompute_cell(original, tmp_path / "again", "--selection", "leave-one-domain-out")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda record: record["hparams"].update(batch_size=5),
            r"the record of step 0 has batch_size 5, not 4; the run cannot be retrained here",
        ),
        (
            lambda record: record.update(environments=["+90%", "+70%", "-90%"]),
            r"has the environments \+90%, \+70%, -90%, but the dataset here has \+90%, \+80%, -90%; specify",
        ),
    ],
    ids=["hparams", "environments"],
)
def test_different_hparams_or_environments(
    original: Path, tmp_path: Path, edit: Callable[[dict], object], message: str
):
    other = Path(shutil.copytree(original, tmp_path / "other"))
    for path in list(other.glob("*/done")):
        change(path.parent, lambda records: [edit(record) for record in records])
    with pytest.raises(UsageError, match=message):
        recompute_cell(other, tmp_path / "again", "--test_env", "2")
    assert not (tmp_path / "again").exists()
