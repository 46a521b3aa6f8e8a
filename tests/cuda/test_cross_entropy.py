import numpy as np
import pytest
from emulator import emulated
from helpers import assert_same_bits
from kernel_checks import check_kernels, every_dtype

from numllama.ops import IGNORE, cross_entropy_backward, cross_entropy_forward

KERNELS = (["cross_entropy_forward"], ["cross_entropy_backward"])


def draw(V, *lead):
    rng = np.random.default_rng(0)
    targets = rng.integers(0, V, lead)
    targets[rng.random(lead) < 0.2] = IGNORE
    return 2 * rng.standard_normal((*lead, V)), targets


@every_dtype
@pytest.mark.parametrize("shape", [(8, 1), (65, 65), (96, 257), (4096, 3), (257, 2, 3), (1, 4), (5003, 2)], ids=str)
def test_cross_entropy(shape, dtype):
    check_kernels(cross_entropy_forward, cross_entropy_backward, [*draw(*shape)], dtype, KERNELS, douts=0.7)


@every_dtype
def test_a_count_from_outside_and_targets_as_int32(dtype):
    logits, targets = draw(65, 2, 9)
    args = [logits, targets.astype("int32"), 7, 40]  # 7 does not count
    args[1][args[1] == IGNORE] = 7
    check_kernels(cross_entropy_forward, cross_entropy_backward, args, dtype, KERNELS, douts=np.float32(0.7))


@every_dtype
@pytest.mark.parametrize("V", [65, 72, 257])
def test_rows_with_a_gap_behind_them(gpu, V, dtype):
    """As a product leaves them whose rows are to begin at multiples of 16 bytes."""
    logits, targets = draw(V, 2, 5)
    logits = logits.astype(dtype)
    rows = np.full((2, 5, V + 9 - V % 8), np.nan, dtype)
    wide = rows[..., :V]
    wide[...] = logits
    (loss, cache), (expected, expected_cache) = cross_entropy_forward(wide, targets), cross_entropy_forward(logits, targets)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    apart, dense = cross_entropy_backward(1.0, cache), cross_entropy_backward(1.0, expected_cache)
    np.testing.assert_allclose(apart.astype("f8"), dense.astype("f8"), rtol=2e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-9)
    assert cross_entropy_backward(1.0, cache, out=wide) is wide
    assert_same_bits(wide.copy(), apart.copy())
    assert np.isnan(rows[..., V:].astype("f4")).all()
    assert gpu.launched == KERNELS[0] * 2 + KERNELS[1] * 3


def test_blocks_that_walk_over_several_rows_each(gpu, monkeypatch):
    logits, targets = draw(65, 300)
    loss, cache = cross_entropy_forward(logits, targets)
    monkeypatch.setattr("numllama.cuda.cross_entropy.most_blocks", lambda threads: 7)
    again, cache_2 = cross_entropy_forward(logits, targets)
    np.testing.assert_allclose(again, loss, rtol=1e-14)
    assert_same_bits(cache_2[2], cache[2])
    assert_same_bits(cache_2[1], cache[1])


def test_nothing_counted(gpu):
    logits, _ = draw(65, 5)
    loss, cache = cross_entropy_forward(logits, np.full(5, IGNORE))
    assert float(loss) == 0
    assert not cross_entropy_backward(1.0, cache).any()
    assert gpu.launched == KERNELS[0] + KERNELS[1]


@every_dtype
def test_the_gradient_may_take_the_place_of_the_logits(dtype):
    logits, targets = draw(97, 13)
    logits = logits.astype(dtype)
    with emulated() as emulator:
        _, cache = cross_entropy_forward(logits.copy(), targets)
        apart = cross_entropy_backward(1.0, cache)
        before = cache[0]
        assert cross_entropy_backward(1.0, cache, out=before) is before
    assert emulator.launched.count("cross_entropy_backward") == 2
    assert_same_bits(before, apart)


def test_an_array_for_dout(gpu):
    logits, targets = draw(65, 4)
    _, cache = cross_entropy_forward(logits, targets)
    assert_same_bits(cross_entropy_backward(np.array(0.5), cache), cross_entropy_backward(0.5, cache))


def test_what_is_refused_and_what_is_left_to_the_op(gpu):
    logits, targets = draw(65, 4)
    with pytest.raises(ValueError, match=r"^targets holds 65, but must lie in 0\.\.64 or -100, which is ignored$"):
        cross_entropy_forward(logits, np.full(4, 65))
    with pytest.raises(ValueError, match=r"^targets has shape \(3,\), but \(4,\) is needed$"):
        cross_entropy_forward(logits, targets[:3])
    assert gpu.launched == []
    cross_entropy_forward(logits[0], targets[0])  # a single row without axes before it
    assert gpu.launched == []
