"""The console script `domainbed` in a checkout."""

import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import domainbed
from domainbed import cli
from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError
from domainbed.options import options_table
from domainbed.scripts import __main__ as main

ROOT = Path(__file__).parents[2]


def test_help_lists_every_command(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        main.main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"\n    {name} " in printed for name in main.COMMANDS)
    scripts = {path.stem for path in (ROOT / "domainbed" / "scripts").glob("*.py")}
    assert set(main.COMMANDS) == {
        name for name in scripts if hasattr(import_module(f"domainbed.scripts.{name}"), "main")
    } - {"__main__"}


SWEEP_COMMANDS = ["launch", "status", "cancel", "delete_incomplete", "export"]
EVERY_COMMAND = [[], *([name] for name in main.COMMANDS), *(["sweep", name] for name in SWEEP_COMMANDS)]


@pytest.mark.parametrize("words", EVERY_COMMAND, ids=" ".join)
def test_version(words: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        main.main([*words, "--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"domainbed {domainbed.__version__}\n"


@pytest.mark.parametrize("words", EVERY_COMMAND, ids=" ".join)
def test_help_ends_with_two_examples(words: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """They are valid, and can be pasted."""
    monkeypatch.setattr(sys, "argv", ["/bin/domainbed"])
    with pytest.raises(SystemExit):
        main.main([*words, "--help"])
    _, examples = capsys.readouterr().out.split("\nexamples:\n")
    lines = examples.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"  {' '.join(['domainbed', *words])} ")
        name, *args = shlex.split(line.partition(">")[0])[1:]
        import_module(f"domainbed.scripts.{name}").parser().parse_args(args)


def test_parsers_do_not_import_heavy_packages():
    """So that --help of every command takes less than a second."""
    program = "import sys\nfrom importlib import import_module\nfrom domainbed.scripts.__main__ import COMMANDS\n"
    program += "for name in COMMANDS: import_module(f'domainbed.scripts.{name}').parser()\nprint(*sys.modules)"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "matplotlib", "scipy", "jinja2", "PIL", "mlflow"} & set(finished.stdout.split())


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_options_and_names(shell: str, capsys: pytest.CaptureFixture):
    pytest.importorskip("shtab")
    main.main(["completion", shell])
    script = capsys.readouterr().out
    for name in (*main.COMMANDS, *SWEEP_COMMANDS, "--n_hparams", "--estimate", "Fishr", "RotatedMNIST", "bf16"):
        assert name in script, name


def test_completion_without_shtab(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(UsageError, match=r"shtab is not installed; run `pip install shtab`"):
        main.main(["completion", "bash"])


@pytest.mark.parametrize(
    ("name", "called"), [(name, name) for name in main.COMMANDS] + [("collect_results", "collect")]
)
def test_command_shows_how_it_was_called(
    name: str, called: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("COLUMNS", "200")
    for program, prog in (("/bin/domainbed", f"domainbed {name}"), ("x.py", f"python -m domainbed.scripts.{name}")):
        monkeypatch.setattr(sys, "argv", [program])
        with pytest.raises(SystemExit) as end:
            main.main([called, "--help"])
        assert end.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: {prog} [-h]")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["swep"], "invalid choice: 'swep'; did you mean sweep?"),
        (["--versoin"], "the following arguments are required: COMMAND"),
        (["train", "--algorithm", "EMR"], "unknown algorithm 'EMR'; did you mean ERM?"),
        (
            ["train", "--xyz", "3", "--algoritm=ERM", "--xyz"],
            "unknown arguments --xyz, --algoritm=ERM (did you mean --algorithm?) (see ",
        ),
        (["plot", "--input_dir", "s", "a", "b"], "unknown arguments a, b (see "),
    ],
)
def test_invalid_command_is_one_line(words: list[str], message: str):
    with pytest.raises(UsageError) as error:
        main.main(words)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["train", "--help"],
        ["sweep", "launch", "--help"],
        ["collect_results", "--help"],
        ["colored_mnist", "--help"],
    ],
)
def test_help_does_not_import_torch(words: list[str]):
    program = f"import sys\nfrom domainbed.scripts.__main__ import main\ntry: main({words})\n"
    program += "except SystemExit: print(*sys.modules)"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = finished.stdout.splitlines()[-1].split()
    assert "domainbed.cli" in modules
    assert not {"torch", "pandas", "matplotlib", "scipy"} & set(modules)


def test_output_must_be_writable(tmp_path: Path):
    cli.check_output(None)
    cli.check_output(str(tmp_path / "new"))
    with pytest.raises(UsageError, match=f"--output {tmp_path} is a folder; specify a file"):
        cli.check_output(str(tmp_path))
    with pytest.raises(UsageError, match=f"--archive {tmp_path}/no/file: folder {tmp_path}/no does not exist"):
        cli.check_output(str(tmp_path / "no" / "file"), "--archive")


def test_readme_has_the_table_of_options():
    readme = (ROOT / "domainbed" / "scripts" / "README.md").read_text()
    _, table, _ = readme.split("<!-- options_table(JobConfig) -->\n")
    assert table == options_table(JobConfig)
