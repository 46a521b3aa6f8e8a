"""What the op tests share: strategies, random arrays, a comparison, and the three promises that every op makes.

A case is drawn on the CPU, by NumPy, and moved to the device with `xp.asarray`; independent formulas run in NumPy.
"""

import importlib.util
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from numllama.backend import to_numpy, xp_of

SIZES = st.sampled_from([1, 2, 3, 4, 5, 7])                      # of an axis: one, even, odd
LEADS = st.lists(SIZES, min_size=1, max_size=3).map(tuple)       # the axes before the last
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RNGS = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng([1, seed]))  # never gradcheck's own numbers


def normal(xp, rng, *shape, dtype="float64"):
    """Standard normal numbers on the device of `xp`."""
    return xp.asarray(rng.standard_normal(shape).astype(dtype))


def scaled_rows(rng, *shape):
    """Rows whose root mean square lies in [0.5, 2], in NumPy: a norm's derivatives grow without bound near zero."""
    x = rng.standard_normal(shape)
    rms = np.sqrt((x * x).mean(-1, keepdims=True))
    return x / rms * rng.uniform(0.5, 2, (*shape[:-1], 1))


def assert_close(actual, expected, rtol=1e-12):
    """The same shape, and equal up to `rtol` in relative Frobenius norm."""
    actual, expected = to_numpy(actual), to_numpy(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape}, but {expected.shape} was expected"
    error, norm = np.linalg.norm(actual - expected), np.linalg.norm(expected)
    assert error <= rtol * norm, f"relative error {error / max(norm, 1e-300):.2e}, but {rtol:.0e} is allowed"


def assert_same_bits(actual, expected):
    """The same shape, dtype and bytes."""
    actual, expected = to_numpy(actual), to_numpy(expected)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    same = actual.tobytes() == expected.tobytes()  # alone: a report on long bytes that differ would take minutes
    assert same, f"{(actual != expected).sum()} elements differ"


def leaves(value):
    """The arrays inside nested tuples and lists, in order."""
    if isinstance(value, tuple | list):
        return [leaf for part in value for leaf in leaves(part)]
    return [value] if hasattr(value, "dtype") else []


def random_like(array):
    """A random cotangent."""
    rng = np.random.default_rng(7)
    return xp_of(array).asarray(rng.standard_normal(array.shape), dtype=array.dtype)


def strided(value):
    """The same numbers with a gap after each of them."""
    return xp_of(value).stack([value, value], axis=-1)[..., 0] if hasattr(value, "dtype") else value


@contextmanager
def unmodified(*values):
    """Fail if any array inside `values` is written to."""
    before = [leaf.copy() for leaf in leaves(values)]
    yield
    for leaf, old in zip(leaves(values), before, strict=True):
        assert_same_bits(leaf, old)


def check_inputs_stay(forward, backward, args):
    """Neither the arguments nor the cotangent nor the cache change."""
    with unmodified(args):
        out, cache = forward(*args)
    dout = random_like(out)
    with unmodified(args, dout, cache):
        backward(dout, cache)


def check_strides(forward, backward, args):
    """Non-contiguous arguments and cotangents give what contiguous ones give."""
    out, cache = forward(*args)
    dout = random_like(out)
    out_2, cache_2 = forward(*map(strided, args))
    gradients, gradients_2 = backward(dout, cache), backward(strided(dout), cache_2)
    for actual, expected in zip(leaves((out_2, gradients_2)), leaves((out, gradients)), strict=True):
        assert_close(actual, expected, rtol=1e-14)


def check_dtype(forward, backward, args, dtype):
    """Outputs, caches and gradients have the dtype of the arguments."""
    args = [arg.astype(dtype) if hasattr(arg, "dtype") and arg.dtype.kind == "f" else arg for arg in args]
    out, cache = forward(*args)
    gradients = backward(random_like(out), cache)
    floats = [leaf.dtype.name for leaf in leaves((out, cache, gradients)) if leaf.dtype.kind == "f"]
    assert floats
    assert set(floats) == {dtype}


@cache
def example(name):
    """An example as a module; where there are none, the test that asks for it is skipped."""
    if not EXAMPLES.exists():
        pytest.skip("tests without the examples")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
