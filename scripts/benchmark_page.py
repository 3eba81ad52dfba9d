#!/usr/bin/env python3
"""Measure the report page of the whole benchmark: the time to write it, its size, and the time until it can be used.

The sweep is generated: seven algorithms on the seven datasets, with random records at the steps of the published
protocol. The page is opened in Chromium if it and chromedriver are installed.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # also works if the package is not installed

from benchmark_collect import write_records
from joblib import Parallel, delayed

from domainbed import cli
from domainbed.datasets import DATASETS
from domainbed.errors import UsageError
from domainbed.records import DONE_FILE
from domainbed.scripts import sweep_parser
from domainbed.sweep.job import Job
from domainbed.sweep.log import log_launch

BENCHMARK = ("ColoredMNIST", "RotatedMNIST", "VLCS", "PACS", "OfficeHome", "TerraIncognita", "DomainNet")
# The page marks the time when its charts are drawn.
READY = "return performance.getEntriesByName('explorer-ready')[0]?.startTime"
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1000")
LOADS = 5


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(prog="scripts/benchmark page", description=__doc__)
    parser.add_argument("--n_hparams", type=int, default=20, help="hyperparameter draws")
    parser.add_argument("--n_trials", type=int, default=3, help="trials")
    parser.add_argument(
        "--datasets", nargs="+", default=BENCHMARK, metavar="NAME", help="datasets (default: all seven)"
    )
    parser.add_argument(
        "--dir", help="folder to create the sweep in; it is deleted afterwards (default: the system's temporary folder)"
    )
    args = parser.parse_args(argv)
    if args.dir is not None and not Path(args.dir).is_dir():
        raise UsageError(f"--dir {args.dir} is not a folder")
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        words = ["--datasets", *args.datasets, "--data_dir", folder, "--output_dir", folder]
        grid = sweep_parser.grid_of(
            sweep_parser.parser().parse_args(
                ["launch", *words, "--n_hparams", str(args.n_hparams), "--n_trials", str(args.n_trials)]
            )
        )
        jobs = grid.jobs(Path(folder))
        parts = [jobs[i : i + 500] for i in range(0, len(jobs), 500)]
        Parallel(os.cpu_count())(delayed(write_jobs)(part) for part in parts)
        log_launch(Path(folder), grid)
        print(f"{len(jobs):,} jobs; {len(os.sched_getaffinity(0))} cores", flush=True)
        page = Path(folder) / "report.html"
        for name in ("written, the first time", "written again"):
            print(f"{name:32} {write_page(page):6.1f} s", flush=True)
        print(f"{'size':32} {page.stat().st_size / 1e6:6.2f} MB", flush=True)
        if all(map(shutil.which, ("chromium", "chromedriver"))):
            times = load_times(page)
            spread = f"{min(times):.2f} to {max(times):.2f}"
            print(f"{'ready in the browser':32} {statistics.median(times):6.2f} s  ({spread})", flush=True)
    return 0


def write_jobs(jobs: Sequence[Job]) -> None:
    """Create the folders of finished jobs."""
    for job in jobs:
        dataset = DATASETS[job.config.dataset]
        job.folder.mkdir()
        (job.folder / DONE_FILE).write_text("done")
        write_records(job, 1 + -(-(dataset.N_STEPS - 1) // dataset.CHECKPOINT_FREQ), dataset.CHECKPOINT_FREQ)


def write_page(page: Path) -> float:
    """Return the seconds that collect_results takes to write the page."""
    start = time.perf_counter()
    words = ["--input_dir", str(page.parent), "--format", "html", "--output", str(page)]
    subprocess.run([sys.executable, "-m", "domainbed.scripts.collect_results", *words], check=True, capture_output=True)
    return time.perf_counter() - start


def load_times(page: Path) -> list[float]:
    """Return the seconds until a browser has opened the page and drawn its charts, several times."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.wait import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ARGUMENTS:
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        times = []
        for _ in range(LOADS):
            driver.get("about:blank")
            driver.get(page.as_uri())
            times.append(WebDriverWait(driver, 60).until(lambda d: d.execute_script(READY)) / 1000)
        return times
    finally:
        driver.quit()


if __name__ == "__main__":
    cli.run(main)
