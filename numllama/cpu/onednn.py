"""oneDNN, the one door to it: matrix products and conversions by a CPU's matrix units.

oneDNN (Apache-2.0) generates its kernels for the CPU at hand: AVX2, AVX-512, bfloat16 units (AVX512_BF16), matrix units (AMX).
NumPy's BLAS has no product of bfloat16. The library is optional: it is looked for in `NUMLLAMA_ONEDNN`, then as the package
``onednn-cpu-gomp``, then in the system, and any version 3 will do. Without it everything runs in NumPy.

A *primitive* is oneDNN's word for one operation on given shapes, strides and dtypes. Making one takes a millisecond, running it
some microseconds, so each thread keeps its own: oneDNN's scratch memory belongs to the thread that made the primitive. A
transposed operand is a matter of strides, and adding to the result one more operation inside the primitive.
"""

import ctypes
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import BFLOAT16, INT8
from numllama.install import install_command
from numllama.system.blas import is_one_blas_thread
from numllama.system.webassembly import IN_WEBASSEMBLY

VARIABLE = "NUMLLAMA_ONEDNN"  # the library's file, or "off"
PACKAGE = "onednn-cpu-gomp"
SONAME = "libdnnl.so.3"
MOST_PRIMITIVES = 1024  # that a thread keeps

# dnnl_types.h, version 3
CPU, IN_ORDER, MAX_DIMS = 1, 1, 12
DTYPES = {np.dtype(np.float32): 3, BFLOAT16: 2, INT8: 5, np.dtype(np.uint8): 6}
SOURCE, SECOND, WEIGHTS, BIAS, RESULT = 1, 2, 33, 41, 17  # arguments
SCALES, AFTER = 4096, 32768  # SCALES | WEIGHTS: factors of the weights; AFTER | SECOND: of the operation after a product
EACH_COLUMN = 2  # a mask: one scale for each column of the weights
LINEAR, EXP, TIMES = 0x26, 0x2A, 0x1FFF1
ANY_ORDER, WEIGHTS_LAYOUT = 1, 131  # dnnl_format_tag_any; dnnl_query_weights_md
OUT_OF_MEMORY = 1
ISAS = {  # the last bit of each instruction set in dnnl_cpu_isa_t
    0x800: "AMX", 0x100: "AVX-512 with float16", 0x80: "AVX-512 with bfloat16", 0x20: "AVX-512", 0x4: "AVX2", 0x1: "SSE4.1",
}  # fmt: skip
AVX512_ISA, INT8_ISA, BFLOAT16_ISA = 0x20, 0x40, 0x80


class Library(NamedTuple):
    """oneDNN, opened."""

    path: str
    version: tuple[int, int, int]
    isa: int
    functions: Any  # ctypes: the GIL is released while they run
    setters: Any  # the same functions, with the GIL: for those that take less time than that
    engine: c_void_p
    stream: c_void_p
    threads: int  # that a call may use: OMP_NUM_THREADS, or all cores

    @property
    def instruction_set(self) -> str:
        """What the kernels are generated for, in words."""
        return next((name for bit, name in ISAS.items() if self.isa & bit), "no vector instructions")

    @property
    def has_bfloat16(self) -> bool:
        """Whether the CPU multiplies bfloat16 itself."""
        return bool(self.isa & BFLOAT16_ISA)

    @property
    def has_int8(self) -> bool:
        """Whether the CPU multiplies int8 itself (VNNI)."""
        return bool(self.isa & INT8_ISA)


@cache
def library() -> Library | None:
    """oneDNN, if it is installed, works, and has AVX-512 to use: else it is no faster than NumPy, and sums have other bits."""
    found = installed()
    return found if found is not None and found.isa & AVX512_ISA else None


@cache
def installed() -> Library | None:
    """oneDNN, whatever the CPU has; None with one warning if it does not work."""
    problems = []
    for path in _candidates():
        try:
            return _open(path)
        except (OSError, AttributeError, ValueError) as error:
            problems.append(f"{path}: {error}")
    if problems:
        warnings.warn(f"oneDNN cannot be used, so NumPy computes all products: {problems[0]}", RuntimeWarning, stacklevel=3)
    return None


