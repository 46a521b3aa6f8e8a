"""Sources of kernels, and when launchers are not needed. How kernels reach CuPy is in real_cupy/test_launch.py."""

import subprocess
import sys
from itertools import takewhile

import pytest

from numllama.cuda import launch


def test_launchers_are_not_even_imported_where_there_is_no_gpu():
    code = (
        "import sys, numllama, numpy\n"
        "x = numpy.ones((2, 3))\n"
        "numllama.ops.swiglu_forward(x, x)\n"
        "sys.exit('numllama.cuda.swiglu' in sys.modules or 'cupy' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("path", sorted(launch.KERNELS.glob("*.cu")), ids=lambda path: path.name)
def test_a_source_opens_with_its_op_how_threads_map_to_rows_what_it_fuses_and_its_floor(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    head = "\n".join(takewhile(lambda line: line.startswith("//"), lines)).lower()
    assert [word for word in (f"/{path.stem}.py", "rows", "fused", "floor") if word not in head] == []
