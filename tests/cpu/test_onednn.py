"""Products by oneDNN against NumPy's in float64, and what happens where the library is missing or does not work."""

import ctypes
import os
import subprocess
import sys
import warnings
from contextlib import closing
from itertools import product as every
from threading import Thread

import numpy as np
import pytest
from helpers import assert_same_bits
from parallel.whole_batch import loss_and_grads

import numllama as nl
from numllama import ops
from numllama.backend import BFLOAT16
from numllama.cpu import attention_tiles, onednn, products
from numllama.parallel import shards
from numllama.parallel.shards import Workers
from numllama.system.blas import one_blas_thread

has_onednn = pytest.mark.skipif(onednn.library() is None, reason="needs oneDNN: pip install onednn-cpu-gomp")
has_bfloat16 = pytest.mark.skipif(not products.multiplies_bfloat16(), reason="needs oneDNN and a CPU that multiplies bfloat16")
DTYPES = [np.dtype(np.float32), pytest.param(BFLOAT16, marks=has_bfloat16)]
EPS = {np.dtype(np.float32): 2**-24, BFLOAT16: 2**-8}
SHAPES = [(1, 1, 1), (1, 8, 3), (5, 7, 3), (64, 48, 33), (130, 257, 65)]  # M, K, N


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(dtype)


def wide(x):
    return x.astype(np.float64)


def assert_near(actual, expected, scale, dtype, factor=4):
    """Within a few roundings of the numbers that were added up."""
    assert (abs(wide(actual) - expected) <= factor * EPS[np.dtype(dtype)] * scale + 1e-30).all()


@pytest.fixture
def always(monkeypatch):
    """oneDNN computes products of any size, and attention in float32 too, which NumPy computes as fast."""
    monkeypatch.setattr(products, "SMALL_PRODUCT", 0)
    monkeypatch.setattr(attention_tiles, "FEWEST", 0)
    monkeypatch.setattr(attention_tiles, "FASTER", set(attention_tiles.COLUMNS))


# ------------------------------------------------------------------------------------------------ products


@pytest.mark.parametrize("array", [np.ones(3), np.ones(()), np.ones((4, 5), BFLOAT16)[1:, ::2], np.ones((2, 3, 4))[1].T])
def test_an_arrays_address_is_where_its_numbers_begin(array):
    assert onednn._address(array) == array.ctypes.data


@has_onednn
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", list(every([False, True], repeat=2)))
def test_a_product_of_any_strides(shape, dtype, transposed):
    M, K, N = shape
    a, b = normal(M, K, dtype=dtype), normal(K, N, dtype=dtype, seed=1)
    a_seen = np.ascontiguousarray(a.T).T if transposed[0] else np.concatenate([a, a], axis=1)[:, :K]  # rows with a gap
    b_seen = np.ascontiguousarray(b.T).T if transposed[1] else b
    out = np.full((M, N), np.nan, np.float32)
    assert onednn.matmul(a_seen, b_seen, out) is out
    assert_near(out, wide(a) @ wide(b), abs(wide(a)) @ abs(wide(b)), np.float32, factor=K + 4)  # its sums are float32


@has_onednn
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adding_to_what_is_there_gives_the_bits_of_a_sum(shape, dtype):
    M, K, N = shape
    a, b, before = normal(K, M, dtype=dtype).T, normal(K, N, dtype=dtype, seed=1), normal(M, N, seed=2)
    alone = onednn.matmul(a, b, np.empty((M, N), np.float32))
    assert_same_bits(onednn.matmul(a, b, before.copy(), add=True), before + alone)


@has_onednn
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_exponential_or_a_factor_after_a_product(dtype):
    a, b, factor = normal(3, 20, 16, dtype=dtype), normal(3, 24, 16, dtype=dtype, seed=1), normal(3, 20, 24, dtype=dtype, seed=2)
    scores = wide(a) @ wide(b).swapaxes(1, 2)
    out = np.empty((3, 20, 24), dtype)
    assert_near(onednn.matmul(a, b.swapaxes(1, 2), out, exp=0.25), np.exp(scores / 4), np.exp(scores / 4), dtype, factor=32)
    onednn.matmul(a, b.swapaxes(1, 2), out, times=factor)
    assert_near(out, scores * wide(factor), 16 * abs(wide(factor)), dtype, factor=16)


