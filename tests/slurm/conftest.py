"""A real SLURM cluster for the tests here, on this machine: up before the first, down after the last."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.sweeps import ROOT

ASKED = "DOMAINBED_TEST_SLURM"
# The least cluster on which sixty jobs are several arrays.
MAX_ARRAY_SIZE = 5


@pytest.fixture(scope="package", autouse=True)
def cluster() -> Iterator[Path]:
    """The folder of a cluster of three nodes, of two stand-in GPUs each."""
    if os.environ.get(ASKED) != "1":
        pytest.skip(f"set {ASKED}=1, as root, for the tests on a SLURM cluster of their own (see scripts/slurm-up)")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    # Takes the cluster down when our end of the pipe is closed, be it because we were killed.
    command = f'cat; exec "{ROOT}/scripts/slurm-down" "{folder}"'
    undertaker = subprocess.Popen(["bash", "-c", command], stdin=subprocess.PIPE, start_new_session=True)
    with pytest.MonkeyPatch.context() as patch:
        # What a batch job, or whoever runs the tests, has set for itself.
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "OMP_"))]:
            patch.delenv(name)
        patch.setenv("SLURM_CONF", str(folder / "etc" / "slurm.conf"))
        patch.setenv("PYTHONPATH", str(ROOT))  # where tasks find the modules that the tests --import
        try:
            mend(folder)
            yield folder
        finally:
            assert undertaker.stdin is not None
            undertaker.stdin.close()
            undertaker.wait()
    assert not folder.exists()


def mend(folder: Path) -> None:
    """Bring the cluster up, or what is missing of it."""
    environ = os.environ | {"SLURM_UP_MAX_ARRAY_SIZE": str(MAX_ARRAY_SIZE)}
    finished = subprocess.run([ROOT / "scripts" / "slurm-up", folder], env=environ, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
