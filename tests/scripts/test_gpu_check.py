"""scripts/gpu-check: one part that fails, hangs or is killed never affects the others, and nothing is lost."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
VERSIONS = {"gpu": "Fake | GPU", "torch": "1"}

# Starts a child in its own session, writes its process number, and waits for it.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
open(sys.argv[1], "w").write(str(child.pid))
child.wait()
"""


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("gpu_check")


def python(code: str, *words: object) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *map(str, words))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_parts_that_fail_hang_or_pass_are_all_reported(check: ModuleType, tmp_path: Path):
    write = "import sys; open(sys.argv[1], 'w').write('{\"ms\": 3}'); print('```measured')"
    stale = tmp_path / "fails.measurements.json"
    stale.write_text('{"of": "an earlier check"}')
    parts = [
        check.Part("fails", 60, (python("print('before'); 1 / 0"), python("print('never runs')"))),
        check.Part("hangs", 10, (python(PARENT, tmp_path / "pid"),)),
        check.Part("lacks", 60, ((str(tmp_path / "no such program"),),)),
        check.Part("dies", 60, (python("import os; os.kill(os.getpid(), 9)"),)),
        check.Part("absent", 60, (python("print()"),), "requires data"),
        check.Part("passes", 60, (python("print(1)"), python(write, tmp_path / "passes.measurements.json"))),
    ]
    results = check.run_parts(parts, VERSIONS, tmp_path, check.TOTAL_SECONDS)
    assert [(r.name, r.status, r.reason) for r in results] == [
        ("fails", "failed", "exit status 1"),
        ("hangs", "timed out", "killed after 10 s"),
        ("lacks", "failed", f"{tmp_path / 'no such program'}: No such file or directory"),
        ("dies", "failed", "killed by signal 9"),
        ("absent", "skipped", "requires data"),
        ("passes", "passed", ""),
    ]
    assert not is_running(int((tmp_path / "pid").read_text())), "a child in another session survived"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["versions"] == VERSIONS
    by_name = {part["name"]: part for part in report["parts"]}
    assert list(by_name) == [part.name for part in parts]
    assert "ZeroDivisionError" in by_name["fails"]["output"]
    assert "never runs" not in (tmp_path / "fails.log").read_text().splitlines()
    assert by_name["fails"]["measurements"] is None
    assert by_name["passes"]["measurements"] == {"ms": 3}
    text = (tmp_path / "report.md").read_text()
    assert "| hangs | timed out (killed after 10 s) |" in text
    assert text.count("```") == 2 * sum(bool(result.output) for result in results), "output closes a code block"


def test_report_is_complete_after_each_part(check: ModuleType, tmp_path: Path):
    """The second part sees the report of the first."""
    show = python("import sys; print(open(sys.argv[1]).read())", tmp_path / "report.json")
    parts = [check.Part("first", 60, (python("print('hello')"),)), check.Part("second", 60, (show,))]
    results = check.run_parts(parts, VERSIONS, tmp_path, check.TOTAL_SECONDS)
    assert '"name": "first"' in results[1].output
    assert '"name": "second"' not in results[1].output


def test_total_time_limit(check: ModuleType, tmp_path: Path):
    """Limits are proportional to it, and parts for which no time is left are not started."""
    parts = [check.Part(name, 400, (python("import time; time.sleep(600)"),)) for name in "abc"]
    results = check.run_parts(parts, VERSIONS, tmp_path, total=6.0, spent=1.0)
    assert [result.status for result in results] == ["timed out", "not started", "not started"]
    assert results[0].limit == 4.0


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("with_data", [False, True])
def test_parts(check: ModuleType, tmp_path: Path, device: str, with_data: bool):
    words = ["--device", device, "--output_dir", str(tmp_path)]
    if with_data:
        (tmp_path / "MNIST").mkdir()
        (tmp_path / "PACS").mkdir()
        words += ["--data_dir", str(tmp_path)]
    parts = {part.name: part for part in check.make_parts("python", check.parser().parse_args(words))}
    assert tuple(parts) == check.PARTS
    assert sum(part.seconds for part in parts.values()) + check.INSTALL_SECONDS <= check.TOTAL_SECONDS
    assert {name for name, part in parts.items() if part.skip_reason} == (set() if with_data else {"data", "features"})
    dataset = "ColoredMNIST" if with_data else "ColoredDigits"
    for name in ("step", "job", "eval", "cell"):
        assert dataset in parts[name].commands[0]
    launch = parts["cell"].commands[0]
    assert launch[launch.index("--steps") + 1] == ("5001" if device == "cuda" else "3")
    for part in parts.values():
        for command in part.commands:
            for word in command:
                if word.endswith(".py"):
                    assert (check.ROOT / word).is_file(), word


def test_selected_parts_and_exit_status(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    fake = [check.Part("step", 60, (python("print()"),)), check.Part("job", 60, (python("raise SystemExit(3)"),))]
    monkeypatch.setattr(check, "make_parts", lambda python, args: fake)
    monkeypatch.setattr(check, "VERSIONS", "print('{\"gpu\": null}')")
    out = ["--output_dir", str(tmp_path / "out")]
    assert check.main([*out, "--device", "cpu", "--parts", "step"]) == 0
    assert check.main([*out, "--device", "cpu", "--parts", "step", "job"]) == 1
    assert "Failed: job\n" in capsys.readouterr().out
    assert [part["name"] for part in json.loads((tmp_path / "out/report.json").read_text())["parts"]] == ["step", "job"]
    assert check.main(out) == 2
    assert capsys.readouterr().err == "error: no GPU found; pass --device cpu to only try the command lines\n"
    assert check.main([*out, "--data_dir", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'} is not a folder\n"
    (tmp_path / "wheels").mkdir()
    monkeypatch.setattr(check, "required_packages", lambda: ["no-such-package-of-domainbed"])
    assert check.main([*out, str(tmp_path / "wheels")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot install packages (exit status 1):\n")
    assert "no-such-package-of-domainbed" in error


def test_required_packages_are_those_of_the_package_and_the_tests(check: ModuleType):
    packages = check.required_packages()
    assert "torch>=2.6" in packages
    assert "pytest" in packages
    assert all(packages)


def test_help_needs_no_packages():
    """The machine may lack everything but Python."""
    environ = {**os.environ, "PYTHON": sys.executable, "PYTHONSAFEPATH": "1"}
    finished = subprocess.run([SCRIPTS / "gpu-check", "--help"], capture_output=True, text=True, env=environ)
    assert finished.returncode == 0
    assert "WHEELS_DIR" in finished.stdout
    isolated = [sys.executable, "-I", "-S", SCRIPTS / "gpu_check.py", "--help"]
    assert subprocess.run(isolated, capture_output=True).returncode == 0