def _candidates() -> Iterator[str]:
    """Files that may be the library; only the requested one, if one is."""
    if IN_WEBASSEMBLY:  # which opens none
        return
    requested = os.environ.get(VARIABLE)
    if requested:
        if requested != "off":
            yield requested
        return
    from importlib.metadata import PackageNotFoundError, files  # slow to import

    with suppress(PackageNotFoundError):
        yield from (str(Path(str(file.locate())).resolve()) for file in files(PACKAGE) or () if file.name == SONAME)
    with suppress(OSError):
        ctypes.CDLL(SONAME)
        yield SONAME


class _Version(ctypes.Structure):
    _fields_ = [(name, c_int) for name in ("major", "minor", "patch")] + [("hash", c_char_p)]


class _Argument(ctypes.Structure):
    _fields_ = [("name", c_int), ("memory", c_void_p)]


def _open(path: str) -> Library:
    functions, setters = ctypes.CDLL(path), ctypes.PyDLL(path)
    functions.dnnl_version.restype = POINTER(_Version)
    found = functions.dnnl_version().contents
    version = found.major, found.minor, found.patch
    if found.major != 3:
        raise ValueError(f"this is version {found.major}.{found.minor}, but a version 3 is needed: {install_command('onednn')}")
    engine, stream = c_void_p(), c_void_p()
    _check(functions.dnnl_engine_create(byref(engine), CPU, c_size_t(0)), "dnnl_engine_create")
    _check(functions.dnnl_stream_create(byref(stream), engine, IN_ORDER), "dnnl_stream_create")
    functions.dnnl_primitive_desc_query_md.restype = c_void_p
    functions.dnnl_memory_desc_get_size.restype, functions.dnnl_memory_desc_get_size.argtypes = c_size_t, [c_void_p]
    setters.dnnl_memory_set_data_handle.argtypes = c_void_p, c_void_p
    functions.dnnl_primitive_execute.argtypes = c_void_p, c_void_p, c_int, c_void_p
    threads = functions.omp_get_max_threads() if hasattr(functions, "omp_get_max_threads") else 1  # 1: built without OpenMP
    return Library(path, version, functions.dnnl_get_effective_cpu_isa(), functions, setters, engine, stream, threads)


def _check(status: int, what: str) -> None:
    if status == OUT_OF_MEMORY:
        raise MemoryError(f"oneDNN ran out of memory in {what}")
    if status:
        raise ValueError(f"oneDNN refused {what} (status {status})")


# ------------------------------------------------------------------------------------------------ primitives


class _Primitive:
    """One operation on arrays of given shapes, strides and dtypes, as many as `names`."""

    def __init__(self, lib: Library, names: tuple[int, ...], layouts: list[c_void_p], description: c_void_p) -> None:
        self._lib, self._run, self._set = lib, lib.functions.dnnl_primitive_execute, lib.setters.dnnl_memory_set_data_handle
        self.handle, self.memories = c_void_p(), []
        _check(lib.functions.dnnl_primitive_create(byref(self.handle), description), "dnnl_primitive_create")
        for layout in layouts:
            memory = c_void_p()
            _check(lib.functions.dnnl_memory_create(byref(memory), layout, lib.engine, None), "dnnl_memory_create")
            self.memories.append(memory)
        self.arguments = (_Argument * len(names))(*map(_Argument, names, self.memories))

    def __call__(self, addresses: Sequence[int]) -> None:
        for memory, address in zip(self.memories, addresses, strict=True):
            self._set(memory, address)
        status = self._run(self.handle, self._lib.stream, len(addresses), self.arguments)
        if status:
            _check(status, "dnnl_primitive_execute")

    def __del__(self) -> None:
        for memory in self.memories:
            self._lib.functions.dnnl_memory_destroy(memory)
        self._lib.functions.dnnl_primitive_destroy(self.handle)


def _address(array: np.ndarray) -> int:
    """Where its numbers begin: NumPy's ABI has this pointer first in an array. `array.ctypes` takes eight times as long."""
    return c_void_p.from_address(id(array) + object.__basicsize__).value or 0


class _Kept(threading.local):
    """A thread's primitives by what they were made for."""

    def __init__(self) -> None:
        self.primitives: dict[tuple, _Primitive] = {}
        self.threads = 0


_kept = _Kept()


def threads(lib: Library) -> int:
    """How many threads a call uses now."""
    return 1 if is_one_blas_thread() else lib.threads


