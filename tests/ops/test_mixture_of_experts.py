import numpy as np
import pytest
from helpers import RNGS, SIZES, assert_close, assert_same_bits, check_dtype, check_inputs_stay, check_strides, leaves, normal
from hypothesis import given
from hypothesis import strategies as st

from numllama.backend import to_numpy
from numllama.gradcheck import gradcheck
from numllama.ops import (
    load_balancing_backward,
    load_balancing_forward,
    mixture_of_experts_backward,
    mixture_of_experts_forward,
    router_backward,
    router_forward,
)

SCORES = pytest.mark.parametrize("score", ["softmax", "sigmoid"])
NORMALISED = pytest.mark.parametrize("normalise", [True, False])


def clear_choice(logits, k):
    """Whether every row's k-th logit is far from the next: at a tie the choice has no derivative."""
    ranked = -np.sort(-logits, -1)
    return k == logits.shape[-1] or (ranked[:, k - 1] - ranked[:, k] > 0.1).all()


@st.composite
def routers(draw):
    """Logits (N, E) in NumPy, and k."""
    N, E, rng = draw(SIZES), draw(SIZES), draw(RNGS)
    k = draw(st.integers(1, E))
    return rng.permuted(np.tile(np.linspace(-1, 1, E), (N, 1)), axis=1) + 0.02 * rng.uniform(-1, 1, (N, E)), k


def arguments(rng, lead=(2, 3), E=4, C=3, F=5, k=2):
    """x (..., C), router, gate, up and down in NumPy, with clear choices."""
    router = rng.standard_normal((E, C))
    x = np.empty((*lead, C))
    for place in np.ndindex(lead):
        x[place] = rng.standard_normal(C)
        while not clear_choice((router @ x[place])[None], k):
            x[place] = 2 * rng.standard_normal(C)
    return [x, router, rng.standard_normal((E, F, C)), rng.standard_normal((E, F, C)), rng.standard_normal((E, C, F))]


def example(xp):
    return [*map(xp.asarray, arguments(np.random.default_rng(0))), 2]


def probabilities(z, score):
    return np.exp(z) / np.exp(z).sum() if score == "softmax" else 1 / (1 + np.exp(-z))


def dense(x, router, gate, up, down, k, score, normalise):
    """Token by token, every expert computed, and those that were not chosen weighted by zero."""
    out, probs = np.zeros_like(x), []
    for place in np.ndindex(x.shape[:-1]):
        p = probabilities(router @ x[place], score)
        kept = p * (p >= np.sort(p)[-k])
        g, u = gate @ x[place], up @ x[place]                          # (E, F) both
        y = np.einsum("ecf,ef->ec", down, g / (1 + np.exp(-g)) * u)
        out[place] = (kept / kept.sum() if normalise else kept) @ y
        probs.append(p)
    return out, np.array(probs)


# ------------------------------------------------------------------------------------------------ the router


@SCORES
@NORMALISED
@given(routers())
def test_gradients_of_the_router(xp, score, normalise, case):
    logits, k = case
    gradcheck(router_forward, router_backward, [xp.asarray(logits), k, score, normalise])


@SCORES
@NORMALISED
@given(routers())
def test_the_router_takes_the_most_probable_experts(xp, score, normalise, case):
    logits, k = case
    (weights, probs), cache = router_forward(xp.asarray(logits), k, score, normalise)
    for n, z in enumerate(logits):
        p = probabilities(z, score)
        best = sorted(range(len(z)), key=lambda e: -p[e])[:k]
        assert to_numpy(cache.chosen[n]).tolist() == best
        assert_close(weights[n], p[best] / (p[best].sum() if normalise else 1))
        assert_close(probs[n], p)


def test_of_equal_experts_the_first_are_chosen(xp):
    _, cache = router_forward(xp.zeros((2, 5)), 3)
    assert to_numpy(cache.chosen).tolist() == [[0, 1, 2]] * 2


