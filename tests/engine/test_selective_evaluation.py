"""`--eval selection` and `leave_one_out`: equal cells from fewer evaluations, on random records and on real jobs."""

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError
from domainbed.model_selection import CLASS_NAMES, select_records
from domainbed.records import BEST_MODEL_FILE, read_job
from domainbed.reporting.formats.render import render
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import Sweep, load_sweep
from domainbed.reporting.plots import draw_plots
from domainbed.reporting.report import make_report
from domainbed.sweep.grid import Grid
from tests.conftest import make_record, write_sweep
from tests.engine.test_resume import crash_at, stop_at, train_disturbed

N = 3  # environments
SETS = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]  # of test environments


def thin(run: Sequence[dict], mode: str) -> Iterator[dict]:
    """Yield the records of a finished run without the accuracies that `mode` omits."""
    best = -1.0
    for record in run:
        test_envs = record["args"]["test_envs"]
        outs = [record[f"env{env}_out_acc"] for env in range(N) if env not in test_envs]
        validation = sum(outs) / len(outs)
        kept = {f"env{env}_out_acc" for env in range(N) if env not in test_envs}
        if mode == "leave_one_out" or validation > best:
            kept |= {f"env{env}_in_acc" for env in test_envs}
        if record is run[-1]:
            kept |= {f"env{env}_{part}_acc" for env in test_envs for part in ("in", "out")}
        best = max(best, validation)
        thinned = {name: value for name, value in record.items() if not name.endswith("_acc") or name in kept}
        yield {**thinned, "args": {**record["args"], "eval": mode}}


@st.composite
def runs(draw) -> list[list[dict]]:
    """Draw the records of a sweep with all pairs, in few levels to get many ties."""
    levels = st.integers(0, draw(st.sampled_from([1, 3, 20])))
    accuracies = st.lists(levels, min_size=N, max_size=N)
    scale = draw(st.sampled_from([1 / 20, 1 / 60]))  # sums in the last digits depend on the order of additions
    result = []
    for test_envs, draw_seed in itertools.product(SETS, range(2)):
        steps = range(0, draw(st.integers(1, 4)) if len(test_envs) == 1 else 4)
        accs = [[tuple(scale * x for x in draw(accuracies)) for _ in range(2)] for _ in steps]
        result.append([make_record("ColoredDigits", "ERM", test_envs, 0, draw_seed, s, *accs[s]) for s in steps])
    return result


def cells(sweep: Sweep, methods: Sequence[str]) -> str:
    return render(make_report(sweep, ReportOptions(selection=tuple(methods))), "csv", Path())


@settings(max_examples=6, deadline=None)
@given(runs())
def test_cells_of_random_records_are_equal(complete: list[list[dict]]):
    with tempfile.TemporaryDirectory() as folder:
        sweeps = {}
        for mode in ("all", "selection", "leave_one_out"):
            records = [r for run in complete for r in (run if mode == "all" else thin(run, mode))]
            sweeps[mode] = load_sweep(str(write_sweep(Path(folder, mode), records)))
            assert sweeps[mode].problems == []
        for method in CLASS_NAMES.values():
            expected = select_records(method, sweeps["all"].records)
            pd.testing.assert_frame_equal(select_records(method, sweeps["leave_one_out"].records), expected)
            selected = select_records(method, sweeps["selection"].records)
            if method == "leave-one-domain-out":  # of what was evaluated, some other record might look best
                expected = selected.head(0) if any(len(run) > 1 for run in map(_omits, complete) if run) else expected
                assert len(selected) <= len(select_records(method, sweeps["all"].records))
            else:
                pd.testing.assert_frame_equal(selected, expected)


