"""Kernels that are wrong, or that cheat: each with the op it claims to be, the case that finds it, and words of the verdict."""

import ctypes
import gc
import importlib.util
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
from learn import kernels
from learn.kernels import (
    attention_backward,
    attention_forward,
    causal_attention_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    embedding_backward,
    gelu_backward,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_forward,
    lora_backward,
    rmsnorm_backward,
    rmsnorm_forward,
    rope_forward,
    rope_interleaved_forward,
    router_forward,
    softcap_forward,
    softmax_forward,
    swiglu_backward,
)
from ml_dtypes import bfloat16

from numllama import ops
from numllama.cpu.rmsnorm import rmsnorm_forward as cpu_rmsnorm_forward
from numllama.hashing import fold_key, mix
from numllama.learn.error_bounds import Bounded
from numllama.ops import rmsnorm_forward as own_forward


class Fake(NamedTuple):
    """What is wrong; the functions; the case that must find it, and the words it must find it with."""

    what: str
    op: str
    forward: Any
    backward: Any
    case: str
    says: str
    options: dict


FAKES: list[Fake] = []


def fake(what, op, forward=None, backward=None, case="plain", says="rounding explains", **options):
    """Add a row. A backward alone is judged with the right forward, and gets its cache."""
    if backward is not None and forward is None:
        forward = kernels.pair(op)[0]
    FAKES.append(Fake(what, op, forward, backward, case, says, options))


# ------------------------------------------------------------------------------------------------ wrong: norms


def norm_of(rstd):
    return lambda x, weight, eps: x * rstd(x, eps) * weight


def mean_square(x):
    return (x * x).mean(-1, keepdims=True)


fake("eps outside the root", "rmsnorm", norm_of(lambda x, eps: 1 / (np.sqrt(mean_square(x)) + eps)), case="tiny")
fake("no eps", "rmsnorm", norm_of(lambda x, eps: 1 / np.sqrt(mean_square(x))), case="zeros")
fake("an eps of its own", "rmsnorm", norm_of(lambda x, eps: 1 / np.sqrt(mean_square(x) + 1e-8)), case="tiny")
fake("a mean over all rows", "rmsnorm", norm_of(lambda x, eps: 1 / np.sqrt((x * x).mean() + eps)))
fake("a sum, not a mean", "rmsnorm", norm_of(lambda x, eps: 1 / np.sqrt(mean_square(x) * x.shape[-1] + eps)))
fake("a mean of absolute values", "rmsnorm", norm_of(lambda x, eps: 1 / (abs(x).mean(-1, keepdims=True) + eps)))
fake("a mean over C − 1", "rmsnorm", norm_of(lambda x, eps: 1 / np.sqrt((x * x).sum(-1, keepdims=True) / 7 + eps)))
fake("a gain of 1 + weight", "rmsnorm", lambda x, weight, eps: rmsnorm_forward(x, 1 + weight, eps)[0])
fake("no gain", "rmsnorm", lambda x, weight, eps: rmsnorm_forward(x, np.ones_like(weight), eps)[0])
fake("the first row's norm for all", "rmsnorm", norm_of(lambda x, eps: 1 / np.sqrt(mean_square(x)[:1, :1] + eps)))
fake(
    "squares that overflow float16", "rmsnorm", norm_of(lambda x, eps: (1 / np.sqrt(mean_square(x) + eps)).astype(x.dtype)),
    case="large", dtype="float16",
)  # fmt: skip
fake(
    "sums in float16", "rmsnorm",
    norm_of(lambda x, eps: 1 / np.sqrt(np.float32((x * x).astype(np.float16).mean(-1, keepdims=True)) + np.float32(eps))),
)  # fmt: skip


def first_1024_columns(x, weight, eps):
    return np.where(np.arange(x.shape[-1]) < 1024, rmsnorm_forward(x, weight, eps)[0], 0)


def whole_vectors_of_8(x, weight, eps):
    n = x.shape[-1] // 8 * 8
    return np.concatenate([rmsnorm_forward(x, weight, eps)[0][..., :n], np.zeros_like(x[..., n:])], -1)


