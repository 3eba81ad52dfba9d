"""Options of `sweep launch` from a configuration file, and the parameters that the SLURM launcher derives from them."""

import argparse
import itertools
import json
import os
import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbed import cli
from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError
from domainbed.hparams_registry import resolve_hparams
from domainbed.options import add_options, from_args
from domainbed.scripts import sweep_parser
from domainbed.scripts.config_file import load
from domainbed.sweep.launchers.slurm import SlurmOptions, minutes, sbatch_parameters

SUFFIXES = (".yaml", ".yml", ".toml")


def parsed(*words: object) -> dict[str, Any]:
    """Return the options of a launch, including those from a file."""
    return vars(sweep_parser.parse_args(["launch", "--output_dir", "s", *map(str, words)]))


def with_file(file: Path, text: str, *words: object) -> dict[str, Any]:
    file.write_text(text, encoding="utf-8")
    options = parsed("--launcher_config", file, *words)
    assert options.pop("launcher_config") == str(file)
    return options | {"launcher_config": None}


YAML = """\
# our cluster
command_launcher: slurm
slurm_partition: gpu
slurm_time: 1:30:00
slurm_gpus: 0
slurm_mem: 32G
jobs_per_task: 4
slurm_setup:
  - module load cuda
  - source "my env/bin/activate"
slurm_extra:
  exclude: node[1-3],node7
  mail-type: FAIL
dry_run: true
skip_confirmation: false
hparams: {batch_size: 8, lr: 0.5, class_balanced: true}
datasets: [ColoredDigits, RotatedDigits]
"""
TOML = """\
# our cluster
command_launcher = "slurm"
slurm_partition = "gpu"
slurm_time = "1:30:00"
slurm_gpus = 0
slurm_mem = "32G"
jobs_per_task = 4
slurm_setup = ["module load cuda", 'source "my env/bin/activate"']
dry_run = true
skip_confirmation = false
hparams = {batch_size = 8, lr = 0.5, class_balanced = true}
datasets = ["ColoredDigits", "RotatedDigits"]
[slurm_extra]
exclude = "node[1-3],node7"
mail-type = "FAIL"
"""
WORDS = [
    *("--command_launcher", "slurm", "--slurm_partition", "gpu", "--slurm_time", "1:30:00", "--slurm_gpus", "0"),
    *("--slurm_mem", "32G", "--jobs_per_task", "4", "--slurm_setup", "module load cuda"),
    *('source "my env/bin/activate"', "--slurm_extra", "exclude=node[1-3],node7", "mail-type=FAIL", "--dry_run"),
    *("--hparams", '{"batch_size": 8, "lr": 0.5, "class_balanced": true}'),
    *("--datasets", "ColoredDigits", "RotatedDigits"),
]


@pytest.mark.parametrize(("suffix", "text"), list(zip(SUFFIXES, (YAML, YAML, TOML), strict=True)))
def test_file_equals_the_same_options_on_the_command_line(tmp_path: Path, suffix: str, text: str):
    assert with_file(tmp_path / f"cluster{suffix}", text) == parsed(*WORDS)


@pytest.mark.parametrize(("suffix", "text"), [(".yaml", YAML), (".toml", TOML)])
def test_command_line_overrides_the_file(tmp_path: Path, suffix: str, text: str):
    words = ["--slurm_time", "2-00", "--slurm_setup", "true", "--slurm_gpus", 3, "--slurm_extra", "x=y"]
    options = with_file(tmp_path / f"cluster{suffix}", text, *words)
    assert options == parsed(*WORDS, *words)
    assert options["slurm_setup"] == ["true"]
    assert options["slurm_partition"] == "gpu"


def test_command_line_overrides_an_opposite_flag(tmp_path: Path):
    assert with_file(tmp_path / "a.yaml", "leave_one_out: true", *WORDS)["leave_one_out"]
    options = with_file(tmp_path / "a.yaml", "leave_one_out: true", *WORDS, "--single_test_envs")
    assert options == parsed(*WORDS, "--single_test_envs")


def test_flag_in_the_file_can_be_negated_on_the_command_line(tmp_path: Path):
    options = with_file(tmp_path / "a.yaml", "deterministic: true", *WORDS)
    assert options == parsed(*WORDS, "--deterministic")
    assert with_file(tmp_path / "a.yaml", "deterministic: true", *WORDS, "--no_deterministic") == parsed(*WORDS)
    assert with_file(tmp_path / "a.yaml", "no_deterministic: false", *WORDS) == options