def _primitive(key: tuple, make: Callable[[], Any], lib: Library) -> Any:
    n = threads(lib)
    if n != _kept.threads and lib.threads > 1:
        lib.functions.omp_set_num_threads(n)  # of this thread; a primitive is made for as many
        _kept.threads = n
    key = *key, n
    primitive = _kept.primitives.get(key)
    if primitive is None:
        if len(_kept.primitives) >= MOST_PRIMITIVES:
            _kept.primitives.clear()
        primitive = _kept.primitives[key] = make()
    return primitive


def _layouts(lib: Library, *arrays: np.ndarray) -> list[c_void_p]:
    """oneDNN's descriptions of arrays: shapes, strides and dtypes."""
    layouts, dims = [], c_int64 * MAX_DIMS
    for array in arrays:
        layout, steps = c_void_p(), (stride // array.itemsize for stride in array.strides)
        made = lib.functions.dnnl_memory_desc_create_with_strides(
            byref(layout), array.ndim, dims(*array.shape), DTYPES[array.dtype], dims(*steps)
        )
        _check(made, "dnnl_memory_desc_create_with_strides")
        layouts.append(layout)
    return layouts


# ------------------------------------------------------------------------------------------------ operations


def matmul(
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    *,
    add: bool = False,
    exp: float | None = None,
    times: np.ndarray | None = None,
) -> np.ndarray:
    """out = a @ b, with sums in float32, and with what follows computed before the result is rounded and written.

    Parameters
    ----------
    a, b : array, shapes (..., M, K) and (..., K, N)
        Both float32, both bfloat16 or both int8; any strides that are not negative.
    out : array, shape (..., M, N), float32 or bfloat16
    add : bool
        Add to what `out` holds.
    exp : float, optional
        out = exp(a @ b · exp).
    times : array, shape (..., M, N), optional
        out = a @ b · times.
    """
    lib = library()
    assert lib is not None
    key = a.shape, a.strides, a.dtype, b.shape, b.strides, out.strides, out.dtype, add, exp, times is not None and times.dtype
    arrays = (a, b, out) if times is None else (a, b, out, times)
    _primitive(key, lambda: _make_matmul(lib, arrays, add, exp), lib)([_address(array) for array in arrays])
    return out


def packed_product(x: np.ndarray, weight: np.ndarray, out: np.ndarray, *affine: np.ndarray) -> Callable[[], None]:
    """A function that computes out = x @ weightᵀ for these very arrays, with a copy of the weight in the order of the kernel.

    Parameters
    ----------
    x : array, shape (B, I)
    weight : array, shape (O, I)
        As it is at the first call: later changes are not seen.
    out : array, shape (B, O), float32
    *affine : arrays, shapes (O,) and (1, O), float32
        Scales and biases: out = x @ weightᵀ · scales + biases.
    """
    lib = library()
    assert lib is not None
    arrays = x, weight.T, out, *affine
    key = "packed", *(part for array in arrays for part in (array.shape, array.strides, array.dtype))
    packed: list[np.ndarray] = []
    addresses = [_address(x), 0, *map(_address, arrays[2:])]

    def run() -> None:
        primitive = _primitive(key, lambda: _make_packed(lib, arrays), lib)
        if not packed:
            packed.append(primitive.pack(weight))
            addresses[1] = _address(packed[0])
        primitive(addresses)

    return run


class _PackedProduct(_Primitive):
    """A product of a weight (K, N) in the order that oneDNN likes best."""

    def __init__(self, lib: Library, layouts: list[c_void_p], description: c_void_p) -> None:
        wanted = c_void_p(lib.functions.dnnl_primitive_desc_query_md(description, WEIGHTS_LAYOUT, 0))
        self.size = lib.functions.dnnl_memory_desc_get_size(wanted)
        order = _reordering(lib, layouts[1], wanted)
        self.orders = _Primitive(lib, (SOURCE, RESULT), [layouts[1], wanted], order)
        lib.functions.dnnl_primitive_desc_destroy(order)
        names = (SOURCE, WEIGHTS, RESULT, SCALES | WEIGHTS, BIAS)[: len(layouts)]
        super().__init__(lib, names, [layouts[0], wanted, *layouts[2:]], description)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """A weight in that order."""
        out = np.empty(self.size, np.uint8)
        self.orders((_address(weight), _address(out)))
        return out


def _make_packed(lib: Library, arrays: tuple[np.ndarray, ...]) -> _PackedProduct:
    call, layouts = lib.functions, _layouts(lib, *arrays)
    description, any_order, attributes, shape = c_void_p(), c_void_p(), c_void_p(), arrays[1].shape
    is_affine = len(arrays) > 3
    made = call.dnnl_memory_desc_create_with_tag(
        byref(any_order), len(shape), (c_int64 * MAX_DIMS)(*shape), DTYPES[arrays[1].dtype], ANY_ORDER
    )
    _check(made, "dnnl_memory_desc_create_with_tag")
    _check(call.dnnl_primitive_attr_create(byref(attributes)), "dnnl_primitive_attr_create")
    if is_affine:
        made = call.dnnl_primitive_attr_set_scales_mask(attributes, WEIGHTS, EACH_COLUMN)
        _check(made, "dnnl_primitive_attr_set_scales_mask")
    made = call.dnnl_matmul_primitive_desc_create(
        byref(description), lib.engine, layouts[0], any_order, layouts[4] if is_affine else None, layouts[2], attributes
    )
    _check(made, f"a product of {arrays[0].shape} and {shape} in {arrays[0].dtype}")
    call.dnnl_primitive_attr_destroy(attributes)
    primitive = _PackedProduct(lib, layouts, description)
    _destroy(lib, [*layouts, any_order], description)
    return primitive


def _make_matmul(lib: Library, arrays: tuple[np.ndarray, ...], add: bool, exp: float | None) -> _Primitive:
    call, layouts, names = lib.functions, _layouts(lib, *arrays), (SOURCE, WEIGHTS, RESULT)
    description, attributes, after = c_void_p(), c_void_p(), c_void_p()
    _check(call.dnnl_primitive_attr_create(byref(attributes)), "dnnl_primitive_attr_create")
    _check(call.dnnl_post_ops_create(byref(after)), "dnnl_post_ops_create")
    if exp is not None:
        _check(call.dnnl_post_ops_append_eltwise(after, LINEAR, c_float(exp), c_float(0)), "a scale after a product")
        _check(call.dnnl_post_ops_append_eltwise(after, EXP, c_float(0), c_float(0)), "an exponential after a product")
    if len(arrays) > len(names):
        _check(call.dnnl_post_ops_append_binary(after, TIMES, layouts[3]), "a factor after a product")
        names = (*names, AFTER | SECOND)  # the first operation after it
    if add:
        _check(call.dnnl_post_ops_append_sum(after, c_float(1), 0, DTYPES[arrays[2].dtype]), "a sum after a product")
    _check(call.dnnl_primitive_attr_set_post_ops(attributes, after), "dnnl_primitive_attr_set_post_ops")
    made = call.dnnl_matmul_primitive_desc_create(
        byref(description), lib.engine, layouts[0], layouts[1], None, layouts[2], attributes
    )
    _check(made, f"a product of {arrays[0].shape} and {arrays[1].shape} in {arrays[0].dtype}")
    call.dnnl_post_ops_destroy(after)
    call.dnnl_primitive_attr_destroy(attributes)
    return _finished(lib, names, layouts, description)


def can_convert(x: np.ndarray, dtype: np.dtype) -> bool:
    """Whether oneDNN is there and knows both dtypes."""
    return x.size > 0 and x.dtype in DTYPES and dtype in DTYPES and library() is not None


def convert(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out = x in out's dtype and strides, rounded to the nearest."""
    lib = library()
    assert lib is not None
    key = "convert", x.shape, x.strides, x.dtype, out.strides, out.dtype
    _primitive(key, lambda: _make_convert(lib, x, out), lib)((_address(x), _address(out)))
    return out


def _make_convert(lib: Library, x: np.ndarray, out: np.ndarray) -> _Primitive:
    layouts = _layouts(lib, x, out)
    return _finished(lib, (SOURCE, RESULT), layouts, _reordering(lib, *layouts))


def _reordering(lib: Library, before: c_void_p, after: c_void_p) -> c_void_p:
    description = c_void_p()
    made = lib.functions.dnnl_reorder_primitive_desc_create(byref(description), before, lib.engine, after, lib.engine, None)
    _check(made, "a conversion")
    return description


def _finished(lib: Library, names: tuple[int, ...], layouts: list[c_void_p], description: c_void_p) -> _Primitive:
    primitive = _Primitive(lib, names, layouts, description)
    _destroy(lib, layouts, description)
    return primitive


def _destroy(lib: Library, layouts: list[c_void_p], description: c_void_p) -> None:
    """Free what a primitive was made from."""
    lib.functions.dnnl_primitive_desc_destroy(description)
    for layout in layouts:
        lib.functions.dnnl_memory_desc_destroy(layout)
