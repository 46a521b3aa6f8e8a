import math

import numpy as np
import pytest
from helpers import LEADS, RNGS, SIZES, assert_close, check_dtype, check_inputs_stay, check_strides, normal
from hypothesis import given
from hypothesis import strategies as st

from numllama.backend import to_numpy
from numllama.gradcheck import gradcheck
from numllama.ops import cross_entropy_backward, cross_entropy_forward

IGNORED = -100
COUNTS = st.sampled_from([None, 1, 7, 2.5])


def example(xp):
    rng = np.random.default_rng(0)
    return [normal(xp, rng, 2, 3, 5), xp.asarray([[4, IGNORED, 0], [2, 2, IGNORED]])]


@st.composite
def cases(draw, ignore_index=IGNORED):
    """logits (..., V) and targets (...), in NumPy; none, some or all of the targets are ignored."""
    lead, V, rng = draw(LEADS), draw(SIZES), draw(RNGS)
    ignored = rng.random(lead) < draw(st.sampled_from([0, 0.3, 0.8, 1]))
    return 2 * rng.standard_normal((*lead, V)), np.where(ignored, ignore_index, rng.integers(0, V, lead))


def loss_by_scalars(logits, targets, ignore_index, count):
    losses = [
        -math.log(math.exp(logits[n][targets[n]]) / math.fsum(map(math.exp, logits[n])))
        for n in np.ndindex(*targets.shape)
        if targets[n] != ignore_index
    ]
    return math.fsum(losses) / (len(losses) or 1 if count is None else count)


@given(cases(), COUNTS)
def test_gradients(xp, case, count):
    logits, targets = map(xp.asarray, case)
    gradcheck(cross_entropy_forward, cross_entropy_backward, [logits, targets, IGNORED, count])


@pytest.mark.parametrize("ignore_index", [-1, 0])  # 0 lies inside the vocabulary: a padding id
@given(st.data())
def test_gradients_with_another_ignore_index(xp, ignore_index, data):
    logits, targets = map(xp.asarray, data.draw(cases(ignore_index)))
    gradcheck(cross_entropy_forward, cross_entropy_backward, [logits, targets, ignore_index])


@pytest.mark.parametrize("ignore_index", [IGNORED, -1, 0])
@given(st.data(), COUNTS)
def test_forward_by_scalars(xp, ignore_index, data, count):
    logits, targets = data.draw(cases(ignore_index))
    loss, _ = cross_entropy_forward(xp.asarray(logits), xp.asarray(targets), ignore_index, count)
    expected = loss_by_scalars(logits, targets, ignore_index, count)
    assert loss.shape == ()
    assert float(loss) == pytest.approx(expected, rel=1e-12, abs=1e-14)  # about 0 where V is 1


@given(cases(), st.floats(-3, 3))
def test_the_gradient_is_the_excess_probability(xp, case, dout):
    logits, targets = case
    _, cache = cross_entropy_forward(xp.asarray(logits), xp.asarray(targets))
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for n in np.ndindex(*targets.shape):
        if targets[n] == IGNORED:
            expected[n] = 0
        else:
            expected[n][targets[n]] -= 1
    expected *= dout / max((targets != IGNORED).sum(), 1)
    assert abs(to_numpy(cross_entropy_backward(dout, cache)) - expected).max() < 1e-14


def test_parts_that_share_a_count_add_up_to_the_whole(xp):
    logits, targets = example(xp)
    loss, cache = cross_entropy_forward(logits, targets)
    dlogits = cross_entropy_backward(1.0, cache)
    parts = [cross_entropy_forward(logits[b], targets[b], count=4) for b in range(2)]
    assert sum(float(part) for part, _ in parts) == pytest.approx(float(loss), rel=1e-14)
    for b, (_, part_cache) in enumerate(parts):
        assert_close(cross_entropy_backward(1.0, part_cache), dlogits[b], rtol=1e-14)


def test_nothing_counted_is_a_loss_and_a_gradient_of_zero(xp):
    logits, targets = example(xp)
    loss, cache = cross_entropy_forward(logits, xp.full_like(targets, IGNORED))
    assert float(loss) == 0
    assert not cross_entropy_backward(1.0, cache).any()


def test_ignored_rows_get_a_gradient_of_exactly_zero(xp):
    logits, targets = example(xp)
    _, cache = cross_entropy_forward(logits, targets)
    dlogits = cross_entropy_backward(1.0, cache)
    assert not dlogits[targets == IGNORED].any()
    assert dlogits[targets != IGNORED].all()


