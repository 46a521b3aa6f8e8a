"""docs/chapters/quantisation.md. The formats of GGUF are compared with the package `gguf`, which llama.cpp publishes."""

from math import floor

import gguf
import numpy as np
from docs.equations.common import normal

import numllama as nl
from numllama.cpu.int8 import Int8Matrix, quantize
from numllama.interop.gguf import row_bytes

Q4_0, Q4_K, Q8_0 = (gguf.GGMLQuantizationType[name] for name in ("Q4_0", "Q4_K", "Q8_0"))
W = normal(5, 64).astype(np.float32)
STORED = Int8Matrix.quantized(W, np.empty(W.shape, np.int8))


def symmetric():
    for w, values, scale in zip(W, STORED.values, STORED.scales[:, 0], strict=True):
        s = max(abs(float(x)) for x in w) / (2 ** (8 - 1) - 1)
        yield s, float(scale), 1e-6
        yield [float(round(float(x) / s)) for x in w], values.astype(float)
    yield STORED.values * STORED.scales, STORED[:]


def bound():
    most = np.broadcast_to(STORED.scales / 2, W.shape) * (1 + 1e-5)    # rounding of the float32 itself
    yield most, np.maximum(most, abs(STORED[:] - W)), 1e-6             # never more
    assert (abs(STORED[:] - W) > 0.98 * most).any()                    # but not much less


def noise():
    w = normal(40, 10_000).astype(np.float32)
    stored = Int8Matrix.quantized(w, np.empty(w.shape, np.int8))
    yield (stored.scales[:, 0].astype(float) ** 2 / 12).mean(), ((stored[:] - w).astype(float) ** 2).mean(), 0.01


def bits():
    for kind, b in ((Q4_0, 4), (Q8_0, 8)):
        yield b + 16 / 32, 8 * row_bytes(kind, 256) / 256
    yield (256 * 4 + 8 * (6 + 6) + 2 * 16) / 256, 8 * row_bytes(Q4_K, 256) / 256


def product():
    x = normal(3, 64, seed=1).astype(np.float32)
    values, scales = np.empty(x.shape, np.int8), np.empty((3, 1), np.float32)
    quantize(x, values, scales, np.empty_like(x))
    s = [[float(scales[n, 0] * STORED.scales[o, 0]) for o in range(5)] for n in range(3)]
    q = STORED.values
    literal = [[s[n][o] * sum(int(values[n, i]) * int(q[o, i]) for i in range(64)) for o in range(5)] for n in range(3)]
    yield literal, (values * scales).astype(float) @ STORED[:].T.astype(float), 1e-5
    yield literal, (values * scales) @ STORED.T, 0.02  # a CPU that multiplies int8 computes just this, others round x less


def q4_0():
    w = normal(4, 32)
    expanded = gguf.dequantize(gguf.quantize(w.astype(np.float32), Q4_0), Q4_0)
    for row, actual in zip(w.astype(np.float32).astype(float), expanded, strict=True):
        largest = max(row, key=abs)
        d = largest / -8
        q = [min(15, floor(x / d + 8.5)) for x in row]
        yield [float(np.float16(d)) * (n - 8) for n in q], actual, 1e-6


def q4_k():
    """A block of random bytes, whose parts are taken out one by one."""
    rng = np.random.default_rng(0)
    block = rng.integers(0, 256, 144, dtype=np.uint8)
    block[:4] = np.array([0.5, 0.25], np.float16).view(np.uint8)
    d, d_min = (float(x) for x in block[:4].view(np.float16))
    packed, nibbles = [int(x) for x in block[4:16]], block[16:].reshape(4, 32)
    literal = []
    for j in range(8):
        if j < 4:
            a, m = packed[j] & 63, packed[j + 4] & 63
        else:
            a = packed[j + 4] & 15 | packed[j - 4] >> 6 << 4
            m = packed[j + 4] >> 4 | packed[j] >> 6 << 4
        q = [int(x) >> 4 if j % 2 else int(x) & 15 for x in nibbles[j // 2]]
        literal += [d * a * n - d_min * m for n in q]
    yield literal, gguf.dequantize(block[None], Q4_K)[0], 1e-6


def smooth():
    config = nl.ModelConfig(vocab_size=7, dim=8, n_layers=1, n_heads=2, max_seq_len=8, init_std=0.3)
    right, alpha, tokens = nl.Transformer(config, dtype="float64"), np.abs(normal(8)) + 0.1, np.array([[1, 5, 2, 2]])
    w, g, n = right.params["blocks.0.wq"].copy(), normal(8), normal(8, seed=1)
    yield [sum(w[o, i] * g[i] * n[i] for i in range(8)) for o in range(8)], (w / alpha) @ (alpha * g * n)
    logits = right.forward(tokens)
    right.params["blocks.0.attn_norm"][...] *= alpha
    for name in ("wq", "wk", "wv"):
        right.params[f"blocks.0.{name}"][...] /= alpha
    yield logits, right.forward(tokens)