def test_required_option_may_be_in_the_file(tmp_path: Path):
    parser = cli.Parser(prog="tool")
    add_options(parser, JobConfig)
    (tmp_path / "a.toml").write_text('dataset = "PACS"\nalgorithm = "ERM"\ntest_envs = [1, 2]\ncache_gb = 7')
    parser.set_defaults(**load(tmp_path / "a.toml", parser))
    assert from_args(JobConfig, parser.parse_args(["--cache_gb", "8"])) == JobConfig("PACS", "ERM", (1, 2))
    assert parser.parse_args(["--cache_gb", "8"]).cache_gb == 8
    assert parser.parse_args([]).cache_gb == 7


plain = st.text(st.sampled_from("abcXYZ019_:./=, #'\"é-"), min_size=1, max_size=12).filter(
    lambda word: not word.startswith("-") and word == word.strip()
)
options = st.fixed_dictionaries(
    {},
    optional={
        "slurm_partition": plain,
        "slurm_qos": plain,
        "workers": st.integers(1, 99),
        "slurm_time": st.sampled_from(["90", "1:30:00", "2-00", "0:30", "1-12:30"]),
        "cache_gb": st.floats(0, 1e6),
        "slurm_setup": st.lists(plain, min_size=1, max_size=3),
        "slurm_extra": st.dictionaries(st.sampled_from(["a", "mail-type", "x_y"]), plain, min_size=1),
        "dry_run": st.booleans(),
        "retry_failed": st.booleans(),
    },
)


@settings(max_examples=60)
@given(options)
def test_any_options_are_read(tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]):
    folder = tmp_path_factory.mktemp("file")
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            words += [f"--{name}"] * value
        elif isinstance(value, dict):
            words += [f"--{name}", *(f"{k}={v}" for k, v in value.items())]
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    expected = parsed(*words)
    assert with_file(folder / "a.yaml", json.dumps(options)) == expected  # JSON is YAML
    lines = []
    for name, value in options.items():
        if isinstance(value, dict):
            pairs = ", ".join(f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in value.items())
            lines.append(f"{name} = {{{pairs}}}")
        else:
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    assert with_file(folder / "a.toml", "\n".join(lines)) == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_file_or_value_sets_nothing(tmp_path: Path, suffix: str):
    if suffix == ".toml":
        assert with_file(tmp_path / f"a{suffix}", "") == parsed()
    text = "slurm_extra = []" if suffix == ".toml" else "slurm_extra: []"
    assert with_file(tmp_path / f"a{suffix}", text) == parsed()


def test_flags_of_sbatch_in_a_mapping(tmp_path: Path):
    yaml = "slurm_extra: {exclusive: true, requeue: false, spread-job: , nice: 10}"
    toml = 'slurm_extra = {exclusive = true, requeue = false, spread-job = "", nice = 10}'
    for suffix, text in ((".yaml", yaml), (".toml", toml)):
        assert with_file(tmp_path / f"a{suffix}", text)["slurm_extra"] == ["exclusive", "spread-job", "nice=10"]