fake("columns beyond a block left out", "rmsnorm", first_1024_columns, case="long")
fake("a remainder left out", "rmsnorm", whole_vectors_of_8, case="odd")
fake("a NaN that is swallowed", "rmsnorm", lambda *a: np.nan_to_num(rmsnorm_forward(*a)[0]), case="nan", says="not nan")
fake("a batch of one only", "rmsnorm", lambda x, *a: np.repeat(rmsnorm_forward(x[:1], *a)[0], len(x), 0), case="odd")


def without_second_term(dout, cache):
    _, weight, r = cache
    return r * dout * weight, rmsnorm_backward(dout, cache)[1]


def with_sign_of_second_term(dout, cache):
    x, weight, r = cache
    dn = dout * weight
    return r * (dn + x * r * (dn * x * r).mean(-1, keepdims=True)), rmsnorm_backward(dout, cache)[1]


def with_sum_in_second_term(dout, cache):
    x, weight, r = cache
    dn = dout * weight
    return r * (dn - x * r * (dn * x * r).sum(-1, keepdims=True)), rmsnorm_backward(dout, cache)[1]


def second_term_without_gain(dout, cache):
    x, weight, r = cache
    return r * (dout * weight - x * r * (dout * x * r).mean(-1, keepdims=True)), rmsnorm_backward(dout, cache)[1]


def dweight_of_the_last_row(dout, cache):
    x, _, r = cache
    return rmsnorm_backward(dout, cache)[0], (dout * x * r)[-1, -1]


def dweight_without_rstd(dout, cache):
    return rmsnorm_backward(dout, cache)[0], (dout * cache[0]).sum((0, 1))


def mean_dweight(dout, cache):
    dx, dweight = rmsnorm_backward(dout, cache)
    return dx, dweight / np.float32(dout[..., 0].size)


fake("no second term", "rmsnorm", backward=without_second_term)
fake("a sign", "rmsnorm", backward=with_sign_of_second_term)
fake("a sum in the second term", "rmsnorm", backward=with_sum_in_second_term)
fake("a second term without the gain", "rmsnorm", backward=second_term_without_gain)
fake("dweight of one row", "rmsnorm", backward=dweight_of_the_last_row)
fake("dweight of x", "rmsnorm", backward=dweight_without_rstd)
fake("a mean for dweight", "rmsnorm", backward=mean_dweight)


def cache_without_eps(x, weight, eps):
    return rmsnorm_forward(x, weight, eps)[0], (x, weight, 1 / np.sqrt(mean_square(x) + 1e-12))


fake("a right output and a wrong cache", "rmsnorm", cache_without_eps, rmsnorm_backward, case="tiny")


def one_pass(x, weight, bias, eps):
    mean = x.mean(-1, keepdims=True)
    variance = np.maximum(mean_square(x) - mean * mean, 0)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def unbiased(x, weight, bias, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True, ddof=1) + eps) * weight + bias


def without_mean_of_dn(dout, cache):
    n, weight, r = cache
    dn = dout * weight
    return r * (dn - n * (dn * n).mean(-1, keepdims=True)), *layernorm_backward(dout, cache)[1:]


fake("E[x²] − E[x]²", "layernorm", one_pass, case="offset")
fake("an unbiased variance", "layernorm", unbiased)
fake("dx without the mean's term", "layernorm", backward=without_mean_of_dn)
fake("a bias left out", "layernorm", lambda x, w, b, eps: layernorm_forward(x, w, 0 * b, eps)[0])

# ------------------------------------------------------------------------------------------------ wrong: products and lookups


def sums_in_bfloat16(x, weight):
    total = np.zeros((*x.shape[:-1], len(weight)), bfloat16)
    for i in range(x.shape[-1]):
        total += x[..., i, None] * weight[:, i]
    return total