@has_onednn
def test_a_conversion_rounds_to_the_nearest_of_any_strides():
    x = normal(6, 5, 40)
    for seen in (x, x.swapaxes(0, 1), x[:, :, ::2], x.T):
        converted = onednn.convert(seen, np.empty(seen.shape, BFLOAT16))
        assert_same_bits(converted.view(np.uint16), seen.astype(BFLOAT16).view(np.uint16))
    special = np.array([0.0, -0.0, np.inf, -np.inf, 1e-37, 3.4e38, 1 + 2**-9, 1 + 3 * 2**-9], np.float32)
    assert_same_bits(onednn.convert(special, np.empty(8, BFLOAT16)).view(np.uint16), special.astype(BFLOAT16).view(np.uint16))
    assert np.isnan(onednn.convert(np.full(3, np.nan, np.float32), np.empty(3, BFLOAT16)).astype(np.float32)).all()


@has_onednn
def test_threads_of_ours_have_primitives_of_their_own_and_agree():
    a, b, results, primitives = normal(96, 64), normal(64, 80, seed=1), [], []

    def run():
        for _ in range(20):
            results.append(onednn.matmul(a, b, np.empty((96, 80), np.float32)))
        primitives.extend(onednn._kept.primitives.values())

    with one_blas_thread():
        threads = [Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 80
    assert len(set(primitives)) == len(primitives) == 4
    for result in results:
        assert_same_bits(result, results[0])


@has_onednn
def test_a_thread_keeps_a_limited_number_of_primitives(monkeypatch):
    monkeypatch.setattr(onednn, "MOST_PRIMITIVES", 3)
    for n in range(1, 9):
        out = onednn.matmul(normal(n, 4), normal(4, 5), np.empty((n, 5), np.float32))
        assert_near(out, wide(normal(n, 4)) @ wide(normal(4, 5)), 8, np.float32, factor=8)
    assert len(onednn._kept.primitives) <= 3


@has_onednn
def test_what_it_refuses_is_one_sentence():
    with pytest.raises(ValueError, match=r"^oneDNN refused a product of \(2, 3\) and \(4, 5\) in float32 \(status \d\)$"):
        onednn.matmul(normal(2, 3), normal(4, 5), np.empty((2, 5), np.float32))


# ------------------------------------------------------------------------------------------------ ops and models


def gradients(op, backward, args, dout, dtype):
    """Output and gradients of an op, its arguments first converted."""
    out, cache = op(*(arg.astype(dtype) for arg in args))
    return out, *backward(dout.astype(out.dtype), cache)


@has_onednn
@pytest.mark.parametrize("rows", [(1,), (3, 5), (2, 64)])
def test_a_linear_map_in_float32_is_as_exact_as_numpys(always, rows):
    args = normal(*rows, 48), normal(40, 48, seed=1), normal(40, seed=2)
    dout = normal(*rows, 40, seed=3)
    ours = gradients(ops.linear_forward, ops.linear_backward, args, dout, np.float32)
    exact = gradients(ops.linear_forward.reference, ops.linear_backward.reference, args, dout, np.float64)
    for one, other in zip(ours, exact, strict=True):
        assert one.dtype == np.float32
        assert np.linalg.norm(one - other) <= 1e-6 * np.linalg.norm(other)


@has_bfloat16
def test_a_linear_map_of_a_weight_in_bfloat16_rounds_the_other_operand():
    x, weight, dout = normal(6, 48), normal(40, 48, dtype=BFLOAT16, seed=1), normal(6, 40, seed=3)
    out, cache = ops.linear_forward(x, weight)
    assert (out.dtype, cache.x.dtype) == (np.float32, BFLOAT16)
    exact, exact_cache = ops.linear_forward.reference(wide(x.astype(BFLOAT16)), wide(weight))
    assert_near(out, exact, 200, np.float32)
    into, more = normal(40, 48, seed=4), normal(6, 48, seed=5)
    dx, dweight = ops.linear_backward(dout, cache, into=(buffer := into.copy()), dx=(dx_buffer := more.copy()))
    assert dx is dx_buffer and dweight is buffer
    exact_dx, exact_dweight = ops.linear_backward.reference(wide(dout.astype(BFLOAT16)), exact_cache)
    assert_near(dx, more + exact_dx, 200, np.float32)
    assert_near(dweight, into + exact_dweight, 50, np.float32)


@has_bfloat16
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("given", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [None, *DTYPES], ids=str)
def test_results_of_linear_maps_are_rounded_to_the_dtype_requested_or_to_that_of_x(given, dtype, with_bias):
    x, weights = normal(6, 48, dtype=given), [normal(40, 48, dtype=BFLOAT16, seed=seed) for seed in (1, 2)]
    biases = [normal(40, seed=seed) for seed in (3, 4)] if with_bias else None
    one = [ops.linear_forward(x, weight, biases[m] if biases else None, dtype)[0] for m, weight in enumerate(weights)]
    outs, _ = ops.linears_forward(x, tuple(weights), tuple(biases) if biases else None, dtype)
    for m, (out, other) in enumerate(zip(outs, one, strict=True)):
        assert out.dtype == other.dtype == np.dtype(dtype or given)
        assert_same_bits(out, other)
        whole, _ = ops.linear_forward(x, weights[m], biases[m] if biases else None, np.dtype(np.float32))
        assert_same_bits(out, whole.astype(out.dtype))
        exact = wide(x.astype(BFLOAT16)) @ wide(weights[m]).T + (biases[m] if biases else 0)
        assert_near(out, exact, 60 if out.dtype == np.float32 else abs(exact).max(), out.dtype)


@has_bfloat16
def test_swiglu_of_bfloat16_is_computed_in_float32_and_rounded_once():
    gate, up, dout = (normal(5, 33, dtype=BFLOAT16, seed=seed) for seed in range(3))
    out, cache = ops.swiglu_forward(gate, up)
    exact, exact_cache = ops.swiglu_forward.reference(wide(gate), wide(up))
    assert out.dtype == BFLOAT16 and cache.gate is gate and cache.up is up
    assert_near(out, exact, abs(exact).max(), BFLOAT16, factor=0.51)
    found = ops.swiglu_backward(wide(dout).astype(np.float32), cache)
    for one, other in zip(found, ops.swiglu_backward.reference(wide(dout), exact_cache), strict=True):
        assert one.dtype == np.float32
        assert_near(one, other, abs(other).max(), np.float32)


INTERVALS = {
    "causal": lambda B, T, S: (None, None),
    "window": lambda B, T, S: (np.maximum(np.arange(T) - 20, 0), np.arange(T) + 1),
    "padded": lambda B, T, S: (np.minimum(np.arange(T), np.arange(B)[:, None] * 9), np.broadcast_to(np.arange(T) + 1, (B, T))),
    "nothing seen": lambda B, T, S: (np.zeros(T, int), np.where(np.arange(T) % 7 == 3, 0, np.arange(T) + 1)),
}


@has_onednn
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("shape", [(2, 4, 4, 40, 40, 16), (1, 6, 2, 150, 150, 24), (3, 4, 1, 130, 300, 8)], ids=str)
def test_attention_in_tiles(always, monkeypatch, shape, interval, dtype):
    B, H, K, T, S, D = shape
    if interval != "causal":
        S = T
    q, k, v, dout = normal(B, H, T, D), normal(B, K, S, D, seed=1), normal(B, K, S, D, seed=2), normal(B, H, T, D, seed=3)
    k, v = k.astype(dtype), v.astype(dtype)
    ends = INTERVALS[interval](B, T, S)
    plain = wide(q.astype(dtype)), wide(k), wide(v)
    exact, exact_cache = ops.flash_attention_forward.reference(*plain, *ends)
    exact_gradients = ops.flash_attention_backward.reference(wide(dout), exact_cache)
    monkeypatch.setattr(attention_tiles, "TILE_BYTES", 2**15)  # several groups
    out, cache = ops.flash_attention_forward(q, k, v, *ends)
    assert out.dtype == cache.out.dtype == cache.q.dtype == dtype
    bound = 1e-6 if dtype == np.float32 else 6e-3
    assert np.linalg.norm(wide(out) - exact) <= bound * np.linalg.norm(exact)
    for one, other in zip(ops.flash_attention_backward(dout, cache), exact_gradients, strict=True):
        assert one.dtype == np.float32
        assert np.linalg.norm(one - other) <= bound * np.linalg.norm(other)
    assert (out[abs(exact) == 0] == 0).all()


@has_onednn
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", [9.0, 40.0])
def test_attention_of_large_scores_takes_the_way_with_a_maximum(always, monkeypatch, factor, dtype):
    q, k, v, dout = (normal(1, 2, 40, 16, seed=i) for i in range(4))
    q, k, v = q * factor, (k * factor).astype(dtype), v.astype(dtype)
    out, cache = ops.flash_attention_forward(q, k, v)
    found = out, *ops.flash_attention_backward(dout, cache)
    monkeypatch.setattr(onednn, "library", lambda: None)
    out, cache = ops.flash_attention_forward(q, k, v)
    for one, other in zip(found, (out, *ops.flash_attention_backward(dout, cache)), strict=True):
        assert np.isfinite(one).all()
        assert_same_bits(one, other)


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
def test_the_shift_of_a_row_is_exact_to_sixteen_bits(dtype):
    g, shift = normal(2, 5, 8, dtype=dtype), normal(2, 5, 1, seed=1)
    wider, ones = attention_tiles.with_shift(g, shift), attention_tiles.with_ones(np.zeros((2, 3, 8), dtype))
    assert_same_bits(wider[..., :8], g)
    shifted = wide(wider) @ wide(ones).swapaxes(1, 2)  # g · 0, plus the shift
    assert (abs(shifted - shift) <= 2**-16 * abs(shift)).all()
    assert (ones[..., 10:] == 0).all() and (wider[..., 10:] == 0).all()


MODELS = {
    "llama": {},
    "grouped": {"n_kv_heads": 1, "tie_embeddings": True},
    "gpt2": {"norm": "layernorm", "positions": "learned", "ffn": "gelu", "bias": True, "tie_embeddings": True},
    "qk_norm": {"qk_norm": "rms"},
}


def whole_gradient(changes, compute_dtype, recompute=False):
    config = nl.ModelConfig(vocab_size=61, dim=32, n_layers=2, n_heads=2, max_seq_len=48, init_std=0.1, **changes)
    model = nl.Transformer(config, seed=3, compute_dtype=compute_dtype)
    tokens = np.random.default_rng(0).integers(0, 61, (3, 49))
    return model.loss_and_grads(tokens[:, :-1], tokens[:, 1:], recompute=recompute)


@has_onednn
@pytest.mark.parametrize("name", MODELS)
def test_a_whole_models_gradient_in_float32_is_that_in_float64(always, name):
    loss, grads = whole_gradient(MODELS[name], "float32")
    exact_loss, exact = whole_gradient(MODELS[name], "float64")
    assert float(loss) == pytest.approx(float(exact_loss), rel=1e-6)
    for key, gradient in grads.items():
        assert np.linalg.norm(gradient - exact[key]) <= 2e-6 * np.linalg.norm(exact.flat), key


@has_bfloat16
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_whole_models_gradient_in_bfloat16_points_where_that_in_float64_does(always, name, recompute):
    loss, grads = whole_gradient(MODELS[name], "bfloat16", recompute)
    exact_loss, exact = whole_gradient(MODELS[name], "float64")
    assert float(loss) == pytest.approx(float(exact_loss), rel=1e-3)
    for key, gradient in grads.items():
        if key.endswith("wk_bias"):  # moves all scores of a query alike: its gradient is zero, and points nowhere
            continue
        assert gradient.dtype == np.float32
        cosine = (gradient * exact[key]).sum() / np.linalg.norm(gradient) / np.linalg.norm(exact[key])
        assert cosine >= 0.999, f"{key}: {cosine}"


@has_onednn
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=has_bfloat16)])
@pytest.mark.parametrize(("workers", "processes"), [(2, False), (8, False), (2, True), (8, True)])
def test_any_number_of_workers_gives_the_same_bits(monkeypatch, dtype, workers, processes):
    seen, matmul = set(), onednn.matmul
    monkeypatch.setattr(onednn, "matmul", lambda a, *of, **how: seen.add(a.dtype) or matmul(a, *of, **how))
    monkeypatch.setattr(shards, "PROCESSES_AFTER", -1.0)
    config = nl.ModelConfig(vocab_size=61, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=48, dropout=0.1)
    runs = []
    for count in (1, workers):
        model = nl.Transformer(config, seed=3, compute_dtype=dtype)
        with closing(Workers(model, count, processes=processes and count > 1)) as group:
            optimizer = nl.AdamW(model.params)
            for step in range(3):
                tokens = np.random.default_rng(step).integers(0, 61, (2, 24, 48))
                loss, grads = loss_and_grads(group, *tokens, 8, key=(0, step))
                group.step(optimizer, grads, 1e-3)
            assert len(group.pids) == (count - 1 if processes else 0)
            runs.append((loss, grads.flat.copy(), model.params.flat.copy()))
    (loss, *expected), (other, *actual) = runs
    assert loss == other and seen == {np.dtype(BFLOAT16 if dtype == "bfloat16" else "float32")}
    for one, many in zip(expected, actual, strict=True):
        assert_same_bits(one, many)


