"""A cell trained again: alike to the bit, or where it is not; and what may come between."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from domainbed.errors import UsageError
from domainbed.records import read_job
from domainbed.scripts import recompute, sweep
from domainbed.sweep.launchers import LAUNCHERS
from tests.sweep.helpers import LauncherHere, launch_words, start_quickly

CELL = ["--dataset", "ColoredDigits", "--algorithm", "Misbehaving", "--test_env", "-90%"]


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    """`--command_launcher here` runs jobs in this process, by one thread, as `recompute` does."""
    LAUNCHERS._registered["here"] = LauncherHere
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    del LAUNCHERS._registered["here"]


@pytest.fixture(scope="module")
def kept(here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 24 jobs: three environments and their pairs, two draws, two trials."""
    folder = tmp_path_factory.mktemp("kept") / "sweep"
    assert sweep.main(launch_words(folder, "--leave_one_out", "--n_hparams", 2, "--n_trials", 2)) == 0
    return folder


@pytest.fixture
def there(kept: Path, tmp_path: Path) -> Path:
    """Where all runs of the cell were trained again already, and gave the same."""
    folder = tmp_path / "again"
    for path in kept.glob("*/done"):
        if read_job(path.parent)[0][0]["args"]["test_envs"] == [2]:
            shutil.copytree(path.parent, folder / path.parent.name)
    return folder


@pytest.fixture(autouse=True)
def quickly() -> Iterator[None]:
    undo = start_quickly()
    yield
    undo()


def again(kept: Path, folder: Path, *words: str) -> int:
    return recompute.main(["--input_dir", str(kept), "--output_dir", str(folder), *CELL, *words])


