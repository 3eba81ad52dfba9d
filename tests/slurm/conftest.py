"""A real SLURM cluster on this machine, which runs during the tests in this folder."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.sweeps import ROOT

ENABLED = "DOMAINBED_TEST_SLURM"
# Small, so that sixty jobs require several arrays.
MAX_ARRAY_SIZE = 5


@pytest.fixture(scope="package", autouse=True)
def cluster() -> Iterator[Path]:
    """The folder of a cluster of three nodes with two fake GPUs each."""
    if os.environ.get(ENABLED) != "1":
        pytest.skip(f"set {ENABLED}=1, as root, to run the tests on a SLURM cluster (see scripts/slurm-up)")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    # Shuts the cluster down when this end of the pipe closes, even if this process is killed.
    command = f'cat; exec "{ROOT}/scripts/slurm-down" "{folder}"'
    shutdown = subprocess.Popen(["bash", "-c", command], stdin=subprocess.PIPE, start_new_session=True)
    with pytest.MonkeyPatch.context() as patch:
        # Variables of a batch job, or of the user, would affect the tests.
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "OMP_"))]:
            patch.delenv(name)
        patch.setenv("SLURM_CONF", str(folder / "etc" / "slurm.conf"))
        patch.setenv("PYTHONPATH", str(ROOT))  # where tasks find the modules of --import
        try:
            repair(folder)
            yield folder
        finally:
            assert shutdown.stdin is not None
            shutdown.stdin.close()
            shutdown.wait()
    assert not folder.exists()


def repair(folder: Path) -> None:
    """Start the cluster, or those of its daemons that are not running."""
    environ = os.environ | {"SLURM_UP_MAX_ARRAY_SIZE": str(MAX_ARRAY_SIZE)}
    finished = subprocess.run([ROOT / "scripts" / "slurm-up", folder], env=environ, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
