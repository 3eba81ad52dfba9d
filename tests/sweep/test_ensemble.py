"""Ensembles of the models of a sweep, against averages and votes computed one model at a time."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from domainbed.compute import featurizers_of
from domainbed.engine.config import JobConfig
from domainbed.engine.data import load_data
from domainbed.engine.ensemble import average_weights
from domainbed.engine.evaluate import split_means
from domainbed.engine.model import load_model
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.records import PruneDecision, mark_pruned, read_job, validation_accuracy
from domainbed.reporting.load import load_sweep
from domainbed.scripts import collect_results, ensemble, recompute
from domainbed.sweep.ensemble import METHODS, Selection, count_unfinished, find_groups
from domainbed.sweep.grid import Grid
from domainbed.sweep.log import log_launch, requested_jobs

ENVS = range(6)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep of one test environment: three draws of two trials, all from one network."""
    folder = tmp_path_factory.mktemp("ensembles")
    train(JobConfig("RotatedDigits", "ERM", (2,), steps=1, output_dir=str(folder / "init")))
    shared = {"init_from": str(folder / "init" / "model.pkl"), "save_best_model": True, "steps": 21}
    for hparams_seed, trial_seed in itertools.product(range(3), range(2)):
        where = folder / "sweep" / f"{hparams_seed}-{trial_seed}"
        hparams = json.dumps({"batch_size": 8, "lr": (0.01, 0.002, 0.03)[hparams_seed]})
        seeds = {"hparams_seed": hparams_seed, "trial_seed": trial_seed, "seed": 3 * trial_seed + hparams_seed}
        job = JobConfig(
            "RotatedDigits", "ERM", (2,), **seeds, **shared, checkpoint_freq=4, hparams=hparams, output_dir=str(where)
        )
        train(job)
    return folder / "sweep"


def run(sweep: Path, method: str, *words: object) -> dict[int, dict]:
    """Run the command, and return the record of each trial."""
    output = sweep.parent / method
    words = ("--input_dir", sweep, "--method", method, "--output_dir", output, *words)
    assert ensemble.main(list(map(str, words))) == 0
    records = [read_job(path.parent)[0] for path in output.glob("*/results.jsonl")]
    assert all(len(of_job) == 1 for of_job in records)
    return {record["args"]["trial_seed"]: record for (record,) in records}


def images(trial_seed: int, env: int, part: str) -> tuple[torch.Tensor, np.ndarray]:
    job = JobConfig("RotatedDigits", "ERM", (2,), trial_seed=trial_seed)
    dataset, splits = load_data(job, job.resolved_hparams())
    indices = splits[env].parts()[part]
    x = torch.as_tensor(np.asarray(dataset[env].images[indices])).float()
    return (x / 255 if x.max() > 1 else x), np.asarray(dataset[env].labels[indices])


def mean_model(folders: list[Path]) -> torch.nn.Module:
    dicts = [torch.load(folder / "model_best.pkl")["model_dict"] for folder in folders]
    model = load_model(folders[0] / "model_best.pkl").algorithm
    model.load_state_dict({name: torch.stack([d[name] for d in dicts]).mean(0) for name in dicts[0]})
    return model


def members(sweep: Path, trials: tuple[int, ...]) -> list[Path]:
    return [sweep / f"{draw}-{trial}" for trial in trials for draw in range(3)]


def accuracy(predict, trial_seed: int, env: int, *parts: str) -> float:
    correct = []
    for part in parts:
        x, y = images(trial_seed, env, part)
        with torch.no_grad():
            correct.append(predict(x).argmax(1).numpy() == y)
    return float(np.concatenate(correct).mean())


def assert_is(record: dict, predict, trial_seed: int) -> None:
    for env, part in [*((env, "out") for env in ENVS), (2, "in")]:
        assert record[f"env{env}_{part}_acc"] == pytest.approx(accuracy(predict, trial_seed, env, part), abs=1e-6)
    assert record["test_accuracy"] == pytest.approx(accuracy(predict, trial_seed, 2, "in", "out"), abs=1e-6)


def test_best_model_is_that_of_the_best_record(sweep: Path):
    steps = set()
    for folder in members(sweep, (0, 1)):
        records = read_job(folder)[0]
        best = max(records, key=validation_accuracy)  # the first of equals
        steps.add(best["step"])
        model = load_model(folder / "model_best.pkl")
        assert best["env2_in_acc"] == pytest.approx(accuracy(model.predict, int(folder.name[-1]), 2, "in"), abs=1e-6)
    assert len(steps) > 1