@SCORES
def test_a_normalised_router_with_one_expert_has_no_gradient(xp, score):
    (weights, _), cache = router_forward(xp.asarray([[1.0, 3.0, 2.0]]), 1, score)
    assert to_numpy(weights).tolist() == [[1.0]]
    assert not to_numpy(router_backward((xp.ones((1, 1)), None), cache)).any()


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(top_k=0), r"top_k is 0, but must lie in 1..3, the number of experts"),
        (dict(top_k=4), r"top_k is 4, but must lie in 1..3, the number of experts"),
        (dict(score="relu"), "score is 'relu', but must be one of softmax, sigmoid"),
        (dict(logits=np.zeros(3)), r"logits has shape \(3,\), but .* is needed"),
    ],
)
def test_a_router_that_cannot_choose_says_why(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        router_forward(**{"logits": np.zeros((2, 3)), "top_k": 1, **changes})


# ------------------------------------------------------------------------------------------------ the load-balancing loss


@given(routers())
def test_gradients_of_the_load_balancing_loss(xp, case):
    logits, k = case
    (_, probs), cache = router_forward(xp.asarray(logits), k)
    gradcheck(lambda p: load_balancing_forward(p, cache.chosen), load_balancing_backward, [probs])


@given(routers())
def test_the_load_balancing_loss_by_loops(xp, case):
    logits, k = case
    (_, probs), cache = router_forward(xp.asarray(logits), k)
    loss, _ = load_balancing_forward(probs, cache.chosen)
    (N, E), p, chosen = logits.shape, to_numpy(probs), to_numpy(cache.chosen).tolist()
    shares = [sum(e in row for row in chosen) / N for e in range(E)]
    assert_close(loss, np.asarray(E * sum(shares[e] * sum(p[n, e] for n in range(N)) / N for e in range(E))))


def test_a_load_that_is_balanced_costs_k_and_one_that_is_not_costs_more(xp):
    even = xp.full((4, 4), 0.25)
    assert float(load_balancing_forward(even, xp.asarray([[0, 1], [1, 2], [2, 3], [3, 0]]))[0]) == 2.0
    (_, probs), cache = router_forward(xp.asarray([[9.0, 1.0, 0.0, 0.0]] * 4), 2)
    assert float(load_balancing_forward(probs, cache.chosen)[0]) > 3.9


# ------------------------------------------------------------------------------------------------ the mixture


@pytest.mark.parametrize("score, normalise", [
    ("softmax", True), ("sigmoid", False),
    *(pytest.param(*each, marks=pytest.mark.thorough) for each in (("softmax", False), ("sigmoid", True))),
])  # fmt: skip
@given(SIZES, SIZES, SIZES, SIZES, RNGS, st.data())
def test_gradients(xp, score, normalise, N, E, C, F, rng, data):
    k = data.draw(st.integers(1, E))
    args = [*map(xp.asarray, arguments(rng, (N,), E, C, F, k)), k, score, normalise]
    gradcheck(mixture_of_experts_forward, mixture_of_experts_backward, args)


@given(SIZES, RNGS)
def test_gradients_with_the_load_balancing_loss(xp, N, rng):
    """As a model uses it: the loss reads the probabilities, and their gradient goes back through the router."""

    def forward(*args):
        (out, probs), cache = mixture_of_experts_forward(*args)
        loss, balance = load_balancing_forward(probs, cache.router.chosen)
        return (out, loss), (cache, balance)

    def backward(douts, caches):
        dout, dloss = douts
        return mixture_of_experts_backward((dout, load_balancing_backward(dloss, caches[1])), caches[0])

    gradcheck(forward, backward, [*map(xp.asarray, arguments(rng, (N,))), 2])


@SCORES
@NORMALISED
@given(SIZES, SIZES, SIZES, RNGS, st.data())
def test_forward_is_the_dense_sum(xp, score, normalise, N, E, F, rng, data):
    k = data.draw(st.integers(1, E))
    args = arguments(rng, (2, N), E, 3, F, k)
    (out, probs), _ = mixture_of_experts_forward(*map(xp.asarray, args), k, score, normalise)
    expected, p = dense(*args, k, score, normalise)
    assert_close(out, expected, rtol=1e-11)
    assert_close(probs, p)


def test_experts_that_nobody_chose_get_no_gradient(xp):
    args = example(xp)
    args[1][...] = xp.asarray([[0, 0, 0], [9, 0, 0], [0, 0, 0], [8, 0, 0]])
    args[0][...] = abs(args[0]) + 1
    (out, _), cache = mixture_of_experts_forward(*args)
    assert [expert.e for expert in cache.experts] == [1, 3]
    for gradient in mixture_of_experts_backward((xp.ones_like(out), None), cache)[2:]:
        used = to_numpy(gradient).reshape(4, -1).any(1)
        assert used.tolist() == [False, True, False, True]


def test_frozen_experts_pass_the_same_gradient_on(xp):
    (out, _), cache = mixture_of_experts_forward(*example(xp))
    dout = normal(xp, np.random.default_rng(5), *out.shape)
    dx, *_ = mixture_of_experts_backward((dout, None), cache)
    assert_same_bits(mixture_of_experts_backward((dout, None), cache, frozen=True), dx)


def test_the_experts_gradients_are_added_to_buffers(xp):
    (out, _), cache = mixture_of_experts_forward(*example(xp))
    dout = normal(xp, np.random.default_rng(5), *out.shape)
    expected = mixture_of_experts_backward((dout, None), cache)
    buffers = tuple(xp.ones_like(weight) for weight in expected[2:])
    dx, drouter, *gradients = mixture_of_experts_backward((dout, None), cache, buffers)
    assert all(gradient is buffer for gradient, buffer in zip(gradients, buffers, strict=True))
    for gradient, alone in zip((dx, drouter, *gradients), (*expected[:2], *(1 + alone for alone in expected[2:])), strict=True):
        assert_close(gradient, alone, rtol=1e-12)


def forward_one(*args):
    """With one output, for the checks below."""
    (out, probs), cache = mixture_of_experts_forward(*args)
    return out, (cache, probs)


def backward_one(dout, caches):
    cache, probs = caches
    return mixture_of_experts_backward((dout, 0.5 * probs), cache)


def test_writes_to_no_input(xp):
    check_inputs_stay(forward_one, backward_one, example(xp))


def test_takes_any_strides(xp):
    check_strides(forward_one, backward_one, example(xp))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_the_dtype(xp, dtype):
    check_dtype(forward_one, backward_one, example(xp), dtype)
    args = [arg.astype(dtype) if hasattr(arg, "dtype") else arg for arg in example(xp)]
    (_, probs), cache = mixture_of_experts_forward(*args)
    loss, balance = load_balancing_forward(probs, cache.router.chosen)
    assert {leaf.dtype.name for leaf in leaves((loss, balance, load_balancing_backward(0.5, balance)))} == {dtype}


@pytest.mark.parametrize(
    "place, shape, message",
    [
        (0, (2, 3, 4), r"x has shape \(2, 3, 4\), but \(2, 3, 3\) is needed"),
        (2, (3, 5, 3), r"gate has shape \(3, 5, 3\), but \(4, None, 3\) is needed"),
        (3, (4, 6, 3), r"up has shape \(4, 6, 3\), but \(4, 5, 3\) is needed"),
        (4, (4, 5, 3), r"down has shape \(4, 5, 3\), but \(4, 3, 5\) is needed"),
    ],
)
def test_another_shape_is_named(xp, place, shape, message):
    args = example(xp)
    args[place] = xp.ones(shape)
    with pytest.raises(ValueError, match=message.replace("None", ".*")):
        mixture_of_experts_forward(*args)