# ------------------------------------------------------------------------------------------------ the library


def library_in_a_process(value, code="print(onednn.library())", **env):
    """What a new process says with this NUMLLAMA_ONEDNN."""
    command = [sys.executable, "-W", "always", "-c", f"from numllama.cpu import onednn, products; {code}"]
    env = os.environ | env | ({} if value is None else {"NUMLLAMA_ONEDNN": str(value)})
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True)


def test_it_can_be_switched_off():
    result = library_in_a_process("off")
    assert (result.stdout, result.stderr) == ("None\n", "")


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_a_file_that_is_no_library_is_named_in_one_warning_and_numpy_goes_on(tmp_path, content):
    path = tmp_path / "libdnnl.so.3"
    if content:
        path.write_bytes(content)
    code = "import numpy, numllama; x = numpy.ones((300, 300), 'f'); print(numllama.ops.linear_forward(x, x)[0][0, 0])"
    result = library_in_a_process(path, code)
    assert result.stdout == "300.0\n"
    assert result.stderr.count("oneDNN cannot be used, so NumPy computes all products: ") == 1
    assert str(path) in result.stderr


def test_another_library_and_an_older_version_are_refused(monkeypatch):
    libc = ctypes.util.find_library("c") if hasattr(ctypes, "util") else "libc.so.6"
    result = library_in_a_process(libc or "libc.so.6")
    assert result.stdout == "None\n" and "undefined symbol: dnnl_version" in result.stderr

    class Old:
        def __init__(self, path):
            self.dnnl_version = lambda: ctypes.pointer(onednn._Version(2, 6, 3, b""))

    monkeypatch.setattr(ctypes, "CDLL", Old)
    monkeypatch.setattr(ctypes, "PyDLL", Old)
    with pytest.raises(ValueError, match=r"^this is version 2\.6, but a version 3 is needed: pip install"):
        onednn._open("libdnnl.so.2")