fake("sums in bfloat16", "linear", sums_in_bfloat16, case="long", dtype="bfloat16")
fake("a bias twice", "linear_bias", lambda x, w, b: linear_forward(x, w, b)[0] + b)
fake("dweight transposed", "linear_bias", backward=lambda d, c: (lambda dx, dw, db: (dx, dw.T, db))(*linear_backward(d, c)),
     says="shape")  # fmt: skip
fake("no dbias", "linear_bias", backward=lambda d, c: linear_backward(d, c)[:2], says="returns 2 results")
fake("a mean for dbias", "linear_bias", backward=lambda d, c: (*linear_backward(d, c)[:2], d.mean((0, 1))))
fake("db without the scale", "lora", backward=lambda d, c: (*lora_backward(d, c)[:2], lora_backward(d, (*c[:3], 1))[2]))
fake("the rank's scale twice", "lora", lambda x, a, b, s: s * kernels.lora_forward(x, a, b, s)[0])


def overwrites(dout, cache):
    tokens, weight = cache
    dweight = np.zeros_like(weight)
    dweight[tokens] += dout
    return dweight


fake("the last of a token's gradients", "embedding", backward=overwrites, case="repeated")
fake("the next token's row", "embedding", lambda tokens, w: w[(tokens + 1) % len(w)])
fake("rows of a table of 16", "embedding", backward=lambda d, c: np.where(np.arange(len(c[1]))[:, None] < 16,
     embedding_backward(d, c), 0), case="long")  # fmt: skip

# ------------------------------------------------------------------------------------------------ wrong: softmax and the loss

fake("no maximum", "softmax", lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True), case="large")
fake("another axis", "softmax", lambda x: softmax_forward(x.swapaxes(1, 2))[0].swapaxes(1, 2))
fake("a diagonal Jacobian", "softmax", backward=lambda d, p: d * p * (1 - p))
fake("a finite minus infinity", "softmax", lambda x: softmax_forward(np.maximum(x, -10))[0], case="masked")
fake("probabilities in float16", "softmax", lambda x: softmax_forward(x)[0].astype(np.float16).astype(x.dtype))


def mean_over_all(logits, targets):
    return cross_entropy_forward(logits, targets)[0] * np.float32((targets >= 0).mean())


def of_ignored_rows_too(dout, cache):
    logp, targets, counted = cache
    d = cross_entropy_backward(dout, cache)
    return np.where((targets >= 0)[..., None], d, np.exp(logp).reshape(d.shape) * dout / np.float32(counted.sum()))


fake("a mean over ignored targets too", "cross_entropy", mean_over_all, case="masked")
fake("a gradient for ignored targets", "cross_entropy", backward=of_ignored_rows_too, case="masked")
fake("a dout of one", "cross_entropy", backward=lambda d, c: cross_entropy_backward(np.ones_like(d), c))
fake("gradients without the count", "cross_entropy", backward=lambda d, c: cross_entropy_backward(d * len(c[0]), c))
fake("log of exp, without a maximum", "cross_entropy", case="large", forward=lambda x, t: np.float32(np.mean(
     np.log(np.exp(x).sum(-1)) - np.take_along_axis(x, t[..., None], -1)[..., 0])))  # fmt: skip

# ------------------------------------------------------------------------------------------------ wrong: attention and rope


def first_heads_gradient(dout, cache):
    dq, _, dv = attention_backward(dout, cache)
    q, _, values, p, R, scale = cache
    dp = np.einsum("bhtd,bhsd->bhts", dout, values)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
    return dq, np.einsum("bhts,bhtd->bhsd", ds, q)[:, ::R], dv


def without_delta(dout, cache):
    _, keys, values, p, _, scale = cache
    ds = p * np.einsum("bhtd,bhsd->bhts", dout, values) * scale
    return np.einsum("bhts,bhsd->bhtd", ds, keys), *attention_backward(dout, cache)[1:]


def uniform_where_nothing_is_seen(q, k, v, first, last):
    first, last = np.where(first < last, first, 0), np.where(first < last, last, k.shape[2])
    return attention_forward(q, k, v, first, last)[0]


