import math

import numpy as np
import pytest
from helpers import (
    RNGS,
    SIZES,
    assert_close,
    assert_same_bits,
    check_dtype,
    check_inputs_stay,
    check_strides,
    normal,
    random_like,
)
from hypothesis import given
from hypothesis import strategies as st

from numllama.backend import to_numpy
from numllama.gradcheck import gradcheck
from numllama.ops import rope_backward, rope_forward, rope_table, ropes_backward, ropes_forward

LAYOUTS = ["half", "interleaved"]
EVEN = st.sampled_from([2, 4, 6, 8])
LLAMA_3_1 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SCALINGS = st.none() | st.fixed_dictionaries({
    "factor": st.floats(1, 32),
    "low_freq_factor": st.floats(0.5, 2),
    "high_freq_factor": st.floats(3, 8),
    "original_max_position_embeddings": st.sampled_from([16, 64, 8192]),
})


def example(xp, dtype="float64"):
    rng = np.random.default_rng(0)
    return [normal(xp, rng, 2, 3, 5, 4), *rope_table(xp.arange(5), 4, 10.0, dtype=dtype)]


@st.composite
def cases(draw):
    """x (B, H, T, D), positions (T,) or (B, T), theta and scaling, in NumPy."""
    B, H, T, D, rng = draw(SIZES), draw(SIZES), draw(SIZES), draw(EVEN), draw(RNGS)
    positions = rng.integers(0, 1000, draw(st.sampled_from([(T,), (B, T)])))
    return rng.standard_normal((B, H, T, D)), positions, draw(st.sampled_from([10.0, 1e4, 5e5])), draw(SCALINGS)


def llama3_frequency(frequency, factor, low_freq_factor, high_freq_factor, original_max_position_embeddings):
    """As published: by wavelength, in three cases."""
    low_freq_wavelen = original_max_position_embeddings / low_freq_factor
    high_freq_wavelen = original_max_position_embeddings / high_freq_factor
    wavelen = 2 * math.pi / frequency
    if wavelen < high_freq_wavelen:
        return frequency
    if wavelen > low_freq_wavelen:
        return frequency / factor
    smooth = (original_max_position_embeddings / wavelen - low_freq_factor) / (high_freq_factor - low_freq_factor)
    return (1 - smooth) * frequency / factor + smooth * frequency


def angle(position, j, D, theta, scaling):
    frequency = 1 / theta ** (2 * j / D)
    return int(position) * (frequency if scaling is None else llama3_frequency(frequency, **scaling))


