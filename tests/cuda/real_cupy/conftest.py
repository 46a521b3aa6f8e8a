"""The tests here run with the CuPy that people install, on a GPU that is emulated. CuPy is built on the first run: minutes."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import cuda_on_cpu

cuda = cuda_on_cpu.install()


@pytest.fixture
def gpu():
    """The GPU: an sm_90, one of three, that computes at once. What CUDA refused, and the test has not asked for, is an error."""
    set_up(capability=90, devices=cuda_on_cpu.DEVICES, computes=True, lazy=False, memory=64 << 30)
    cuda.reset()
    yield cuda
    problems = cuda.problems()
    set_up(lazy=False)
    assert problems == []


def set_up(**settings):
    for name, value in settings.items():
        setattr(cuda, name, value)