@has_onednn
def test_a_cpu_without_bfloat16_units_multiplies_in_float32():
    code = (
        "import numpy, ml_dtypes, numllama; print(products.multiplies_bfloat16(), onednn.library().instruction_set);"
        "x = numpy.ones((4, 64), 'f') * 1.001; w = numpy.ones((64, 64), ml_dtypes.bfloat16);"
        "out, cache = numllama.ops.linear_forward(x, w); print(cache.x.dtype, out[0, 0].round(3))"
    )
    result = library_in_a_process(None, code, ONEDNN_MAX_CPU_ISA="AVX512_CORE")
    assert result.stdout.split("\n")[:2] == ["False AVX-512", "float32 64.064"]


@has_onednn
def test_a_cpu_without_avx512_is_left_to_numpy():
    assert library_in_a_process(None, ONEDNN_MAX_CPU_ISA="AVX2").stdout == "None\n"


def test_operands_of_two_dtypes_multiply_as_in_numpy():
    a, b = normal(3, 6), normal(6, 4, seed=1)
    for one, other in ((a, wide(b)), (wide(a), b), (wide(a), b.astype(BFLOAT16)), (a, b.astype(np.float16))):
        result = products.product(one, other)
        assert result.dtype == np.result_type(one, other)
        assert_near(result, wide(one) @ wide(other), 20, np.float32)


def test_without_the_library_nothing_is_converted(without_onednn):
    weight = normal(8, 6, dtype=BFLOAT16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out, cache = ops.linear_forward(normal(3, 6), weight)
    assert cache.x.dtype == np.float32
    assert_near(out, wide(normal(3, 6)) @ wide(weight).T, 50, np.float32)