def rotate_by_scalars(x, positions, theta, scaling, layout):
    B, H, T, D = x.shape
    positions, out = np.broadcast_to(positions, (B, T)), np.empty_like(x)
    for b, h, t, j in np.ndindex(B, H, T, D // 2):
        first, second = (j, j + D // 2) if layout == "half" else (2 * j, 2 * j + 1)
        pair = complex(x[b, h, t, first], x[b, h, t, second])
        a = angle(positions[b, t], j, D, theta, scaling)
        turned = pair * complex(math.cos(a), math.sin(a))
        out[b, h, t, first], out[b, h, t, second] = turned.real, turned.imag
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
@given(cases())
def test_gradients(xp, layout, case):
    x, positions, theta, scaling = case
    cos, sin = rope_table(xp.asarray(positions), x.shape[-1], theta, scaling, dtype="float64")
    gradcheck(rope_forward, rope_backward, [xp.asarray(x), cos, sin, layout], wrt=[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@given(cases())
def test_forward_is_a_product_of_complex_numbers(xp, layout, case):
    x, positions, theta, scaling = case
    cos, sin = rope_table(xp.asarray(positions), x.shape[-1], theta, scaling, dtype="float64")
    out = rope_forward(xp.asarray(x), cos, sin, layout)[0]
    assert_close(out, rotate_by_scalars(x, positions, theta, scaling, layout))


def scaled_by_scalars(j, D, theta, length, kind, f, original, short=None, long=None, turns=(32, 1), truncate=True):
    """The frequency of pair j, from each paper's formula."""
    frequency = theta ** (-2 * j / D)
    if kind == "linear":
        return frequency / f
    if kind == "dynamic":                                              # another base, for NTK-aware interpolation
        scale = 1 if length <= original else f * length / original - (f - 1)
        return (theta * scale ** (D / (D - 2))) ** (-2 * j / D)
    if kind == "longrope":
        return frequency / (long if length > original else short)[j]
    # yarn: the pair that turns n times in the original context solves  original · theta^(−2j/D) = 2πn
    ends = [D / 2 * math.log(original / (2 * math.pi * n), theta) for n in turns]
    low, high = (math.floor(ends[0]), math.ceil(ends[1])) if truncate else ends
    low, high = max(low, 0), min(high, D - 1)
    kept = 1.0 if j <= low else 0.0 if j >= high else 1 - (j - low) / (high - low)
    return kept * frequency + (1 - kept) * frequency / f


SCALED = {  # rope_scaling, the rest of the arguments above, and the factor of cosines and sines
    "linear": (dict(factor=3.0), {}, 1.0),
    "dynamic": (dict(factor=3.0), {}, 1.0),
    "yarn": (dict(factor=4.0), {}, 0.1 * math.log(4) + 1),
    "yarn: fewer turns, not truncated": (
        dict(factor=4.0, beta_fast=8.0, beta_slow=2.0, truncate=False), dict(turns=(8, 2), truncate=False), 0.1 * math.log(4) + 1,
    ),
    "yarn: mscale": (
        dict(factor=4.0, mscale=0.7, mscale_all_dim=1.3), {}, (0.07 * math.log(4) + 1) / (0.13 * math.log(4) + 1),
    ),
    "yarn: attention_factor": (dict(factor=4.0, attention_factor=1.5), {}, 1.5),
    "longrope": (dict(factor=4.0), {}, math.sqrt(1 + math.log(4) / math.log(256))),
    "longrope: attention_factor": (dict(factor=4.0, attention_factor=0.5), {}, 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("length", [100, 256, 257, 1000])
@pytest.mark.parametrize("theta", [500.0, 1e4])
def test_every_scaling_by_scalars(xp, name, length, theta):
    D, kind, (fields, rest, factor) = 64, name.partition(":")[0], SCALED[name]
    scaling = {"rope_type": kind, "original_max_position_embeddings": 256, **fields}
    if kind == "longrope":
        rest = dict(short=[1 + j / 100 for j in range(D // 2)], long=[1 + j / 4 for j in range(D // 2)])
        scaling |= dict(short_factor=rest["short"], long_factor=rest["long"])
    cos, sin = rope_table(xp.asarray([0, 1, length - 1]), D, theta, scaling, dtype="float64")
    frequencies = [scaled_by_scalars(j, D, theta, length, kind, scaling["factor"], 256, **rest) for j in range(D // 2)]
    angles = np.array([0, 1, length - 1])[:, None] * np.array(frequencies)
    assert_close(cos, factor * np.cos(angles), rtol=1e-11)
    assert_close(sin, factor * np.sin(angles), rtol=1e-11)


def test_dynamic_scaling_divides_the_slowest_pair_by_the_growth_and_keeps_the_fastest(xp):
    scaling = dict(rope_type="dynamic", factor=2.0, original_max_position_embeddings=8)
    cos, sin = (to_numpy(part) for part in rope_table(xp.asarray([1, 15]), 8, 100.0, scaling, dtype="float64"))
    angles = np.arctan2(sin, cos)[0]
    assert_close(angles[[0, -1]], np.array([1.0, 100 ** (-6 / 8) / 3]))   # s = 2·16/8 − 1


def test_a_list_of_another_length_is_refused(xp):
    lists = dict(short_factor=[1.0], long_factor=[1.0, 2.0])
    scaling = dict(rope_type="longrope", factor=4.0, original_max_position_embeddings=8, **lists)
    with pytest.raises(ValueError, match=r"^scaling's short_factor has 1 numbers, but 2 pairs turn$"):
        rope_table(xp.arange(3), 4, 1e4, scaling)


@pytest.mark.parametrize(
    ("theta", "original", "message"),
    [
        (1.0, 32, "theta is 1, but yarn needs pairs that turn at different speeds"),
        (1e4, 1, "scaling's original_max_position_embeddings must be larger than 1"),
    ],
)
def test_logarithms_that_vanish_are_refused(xp, theta, original, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        rope_table(xp.arange(3), 4, theta, dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=original))


def test_an_unknown_scaling_is_refused(xp):
    words = "must be one of linear, dynamic, llama3, yarn, longrope"
    with pytest.raises(ValueError, match=f"^scaling is of type 'su', but {words}$"):
        rope_table(xp.arange(3), 4, 1e4, {"rope_type": "su"})


@given(cases())
def test_table_by_scalars(xp, case):
    x, positions, theta, scaling = case
    B, _, T, D = x.shape
    cos, sin = rope_table(xp.asarray(positions), D, theta, scaling, dtype="float64")
    angles = np.array([[angle(p, j, D, theta, scaling) for j in range(D // 2)] for p in positions.ravel()])
    shape = (T, D // 2) if positions.ndim == 1 else (B, 1, T, D // 2)
    assert_close(cos, np.cos(angles).reshape(shape))
    assert_close(sin, np.sin(angles).reshape(shape))


@pytest.mark.parametrize("scaling", [LLAMA_3_1, LLAMA_3_1 | {"factor": 32.0}])
def test_llama_3_1_scaling_keeps_fast_divides_slow_and_blends_between(xp, scaling):
    cos, sin = rope_table(xp.asarray([1]), 128, 500000.0, scaling, dtype="float64")
    plain = [1 / 500000.0 ** (2 * j / 128) for j in range(64)]
    expected = [llama3_frequency(frequency, **scaling) for frequency in plain]
    ratios = [round(e / p, 9) for e, p in zip(expected, plain, strict=True)]
    assert set(ratios) > {1.0, round(1 / scaling["factor"], 9)}  # all three cases are met
    assert_close(np.arctan2(to_numpy(sin), to_numpy(cos))[0], np.array(expected))


def test_linear_scaling_puts_the_positions_closer_together(xp):
    scaled = rope_table(xp.asarray([0, 3, 6, 30]), 16, 10000.0, {"rope_type": "linear", "factor": 3.0}, dtype="float64")
    plain = rope_table(xp.asarray([0, 1, 2, 10]), 16, 10000.0, dtype="float64")
    for got, expected in zip(scaled, plain, strict=True):
        assert_close(got, expected, rtol=1e-12)


def test_a_float32_table_is_right_far_from_the_start(xp):
    position = 131071  # an angle computed in float32 is off by up to 0.004 there
    cos, sin = rope_table(xp.asarray([position]), 8, 5e5)
    angles = [angle(position, j, 8, 5e5, None) for j in range(4)]
    assert cos.dtype == sin.dtype == "float32"
    assert_close(cos[0], np.cos(angles), rtol=6e-8)
    assert_close(sin[0], np.sin(angles), rtol=6e-8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_position_zero_stays(xp, layout):
    x, _, _ = example(xp)
    cos, sin = rope_table(xp.zeros(5, dtype=int), 4, 1e4, dtype="float64")
    assert_same_bits(rope_forward(x, cos, sin, layout)[0], x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norms_stay(xp, layout):
    x, cos, sin = example(xp)
    out = rope_forward(x, cos, sin, layout)[0]
    assert_close(np.linalg.norm(to_numpy(out), axis=-1), np.linalg.norm(to_numpy(x), axis=-1))


@pytest.mark.parametrize("layout", LAYOUTS)
@given(SIZES, SIZES, st.integers(0, 200), EVEN, RNGS)
def test_a_product_of_query_and_key_depends_on_their_distance_alone(xp, layout, t, s, shift, D, rng):
    q, k = normal(xp, rng, 1, 1, 1, D), normal(xp, rng, 1, 1, 1, D)

    def product(t, s):
        turned = [
            rope_forward(x, *rope_table(xp.asarray([position]), D, 100.0, dtype="float64"), layout)[0]
            for x, position in ((q, t), (k, s))
        ]
        return float((turned[0] * turned[1]).sum())

    assert product(t + shift, s + shift) == pytest.approx(product(t, s), rel=0, abs=1e-11)


@given(cases())
def test_the_layouts_differ_by_a_permutation(xp, case):
    x, positions, theta, scaling = case
    D = x.shape[-1]
    to_half = [*range(0, D, 2), *range(1, D, 2)]
    cos, sin = rope_table(xp.asarray(positions), D, theta, scaling, dtype="float64")
    interleaved = rope_forward(xp.asarray(x), cos, sin, "interleaved")[0]
    half = rope_forward(xp.asarray(x[..., to_half]), cos, sin, "half")[0]
    assert_same_bits(to_numpy(interleaved)[..., to_half].copy(), half)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_backward_turns_back(xp, layout):
    x, cos, sin = example(xp)
    out, cache = rope_forward(x, cos, sin, layout)
    assert_close(rope_backward(out, cache), x)


def test_each_sequence_may_have_its_own_positions(xp):
    x, _, _ = example(xp)
    positions = np.array([[0, 1, 2, 3, 4], [0, 0, 7, 8, 9]])
    together = rope_forward(x, *rope_table(xp.asarray(positions), 4, 10.0, dtype="float64"))[0]
    for b in range(2):
        alone = rope_forward(x[b : b + 1], *rope_table(xp.asarray(positions[b]), 4, 10.0, dtype="float64"))[0]
        assert_same_bits(together[b], alone[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_writes_to_no_input(xp, layout):
    check_inputs_stay(rope_forward, rope_backward, [*example(xp), layout])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_takes_any_strides(xp, layout):
    check_strides(rope_forward, rope_backward, [*example(xp), layout])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_the_dtype(xp, dtype):
    check_dtype(rope_forward, rope_backward, example(xp, dtype), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_table_of_another_dtype_does_not_change_that_of_x(xp, dtype):
    x, _, _ = example(xp)
    x, (cos, sin) = x.astype(dtype), rope_table(xp.arange(5), 4, 10.0, dtype="float32" if dtype == "float64" else "float64")
    out, cache = rope_forward(x, cos, sin)
    assert out.dtype == x.dtype
    assert rope_backward(random_like(out), cache).dtype == x.dtype


@pytest.mark.parametrize("D", [0, 1, 3])
def test_a_head_size_that_has_no_pairs(xp, D):
    with pytest.raises(ValueError, match=rf"^D is {D}, but RoPE .* needs an even head size$"):
        rope_table(xp.arange(3), D, 1e4)


@pytest.mark.parametrize("layout", ["Half", "meta", ""])
def test_an_unknown_layout(xp, layout):
    with pytest.raises(ValueError, match=rf"^layout is '{layout}', but must be one of half, interleaved$"):
        rope_forward(*example(xp), layout)


@pytest.mark.parametrize("shape", [(4, 2), (5, 4), (2, 5, 2), (1, 1, 5, 2), (2, 3, 5, 2)])
def test_a_table_of_another_shape(xp, shape):
    x, _, _ = example(xp)
    with pytest.raises(ValueError, match=r"^cos has shape .*, but .* is needed$"):
        rope_forward(x, xp.ones(shape), xp.ones(shape))


def test_a_sine_table_unlike_the_cosines(xp):
    x, cos, _ = example(xp)
    with pytest.raises(ValueError, match=r"^sin has shape \(1, 2\), but \(5, 2\) is needed$"):
        rope_forward(x, cos, xp.ones((1, 2)))


# ------------------------------------------------------------------------------------------------ in place, and several at once


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_in_place_gives_the_same_bits(xp, layout, dtype):
    x, cos, sin = (array.astype(dtype) for array in example(xp))
    out, cache = rope_forward(x, cos, sin, layout)
    for lies in (x.copy(), xp.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)):
        assert rope_forward(lies, cos, sin, layout, out=lies)[0] is lies
        assert_same_bits(lies, out)
        assert rope_backward(lies, cache, out=lies) is lies
        assert_same_bits(lies, rope_backward(out, cache))
    other = xp.empty_like(x)
    assert rope_forward(x, cos, sin, layout, out=other)[0] is other
    assert_same_bits(other, out)
    with pytest.raises(ValueError, match=r"^out has shape \(2, 3, 4, 4\), but \(2, 3, 5, 4\) is needed$"):
        rope_forward(x, cos, sin, layout, out=other[:, :, :4])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_queries_and_keys_turn_by_one_table(xp, layout):
    q, cos, sin = example(xp)
    k = normal(xp, np.random.default_rng(1), 2, 1, 5, 4)
    outs, cache = ropes_forward((q, k), cos, sin, layout)
    for x, out in zip((q, k), outs, strict=True):
        assert_same_bits(out, rope_forward(x, cos, sin, layout)[0])
    for dout, dx in zip(outs, ropes_backward(outs, cache), strict=True):
        assert_same_bits(dx, rope_backward(dout, cache))
    copies = q.copy(), k.copy()
    assert ropes_forward(copies, cos, sin, layout, outs=copies)[0] is not None
    for copy, out in zip(copies, outs, strict=True):
        assert_same_bits(copy, out)
    gradcheck(
        lambda q, k: ropes_forward((q, k), cos, sin, layout), lambda douts, cache: ropes_backward(douts, cache), [q, k]
    )  # fmt: skip