def _omits(run: Sequence[dict]) -> list[dict]:
    return [record for record in thin(run, "selection") if f"env{record['args']['test_envs'][0]}_in_acc" not in record]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return sweeps of real jobs by the value of --eval; those of `selection` and `leave_one_out` were interrupted."""
    root = tmp_path_factory.mktemp("sweeps")
    for mode in ("all", "leave_one_out", "selection"):
        for (averaging, draw), envs in itertools.product([("none", 0), ("none", 1), ("swad", 0)], SETS):
            if len(envs) > 1 and (mode == "selection" or draw):
                continue
            folder = root / mode / f"{averaging}-{draw}-{''.join(map(str, envs))}"
            config = JobConfig(
                "ColoredDigits", "ERM", envs, hparams_seed=draw, seed=draw, eval=mode, averaging=averaging,
                steps=7, checkpoint_freq=3, save_best_model=True, skip_model_save=True, output_dir=str(folder),
                hparams='{"batch_size": 16}', save_every=1e-9,
            )  # fmt: skip
            ends = [] if mode == "all" or draw else [crash_at(7) if len(envs) > 1 else stop_at(4)]
            assert train_disturbed(config, ends) == len(ends)
    return {path.name: path for path in root.iterdir()}


def test_cells_of_real_jobs_are_equal(folders: Mapping[str, Path]):
    sweeps = {mode: load_sweep(str(folder)) for mode, folder in folders.items()}
    methods = [*CLASS_NAMES.values()]
    assert cells(sweeps["leave_one_out"], methods) == cells(sweeps["all"], methods)
    without_pairs = [method for method in methods if method != "leave-one-domain-out"]
    for method in without_pairs:
        columns = ["algorithm", "test_env", "hparams_seed", "step", "val_acc", "test_acc"]
        expected = sweeps["all"].select(method)[columns]
        pd.testing.assert_frame_equal(sweeps["selection"].select(method)[columns], expected)
    report = make_report(sweeps["selection"], ReportOptions())
    assert any("9 of 9 runs were evaluated only where" in note for note in report.notes)


def test_records_and_best_models_are_those_of_all(folders: Mapping[str, Path]):
    n_omitted = 0
    for mode in ("selection", "leave_one_out"):
        for job in folders[mode].iterdir():
            complete, problems = read_job(folders["all"] / job.name)
            assert problems == []
            if job.name.startswith("none"):
                expected = list(thin(complete, mode))
                names = [{name for name in r if name.endswith("_acc")} for r in read_job(job)[0]]
                assert names == [{name for name in r if name.endswith("_acc")} for r in expected]
            for record, reference in zip(read_job(job)[0], complete, strict=True):
                accuracies = {name: value for name, value in record.items() if name.endswith(("_acc", "_loss"))}
                assert accuracies.items() <= reference.items()
                n_omitted += len(reference) - len(record)
            models = [torch.load(folder / BEST_MODEL_FILE) for folder in (job, folders["all"] / job.name)]
            weights, expected = (model["model_dict"] for model in models)
            assert weights.keys() == expected.keys()
            assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert n_omitted > 30


def test_plots_show_gaps(folders: Mapping[str, Path]):
    for mode in ("selection", "leave_one_out"):
        sweep = load_sweep(str(folders[mode]))
        plots = list(draw_plots(sweep, "training-domain", ["ColoredDigits"], ["ERM", "ERM+SWAD"]))
        texts = [text.get_text() for plot in plots for legend in plot.figure.legends for text in legend.findobj(Text)]
        assert any("not evaluated between the dots" in text for text in texts)


def test_unfinished_jobs_keep_their_place(folders: Mapping[str, Path], tmp_path: Path):
    """A job without any accuracy on the last environment yet has as many environments as the others."""
    records, _ = read_job(folders["selection"] / "swad-0-2")
    write_sweep(tmp_path, records[:1], done=False)
    sweep = load_sweep(str(tmp_path))
    assert sweep.problems == []
    assert sweep.jobs["n_environments"].tolist() == [N]
    assert all(sweep.select(method).empty for method in CLASS_NAMES.values())
    report = make_report(sweep, ReportOptions())
    assert [bool(section.why_empty) for section in report.sections] == [True] * 3


def test_launch_with_pairs_requires_leave_one_out():
    with pytest.raises(UsageError, match="pass --eval leave_one_out"):
        Grid(datasets=("ColoredDigits",), algorithms=("ERM",), leave_one_out=True, job_args={"eval": "selection"})
    Grid(datasets=("ColoredDigits",), algorithms=("ERM",), leave_one_out=True, job_args={"eval": "leave_one_out"})
