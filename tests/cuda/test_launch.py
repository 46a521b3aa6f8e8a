"""Sources of kernels, and when launchers are not needed. How kernels reach CuPy is in real_cupy/test_launch.py."""

import subprocess
import sys
from itertools import takewhile

import numpy as np
import pytest

from numllama.cuda import launch, sources


def test_launchers_are_not_even_imported_where_there_is_no_gpu():
    code = (
        "import sys, numllama, numpy\n"
        "x = numpy.ones((2, 3))\n"
        "numllama.ops.swiglu_forward(x, x)\n"
        "sys.exit('numllama.cuda.swiglu' in sys.modules or 'cupy' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("path", sorted(sources.KERNELS.glob("*.cu")), ids=lambda path: path.name)
def test_a_source_opens_with_its_op_how_threads_map_to_rows_what_it_fuses_and_its_floor(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    head = "\n".join(takewhile(lambda line: line.startswith("//"), lines)).lower()
    assert [word for word in (f"/{path.stem}.py", "rows", "fused", "floor") if word not in head] == []


def test_arrays_that_lie_next_to_each_other_are_one_view(gpu):
    whole = np.arange(24.0).reshape(4, 6)
    rows = launch.adjacent((whole[:1], whole[1:3], whole[3:]), 0)
    assert (rows == whole).all() and np.shares_memory(rows, whole)
    columns = launch.adjacent((whole[:, :2], whole[:, 2:3]), -1)
    assert (columns == whole[:, :3]).all() and np.shares_memory(columns, whole)
    heads = whole.reshape(2, 2, 3, 2).swapaxes(1, 2)  # (B, heads, T, D)
    assert (launch.adjacent((heads[:, :2], heads[:, 2:]), 1) == heads).all()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_parts_of_an_array_lie_next_to_each_other(axis):
    whole = np.arange(24.0).reshape(4, 6)
    sizes = (1, 0, whole.shape[axis] - 1)
    parts = launch.parts(whole, sizes, axis)
    assert tuple(part.shape[axis] for part in parts) == sizes
    assert (np.concatenate(parts, axis) == whole).all() and np.shares_memory(parts[2], whole)


@pytest.mark.parametrize(
    "parts",
    [
        lambda x: (x[:1], x[2:]), lambda x: (x[1:2], x[:1]), lambda x: (x[:2], x[2:].copy()), lambda x: (x[:2], x[2:, :3]),
        lambda x: (x[:2, :3], x[2:, 3:]), lambda x: (x[:2], x[2:].astype("float32")), lambda x: (x[:1], x[1::2]),
    ],
)  # fmt: skip
def test_arrays_that_do_not_are_none(gpu, parts):
    assert launch.adjacent(parts(np.arange(24.0).reshape(4, 6)), 0) is None


def test_how_far_apart_rows_are():
    x = np.zeros((2, 3, 4, 5))
    assert launch.row_stride(x) == launch.row_stride(x[0]) == launch.row_stride(x[0, 0, 0]) == 5
    assert launch.row_stride(x[..., :3]) == 5
    assert launch.row_stride(x[:, :, 0]) == 20 and launch.row_stride(x[:, :, :1]) == 20
    for unlike in (x[..., ::2], x[:, :, :2], x[:, :1], x.swapaxes(1, 2), x[::-1], x[:0], x.T):
        assert launch.row_stride(unlike) is None
