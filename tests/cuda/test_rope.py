import numpy as np
import pytest
from helpers import assert_same_bits
from kernel_checks import FLOAT32, check_kernels, every_dtype, real

from numllama.ops import rope_backward, rope_forward, rope_table, ropes_backward, ropes_forward

KERNELS = (["rope"], ["rope"])


def draw(B, H, T, D, own_positions=False):
    positions = np.arange(T) if not own_positions else np.arange(B * T).reshape(B, T) % 7
    x = np.random.default_rng(0).standard_normal((B, T, H, D)).swapaxes(1, 2)        # as a projection leaves it
    return [x, *rope_table(positions, D, 10000.0, dtype="float64")]


@every_dtype
@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("shape", [(1, 2, 1, 8), (2, 3, 65, 64), (1, 1, 257, 6), (1, 2, 3, 128), (1, 1, 2, 2)], ids=str)
def test_rope(shape, layout, dtype):
    check_kernels(rope_forward, rope_backward, [*draw(*shape), layout], dtype, KERNELS, reals={1, 2})


@every_dtype
@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_positions_of_each_sequence(layout, dtype):
    check_kernels(rope_forward, rope_backward, [*draw(3, 2, 5, 16, True), layout], dtype, KERNELS, reals={1, 2})


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_heads_are_read_where_they_lie_and_written_where_a_projection_wants_them(gpu, layout):
    x, cos, sin = (array.astype(FLOAT32) for array in draw(2, 3, 5, 16))
    out, cache = rope_forward(x, cos, sin, layout)
    dense, _ = rope_forward(np.ascontiguousarray(x), cos, sin, layout)
    assert gpu.launched == ["rope", "rope"]
    assert_same_bits(np.ascontiguousarray(out), np.ascontiguousarray(dense))
    for result in (out, dense, rope_backward(dense, cache)):
        assert result.swapaxes(1, 2).flags.c_contiguous
    wide = np.zeros((2, 5, 3, 48), FLOAT32)  # q beside k and v in one projection
    wide[..., 16:32] = x.swapaxes(1, 2)
    from_wide, _ = rope_forward(wide[..., 16:32].swapaxes(1, 2), cos, sin, layout)
    assert_same_bits(np.ascontiguousarray(from_wide), np.ascontiguousarray(out))


@every_dtype
@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_queries_and_keys_of_one_product_turn_in_place_in_one_launch(gpu, layout, dtype):
    _, cos, sin = draw(2, 1, 5, 16)
    cos, sin = cos.astype(real(dtype)), sin.astype(real(dtype))
    rows = np.random.default_rng(0).standard_normal((2, 5, 7, 16)).astype(dtype)  # 4 heads of queries, 2 of keys, 1 of values
    before = rows.copy()
    q, k = (rows[:, :, heads].swapaxes(1, 2) for heads in (slice(4), slice(4, 6)))
    alone = [rope_forward(x, cos, sin, layout)[0] for x in (q, k)]
    outs, cache = ropes_forward((q, k), cos, sin, layout, outs=(q, k))
    assert outs[0] is q and outs[1] is k
    apart, _ = ropes_forward(tuple(before[:, :, heads].swapaxes(1, 2) for heads in (slice(4), slice(4, 6))), cos, sin, layout)
    for out, expected, copied in zip(outs, alone, apart, strict=True):
        assert_same_bits(np.ascontiguousarray(out), np.ascontiguousarray(expected))
        assert_same_bits(np.ascontiguousarray(out), np.ascontiguousarray(copied))
    assert_same_bits(rows[:, :, 6:].copy(), before[:, :, 6:].copy())
    backs = [rope_backward(x, cache) for x in alone]
    for back, expected in zip(ropes_backward(outs, cache, outs=outs), backs, strict=True):
        assert_same_bits(np.ascontiguousarray(back), np.ascontiguousarray(expected))
    assert gpu.launched == ["rope"] * 7
    ropes_forward((q, k.copy()), cos, sin, layout)  # no neighbours: one after the other
    assert gpu.launched == ["rope"] * 9


def test_components_with_gaps_are_left_to_the_op(gpu):
    x, cos, sin = draw(1, 2, 3, 8)
    gaps = np.stack([x, x], -1)[..., 0]
    assert_same_bits(rope_forward(gaps, cos, sin)[0], rope_forward.reference(gaps, cos, sin)[0])
    assert gpu.launched == []
    with pytest.raises(ValueError, match=r"^cos has shape \(2, 4\), but \(3, 4\) is needed$"):
        rope_forward(x, cos[:2], sin)
    with pytest.raises(ValueError, match=r"^layout is 'neox', but must be one of half, interleaved$"):
        rope_forward(x, cos, sin, "neox")
