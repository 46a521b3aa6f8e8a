"""A plugin of pytest: the tests that take each device of a machine find a GPU, with the CuPy that people install.

    PYTHONPATH=tests/cuda/real_cupy python -m pytest -p with_cupy tests/ops tests/model -k cuda
"""

import cuda_on_cpu
import pytest

cuda = cuda_on_cpu.install()


@pytest.fixture(autouse=True)
def gpu_that_has_no_problem():
    cuda.reset()
    yield
    assert cuda.problems() == []
