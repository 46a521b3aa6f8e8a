"""What every kernel promises, checked on the emulator against its op computed in long double.

A kernel's error is at most twice that of the op itself in the same type, plus four units in the last place of the largest
number. The caches are the op's: forward by kernel and backward by NumPy is as good, and the other way round. The result is the
same bits in whatever order threads run. Where there is a GPU, the same holds on it.
"""

import ml_dtypes
import numpy as np
import pytest
from emulator import BACKWARD, FORWARD, SHUFFLED, emulated
from helpers import assert_same_bits, leaves, unmodified

from numllama.backend import BFLOAT16, array_module, to_numpy
from numllama.errors import DeviceError

FLOAT32, FLOAT64, FLOAT16 = map(np.dtype, ("float32", "float64", "float16"))
HALVES = (BFLOAT16, FLOAT16)
every_dtype = pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, BFLOAT16, FLOAT16], ids=str)
EXACT = np.longdouble


def real(dtype):
    """What kernels keep statistics and gains in."""
    return FLOAT64 if dtype == FLOAT64 else FLOAT32


def is_float(value):
    return hasattr(value, "dtype") and (value.dtype.kind == "f" or value.dtype == BFLOAT16)


def converted(value, dtype):
    """Arrays of floats inside nested tuples in another dtype."""
    if isinstance(value, tuple | list):
        return type(value)(converted(part, dtype) for part in value)
    return value.astype(dtype) if is_float(value) else value


def ulp(x, dtype):
    """The distance between neighbours of `dtype` at the largest element of x."""
    largest = float(np.max(np.abs(x), initial=0))
    return float(ml_dtypes.finfo(dtype).eps) * 2.0 ** np.floor(np.log2(largest)) if largest else 0.0


def assert_as_good(actual, references, exact, what):
    """Arrays in nested tuples: within twice the references' own error, plus four units in the last place."""
    for i, (a, e, *rs) in enumerate(zip(leaves(actual), leaves(exact), *map(leaves, references), strict=True)):
        r = rs[0]
        assert (a.shape, a.dtype) == (r.shape, r.dtype), f"{what} {i} is {a.dtype}{a.shape}, but should be {r.dtype}{r.shape}"
        if not is_float(a):
            assert_same_bits(a, r)
            continue
        error, *errors = (float(np.max(np.abs(x.astype(EXACT) - e.astype(EXACT)), initial=0)) for x in (a, *rs))
        own = max(errors)
        bound = 2 * own + 4 * ulp(e, a.dtype)
        assert error <= bound, f"{what} {i}: error {error:.2e}, but {bound:.2e} is allowed (the op's own: {own:.2e})"


def check_kernels(forward, backward, args, dtype, kernels, reals=(), douts=None, other_caches=None, capability=90, **options):
    """All promises for one case.

    Parameters
    ----------
    args : list
        Of `forward`; arrays of floats are rounded to `dtype`, those at the positions `reals` to its statistics' type.
    kernels : pair of lists of str
        What must be launched, forward and backward.
    douts : optional
        The cotangent in place of a random one.
    other_caches : callable, optional
        Makes caches of the op for the same arguments, rounded otherwise. Where backward computes again what forward has summed,
        rounding cancels as long as both sum in one order: gradients from the other side's cache are then held against these.
    capability : int
        Of the emulated GPU.
    **options
        Of `backward`; copied for each call.
    """
    args = [converted(arg, real(dtype) if i in reals else dtype) for i, arg in enumerate(args)]
    exact_args = converted(args, EXACT)
    out, cache = forward(*args)                                        # NumPy: the yardstick
    exact_out, exact_cache = forward.reference(*exact_args)
    rng = np.random.default_rng(5)
    if douts is None:
        douts = tuple(rng.standard_normal(o.shape).astype(o.dtype) for o in leaves(out))
        douts = douts if isinstance(out, tuple) else douts[0]

    def copied_options(dtype=None):
        return {name: value.copy() if dtype is None else converted(value.copy(), dtype) for name, value in options.items()}

    gradients = backward(douts, cache, **copied_options())
    crossed = [backward(douts, other) for other in other_caches(*args)] if other_caches else [gradients]
    exact_gradients = backward.reference(converted(douts, EXACT), exact_cache, **copied_options(EXACT))

    results = []
    for order in (FORWARD, BACKWARD, SHUFFLED):
        with emulated(order, capability=capability) as emulator, unmodified(args, douts):
            kernel_out, kernel_cache = forward(*args)
            assert emulator.launched == kernels[0]
            kernel_gradients = backward(douts, kernel_cache, **copied_options())
            assert emulator.launched == kernels[0] + kernels[1]
            crossed_gradients = backward(douts, cache, **copied_options())
            assert emulator.launched == kernels[0] + kernels[1] + kernels[1]
        results.append((kernel_out, kernel_gradients))
    for other in results[1:]:
        for a, b in zip(leaves(results[0]), leaves(other), strict=True):
            assert_same_bits(a, b)

    assert_as_good(kernel_out, [out], exact_out, "output")
    assert_as_good(kernel_cache, [cache], exact_cache, "cache")
    assert_as_good(kernel_gradients, [gradients], exact_gradients, "gradient")
    assert_as_good(crossed_gradients, crossed, exact_gradients, "gradient from the op's cache")
    back = backward(douts, kernel_cache, **copied_options())           # NumPy again
    assert_as_good(back, crossed, exact_gradients, "the op's gradient from the kernel's cache")

    for xp in gpus():
        moved_args, moved_douts = moved(args, xp.asarray), moved(douts, xp.asarray)
        gpu_out, gpu_cache = forward(*moved_args)
        gpu_gradients = [backward(moved_douts, gpu_cache, **moved(copied_options(), xp.asarray)) for _ in range(2)]
        for a, b in zip(leaves(gpu_gradients[0]), leaves(gpu_gradients[1]), strict=True):
            assert_same_bits(a, b)
        assert_as_good(moved(gpu_out, to_numpy), out, exact_out, "output on the GPU")
        assert_as_good(moved(gpu_cache, to_numpy), cache, exact_cache, "cache on the GPU")
        assert_as_good(moved(gpu_gradients[0], to_numpy), gradients, exact_gradients, "gradient on the GPU")


def gpus():
    """CuPy, if there is a GPU."""
    try:
        return [array_module("cuda")]
    except DeviceError:
        return []


def moved(value, move):
    """Arrays inside nested tuples, lists and dictionaries on another device."""
    if isinstance(value, dict):
        return {name: moved(part, move) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(moved(part, move) for part in value)
    return move(value) if getattr(value, "ndim", 0) or hasattr(value, "get") else value


def offset_by_one(array):
    """The same numbers at an address that 16 does not divide."""
    flat = np.empty(array.size + 1, array.dtype)
    view = flat[1:].reshape(array.shape)
    view[...] = array
    return view
