"""How a sweep's jobs are to be run: said on the command line, or in a file."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbed.errors import UsageError
from domainbed.scripts import sweep
from domainbed.scripts.config_file import with_config_file
from domainbed.sweep.launchers.slurm import SlurmLauncher, minutes, sbatch_parameters

SUFFIXES = (".yaml", ".yml", ".toml")


def parsed(*words: object) -> dict[str, Any]:
    """The options of a launch, the file's among them."""
    p = sweep.parser()
    return vars(p.parse_args(with_config_file(["launch", "--output_dir", "s", *map(str, words)], p.command("launch"))))


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
def test_a_file_says_what_the_command_line_would(tmp_path: Path, suffix: str, text: str):
    assert with_file(tmp_path / f"cluster{suffix}", text) == parsed(*WORDS)


@pytest.mark.parametrize(("suffix", "text"), [(".yaml", YAML), (".toml", TOML)])
def test_the_command_line_has_the_last_word(tmp_path: Path, suffix: str, text: str):
    words = ["--slurm_time", "2-00", "--slurm_setup", "true", "--slurm_gpus", 3, "--slurm_extra", "x=y"]
    options = with_file(tmp_path / f"cluster{suffix}", text, *words)
    assert options == parsed(*WORDS, *words)
    assert options["slurm_setup"] == ["true"]
    assert options["slurm_partition"] == "gpu"


def test_of_two_flags_that_exclude_one_another_the_command_lines_counts(tmp_path: Path):
    assert with_file(tmp_path / "a.yaml", "leave_one_out: true", *WORDS)["leave_one_out"]
    options = with_file(tmp_path / "a.yaml", "leave_one_out: true", *WORDS, "--single_test_envs")
    assert options == parsed(*WORDS, "--single_test_envs")


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
def test_any_options_come_through(tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]):
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
def test_an_empty_file_says_nothing(tmp_path: Path, suffix: str):
    if suffix == ".toml":
        assert with_file(tmp_path / f"a{suffix}", "") == parsed()
    text = "slurm_extra = []" if suffix == ".toml" else "slurm_extra: []"
    assert with_file(tmp_path / f"a{suffix}", text) == parsed()


def test_flags_of_sbatch_in_a_file(tmp_path: Path):
    yaml = "slurm_extra: {exclusive: true, requeue: false, spread-job: , nice: 10}"
    toml = 'slurm_extra = {exclusive = true, requeue = false, spread-job = "", nice = 10}'
    for suffix, text in ((".yaml", yaml), (".toml", toml)):
        assert with_file(tmp_path / f"a{suffix}", text)["slurm_extra"] == ["exclusive", "spread-job", "nice=10"]


MISTAKES = [
    ("a.yaml", "slurm_partitoin: gpu", "'slurm_partitoin' is no option of launch; did you mean slurm_partition"),
    ("a.toml", 'slurm_partitoin = "gpu"', "'slurm_partitoin' is no option of launch; did you mean slurm_partition"),
    ("a.toml", "[slurm]\npartition = 'gpu'", "'slurm' is no option of launch"),
    ("a.yaml", "help: true", "'help' is no option of launch"),
    ("a.yaml", "launcher_config: b.yaml", "'launcher_config' is no option of launch"),
    ("a.yaml", "dry_run: perhaps", "dry_run must be true or false, not 'perhaps'"),
    ("a.yaml", "workers: [1, 2]", "workers takes one value, not ["),
    ("a.toml", "dry_run = 1", "dry_run must be true or false, not 1"),
    ("a.yaml", "slurm_time: [1, 2", "expected ',' or ']'"),
    ("a.yaml", "slurm_gpus: *nothing", "undefined alias"),
    ("a.yaml", "- slurm_time\n- 90", "it must hold lines of the form name: value"),
    ("a.yaml", "", "it must hold lines of the form name: value"),
    ("a.toml", "slurm_time = 1:30:00", ""),
    ("a.toml", "slurm_gpus = 1\nslurm_gpus = 2", ""),
    ("a.json", "{}", "its name must end in .yaml or .toml"),
    ("a", "{}", "its name must end in .yaml or .toml"),
    ("no/such.yaml", None, "No such file or directory"),
    ("folder.yaml", "a folder", "Is a directory"),
    ("bytes.yaml", "bytes", "invalid start byte"),
]


