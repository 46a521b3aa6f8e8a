"""MPI's ranks are started by mpirun; where it or mpi4py is missing, these tests say so."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# More ranks than cores, and by root in a container: Open MPI wants to be told that both are meant.
ALLOW = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}  # fmt: skip


@pytest.fixture
def mpirun():
    """``mpirun(n, script, *arguments)``: starts n ranks of a Python script; a Popen with text output."""
    if not shutil.which("mpirun") or not find_spec("mpi4py"):
        pytest.skip("needs mpirun and mpi4py")
    env = {**os.environ, **ALLOW, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}

    started = []

    def start(n, script, *arguments):
        command = ["mpirun", "-n", str(n), sys.executable, str(script), *map(str, arguments)]
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.terminate()  # mpirun then ends its ranks, which a kill would leave behind
        process.communicate()
