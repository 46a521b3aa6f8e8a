"""docs/chapters/mixed_precision.md"""

import ml_dtypes
import numpy as np
from docs.equations.common import normal

import numllama as nl
from numllama.model.parameters import Parameters

FORMATS = ((ml_dtypes.bfloat16, 2.0**-7), (np.float16, 2.0**-10), (np.float32, 2.0**-23))


def rounding():
    v = normal(2000)
    for dtype, eps in FORMATS:
        error = abs(v.astype(dtype).astype("float64") - v)
        yield 1 / 2 * eps * abs(v), np.maximum(1 / 2 * eps * abs(v), error)  # never more
        assert (error > 1 / 5 * eps * abs(v)).any()  # but not much less


def lost():
    """As the model's copy in two bytes sees it: a step that small leaves it as it is."""
    w = normal(50)
    masters = Parameters({"w": (5, 10)}, w.astype(ml_dtypes.bfloat16).astype("float32"))
    copy = masters.in_low_precision(np.dtype(ml_dtypes.bfloat16))
    before = copy.flat.astype("float64")
    masters.flat += 0.999 / 4 * 2.0**-7 * abs(masters.flat)
    masters.sync_low_precision()
    yield before, copy.flat.astype("float64")


def scaling():
    model = nl.Transformer(nl.ModelConfig(vocab_size=7, dim=8, n_layers=1, n_heads=2), dtype="float64")
    tokens = np.arange(6)[None] % 7
    _, grads = model.loss_and_grads(tokens, tokens)
    for s in (2.0**10, 1000.0):
        _, scaled = model.loss_and_grads(tokens, tokens, scale=s)
        yield scaled.flat / s, grads.flat