MISTAKES = [
    ("a.yaml", "slurm_partitoin: gpu", "unknown option 'slurm_partitoin'; did you mean slurm_partition"),
    ("a.toml", 'slurm_partitoin = "gpu"', "unknown option 'slurm_partitoin'; did you mean slurm_partition"),
    ("a.toml", "[slurm]\npartition = 'gpu'", "unknown option 'slurm'"),
    ("a.yaml", "help: true", "unknown option 'help'"),
    ("a.yaml", "version: true", "unknown option 'version'"),
    (
        "a.yaml",
        "foo: 1\nslurm_partitoin: gpu",
        "unknown options 'foo', 'slurm_partitoin' (did you mean slurm_partition",
    ),
    ("a.yaml", "launcher_config: b.yaml", "unknown option 'launcher_config'"),
    (
        "a.yaml",
        "deterministic: true\nno_deterministic: true",
        "'no_deterministic' sets an option that another line also sets",
    ),
    ("a.yaml", "dry_run: perhaps", "dry_run must be true or false, not 'perhaps'"),
    ("a.yaml", "workers: [1, 2]", "workers takes one value, not ["),
    ("a.toml", "dry_run = 1", "dry_run must be true or false, not 1"),
    ("a.yaml", "slurm_time: [1, 2", "expected ',' or ']'"),
    ("a.yaml", "slurm_gpus: *nothing", "undefined alias"),
    ("a.yaml", "- slurm_time\n- 90", "expected lines of the form `option: value`"),
    ("a.yaml", "", "expected lines of the form `option: value`"),
    ("a.toml", "slurm_time = 1:30:00", ""),
    ("a.toml", "slurm_gpus = 1\nslurm_gpus = 2", ""),
    ("a.json", "{}", "the name must end in .yaml or .toml"),
    ("a", "{}", "the name must end in .yaml or .toml"),
    ("no/such.yaml", None, "No such file or directory"),
    ("folder.yaml", "a folder", "Is a directory"),
    ("bytes.yaml", "bytes", "invalid start byte"),
]


@pytest.mark.parametrize(("name", "text", "message"), MISTAKES)
def test_invalid_file_is_named_in_one_line(tmp_path: Path, name: str, text: str | None, message: str):
    file = tmp_path / name
    if text == "a folder":
        file.mkdir()
    elif text == "bytes":
        file.write_bytes(b"slurm_time: \xff")
    elif text is not None:
        file.write_text(text)
    with pytest.raises(UsageError) as error:
        parsed("--launcher_config", file)
    assert str(file) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_value_of_the_wrong_type_is_named(tmp_path: Path):
    for suffix, text in ((".yaml", "slurm_gpus: many"), (".toml", 'slurm_gpus = "many"')):
        with pytest.raises(UsageError, match="argument --slurm_gpus: invalid int value: 'many'"):
            with_file(tmp_path / f"a{suffix}", text)


def test_only_launch_reads_a_file(tmp_path: Path):
    with pytest.raises(UsageError, match="unknown argument --launcher_config"):
        sweep_parser.parse_args(["status", "--output_dir", "s", "--launcher_config", str(tmp_path / "no.yaml")])


# --- parameters of sbatch


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("1", 1),
        ("90", 90),
        (" 90 ", 90),
        ("0:30", 1),
        ("90:00", 90),
        ("90:01", 91),
        ("1:30:00", 90),
        ("1:30:01", 91),
        ("0:0:1", 1),
        ("01:30:00", 90),
        ("2-0", 2880),
        ("2-00", 2880),
        ("1-12", 36 * 60),
        ("1-12:30", 36 * 60 + 30),
        ("1-12:30:30", 36 * 60 + 31),
        ("0-1", 60),
        ("100:00:00", 6000),
    ],
)
def test_time_limits_are_read_as_by_sbatch(time: str, expected: int):
    assert minutes(time) == expected


@pytest.mark.parametrize(
    "time", ["", "0", "0:00", "0-0", "-5", "1h", "1.5", "1:2:3:4", "1-", "-1", "1:", "::", "one", "1-1:1:1:1"]
)
def test_invalid_time_limit_is_rejected(time: str):
    with pytest.raises(UsageError, match=r"^--slurm_time "):
        minutes(time)


def parameters(*words: object) -> dict[str, Any]:
    return sbatch_parameters(from_args(SlurmOptions, argparse.Namespace(**parsed(*words))))


def test_parameters_of_sbatch():
    assert parameters(*WORDS[:-3]) == {
        "time": 90,
        "partition": "gpu",
        "mem": "32G",
        "array_parallelism": 256,
        "setup": [
            "{ module load cuda\n} || { status=$?; echo '--slurm_setup '\"'\"'module load cuda'\"'\"' failed with exit "
            "status' $status >&2; exit $status; }",
            ANY,
        ],
        "additional_parameters": {"requeue": True, "exclude": "node[1-3],node7", "mail-type": "FAIL"},
    }
    words = ["--slurm_cpus", 8, "--slurm_constraint", "a100", "--slurm_qos", "low", "--slurm_account", "lab"]
    assert parameters(*words) == {
        "time": 240,
        "gpus_per_node": 1,
        "cpus_per_task": 8,
        "constraint": "a100",
        "qos": "low",
        "account": "lab",
        "array_parallelism": 256,
        "additional_parameters": {"requeue": True},
        "srun_args": ["--cpus-per-task=8"],
    }


