"""LoRA, the low-rank update of a frozen linear map:  out = scale · (x · aᵀ) · bᵀ              Hu et al. 2021, section 4.1

    x · weightᵀ + out  =  x · (weight + scale · b · a)ᵀ       so a trained update can be merged into the weight

a is (R, I) and b is (O, R), with R far below O and I: few numbers to train, and two thin products. With h = x · aᵀ,
    out[n, o] = scale · Σᵣ h[n, r] · b[o, r]
    db[o, r]  = scale · Σₙ dout[n, o] · h[n, r]       db = scale · doutᵀ · h
    dh[n, r]  = scale · Σₒ dout[n, o] · b[o, r]       dh = scale · dout · b
and h is a linear map of x:   da = dhᵀ · x,   dx = dh · a.
(b starts at zero, so that training starts from the model as it is; then da is zero too, for one step, and db is not.)
"""

from typing import NamedTuple

from numllama.backend import Array, add_to
from numllama.checks import check_shape
from numllama.dispatch import accelerated


class LoraCache(NamedTuple):
    """What backward needs."""

    x: Array                                                           # (..., I)
    a: Array                                                           # (R, I)
    b: Array                                                           # (O, R)
    h: Array                                                           # (N, R): x · aᵀ
    scale: float


@accelerated
def lora_forward(x: Array, a: Array, b: Array, scale: float) -> tuple[Array, LoraCache]:
    """The update of a linear map's output.

    Parameters
    ----------
    x : array, shape (..., I)
        The frozen map's input.
    a : array, shape (R, I)
    b : array, shape (O, R)
    scale : float

    Returns
    -------
    out : array, shape (..., O)
        To be added to the frozen map's output.
    cache : LoraCache
    """
    check_shape("a", a, (None, None))
    R, I = a.shape  # noqa: E741
    check_shape("b", b, (None, R))
    check_shape("x", x, (*x.shape[:-1], I))
    h = x.reshape(-1, I) @ a.T                                         # (N, R)
    out = (scale * h) @ b.T                                            # (N, O)
    return out.reshape(*x.shape[:-1], len(b)), LoraCache(x, a, b, h, scale)


@accelerated
def lora_backward(dout: Array, cache: LoraCache, dx: Array | None = None) -> tuple[Array, Array, Array]:
    """Gradients of :func:`lora_forward`: ``dx, da, db``.

    Parameters
    ----------
    dout : array, shape (..., O)
    cache : LoraCache
    dx : array, shape (..., I), optional
        A buffer that x's gradient is added to, where x fed the frozen map too; it is then returned.
    """
    x, a, b, h, scale = cache
    O, I = len(b), a.shape[1]  # noqa: E741
    check_shape("dout", dout, (*x.shape[:-1], O))
    dout = dout.reshape(-1, O)                                         # (N, O)
    db = dout.T @ (scale * h)                                          # (O, R)
    dh = scale * (dout @ b)                                            # (N, R)
    da = dh.T @ x.reshape(-1, I)                                       # (R, I)
    dx = add_to(dx, (dh @ a).reshape(x.shape))                         # (..., I)
    return dx, da, db