def heads_taken_in_turns(q, k, v):
    H, K = q.shape[1], k.shape[1]
    turns = np.arange(H).reshape(H // K, K).T.ravel()
    out = np.empty_like(q)
    out[:, turns] = causal_attention_forward(q[:, turns], k, v)[0]
    return out


def causal(offset):
    return lambda q, k, v: attention_forward(q, k, v, None, None, seen=np.tri(q.shape[2], k=offset, dtype=bool))[0]


def first_128_keys(q, k, v, first, last):
    return attention_forward(q, k, v, first, np.minimum(last, 128))[0]


fake("no 1/√D", "attention", lambda *a: attention_forward(*a, scale=1.0)[0])
fake("1/D", "attention", lambda q, *a: attention_forward(q, *a, scale=1 / q.shape[-1])[0])
fake("no 1/√D in backward", "attention", backward=lambda d, c: attention_backward(d, (*c[:5], 1.0)))
fake("the next key is seen", "causal_attention", causal(1))
fake("a query's own key is not seen", "causal_attention", causal(-1))
fake("no mask", "causal_attention", causal(10_000))
fake("heads grouped in turns", "causal_attention", heads_taken_in_turns)
fake("an interval's start left out", "attention", lambda q, k, v, f, l: attention_forward(q, k, v, 0 * f, l)[0], case="masked")  # noqa: E741
fake("a mean where no key is seen", "attention", uniform_where_nothing_is_seen, case="masked")
fake("keys beyond a tile left out", "attention", first_128_keys, case="long")
fake("one head's gradient for its group", "attention", backward=first_heads_gradient)
fake("softmax's backward without its sum", "attention", backward=without_delta)
fake("the other layout", "rope", lambda x, c, s: rope_interleaved_forward(x, c, s)[0])
fake("the same turn in backward", "rope", backward=lambda d, c: rope_forward(d, *c)[0])
fake("the first position's angle for all", "rope", lambda x, c, s: rope_forward(x, c[:1], s[:1])[0])

# ------------------------------------------------------------------------------------------------ wrong: element by element

def kept(x, p, low, high):
    index = np.arange(x.size, dtype=np.uint32)
    return (mix(mix(index ^ np.uint32(low)) ^ np.uint32(high)) >= int(p * 2**32)).reshape(x.shape)


fake("gate and up exchanged", "swiglu", lambda g, u: kernels.swiglu_forward(u, g)[0])
fake("silu' without its second term", "swiglu", backward=lambda d, c: (d * c[1] / (1 + np.exp(-c[0])), swiglu_backward(d, c)[1]))
fake("the other form", "gelu", lambda x: (x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))).astype(x.dtype))
fake("gelu' without its second term", "gelu", backward=lambda d, x: d / 2 * (1 + np.tanh(kernels._u(x))))
fake("gelu' of relu", "gelu", backward=lambda d, x: gelu_backward(d, np.maximum(x, 0)))
fake("a clip", "softcap", lambda x, cap: np.clip(x, -cap, cap))
fake("no gradient beyond the cap", "softcap", backward=lambda d, c: d * (abs(c[0]) < c[1]), case="large")
fake("a mask of its own", "dropout", lambda x, p, key: x * (np.random.default_rng(key).random(x.shape) >= p) / np.float32(1 - p))
fake("no factor", "dropout", lambda x, p, key: x * kept(x, p, *fold_key(key)))
fake("weights that are not normalised", "router", lambda z, k: (router_forward(z, k)[1][2], softmax_forward(z)[0]))
fake("weights, smallest first", "router", lambda z, k: (router_forward(z, k)[0][0][:, ::-1], softmax_forward(z)[0]))


# ------------------------------------------------------------------------------------------------ cheats: the package's answer

CALLS = "calls numllama itself"
reference = own_forward.reference
copied = FunctionType(reference.__code__, reference.__globals__)
code = reference.__code__
pool = ThreadPoolExecutor(1)
pool.submit(int).result()  # its thread runs from now on


