import math
import re
import subprocess
import sys

import numpy as np
import pytest

from numllama.backend import array_module, erf, float_dtype, to_numpy, xp_of
from numllama.errors import DeviceError, NumllamaError
from numllama.install import install_command


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_the_cpu_is_numpy():
    assert array_module("cpu") is np


@pytest.mark.parametrize("name", ["gpu", "", "CPU", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda0", "mps"])
def test_an_unknown_device(name):
    with pytest.raises(ValueError, match=rf"^device is '{name}', but must be 'cpu', 'cuda' or 'cuda:N'$"):
        array_module(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_without_cupy_the_error_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # makes `import cupy` fail
    with pytest.raises(DeviceError, match=re.escape(install_command("cuda13"))):
        array_module(name)


def test_a_missing_device_is_an_error_of_numllama():
    assert issubclass(DeviceError, NumllamaError)


def test_importing_numllama_does_not_import_cupy():
    code = (
        "import sys, numllama, numllama.ops, numllama.gradcheck, numpy\n"
        "numllama.ops.gelu_forward(numpy.ones((2, 3)), 'none')\n"
        "sys.exit('cupy' in sys.modules)"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_arrays_know_their_module(xp):
    assert xp_of(xp.ones(3)) is xp
    assert xp_of(None, 3, xp.ones(3)) is xp


def test_what_is_no_array_belongs_to_numpy():
    assert xp_of(None, 3.0, [1]) is np


def test_to_numpy_keeps_values_and_dtype(xp):
    array = to_numpy(xp.arange(6, dtype="float32").reshape(2, 3))
    assert isinstance(array, np.ndarray) and array.dtype == "float32"
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_to_numpy_does_not_copy_what_is_numpy():
    array = np.ones(3)
    assert to_numpy(array) is array


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_dtypes_by_name_and_by_type(name):
    assert float_dtype(name) == float_dtype(getattr(np, name)) == float_dtype(np.dtype(name)) == np.dtype(name)


@pytest.mark.parametrize("name", ["float16", "int32", "bool"])
def test_a_dtype_that_is_none_of_the_two(name):
    with pytest.raises(ValueError, match=rf"^dtype is '{name}', but must be one of float32, float64$"):
        float_dtype(name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_erf_element_by_element_in_the_dtype_of_x(xp, dtype):
    x = xp.linspace(-4, 4, 9, dtype=dtype).reshape(3, 3)
    out = erf(x)
    expected = np.reshape([math.erf(float(value)) for value in x.ravel()], (3, 3))
    assert out.dtype == dtype and out.shape == (3, 3)
    assert abs(to_numpy(out) - expected).max() <= (1e-7 if dtype == "float32" else 1e-15)


def test_erf_of_nothing(xp):
    assert erf(xp.ones((0, 3))).shape == (0, 3)