def test_uniform_average_of_weights(sweep: Path):
    records = run(sweep, "diwa_uniform")
    for trial in (0, 1):
        assert_is(records[trial], mean_model(members(sweep, (trial,))).predict, trial)
    (record,) = run(sweep, "diwa_all_trials").values()
    assert_is(record, mean_model(members(sweep, (0, 1))).predict, 0)


def test_restricted_average_of_weights(sweep: Path):
    records = run(sweep, "diwa_restricted")
    n_members = set()
    for trial in (0, 1):
        scores = {f: max(map(validation_accuracy, read_job(f)[0])) for f in members(sweep, (trial,))}
        chosen: list[Path] = []
        best = 0.0
        for folder in sorted(scores, key=lambda f: -scores[f]):
            model = mean_model([*chosen, folder])
            correct = []
            for env in (0, 1, 3, 4, 5):
                x, y = images(trial, env, "out")
                correct.append(model.predict(x).argmax(1).numpy() == y)
            if (score := np.concatenate(correct).mean()) >= best:
                chosen.append(folder)
                best = score
        assert records[trial]["args"]["members"] == [folder.name for folder in chosen]
        assert_is(records[trial], mean_model(chosen).predict, trial)
        n_members.add(len(chosen))
    assert n_members - {3}, "a model is left out"


def test_mean_of_logits(sweep: Path):
    records = run(sweep, "ensemble")
    for trial in (0, 1):
        models = [load_model(folder / "model_best.pkl") for folder in members(sweep, (trial,))]
        assert_is(records[trial], lambda x, models=models: sum(model.predict(x) for model in models), trial)


def test_tables_show_ensembles_beside_the_runs(sweep: Path, capsys: pytest.CaptureFixture):
    for method in ("diwa_uniform", "ensemble"):
        assert ensemble.main(["--input_dir", str(sweep), "--method", method]) == 0
        assert "2 evaluated, 0 existed" in capsys.readouterr().out
        assert ensemble.main(["--input_dir", str(sweep), "--method", method]) == 0
        assert "0 evaluated, 2 existed" in capsys.readouterr().out
    loaded = load_sweep(str(sweep))
    (problem,) = loaded.problems
    assert "different arguments" in problem, "of the runs, which have other learning rates"
    assert set(loaded.runs["algorithm"]) == {"ERM", "ERM+DiWA-uniform", "ERM+ensemble"}
    for method in ("training-domain", "test-domain"):
        selected = loaded.select(method)
        assert (selected["algorithm"] == "ERM+DiWA-uniform").sum() == 2
    collect_results.main(["--input_dir", str(sweep)])
    assert "ERM+DiWA-uniform" in capsys.readouterr().out
    page = sweep.parent / "report.html"
    collect_results.main(["--input_dir", str(sweep), "--format", "html", "--output", str(page)])
    assert "ERM+DiWA-uniform" in page.read_text()
    cell = ["--dataset", "RotatedDigits", "--algorithm", "ERM+ensemble", "--test_env", "30"]
    with pytest.raises(UsageError, match="is an ensemble of other runs, which cannot be retrained"):
        recompute.main(["--input_dir", str(sweep), *cell, "--output_dir", str(sweep.parent / "again")])
    (folder,) = [g.folder for g in find_groups(sweep, sweep, "ensemble") if g.trial_seed == 0]
    record = read_job(folder)[0][0]
    record["args"]["candidates"].pop()  # of fewer runs
    (folder / "results.jsonl").write_text(json.dumps(record) + "\n")
    assert ensemble.main(["--input_dir", str(sweep), "--method", "ensemble"]) == 0
    assert "1 evaluated, 1 existed" in capsys.readouterr().out