def loaded_again():
    spec = importlib.util.spec_from_file_location("somebodys_norm", sys.modules[reference.__module__].__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.rmsnorm_forward


def in_a_new_thread(*a):
    results = []
    thread = threading.Thread(target=lambda: results.append(made_of_code(*a)))
    thread.start()
    thread.join()
    return results[0]


def made_of_code(*a):
    return FunctionType(code, reference.__globals__)(*a)[0]


def unless_it_is_refused(*a):
    try:
        return own_forward(*a)[0]
    except RuntimeError:
        return rmsnorm_forward(*a)[0]


def unseen(*a):
    sys.setprofile(None)
    return made_of_code(*a)


class Later:
    """Is computed when it is looked at."""

    def __init__(self, *a):
        self.a = a

    def __array__(self, dtype=None, copy=None):
        return own_forward(*self.a)[0]


for what, cheat in {
    "an op imported earlier": lambda *a: own_forward(*a)[0],
    "an op found when it is needed": lambda *a: ops.rmsnorm_forward(*a)[0],
    "an op's .reference": lambda *a: reference(*a)[0],
    "what an op wraps": lambda *a: own_forward.__wrapped__(*a)[0],
    "the CPU's version": lambda *a: cpu_rmsnorm_forward(*a)[0],
    "a copy of an op": lambda *a: copied(*a)[0],
    "an op's code": made_of_code,
    "an op's file, loaded again": lambda *a: loaded_again()(*a)[0],
    "an op in a new thread": in_a_new_thread,
    "an op in an old thread": lambda *a: pool.submit(own_forward, *a).result()[0],
    "an op, or something else where it is refused": unless_it_is_refused,
    "an op where nobody looks": unseen,
    "an op when the result is looked at": Later,
}.items():
    fake(what, "rmsnorm", cheat, says=CALLS)
fake("an op that does almost the same", "add_rmsnorm", lambda x, b, *a: (x + b, own_forward(x + b, *a)[0]), says=CALLS)


def found_in_memory(x, *a):
    """The last array on the stack, or in the judge's own objects, that has the right shape and is not an argument."""
    found = [each for frame in sys._current_frames().values() for each in frame.f_locals.values()]
    found += [each.value for each in gc.get_objects() if type(each) is Bounded]
    right = [each for each in found if isinstance(each, np.ndarray) and (each.shape, each.dtype) == (x.shape, np.float64)]
    return right[-1].astype(x.dtype) if right else np.zeros_like(x)


fake("what is found in memory", "rmsnorm", found_in_memory)

# ------------------------------------------------------------------------------------------------ cheats: results of other calls


def kept_by(name):
    kept: dict = {}

    def run(x, *a):
        key = name(x)
        if key not in kept:
            kept[key] = rmsnorm_forward(x, *a)[0], x  # x too, so that its address is not used again
        return kept[key][0]

    return run


fake("a result kept by shape", "rmsnorm", kept_by(lambda x: x.shape))
fake("a result kept by id", "rmsnorm", kept_by(id))
fake("a result kept by address", "rmsnorm", kept_by(lambda x: x.ctypes.data))
fake("a result kept by its first number", "softcap", lambda x, cap, kept={}: kept.setdefault(
     float(x[0, 0, 0]), softcap_forward(x, cap)[0]), case="zeros")  # fmt: skip
fake("zeros", "rmsnorm", lambda x, *a: np.zeros_like(x))
fake("ones", "softmax", lambda x: np.full_like(x, 1 / x.shape[-1]))
fake("the input", "rmsnorm", lambda x, *a: x.copy())
fake("None", "rmsnorm", lambda *a: None, says="out is object")

buffers: dict = {}


def in_one_buffer(x, *a):
    out = buffers.setdefault(x.shape, np.empty_like(x, order="C"))
    out[...] = rmsnorm_forward(x, *a)[0]
    return out


last: dict = {}


def remembers(x, *a):
    out, last["cache"] = rmsnorm_forward(x, *a)
    return out, None


def adds_up(dout, cache):
    dx, dweight = rmsnorm_backward(dout, cache)
    total = buffers.setdefault(("dweight", dweight.shape), np.zeros_like(dweight))
    total += dweight
    return dx, total.copy()


def after_two_calls():
    calls: list = []

    def run(x, *a):
        calls.append(x)
        return rmsnorm_forward(x, *a)[0] if len(calls) % 4 in (1, 2) else np.zeros_like(x)

    return run


fake("one buffer for all results", "rmsnorm", in_one_buffer, says="is overwritten by a later call")
fake("one cache for all calls", "rmsnorm", remembers, lambda d, c: rmsnorm_backward(d, last["cache"]))
fake("a buffer that is not zeroed", "rmsnorm", backward=adds_up)
fake("right the first two times", "rmsnorm", after_two_calls())

# ------------------------------------------------------------------------------------------------ bad manners


def in_place(x, *a):
    x[...] = rmsnorm_forward(x, *a)[0]
    return x


def over_dout(dout, cache):
    gradients = rmsnorm_backward(dout, cache)
    dout *= 0
    return gradients


def as_contiguous(x):
    """What a kernel reads that is given a pointer and forgets the strides."""
    return np.ctypeslib.as_array(ctypes.cast(x.ctypes.data, ctypes.POINTER(ctypes.c_float)), x.shape)


def noisy(x, *a):
    out = rmsnorm_forward(x, *a)[0]
    return out * (1 + np.random.default_rng().choice([-6e-8, 0, 6e-8], x.shape)).astype(x.dtype)


class Liar(np.ndarray):
    """Equals everything."""

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        return np.zeros(self.shape)


def all_but_the_last_row(x, weight, eps, out):
    out[:, :-1] = rmsnorm_forward(x, weight, eps)[0][:, :-1]


def one_too_many(x, weight, eps, out):
    out[...] = rmsnorm_forward(x, weight, eps)[0]
    as_contiguous(out.ravel()[-1:]).base  # noqa: B018
    np.ctypeslib.as_array(ctypes.cast(out.ctypes.data, ctypes.POINTER(ctypes.c_float)), (out.size + 1,))[-1] = 0


fake("results in the place of an argument", "rmsnorm", in_place, says="writes to its arguments")
fake("a cotangent that is used up", "rmsnorm", backward=over_dout, says="writes to its arguments")
fake("a view of an argument", "embedding", lambda tokens, w: w.reshape(1, 1, -1), case="single", says="a view")
fake("strides left out", "rmsnorm", lambda x, *a: rmsnorm_forward(as_contiguous(x), *a)[0], case="strided", says="is nan")
fake("strides left out, axes exchanged", "rmsnorm", lambda x, *a: rmsnorm_forward(as_contiguous(x), *a)[0], case="transposed")
fake("noise", "rmsnorm", noisy, says="other bits")
fake("float64 for float32", "rmsnorm", lambda *a: rmsnorm_forward(*a)[0].astype(np.float64), says="out is float64, not float32")
fake("float32 for float64", "rmsnorm", lambda *a: rmsnorm_forward(*a)[0].astype(np.float32), says="not float64", dtype="float64")
fake("float32 inside float64", "rmsnorm", dtype="float64",
     forward=lambda x, *a: rmsnorm_forward(x.astype(np.float32), *a)[0].astype(x.dtype))  # fmt: skip
fake("a flat result", "rmsnorm", lambda *a: rmsnorm_forward(*a)[0].ravel(), says="shape (64,), not (2, 4, 8)")
fake("an array that lies", "rmsnorm", lambda x, *a: np.zeros_like(x).view(Liar))
fake("an error", "rmsnorm", lambda x, *a: rmsnorm_forward(x.reshape(-1, 8, 8), *a)[0], case="odd", says="raises ValueError")
fake("an end", "rmsnorm", lambda *a: sys.exit(0), says="raises SystemExit")
fake("rows that are not written", "rmsnorm", all_but_the_last_row, says="is nan", style="out")
fake("one number too many", "rmsnorm", one_too_many, says="writes around its results", style="out")
