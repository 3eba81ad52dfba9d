"""A mistake at the keyboard: one line that names it, status 2, no traceback, nothing written."""

from pathlib import Path

import pytest

MISTAKES = [
    ("train", ["--dataset", "ColoredDigit"], "unknown dataset 'ColoredDigit'; did you mean ColoredDigits"),
    ("train", ["--algorithm", "EMR"], "unknown algorithm 'EMR'; did you mean ERM?"),
    ("train", ["--dataset", "ColoredDigits", "--test_envs", "3"], "--test_envs 3: ColoredDigits has no such"),
    ("train", ["--steps", "many"], "argument --steps: invalid int value: 'many'"),
    ("train", ["--step", "5"], "unknown argument --step; did you mean --steps"),
    ("train", ["--dataset", "ColoredDigits", "--hparams", "{lr: 1}"], "--hparams '{lr: 1}' is not JSON"),
    ("train", ["--dataset", "ColoredDigits", "--hparams", '{"l": 1}'], "ERM has no hyperparameter 'l'"),
    ("train", ["--task", "translation"], "unknown task 'translation'"),
    ("train", ["--dataset", "ColoredMNIST"], "ColoredMNIST needs --data_dir"),
    ("train", ["--dataset", "ColoredMNIST", "--data_dir", ""], "ColoredMNIST needs --data_dir"),
    ("train", ["--dataset", "ColoredMNIST", "--data_dir", "no/such"], "--data_dir 'no/such' is not a folder"),
    ("train", ["--dataset", "ColoredDigits", "--holdout_fraction", "0.001"], "environment 0 is too small to split"),
    (
        "train",
        ["--dataset", "ColoredDigits", "--hparams", '{"lr": -1}'],
        "ERM can't be made with these hyperparameters",
    ),
    (
        "train",
        ["--dataset", "ColoredDigits", "--output_dir", "/dev/null/x"],
        "--output_dir /dev/null/x: Not a directory",
    ),
    ("train", ["--import", "no_such_module"], "can't import your module no_such_module"),
    ("sweep", [], "the following arguments are required: COMMAND"),
    ("sweep", ["lunch"], "invalid choice: 'lunch'"),
    ("sweep", ["launch"], "the following arguments are required: --output_dir"),
    ("sweep", ["launch", "--output_dir", "s", "--n_trial", "3"], "unknown argument --n_trial; did you mean --n_trials"),
    ("sweep", ["launch", "--output_dir", "s", "--algorithms", "ERM", "Fisher"], "unknown algorithm 'Fisher'"),
    (
        "sweep",
        ["launch", "--output_dir", "s", "--datasets", "MNIST"],
        "unknown dataset 'MNIST'; choose",
    ),
    ("sweep", ["launch", "--output_dir", "s", "--command_launcher", "slrum"], "unknown launcher 'slrum'"),
    ("sweep", ["launch", "--output_dir", "s", "--n_trials", "0"], "--n_trials must be at least 1"),
    ("sweep", ["launch", "--output_dir", "s", "--workers", "0"], "--workers must be at least 1"),
    (
        "sweep",
        ["launch", "--output_dir", "s", "--datasets", "ColoredDigits", "--hparams", '{"weight_decay": -1}'],
        "ERM can't be made",
    ),
    ("sweep", ["launch", "--output_dir", "s", "--single_test_envs", "--leave_one_out"], "not allowed with argument"),
    ("sweep", ["launch", "--output_dir", "s", "--datasets", "ColoredMNIST"], "ColoredMNIST needs --data_dir"),
    (
        "sweep",
        ["launch", "--output_dir", "s", "--datasets", "ColoredDigits", "--holdout_fraction", "0.001"],
        "environment 0 is too small to split",
    ),
    ("sweep", ["launch", "--output_dir", "s", "--datasets", "ColoredDigits"], "give --skip_confirmation to launch"),
    (
        "sweep",
        [
            "launch",
            "--output_dir",
            "s",
            "--datasets",
            "ColoredDigits",
            "--algorithms",
            "Fishr",
            "--hparams",
            '{"variant": "diagonal"}',
        ],
        "Fishr has no variant 'diagonal'; choose from variance, uncentered, covariance, all_layers",
    ),
    (
        "train",
        ["--dataset", "ColoredDigits", "--algorithm", "DANN", "--hparams", '{"mlp_depth": 1}'],
        "mlp_depth must be at least 2",
    ),
    (
        "train",
        ["--dataset", "ColoredDigits", "--algorithm", "CORAL", "--hparams", '{"batch_size": 1}'],
        "CORAL needs a batch_size of at least 2, not 1",
    ),
    ("colored_mnist", ["--data_dir", ".", "--algorithm", "Fishy"], "unknown algorithm 'Fishy'; did you mean Fishr"),
    ("colored_mnist", ["--data_dir", "no/such"], "--data_dir 'no/such' is not a folder"),
    ("colored_mnist", ["--data_dir", ".", "--label_flip", "2"], "--label_flip must lie in [0, 1], not 2.0"),
    ("colored_mnist", ["--data_dir", ".", "--restarts", "0"], "--restarts must be at least 1"),
    ("collect_results", ["--input_dir", "no/such"], "--input_dir 'no/such' is not a folder"),
    ("collect_results", ["--input_dir", "."], "holds no records"),
    ("collect_results", [], "the following arguments are required: --input_dir"),
]


@pytest.mark.parametrize(("module", "args", "message"), MISTAKES, ids=lambda x: x if isinstance(x, str) else "-")
def test_mistake(run_module, tmp_path: Path, module: str, args: list[str], message: str):
    finished = run_module(module, *args, stdin=-3)  # -3: nobody is there to answer
    assert finished.returncode == 2, finished.stderr
    assert message in finished.stderr
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    assert list((tmp_path / "cwd").iterdir()) == []