def test_additional_options_of_sbatch():
    extra = parameters("--slurm_extra", "a=b=c", "exclusive", "x = y", "empty=")["additional_parameters"]
    assert extra == {"requeue": True, "a": "b=c", "exclusive": True, "x": "y", "empty": ""}
    extra = parameters("--slurm_extra", "no-requeue")["additional_parameters"]
    assert extra == {"no-requeue": True}
    for word in ("time=5", "signal=USR1@5", "job-name=x", "--array=0-3"):
        with pytest.raises(UsageError, match=f"--slurm_extra '{word}': .* is set by"):
            parameters(f"--slurm_extra={word}")
    with pytest.raises(UsageError, match="--slurm_extra '=7' is not an option of sbatch"):
        parameters("--slurm_extra", "=7")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--jobs_per_task", 0), ("--slurm_array_parallelism", 0), ("--slurm_gpus", -1), ("--slurm_cpus", 0)],
)
def test_number_out_of_bounds_is_rejected(option: str, value: int):
    with pytest.raises(UsageError, match=f"^{option} must be at least {value + 1}, not {value}$"):
        parameters(f"{option}={value}")


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        (".yaml", LAUGHS, "aliases such as \\*name are not supported"),
        (".yaml", "a: " + "[" * 60_000, "recursion"),
        (".yaml", "a: " + "{b: " * 5_000, "recursion"),
        (".toml", "a = " + "[" * 60_000, "recursion|nested|nesting"),
        (".yaml", "#" * (2**16 + 1), "Larger than 65,536 bytes"),
    ],
    ids=["laughs", "lists", "maps", "toml", "large"],
)
def test_bombs_are_refused(tmp_path: Path, suffix: str, text: str, message: str):
    with pytest.raises(UsageError, match=rf"--launcher_config .*({message})") as error:
        with_file(tmp_path / f"a{suffix}", text, *WORDS)
    assert len(str(error.value)) < 1000


def test_deep_hparams_are_refused(tmp_path: Path):
    hparams = with_file(tmp_path / "a.yaml", "hparams: {lr: '" + "[" * 60_000 + "'}")["hparams"]
    with pytest.raises(UsageError, match=r"lr must be of type float, like 5e-05, not '\[+\.\.\.\[+'$"):
        resolve_hparams("ERM", "PACS", 0, 0, hparams)


@pytest.mark.parametrize("replace", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_irregular_files_are_refused(tmp_path: Path, replace):
    replace(tmp_path / "a.yaml")
    with pytest.raises(UsageError, match=r"--launcher_config .*(Not a regular file|Is a directory)"):
        parsed("--launcher_config", tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("setup", "status", "out", "err"),
    [
        (["x=1; test $x = 2; echo $x", "echo $x # it's", "false || echo 2"], 0, "1\n1\n2\nthe jobs\n", ""),
        (
            ["echo 1", "(exit 7) # it's", "echo 2"],
            7,
            "1\n",
            """--slurm_setup '(exit 7) # it'"'"'s' failed with exit status 7\n""",
        ),
        (["cat <<END\none $HOME\nEND\nfalse"], 1, f"one {os.environ['HOME']}\n", ANY),
    ],
)
def test_setup_ends_the_task_if_a_command_fails(setup: list[str], status: int, out: str, err: object):
    script = "\n".join([*parameters("--slurm_setup", *setup)["setup"], "echo the jobs"])
    finished = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (finished.returncode, finished.stdout, finished.stderr) == (status, out, err)


def test_extra_options_replace_those_of_the_launcher():
    """sbatch would take the last of two values, and submitit sorts their names."""
    extra = parameters("--slurm_extra", "gpus_per_node=a100:1", "mem=1G", "--slurm_mem", "2G")
    assert "gpus_per_node" not in extra
    assert "mem" not in extra
    assert extra["additional_parameters"] == {"requeue": True, "gpus-per-node": "a100:1", "mem": "1G"}
    with pytest.raises(UsageError, match=r"cpus-per-task is set by --slurm_cpus"):
        parameters("--slurm_extra", "cpus-per-task=8")