def test_equal_logits_cost_the_logarithm_of_the_vocabulary(xp):
    loss, _ = cross_entropy_forward(xp.full((3, 7), 5.0), xp.asarray([0, 3, 6]))
    assert float(loss) == pytest.approx(math.log(7), rel=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_very_large_logits_stay_finite(xp, dtype):
    logits = xp.asarray([[1e4, 0, -1e4], [-1e30, -1e30, -1e30]], dtype=dtype)
    loss, cache = cross_entropy_forward(logits, xp.asarray([1, 2]), count=1)
    assert float(loss) == pytest.approx(1e4, rel=1e-6)  # beside 1e30, the second row's log 3 is lost in rounding
    dlogits = to_numpy(cross_entropy_backward(1.0, cache))
    assert dlogits[0].tolist() == [1, -1, 0]
    assert np.isfinite(dlogits).all()


def test_a_logit_of_minus_infinity_is_a_token_that_cannot_come(xp):
    logits = xp.asarray([[1.0, -math.inf, 2.0]])
    loss, cache = cross_entropy_forward(logits, xp.asarray([0]))
    assert float(loss) == pytest.approx(math.log(1 + math.e), rel=1e-14)
    assert to_numpy(cross_entropy_backward(1.0, cache))[0, 1] == 0


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int32"])
def test_targets_as_files_hold_them(xp, dtype):
    logits, _ = example(xp)
    targets = xp.asarray([[4, 1, 0], [2, 2, 3]])
    loss, cache = cross_entropy_forward(logits, targets)
    loss_2, cache_2 = cross_entropy_forward(logits, targets.astype(dtype))
    assert float(loss_2) == float(loss)
    assert_close(cross_entropy_backward(1.0, cache_2), cross_entropy_backward(1.0, cache), rtol=0)


def test_a_single_row_without_leading_axes(xp):
    logits, _ = example(xp)
    loss, cache = cross_entropy_forward(logits[0, 0], xp.asarray(4))
    loss_2, cache_2 = cross_entropy_forward(logits[:1, 0], xp.asarray([4]))
    assert float(loss) == float(loss_2)
    assert_close(cross_entropy_backward(1.0, cache), cross_entropy_backward(1.0, cache_2)[0])


def test_writes_to_no_input(xp):
    check_inputs_stay(cross_entropy_forward, cross_entropy_backward, example(xp))


def test_takes_any_strides(xp):
    check_strides(cross_entropy_forward, cross_entropy_backward, example(xp))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [None, 3, 2.5])
def test_keeps_the_dtype(xp, dtype, count):
    check_dtype(cross_entropy_forward, cross_entropy_backward, [*example(xp), IGNORED, count], dtype)


@pytest.mark.parametrize("count", [np.int64(3), np.float64(3)])
def test_keeps_float32_when_numpy_did_the_counting(xp, count):
    logits, targets = example(xp)
    loss, cache = cross_entropy_forward(logits.astype("float32"), targets, count=count)
    assert loss.dtype == "float32"
    assert cross_entropy_backward(1.0, cache).dtype == "float32"


def test_a_python_number_as_dout_keeps_float32(xp):
    logits, targets = example(xp)
    _, cache = cross_entropy_forward(logits.astype("float32"), targets)
    assert cross_entropy_backward(2.0, cache).dtype == "float32"


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 3, 5)])
def test_targets_of_another_shape(xp, shape):
    logits, _ = example(xp)
    with pytest.raises(ValueError, match=r"^targets has shape .*, but \(2, 3\) is needed$"):
        cross_entropy_forward(logits, xp.zeros(shape, dtype=int))


@pytest.mark.parametrize("target", [-1, 5, -101])
def test_a_target_outside_of_the_vocabulary(xp, target):
    message = rf"^targets holds {target}, but must lie in 0\.\.4 or -100, which is ignored$"
    with pytest.raises(ValueError, match=message):
        cross_entropy_forward(xp.ones((3, 5)), xp.asarray([0, IGNORED, target]))


def test_targets_that_are_no_integers(xp):
    with pytest.raises(TypeError, match=r"^targets must be integers, not float64$"):
        cross_entropy_forward(xp.ones((2, 5)), xp.asarray([0.0, 1.0]))


def test_the_gradient_may_take_the_place_of_the_logits(xp):
    logits, targets = example(xp)
    _, cache = cross_entropy_forward(logits, targets)
    apart = cross_entropy_backward(0.5, cache)
    assert cross_entropy_backward(0.5, cache, out=logits) is logits
    assert_close(logits, apart, rtol=0)


def test_a_place_of_another_shape(xp):
    _, cache = cross_entropy_forward(*example(xp))
    with pytest.raises(ValueError, match=r"^out has shape \(3, 5\), but \(2, 3, 5\) is needed$"):
        cross_entropy_backward(1.0, cache, out=xp.ones((3, 5)))
