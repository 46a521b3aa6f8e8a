"""The sampling kernel against numllama.generation.sampling, which it has to agree with token by token."""

import numpy as np
import pytest
from emulator import BACKWARD, FORWARD, SHUFFLED, emulated

from numllama import SamplingConfig
from numllama.backend import BFLOAT16, real_dtype
from numllama.cuda import launch
from numllama.cuda.sample import AHEAD
from numllama.generation.sampling import draw, filtered, log_softmax, penalise_repetition

ROWS = 3


def rows(kind, V):
    rng = np.random.default_rng(V)
    logits = 2 * rng.standard_normal((ROWS, V))
    if kind == "tied":
        logits = np.round(logits)
    elif kind == "equal":
        logits[...] = 1.5
    elif kind == "one":
        logits = np.where(np.arange(V) == V // 2, logits, -np.inf)
    elif kind == "some":
        logits[:, ::2] = -np.inf
    elif kind == "far":
        logits *= 1e4
    elif kind == "zeros":
        logits = np.where(rng.random((ROWS, V)) < 0.5, 0.0, -0.0)
    return logits


def by_kernel(logits, config, u, seen, order):
    """What the kernel draws, with what it leaves of `seen`."""
    real, is_greedy = real_dtype(logits.dtype), config.is_greedy
    uniforms, drawn = np.zeros((AHEAD, ROWS)), np.full(ROWS, 2, np.int32)
    uniforms[2] = u
    result, scratch = np.empty((3, ROWS)), np.empty(logits.shape, real)
    tokens, slots, positions = (np.full(ROWS, 7, np.int32) for _ in range(3))
    seen = None if seen is None else seen.astype(np.uint8)
    numbers = [
        np.int32(ROWS), np.int32(logits.shape[1]), np.int32(launch.row_stride(logits)),
        real.type(0 if is_greedy else config.temperature), real.type(config.repetition_penalty), np.int32(config.top_k or 0),
        np.float64(-1 if config.top_p is None else 1 - config.top_p), real.type(-1 if config.min_p is None else config.min_p),
        np.int32(True),
    ]  # fmt: skip
    threads = 1024 if logits.shape[1] >= 4096 else 128
    args = [result, tokens, scratch, launch.strided(logits), seen, uniforms, drawn, slots, positions, *numbers]
    with emulated(order):
        launch.launch("sample", "sample", ROWS, threads, args, DTYPE=logits.dtype)
    assert slots.tolist() == positions.tolist() == [8] * ROWS
    assert drawn.tolist() == [2 if is_greedy else 3] * ROWS
    assert tokens.tolist() == result[0].tolist()
    return result, seen


def by_numpy(logits, config, u, seen):
    logits = logits.astype(real_dtype(logits.dtype))
    with np.errstate(all="ignore"):
        if seen is not None:
            logits = penalise_repetition(logits, seen, config.repetition_penalty)
        if config.is_greedy:
            return logits.argmax(-1)
        with pytest.MonkeyPatch.context() as patch:                    # NumPy's own sort leaves open which of equals comes first
            patch.setattr(np, "argsort", lambda x, axis: x.argsort(axis, kind="stable"))
            logits = filtered(logits, config)
        return draw(np.exp(logits - logits.max(-1, keepdims=True)), u)


# No p is a sum of equal chances: there, rounding decides.
SETTINGS = [
    dict(temperature=0.0), dict(), dict(temperature=0.3), dict(top_k=1), dict(top_k=4), dict(top_p=0.6), dict(top_p=0.0),
    dict(top_p=1.0), dict(min_p=0.3), dict(top_k=3, top_p=0.45, min_p=0.1, temperature=0.7),
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", [
    "random", "tied", "far", *(pytest.param(each, marks=pytest.mark.thorough) for each in ("equal", "one", "some", "zeros")),
])  # fmt: skip
def test_the_kernel_draws_what_numpy_draws(kind, settings):
    for V, dtype in ((5, np.float32), (61, np.float64), (257, BFLOAT16), (33, np.float16)):
        logits = rows(kind, V).astype(dtype)
        u, config = np.array([0.02, 0.5, 0.99]), SamplingConfig(**settings, repetition_penalty=1.3)
        seen = np.random.default_rng(0).random(logits.shape) < 0.4
        results = [by_kernel(logits, config, u, seen, order) for order in (FORWARD, BACKWARD, SHUFFLED)]
        for result, marks in results[1:]:
            assert result.tobytes() == results[0][0].tobytes() and marks.tobytes() == results[0][1].tobytes()
        (ids, chances, largest), marks = results[0]
        ids = ids.astype(int)
        assert ids.tolist() == by_numpy(logits, config, u, seen).tolist()
        assert largest.tolist() == logits.astype(float).max(-1).tolist()
        with np.errstate(all="ignore"):
            expected = log_softmax(logits)[np.arange(ROWS), ids]
        np.testing.assert_allclose(chances, expected, rtol=1e-5, atol=1e-5)
        seen[np.arange(ROWS), ids] = True
        assert (marks == seen).all()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_vocabulary_of_50257(settings):
    logits, u, config = rows("random", 50257).astype(np.float32), np.array([0.1, 0.6, 0.9]), SamplingConfig(**settings)
    result, _ = by_kernel(logits, config, u, None, SHUFFLED)
    assert result[0].tolist() == by_numpy(logits, config, u, None).tolist()


def test_a_row_that_holds_nan_is_said_to_have_no_largest():
    logits = rows("random", 61).astype(np.float32)
    logits[1, 30], logits[2] = np.nan, -np.inf
    for settings in (dict(temperature=0.0), dict(top_p=0.5, top_k=3)):
        result, _ = by_kernel(logits, SamplingConfig(**settings), np.zeros(ROWS), None, SHUFFLED)
        assert np.isfinite(result[2]).tolist() == [True, False, False]
        assert ((result[0] >= 0) & (result[0] < 61)).all()


def test_rows_that_begin_at_aligned_addresses():
    """The head leaves a gap behind each row, so that the next one begins at a multiple of 16 bytes."""
    wide = np.full((ROWS, 64), np.nan, np.float32)
    wide[:, :61] = rows("random", 61)
    u, config = np.array([0.02, 0.5, 0.99]), SamplingConfig(top_k=7)
    (ids, *_), _ = by_kernel(wide[:, :61], config, u, None, SHUFFLED)
    assert ids.astype(int).tolist() == by_numpy(wide[:, :61].copy(), config, u, None).tolist()