def change(folder: Path, edit: Callable[[list[dict]], object]) -> None:
    """Rewrite a job's records."""
    records, _ = read_job(folder)
    edit(records)
    (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def folder_of(sweep_dir: Path, **args) -> Path:
    """The folder of the job with these arguments."""
    (found,) = [
        path.parent
        for path in sweep_dir.glob("*/done")
        if args.items() <= json.loads((path.parent / "results.jsonl").read_text().splitlines()[0])["args"].items()
    ]
    return found


@pytest.mark.slow
def test_alike_to_the_bit(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Trained by worker processes, and not twice."""
    assert again(kept, tmp_path / "again") == 0
    told = capsys.readouterr().out
    assert f"4 runs, trained again in {tmp_path / 'again'}: 4 not launched" in told
    assert "4 of 4 runs gave the kept records, bit for bit (all figures but times and memory).\n" in told
    mine, theirs = told.partition("Kept:  ")[2].split("\nAgain: ")
    assert theirs == f"{mine}, from the same run and step in each trial\n"
    assert again(kept, tmp_path / "again") == 0
    second = capsys.readouterr().out
    assert second.startswith(f"4 runs, trained again in {tmp_path / 'again'}: 4 done\nMisbehaving on ColoredDigits")
    assert second.endswith(told[told.index("Misbehaving on ColoredDigits, test environment") :])
    assert not list((tmp_path / "again").glob("*/model.pkl"))


@pytest.mark.slow
def test_pairs_are_trained_again_where_they_choose(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert again(kept, tmp_path / "again", "--selection", "leave-one-domain-out") == 0
    told = capsys.readouterr().out
    assert "12 of 12 runs gave the kept records" in told  # (2), (0, 2), (1, 2), of two draws and two trials
    seen = {tuple(read_job(path.parent)[0][0]["args"]["test_envs"]) for path in (tmp_path / "again").glob("*/done")}
    assert seen == {(2,), (0, 2), (1, 2)}


def test_what_differs_is_told(kept: Path, there: Path, capsys: pytest.CaptureFixture):
    """Also the least there is: one bit of one loss."""
    one_bit = folder_of(there, test_envs=[2], hparams_seed=0, trial_seed=0)
    lost = folder_of(there, test_envs=[2], hparams_seed=1, trial_seed=0)
    other = folder_of(there, test_envs=[2], hparams_seed=1, trial_seed=1)
    loss = read_job(one_bit)[0][1]["loss"]
    change(one_bit, lambda records: records[1].update(loss=loss * (1 + 2**-52), step_time=5.0))
    change(lost, lambda records: records.pop(1))
    accuracy = read_job(other)[0][1]["env2_in_acc"]
    change(other, lambda records: records[1].update(env2_in_acc=accuracy + 0.125))
    assert again(kept, there) == 1
    told = capsys.readouterr().out
    assert "1 of 4 runs gave the kept records, bit for bit" in told
    table = told[told.index("---\n") + 4 : told.index("\n\nAnother processor")]
    assert [line.split() for line in table.splitlines()] == [
        ["0", "0", "2", "2", "loss", str(loss), str(loss * (1 + 2**-52)), "0.00"],
        ["0", "1", "2", "2", "step", "2", "-", "0.00"],
        ["1", "1", "2", "2", "env2_in_acc", str(accuracy), str(accuracy + 0.125), "12.50"],
    ]


def test_another_choice_is_told(kept: Path, there: Path, capsys: pytest.CaptureFixture):
    for draw in (0, 1):
        best = folder_of(there, test_envs=[2], hparams_seed=draw, trial_seed=0)
        change(best, lambda records, draw=draw: records[draw].update(env0_out_acc=1.0, env1_out_acc=1.0 - draw / 8))
    assert again(kept, there) == 1
    assert "from other runs or steps; list_top_hparams ranks them" in capsys.readouterr().out


def test_times_memory_and_what_was_not_kept_may_differ(kept: Path, there: Path, capsys: pytest.CaptureFixture):
    for path in list(there.glob("*/done")):
        change(path.parent, lambda records: [r.update(step_time=9.0, mem_gb=9.0, penalty=1.0) for r in records])
    assert again(kept, there) == 0
    assert "4 of 4 runs" in capsys.readouterr().out


@pytest.mark.slow
def test_what_failed_is_told_and_tried_again(here: None, tmp_path: Path, capsys: pytest.CaptureFixture):
    cause = tmp_path / "cause"
    kept = tmp_path / "kept"
    assert sweep.main(launch_words(kept, how="raise", cause=str(cause))) == 0
    cause.touch()
    assert again(kept, tmp_path / "again") == 1
    told = capsys.readouterr()
    assert "FAILED Misbehaving on ColoredDigits, test -90%" in told.err
    assert "Not all runs are done: 1 failed. The same command goes on." in told.err
    cause.unlink()
    assert again(kept, tmp_path / "again") == 0


def test_runs_that_are_not_done_are_left_out(kept: Path, there: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Of both cells: what is recorded of them may be the best there is."""
    part = Path(shutil.copytree(kept, tmp_path / "part"))
    unfinished = folder_of(part, test_envs=[2], hparams_seed=1, trial_seed=1)
    change(unfinished, lambda records: records[0].update(env0_out_acc=1.0, env1_out_acc=1.0, env2_in_acc=0.0))
    (unfinished / "done").unlink()
    shutil.rmtree(there / unfinished.name)
    assert again(part, there) == 0
    told = capsys.readouterr()
    assert told.err == "warning: 1 of the cell's 4 runs are not done, and left out\n"
    assert "3 of 3 runs gave the kept records" in told.out
    assert "from the same run and step in each trial" in told.out


@pytest.mark.parametrize("where", [".", "../sweep", "in/it", "link"])
def test_the_kept_folder_is_no_place_for_it(kept: Path, where: str, tmp_path: Path):
    folder = kept / where
    if where == "link":
        folder = tmp_path / "link"
        folder.symlink_to(kept)
    with pytest.raises(UsageError, match="lies in --input_dir"):
        again(kept, folder)


def test_a_cell_without_runs_that_are_done(kept: Path, tmp_path: Path):
    there = Path(shutil.copytree(kept, tmp_path / "half"))
    for path in list(there.glob("*/done")):
        path.unlink()
    with pytest.raises(UsageError, match=r"none of the cell's runs in .*half is done"):
        again(there, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_folder_with_other_runs_is_refused(kept: Path, there: Path, tmp_path: Path):
    """What they would add to the cell that is compared, nobody could tell."""
    elsewhere = Path(shutil.copytree(kept, tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match="elsewhere holds other runs; name an empty folder"):
        again(kept, elsewhere)
    shutil.copytree(kept / ".sweep" / "launches", there / ".sweep" / "launches")
    with pytest.raises(UsageError, match="again holds other runs; name an empty folder"):
        again(kept, there)


def test_a_method_that_can_choose_no_run(here: None, tmp_path: Path):
    kept = tmp_path / "kept"
    assert sweep.main(launch_words(kept)) == 0
    with pytest.raises(UsageError, match=r"from which leave-one-domain-out can't choose: it needs the runs with each"):
        again(kept, tmp_path / "again", "--selection", "leave-one-domain-out")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda record: record["hparams"].update(batch_size=5),
            r"the record of step 0 is of batch_size 5, not 4; it can't be trained again here",
        ),
        (
            lambda record: record.update(environments=["+90%", "+70%", "-90%"]),
            r"has the environments \+90%, \+70%, -90%, where there are \+90%, \+80%, -90% here; --data_dir",
        ),
    ],
    ids=["hparams", "environments"],
)
def test_what_is_another_here(kept: Path, tmp_path: Path, edit: Callable[[dict], object], message: str):
    other = Path(shutil.copytree(kept, tmp_path / "other"))
    for path in list(other.glob("*/done")):
        change(path.parent, lambda records: [edit(record) for record in records])
    with pytest.raises(UsageError, match=message):
        again(other, tmp_path / "again", "--test_env", "2")
    assert not (tmp_path / "again").exists()
