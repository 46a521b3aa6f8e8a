"""AdamW: closed forms, a loop over scalars, and the flat pass."""

from concurrent.futures import ThreadPoolExecutor
from math import sqrt

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits, unmodified

from numllama import dispatch
from numllama.model import Parameters
from numllama.optim import AdamW, adamw_update
from numllama.optim.optimizer import step_in_pieces

SHAPES = {"a": (3, 4), "b": (2, 5), "gain": (4,), "shift_bias": (3,)}
LARGE = {"a": (600, 801), "b": (7, 3), "gain": (200001,)}  # more than two pieces of matrices, more than one of gains


@pytest.fixture(autouse=True, params=["cpu", "reference"])
def step(request, monkeypatch):
    """The step as it runs on a CPU, and its own lines."""
    if request.param == "reference":
        monkeypatch.setattr(dispatch, "_twin", lambda package, op: None)


def random_params(shapes=SHAPES, seed=0, dtype="float64") -> Parameters:
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    return Parameters(shapes, np.random.default_rng(seed).standard_normal(size).astype(dtype))


def adamw_by_scalars(w, gradients, lrs, beta1, beta2, eps, weight_decay):
    """One number, as algorithm 2 states it."""
    m = v = 0.0
    for t, (g, lr) in enumerate(zip(gradients, lrs, strict=True), start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        w = w - lr * weight_decay * w - lr * m_hat / (sqrt(v_hat) + eps)
    return w, m, v


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(weight_decay=0.0),
        dict(betas=(0.8, 0.999), eps=0.1, weight_decay=0.3),
        dict(betas=(0.0, 0.0)),
        dict(betas=(0.0, 0.99), eps=1e-3),
    ],
    ids=["defaults", "no_decay", "all_others", "no_memory", "no_mean"],
)
def test_twenty_steps_equal_a_loop_over_scalars(settings):
    params, start = random_params(), random_params()
    optimizer = AdamW(params, **settings)
    gradients = [random_params(seed=t) for t in range(1, 21)]
    lrs = np.random.default_rng(9).uniform(0.001, 0.1, 20).tolist()
    for grads, lr in zip(gradients, lrs, strict=True):
        optimizer.step(grads, lr)

    (beta1, beta2), eps = settings.get("betas", (0.9, 0.95)), settings.get("eps", 1e-8)
    results = np.empty((3, start.flat.size))
    for i, w in enumerate(start.flat.tolist()):
        decay = settings.get("weight_decay", 0.1) if i < 12 + 10 else 0.0  # the two matrices
        results[:, i] = adamw_by_scalars(w, [grads.flat[i] for grads in gradients], lrs, beta1, beta2, eps, decay)
    assert optimizer.steps == 20
    assert_close(params.flat, results[0])
    assert_close(optimizer.state["m"].flat, results[1])
    assert_close(optimizer.state["v"].flat, results[2])


def test_the_first_step_is_lr_times_the_sign_of_the_gradient():
    params, grads = random_params(), random_params(seed=1)
    before = params.flat.copy()
    AdamW(params, lr=0.01, eps=0.0, weight_decay=0.0).step(grads)
    assert_close(before - params.flat, 0.01 * np.sign(grads.flat))


def test_steps_under_a_constant_gradient_stay_lr_times_its_sign():
    """Both means are of one number, once their bias is undone."""
    params, grads = random_params(), random_params(seed=1)
    optimizer, before = AdamW(params, lr=0.01, eps=0.0, weight_decay=0.0), params.flat.copy()
    for _ in range(50):
        optimizer.step(grads)
    assert_close(before - params.flat, 50 * 0.01 * np.sign(grads.flat))


def test_eps_is_added_outside_the_root():
    params, grads = random_params(), random_params(seed=1)
    before = params.flat.copy()
    AdamW(params, lr=0.01, eps=0.5, weight_decay=0.0).step(grads)
    assert_close(before - params.flat, 0.01 * grads.flat / (abs(grads.flat) + 0.5))


def test_only_matrices_decay():
    params = random_params()
    optimizer, before = AdamW(params, lr=0.01, weight_decay=0.5), random_params()
    for _ in range(3):
        optimizer.step(params.zeros_like())
    for name in ("a", "b"):
        assert_close(params[name], before[name] * (1 - 0.01 * 0.5) ** 3)
    for name in ("gain", "shift_bias"):
        assert_same_bits(params[name], before[name])


def test_decay_does_not_enter_the_moments():
    moments = []
    for weight_decay in (0.0, 0.5):
        optimizer = AdamW(random_params(), weight_decay=weight_decay)
        for t in range(1, 4):
            optimizer.step(random_params(seed=t))
        moments.append(np.concatenate([optimizer.state["m"].flat, optimizer.state["v"].flat]))
    assert_same_bits(*moments)


