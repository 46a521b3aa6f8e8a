"""Matrix products on a GPU:  out = alpha · a b + beta · out,  by cuBLAS, in every type that training uses.

    a, b            float32 (TF32 on request), float64, bfloat16, float16; views of transposed matrices become flags
    out             the same type, or float32 for products of two-byte numbers
    accumulation    float32 (float64 for float64)
With beta = 1 a weight's gradient is added to its float32 buffer inside the product, without a separate pass or rounding.

cuBLAS is column-major. To it a row-major matrix is its transpose, and outᵀ = bᵀ aᵀ, so b is passed first, and nothing
is transposed in memory.
"""

from numllama.backend import Array, real_dtype
from numllama.cuda import launch
from numllama.cuda.cublas import KINDS, NORMAL, TRANSPOSED, Operand


def gemm(a: Array, b: Array, out: Array | None = None, beta: float = 0.0, alpha: float = 1.0) -> Array:
    """The product of two matrices, or of two batches of equal length.

    Parameters
    ----------
    a : array, shape (M, K) or (batch, M, K)
    b : array, shape (K, N) or (batch, K, N)
        Any view whose rows or columns are contiguous.
    out : array, shape (M, N) or (batch, M, N), optional
        The result, with contiguous rows, in a's dtype or float32. Default: a new array of a's dtype.
    beta : float
        Factor of `out` before the product is added; 0 overwrites it, even NaN.
    alpha : float
        Factor of the product.

    Returns
    -------
    out : array
    """
    if a.ndim not in (2, 3) or b.ndim != a.ndim or a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(f"a has shape {a.shape} and b {b.shape}, but they must be matrices, or batches, whose product exists")
    if a.dtype not in KINDS or b.dtype != a.dtype:
        raise TypeError(f"a is {a.dtype} and b {b.dtype}, but both must be one of {', '.join(d.name for d in KINDS)}")
    shape = (*a.shape[:-1], b.shape[-1])
    if out is None and beta:
        raise ValueError(f"beta is {beta}, but there is no out to multiply by it")
    c = launch.empty(a, shape, a.dtype) if out is None else out
    if c.shape != shape:
        raise ValueError(f"out has shape {c.shape}, but {shape} is needed")
    if c.dtype not in (a.dtype, real_dtype(a.dtype)):
        raise TypeError(f"out is {c.dtype}, but the product of {a.dtype} must be {a.dtype} or {real_dtype(a.dtype)}")
    *_, M, K = a.shape
    N = shape[-1]
    if c.size == 0:
        return c
    if K == 0:
        c *= c.dtype.type(beta)
        return c
    left, right, result = _operand("b", b), _operand("a", a), _operand("out", c)
    if result.flag != NORMAL:
        raise ValueError("out must have contiguous rows")
    batch = 1 if a.ndim == 2 else a.shape[0]
    launch.backend.gemm(left, right, result, N, M, K, batch, beta, alpha)
    return c


def _operand(name: str, x: Array) -> Operand:
    """A matrix as column-major cuBLAS reads it: row-major needs no flag, a transposed view needs one."""
    size = x.dtype.itemsize
    *batch, rows, columns = x.shape
    by_row, by_column = (stride // size for stride in x.strides[-2:])
    stride = x.strides[0] // size if batch and batch[0] > 1 else 0
    if (by_column == 1 or columns == 1) and (by_row >= columns or rows == 1):
        return Operand(x, NORMAL, max(by_row if rows > 1 else columns, columns), stride)
    if (by_row == 1 or rows == 1) and (by_column >= rows or columns == 1):
        return Operand(x, TRANSPOSED, max(by_column if columns > 1 else rows, rows), stride)
    raise ValueError(f"{name} has strides {x.strides}, but rows or columns must be contiguous")


def supports(*matrices: Array) -> bool:
    """Whether these are contiguous and share a type that cuBLAS multiplies."""
    dtype = matrices[0].dtype
    return dtype in KINDS and all(m.dtype == dtype and m.size and m.flags.c_contiguous for m in matrices)