def test_requirements_are_explained(sweep: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="eoa requires runs trained with weight averaging"):
        find_groups(sweep, sweep, "eoa")
    with pytest.raises(UsageError, match="contains no finished runs"):
        find_groups(tmp_path, tmp_path, "ensemble")
    with pytest.raises(UsageError, match="invalid --method 'vote'"):
        ensemble.main(["--input_dir", str(sweep), "--method", "vote"])
    job = {"dataset": "ColoredDigits", "algorithm": "ERM", "test_envs": (2,), "steps": 1}
    train(JobConfig(**job, output_dir=str(tmp_path / "s" / "a")))
    with pytest.raises(UsageError, match=r"1 of 1 finished runs have no model_best.pkl, such as a; launch with --save"):
        find_groups(tmp_path / "s", tmp_path / "s", "ensemble")
    train(JobConfig(**job, save_best_model=True, output_dir=str(tmp_path / "t" / "a")))
    for method in METHODS:
        if method.startswith("diwa"):
            with pytest.raises(UsageError, match=r"requires that all runs start from the same network.*--init_from"):
                find_groups(tmp_path / "t", tmp_path / "t", method)
    assert len(find_groups(tmp_path / "t", tmp_path / "t", "ensemble")) == 1
    train(JobConfig(**{**job, "dataset": "RotatedDigits"}, output_dir=str(tmp_path / "r")))
    with pytest.raises(UsageError, match="their networks differ"):
        average_weights(
            [tmp_path / "r" / "model.pkl", tmp_path / "t" / "a" / "model.pkl"], lambda path: load_model(path).algorithm
        )


def test_runs_can_be_selected_and_missing_ones_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture):
    job_args = {"steps": 1, "save_best_model": True}
    grid = Grid(("ColoredDigits",), ("ERM", "CORAL"), n_hparams=2, n_trials=1, test_envs=((2,),), job_args=job_args)
    folder = tmp_path / "sweep"
    log_launch(folder, grid)
    jobs = requested_jobs(folder)
    for job in jobs[:3]:  # both draws of ERM, and one of CORAL
        train(JobConfig(**{name: value for name, value in vars(job.config).items() if name != "spec"}))
    words = ["--input_dir", str(folder), "--method", "ensemble"]
    assert ensemble.main([*words, "--algorithms", "ERM"]) == 0
    captured = capsys.readouterr()
    assert "1 ensembles of 2 runs" in captured.out
    assert captured.err.count("warning") == 0, "all of ERM's runs are done"
    assert ensemble.main(words) == 0
    captured = capsys.readouterr()
    assert "2 ensembles of 3 runs" in captured.out
    assert "warning: 1 requested run is not done and not part of the ensembles" in captured.err
    jobs[3].folder.mkdir()
    mark_pruned(jobs[3].folder, PruneDecision(0, "median", 0.5, {}))
    assert count_unfinished(folder, "ensemble", Selection()) == 0
    with pytest.raises(UsageError, match="--algorithms CORLA: no finished runs; did you mean CORAL"):
        ensemble.main([*words, "--algorithms", "ERM", "CORLA"])
    with pytest.raises(UsageError, match="--datasets PACS: no finished runs; choose from ColoredDigits"):
        ensemble.main([*words, "--datasets", "PACS"])


def test_each_ensemble_may_have_a_start_of_its_own(tmp_path: Path):
    """Models of different algorithms, and trials, are never averaged, so they may start from different networks."""
    job = {"dataset": "ColoredDigits", "test_envs": (2,), "steps": 1, "save_best_model": True}
    sweep = tmp_path / "sweep"
    for algorithm, trial in (("ERM", 0), ("ERM", 1), ("CORAL", 0)):
        name = f"{algorithm}-{trial}"
        train(JobConfig(**job, algorithm=algorithm, seed=trial, output_dir=str(tmp_path / name)))
        init = str(tmp_path / name / "model.pkl")
        train(
            JobConfig(**job, algorithm=algorithm, trial_seed=trial, init_from=init, output_dir=str(sweep / name)),
        )
    assert len(find_groups(sweep, sweep, "diwa_uniform")) == 3
    with pytest.raises(UsageError, match=r"but those of ERM on ColoredDigits, test \[2\], do not; launch with"):
        find_groups(sweep, sweep, "diwa_all_trials")


def test_ensemble_of_averages(tmp_path: Path):
    """EoA: over the trials, of the runs with averages alone."""
    job = {"dataset": "RotatedDigits", "algorithm": "ERM", "test_envs": (2,), "steps": 3, "save_best_model": True}
    for trial, averaging in itertools.product(range(2), ("sma", "none")):
        where = tmp_path / "sweep" / f"{trial}-{averaging}"
        train(JobConfig(**job, trial_seed=trial, seed=trial, averaging=averaging, output_dir=str(where)))
    (record,) = run(tmp_path / "sweep", "eoa").values()
    models = [load_model(tmp_path / "sweep" / f"{trial}-sma" / "model_best.pkl") for trial in range(2)]
    assert_is(record, lambda x: sum(model.predict(x) for model in models), 0)
    (algorithm,) = load_sweep(str(tmp_path / "eoa")).runs["algorithm"].unique()
    assert algorithm == "ERM+SMA+EoA"


