"""SGD: closed forms, a loop over scalars, and the flat pass."""

from concurrent.futures import ThreadPoolExecutor
from math import sqrt

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits, unmodified

from numllama.model import Parameters
from numllama.optim import SGD, sgd_update
from numllama.optim.optimizer import step_in_pieces

SHAPES = {"a": (3, 4), "b": (2, 5), "gain": (4,), "shift_bias": (3,)}
LARGE = {"a": (600, 801), "gain": (200001,)}  # more than two pieces of matrices, more than one of gains


def random_params(shapes=SHAPES, seed=0, dtype="float64") -> Parameters:
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    return Parameters(shapes, np.random.default_rng(seed).standard_normal(size).astype(dtype))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(momentum=0.9),
        dict(weight_decay=0.2),
        dict(momentum=0.5, weight_decay=0.2),
        dict(momentum=0.9, weight_decay=0.1, inverse_sqrt=True),
    ],
    ids=["plain", "momentum", "decay", "momentum_and_decay", "inverse_sqrt"],
)
def test_twenty_steps_equal_a_loop_over_scalars(settings):
    params, start = random_params(), random_params()
    optimizer = SGD(params, **settings)
    gradients = [random_params(seed=t) for t in range(1, 21)]
    lrs = np.random.default_rng(9).uniform(0.001, 0.1, 20).tolist()
    for grads, lr in zip(gradients, lrs, strict=True):
        optimizer.step(grads, lr)

    for i, w in enumerate(start.flat.tolist()):
        u, decay = 0.0, settings.get("weight_decay", 0.0) if i < 12 + 10 else 0.0  # the two matrices
        for t, (grads, lr) in enumerate(zip(gradients, lrs, strict=True), start=1):
            u = settings.get("momentum", 0.0) * u + grads.flat[i] + decay * w
            w -= (lr / sqrt(t) if settings.get("inverse_sqrt") else lr) * u
        assert_close(params.flat[i], w)


def test_a_plain_step_is_lr_times_the_gradient():
    params, grads = random_params(), random_params(seed=1)
    SGD(params, lr=0.25).step(grads)
    assert_same_bits(params.flat, random_params().flat - 0.25 * grads.flat)


def test_momentum_under_a_constant_gradient_is_a_geometric_series():
    params, grads = random_params(), random_params(seed=1)
    optimizer = SGD(params, lr=0.1, momentum=0.9)
    for _ in range(30):
        optimizer.step(grads)
    assert_close(optimizer.state["u"].flat, (1 - 0.9**30) / (1 - 0.9) * grads.flat)


def test_inverse_sqrt_divides_the_rate_of_step_t_by_the_root_of_t():
    params, grads = random_params(), random_params(seed=1)
    optimizer = SGD(params, lr=0.1, inverse_sqrt=True)
    for _ in range(4):
        optimizer.step(grads)
    total = 0.1 * (1 + 1 / sqrt(2) + 1 / sqrt(3) + 1 / 2)
    assert_close(params.flat, random_params().flat - total * grads.flat)


def test_only_matrices_decay():
    params, before = random_params(), random_params()
    optimizer = SGD(params, lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.step(params.zeros_like())
    for name in ("a", "b"):
        assert_close(params[name], before[name] * (1 - 0.1 * 0.5) ** 3)
    for name in ("gain", "shift_bias"):
        assert_same_bits(params[name], before[name])


def test_without_momentum_there_is_no_state():
    assert SGD(random_params()).state == {}
    assert list(SGD(random_params(), momentum=0.5).state) == ["u"]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_in_pieces_equal_steps_of_whole_buffers_bit_for_bit(momentum, dtype):
    params, whole = random_params(LARGE, dtype=dtype), random_params(LARGE, dtype=dtype)
    optimizer, n = SGD(params, lr=0.01, momentum=momentum, weight_decay=0.1), whole.matrices.size
    u = whole.zeros_like()
    for t in range(1, 4):
        grads = random_params(LARGE, seed=t, dtype=dtype)
        optimizer.step(grads)
        for part, decay in ((slice(0, n), 0.1), (slice(n, None), 0.0)):
            sgd_update(whole.flat[part], grads.flat[part], u.flat[part] if momentum else None, 0.01, momentum, decay)
    assert_same_bits(params.flat, whole.flat)


def test_a_thread_pool_gives_the_same_bits():
    params, threaded = random_params(LARGE, dtype="float32"), random_params(LARGE, dtype="float32")
    one, other = (SGD(p, momentum=0.9, weight_decay=0.1, inverse_sqrt=True) for p in (params, threaded))
    with ThreadPoolExecutor(4) as pool:
        for t in range(1, 6):
            one.step(random_params(LARGE, seed=t, dtype="float32"))
            step_in_pieces(other, random_params(LARGE, seed=t, dtype="float32"), map_fn=pool.map)
    assert_same_bits(threaded.flat, params.flat)


def test_float32_stays_float32():
    params = random_params(dtype="float32")
    optimizer = SGD(params, momentum=0.9, weight_decay=0.1, inverse_sqrt=True)
    for t in range(1, 4):
        optimizer.step(random_params(seed=t, dtype="float32"))
    assert {buffer.flat.dtype.name for buffer in (params, *optimizer.state.values())} == {"float32"}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_stay_as_they_are(momentum):
    grads = random_params(seed=1)
    optimizer = SGD(random_params(), momentum=momentum, weight_decay=0.1)
    with unmodified(grads.flat):
        optimizer.step(grads)
        optimizer.step(grads)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(lr=-0.1), "lr is -0.1, but must not be negative"),
        (dict(weight_decay=-1.0), "weight_decay is -1.0, but must not be negative"),
        (dict(momentum=1.0), r"momentum is 1.0, but must lie in \[0, 1\)"),
        (dict(momentum=-0.5), r"momentum is -0.5, but must lie in \[0, 1\)"),
        (dict(momentum=float("nan")), r"momentum is nan, but must lie in \[0, 1\)"),
    ],
    ids=["lr", "weight_decay", "momentum_1", "momentum_below_0", "momentum_nan"],
)
def test_a_setting_that_cannot_be_is_named(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SGD(random_params(), **settings)