@pytest.mark.parametrize(("name", "text", "message"), MISTAKES)
def test_a_mistake_in_a_file_is_one_line_that_names_it(tmp_path: Path, name: str, text: str | None, message: str):
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


def test_a_wrong_value_is_named(tmp_path: Path):
    for suffix, text in ((".yaml", "slurm_gpus: many"), (".toml", 'slurm_gpus = "many"')):
        with pytest.raises(UsageError, match="argument --slurm_gpus: invalid int value: 'many'"):
            with_file(tmp_path / f"a{suffix}", text)


def test_only_launch_reads_a_file(tmp_path: Path):
    p = sweep.parser()
    words = ["status", "--output_dir", "s", "--launcher_config", str(tmp_path / "no.yaml")]
    assert with_config_file(words, p.command("launch")) == words
    with pytest.raises(UsageError, match="unknown argument --launcher_config"):
        p.parse_args(words)


# --- for sbatch


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("1", 1),
        (90, 90),
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
def test_times_as_sbatch_reads_them(time: str | int, expected: int):
    assert minutes(time) == expected


@pytest.mark.parametrize(
    "time", ["", "0", "0:00", "0-0", "-5", "1h", "1.5", "1:2:3:4", "1-", "-1", "1:", "::", "one", "1-1:1:1:1"]
)
def test_times_that_are_none(time: str):
    with pytest.raises(UsageError, match=r"^--slurm_time "):
        minutes(time)


def test_what_sbatch_is_given():
    options = parsed(*WORDS[:-3])
    assert sbatch_parameters(options) == {
        "time": 90,
        "partition": "gpu",
        "mem": "32G",
        "array_parallelism": 256,
        "setup": ["module load cuda", 'source "my env/bin/activate"'],
        "additional_parameters": {"requeue": True, "exclude": "node[1-3],node7", "mail-type": "FAIL"},
    }
    more = parsed("--slurm_cpus", 8, "--slurm_constraint", "a100", "--slurm_qos", "low", "--slurm_account", "lab")
    assert sbatch_parameters(more) == {
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


def test_other_options_of_sbatch():
    extra = sbatch_parameters(parsed("--slurm_extra", "a=b=c", "exclusive", "x = y", "empty="))["additional_parameters"]
    assert extra == {"requeue": True, "a": "b=c", "exclusive": True, "x": "y", "empty": ""}
    extra = sbatch_parameters(parsed("--slurm_extra", "no-requeue"))["additional_parameters"]
    assert extra == {"no-requeue": True}
    for word in ("time=5", "signal=USR1@5", "job-name=x", "--array=0-3"):
        with pytest.raises(UsageError, match=f"--slurm_extra '{word}': .* is set by"):
            sbatch_parameters(parsed("--slurm_extra", word) if word[0] != "-" else parsed(f"--slurm_extra={word}"))
    with pytest.raises(UsageError, match="--slurm_extra '=7' names no option of sbatch"):
        sbatch_parameters(parsed("--slurm_extra", "=7"))


@pytest.mark.parametrize(
    ("option", "value"),
    [("--jobs_per_task", 0), ("--slurm_array_parallelism", 0), ("--slurm_gpus", -1), ("--slurm_cpus", 0)],
)
def test_numbers_that_can_not_be(option: str, value: int):
    with pytest.raises(UsageError, match=f"^{option} must be at least {value + 1}, not {value}$"):
        SlurmLauncher(parsed(f"{option}={value}"))