def test_initial_weights(sweep: Path, tmp_path: Path):
    init = sweep.parent / "init" / "model.pkl"
    job = {"dataset": "RotatedDigits", "algorithm": "ERM", "test_envs": (2,), "steps": 1}
    still = {"hparams": '{"lr": 1e-30, "batch_size": 4}'}
    train(JobConfig(**job, **still, seed=5, init_from=str(init), output_dir=str(tmp_path / "a")))
    first, second = (torch.load(path)["model_dict"] for path in (init, tmp_path / "a" / "model.pkl"))
    assert all(torch.equal(first[name], second[name]) for name in first)

    copy = tmp_path / "copy.pkl"
    copy.write_bytes(init.read_bytes())
    names = {JobConfig(**job, init_from=str(path)).name() for path in (init, copy)}
    assert len(names) == 1, "the content counts, not the path"
    assert JobConfig(**job).name() not in names
    log_launch(tmp_path / "sweep", grid := Grid.from_args(launch_args(copy)))
    name = grid.jobs(tmp_path / "sweep")[0].folder.name
    copy.write_bytes(init.read_bytes() + b" ")
    config = requested_jobs(tmp_path / "sweep")[0].config
    assert config.name() == name
    with pytest.raises(UsageError, match=r"copy.pkl has changed since the job was launched"):
        train(config)
    copy.unlink()
    assert requested_jobs(tmp_path / "sweep")[0].folder.name == name
    with pytest.raises(UsageError, match=r"--init_from .*copy.pkl: No such file"):
        JobConfig(**job, init_from=str(copy))
    with pytest.raises(UsageError, match="is not a model of ERM on ColoredDigits"):
        train(JobConfig(**{**job, "dataset": "ColoredDigits"}, init_from=str(init), output_dir=str(tmp_path / "b")))


def launch_args(init: Path) -> dict:
    from domainbed.scripts import sweep_parser as command

    words = ["launch", "--datasets", "RotatedDigits", "--algorithms", "ERM", "--n_hparams", "1", "--n_trials", "1"]
    args = command.parse_args([*words, "--init_from", str(init), "--output_dir", "unused"])
    return command.grid_of(args).args()


@pytest.mark.parametrize("method", ["diwa_uniform", "diwa_restricted", "ensemble"])
def test_precision_is_that_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str):
    job = {"dataset": "RotatedDigits", "algorithm": "ERM", "test_envs": (2,), "steps": 1, "save_best_model": True}
    train(JobConfig(**job, output_dir=str(tmp_path / "init")))
    for seed in range(2):
        where, init = str(tmp_path / "sweep" / f"{seed}"), str(tmp_path / "init" / "model.pkl")
        train(JobConfig(**job, hparams_seed=seed, seed=seed, precision="bf16", init_from=init, output_dir=where))
    are_bf16 = []

    def measure(model, *args, **kwargs):
        are_bf16.extend(featurizer.is_bf16 for featurizer in featurizers_of(model))
        return split_means(model, *args, **kwargs)

    monkeypatch.setattr("domainbed.engine.ensemble.split_means", measure)
    (record,) = run(tmp_path / "sweep", method).values()
    assert record["args"]["precision"] == "bf16"
    assert are_bf16
    assert all(are_bf16)


def test_runs_of_different_launches_are_rejected(sweep: Path, tmp_path: Path):
    """Out splits of one would contain images that the other was trained on."""
    shutil.copytree(sweep, tmp_path / "sweep")
    shared = {"save_best_model": True, "steps": 2, "output_dir": str(tmp_path / "sweep" / "other")}
    init = str(sweep.parent / "init" / "model.pkl")
    train(JobConfig("RotatedDigits", "ERM", (2,), **shared, holdout_fraction=0.3, checkpoint_freq=4, init_from=init))
    for method in ("ensemble", "diwa_uniform"):
        with pytest.raises(UsageError) as error:
            find_groups(tmp_path / "sweep", tmp_path / "output", method)
        assert str(error.value) == (
            "the runs of ERM on RotatedDigits, test [2], used different arguments (--steps 21 and 2); combine those of "
            "one launch, from a folder of their own"
        )
