"""Kernels on the emulator: NumPy arrays, g++ in place of nvcc."""

import shutil
import sys

import pytest
from emulator import COMPILER, emulated


@pytest.fixture(autouse=True, scope="session")
def compiler():
    if sys.platform != "linux":
        pytest.skip("the emulator needs Linux: shared variables are found through a section of an ELF file")
    if shutil.which(COMPILER) is None:
        pytest.skip(f"the emulator needs a C++ compiler, and there is no {COMPILER}")


@pytest.fixture
def gpu(compiler):
    """Within the test, kernels run on the emulator."""
    with emulated() as emulator:
        yield emulator