def test_a_step_may_be_given_its_learning_rate():
    one, other = random_params(), random_params()
    AdamW(one, lr=0.02).step(random_params(seed=1))
    AdamW(other, lr=5.0).step(random_params(seed=1), lr=0.02)
    assert_same_bits(one.flat, other.flat)


def test_a_learning_rate_of_zero_moves_only_the_moments():
    params = random_params()
    optimizer = AdamW(params, lr=1.0)
    optimizer.step(random_params(seed=1), lr=0.0)
    assert_same_bits(params.flat, random_params().flat)
    assert_close(optimizer.state["m"].flat, 0.1 * random_params(seed=1).flat)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_in_pieces_equal_steps_of_whole_buffers_bit_for_bit(dtype):
    params, whole = random_params(LARGE, dtype=dtype), random_params(LARGE, dtype=dtype)
    optimizer, n = AdamW(params, lr=0.01), whole.matrices.size
    m, v = whole.zeros_like(), whole.zeros_like()
    for t in range(1, 4):
        grads = random_params(LARGE, seed=t, dtype=dtype)
        optimizer.step(grads)
        for part, decay in ((slice(0, n), 0.1), (slice(n, None), 0.0)):
            w, g, m_part, v_part = (buffer.flat[part] for buffer in (whole, grads, m, v))
            adamw_update(w, g, m_part, v_part, t, 0.01, (0.9, 0.95), 1e-8, decay)
    assert_same_bits(params.flat, whole.flat)
    assert_same_bits(optimizer.state["v"].flat, v.flat)


def test_a_thread_pool_gives_the_same_bits():
    params, threaded = random_params(LARGE, dtype="float32"), random_params(LARGE, dtype="float32")
    one, other = AdamW(params), AdamW(threaded)
    with ThreadPoolExecutor(4) as pool:
        for t in range(1, 6):
            one.step(random_params(LARGE, seed=t, dtype="float32"))
            step_in_pieces(other, random_params(LARGE, seed=t, dtype="float32"), map_fn=pool.map)
    assert_same_bits(threaded.flat, params.flat)
    assert_same_bits(other.state["m"].flat, one.state["m"].flat)


def test_float32_stays_float32():
    params = random_params(dtype="float32")
    optimizer = AdamW(params)
    optimizer.step(random_params(seed=1, dtype="float32"))
    assert {buffer.flat.dtype.name for buffer in (params, *optimizer.state.values())} == {"float32"}
    exact = random_params(dtype="float32")
    exact = Parameters(SHAPES, exact.flat.astype("float64"))
    AdamW(exact).step(Parameters(SHAPES, random_params(seed=1, dtype="float32").flat.astype("float64")))
    assert_close(params.flat, exact.flat, rtol=1e-7)


def test_gradients_stay_as_they_are():
    grads = random_params(seed=1)
    with unmodified(grads.flat):
        AdamW(random_params()).step(grads)


def test_state_has_the_layout_of_the_parameters_and_starts_at_zero():
    optimizer = AdamW(random_params())
    assert set(optimizer.state) == {"m", "v"}
    assert all(list(buffer) == list(SHAPES) and not buffer.flat.any() for buffer in optimizer.state.values())
    assert optimizer.steps == 0


def test_it_finds_the_minimum_of_a_badly_scaled_bowl():
    params, target = random_params(), random_params(seed=5)
    scale = np.logspace(-3, 3, params.flat.size)
    optimizer, grads = AdamW(params, weight_decay=0.0), params.zeros_like()
    for t in range(400):
        grads.flat[:] = scale * (params.flat - target.flat)
        optimizer.step(grads, lr=0.1 * (1 - t / 400))
    assert abs(params.flat - target.flat).max() < 1e-2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(lr=-0.1), "lr is -0.1, but must not be negative"),
        (dict(lr=float("nan")), "lr is nan, but must not be negative"),
        (dict(weight_decay=-1.0), "weight_decay is -1.0, but must not be negative"),
        (dict(betas=(1.0, 0.9)), r"betas are \(1.0, 0.9\), but both must lie in \[0, 1\)"),
        (dict(betas=(0.9, 1.5)), r"betas are \(0.9, 1.5\), but both must lie in \[0, 1\)"),
        (dict(betas=(-0.1, 0.9)), r"betas are \(-0.1, 0.9\), but both must lie in \[0, 1\)"),
    ],
    ids=["lr", "lr_nan", "weight_decay", "beta1_is_1", "beta2_above_1", "beta1_below_0"],
)
def test_a_setting_that_cannot_be_is_named(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        AdamW(random_params(), **settings)
