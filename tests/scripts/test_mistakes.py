"""Invalid commands: one line that names the mistake, status 2, no traceback, and no files."""

import importlib
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from domainbed import cli

MISTAKES = [
    ("train --dataset ColoredDigit", "unknown dataset 'ColoredDigit'; did you mean ColoredDigits"),
    ("train --algorithm EMR", "unknown algorithm 'EMR'; did you mean ERM?"),
    ("train --dataset ColoredDigits --test_envs 3", "--test_envs 3: ColoredDigits has no such"),
    ("train --dataset ColoredDigits --test_env 3", "--test_envs 3: ColoredDigits has no such"),
    ("train --steps many", "argument --steps: invalid int value: 'many'"),
    ("train --step 5", "unknown argument --step; did you mean --steps"),
    ("train --dataset ColoredDigits --hparams '{lr: 1}'", "--hparams '{lr: 1}' is not JSON"),
    ("train --dataset ColoredDigits --hparams '{\"l\": 1}'", "ERM has no hyperparameter 'l'"),
    ('train --dataset ColoredDigits --hparams \'{"lr": 1' + "0" * 400 + "}'", "lr must be a finite number"),
    (
        "train --dataset ColoredDigits --algorithm DANN --hparams '{\"d_steps_per_g_step\": -1}'",
        "--hparams d_steps_per_g_step must be at least 0, not -1",
    ),
    ("train --task translation", "invalid --task 'translation'"),
    ("train --dataset ColoredMNIST", "ColoredMNIST requires --data_dir"),
    ("train --dataset ColoredMNIST --data_dir ''", "--data_dir is empty; specify a path"),
    ("sweep delete_incomplete --output_dir '' --skip_confirmation", "--output_dir is empty; specify a path"),
    ("sweep launch --output_dir s --import_results ''", "--import_results is empty; specify a path"),
    ("sweep launch --output_dir s --n_trials 1000000000", "the launch has more than 1,000,000 jobs; specify fewer"),
    ("train --dataset ColoredMNIST --data_dir no/such", "--data_dir 'no/such' is not a folder"),
    ("train --dataset ColoredDigits --holdout_fraction 0.001", "environment 0 is too small to split"),
    ("train --dataset ColoredDigits --hparams '{\"lr\": -1}'", "--hparams lr must be above 0"),
    ("train --dataset ColoredDigits --output_dir /dev/null/x", "--output_dir /dev/null/x: Not a directory"),
    ("train --import no_such_module", "cannot import module no_such_module"),
    ("sweep", "the following arguments are required: COMMAND"),
    ("sweep lunch", "invalid choice: 'lunch'"),
    ("sweep launch", "the following arguments are required: --output_dir"),
    ("sweep launch --output_dir s --n_trial 3", "unknown argument --n_trial; did you mean --n_trials"),
    ("sweep launch --output_dir s --algorithms ERM Fisher", "unknown algorithm 'Fisher'"),
    ("sweep launch --output_dir s --datasets MNIST", "unknown dataset 'MNIST'; choose"),
    ("sweep launch --output_dir s --command_launcher slrum", "unknown launcher 'slrum'"),
    ("sweep launch --output_dir s --n_trials 0", "--n_trials must be at least 1"),
    ("sweep launch --output_dir s --workers 0", "--workers must be at least 1"),
    (
        "sweep launch --output_dir s --datasets ColoredDigits --algorithms ERM --hparams '{\"weight_decay\": -1}'",
        "--hparams weight_decay must be",
    ),
    ("sweep status --output_dir no/such", "--output_dir no/such contains no sweep; run `sweep launch` first"),
    ("sweep status --output_dir s --watch often", "argument --watch: invalid float value: 'often'"),
    ("sweep status --output_dir s --watch inf", "--watch must be above 0 and at most 86,400 seconds"),
    (
        "sweep launch --output_dir /dev/null --datasets ColoredDigits --skip_confirmation",
        "--output_dir /dev/null: File exists",
    ),
    ("sweep cancel --output_dir .", "--output_dir . contains no sweep; run `sweep launch` first"),
    ("sweep cancel --workers 2 --output_dir .", "unknown argument --workers"),
    ("sweep delete_incomplete --output_dir .", "--output_dir . contains no sweep; run `sweep launch` first"),
    ("sweep export --output_dir .", "the following arguments are required: --archive"),
    ("sweep export --output_dir . --archive a.tar.xz", "--output_dir . contains no sweep; run `sweep launch` first"),
    ("sweep export --output_dir . --archive a.zip", "--archive a.zip: the name must end in .tar.xz"),
    (
        "sweep launch --output_dir s --datasets ColoredDigits --import_results no.tar.xz",
        "--import_results no.tar.xz: No such file",
    ),
    ("collect_results --input_dir no/such", "--input_dir 'no/such' is not a folder"),
    ("collect_results --input_dir .", "--input_dir '.' has no job folders with usable records (results.jsonl)"),
    ("collect_results --input_dir . --format latx", "unknown format 'latx'; did you mean latex"),
    ("collect_results --input_dir . --selection orcale", "unknown selection method 'orcale'"),
    ("collect_results --input_dir . --interval 95", "invalid --interval '95'; choose from standard-error"),
    ("collect_results --input_dir . --compare ours", "invalid --compare 'ours'; choose from published"),
    ("collect_results --input_dir . --decimals -1", "--decimals must be at least 0 and at most 9, not -1"),
    ("collect_results --input_dir . --output no/such/file", "--output no/such/file: folder"),
    ("collect_results --input_dir . --output .", "--output . is a folder; specify a file"),
    ("sweep export --output_dir . --archive /dev/null", "--archive /dev/null is not a regular file"),
    ("export_model --model no.pkl --format safetensors --output /dev/null", "--output /dev/null is not a regular file"),
    ("collect_results --input_dir . --import no_such", "cannot import module no_such"),
    ("list_top_hparams", "the following arguments are required: --input_dir"),
    ("recompute --input_dir .", "the following arguments are required: --dataset, --algorithm, --test_env"),
    (
        "recompute --input_dir no/such --dataset PACS --algorithm ERM --test_env 0 --output_dir again",
        "--input_dir 'no/such' is not a folder",
    ),
    ("plot --input_dir no/such", "--input_dir 'no/such' is not a folder"),
    ("plot --input_dir . --dpi 0", "--dpi must be at least 10 and at most 2,400, not 0"),
    ("plot --input_dir . --selection orcale", "unknown selection method 'orcale'"),
    ("sweep delete_incomplete --failed", "the following arguments are required: --output_dir"),
    ("sweep launch --output_dir s --launcher_config no.yaml", "--launcher_config no.yaml: No such file"),
    ("sweep launch --output_dir s --launcher_config", "argument --launcher_config: expected one argument"),
    ("sweep launch --output_dir s --single_test_envs --leave_one_out", "not allowed with argument"),
    ("sweep launch --output_dir s --datasets ColoredMNIST", "ColoredMNIST requires --data_dir"),
    (
        "sweep launch --output_dir s --datasets ColoredDigits --holdout_fraction 0.001",
        "environment 0 is too small to split",
    ),
    ("sweep launch --output_dir s --datasets ColoredDigits", "stdin is not interactive; pass --skip_confirmation"),
    (
        'sweep launch --output_dir s --datasets ColoredDigits --algorithms Fishr --hparams \'{"variant": "diagonal"}\'',
        "unknown Fishr variant 'diagonal'; choose from variance, uncentered, covariance, all_layers",
    ),
    ("train --dataset ColoredDigits --algorithm DANN --hparams '{\"mlp_depth\": 1}'", "mlp_depth must be at least 2"),
    (
        "train --dataset ColoredDigits --algorithm CORAL --hparams '{\"batch_size\": 1}'",
        "CORAL requires a batch_size of at least 2, not 1",
    ),
    ("colored_mnist --data_dir . --algorithm Fishy", "invalid --algorithm 'Fishy'; did you mean Fishr"),
    ("colored_mnist --data_dir no/such", "--data_dir 'no/such' is not a folder"),
    ("colored_mnist --data_dir . --label_flip 2", "--label_flip must be at least 0 and at most 1, not 2.0"),
    ("colored_mnist --data_dir . --restarts 0", "--restarts must be at least 1"),
    ("inspect", "the following arguments are required: --dataset"),
    ("inspect --dataset PAC", "unknown dataset 'PAC'; did you mean PACS"),
    ("inspect --dataset PACS", "PACS requires --data_dir"),
    ("inspect --dataset Folder --data_dir no/such", "no/such"),
    ("inspect --dataset ColoredDigits --images_per_class 0", "--images_per_class must be at least 1"),
    ("inspect --dataset ColoredDigits --output_dir /dev/null/x", "--output_dir /dev/null/x: Not a directory"),
    ("collect_results", "the following arguments are required: --input_dir"),
]


@pytest.mark.parametrize(("command", "message"), MISTAKES, ids=lambda words: words.partition(" ")[0])
def test_invalid_command_is_one_line(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    module, *args = shlex.split(command)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [module, *args])
    with open(os.devnull) as empty:
        monkeypatch.setattr("sys.stdin", empty)
        with pytest.raises(SystemExit) as end:
            cli.run(importlib.import_module(f"domainbed.scripts.{module}").main)
    err = capsys.readouterr().err
    assert end.value.code == 2, err
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        "train --dataset ColoredDigits --algorithm DANN --hparams '{\"mlp_depth\": 1}'",
        "sweep launch --output_dir s --datasets ColoredDigits",
        "collect_results --input_dir .",
    ],
)
def test_error_is_the_only_output_of_a_process(run_module, tmp_path: Path, command: str):
    """Imported libraries must not print anything either."""
    finished = run_module(*shlex.split(command), stdin=subprocess.DEVNULL)
    assert finished.returncode == 2, finished.stderr
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1, finished.stderr
    assert list((tmp_path / "cwd").iterdir()) == []
