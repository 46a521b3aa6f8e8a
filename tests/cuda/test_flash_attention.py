import numpy as np
import pytest
from emulator import EmulatorError, emulated
from helpers import assert_close, assert_same_bits
from kernel_checks import FLOAT32, HALVES, check_kernels, offset_by_one

from numllama.backend import BFLOAT16
from numllama.cuda import launch
from numllama.cuda.flash_attention import TILINGS
from numllama.ops import flash_attention_backward, flash_attention_forward

KERNELS = (["flash_attention_forward"], ["flash_attention_dq", "flash_attention_dkv"])
every_dtype = pytest.mark.parametrize("dtype", [FLOAT32, *HALVES], ids=str)
every_D = pytest.mark.parametrize("D", [64, 128])


def draw(B=1, H=2, K=1, T=33, S=33, D=64, dtype="float64"):
    """q, k and v as (B, heads, time, D) views of (B, time, heads, D) memory, as a model has them."""
    rng = np.random.default_rng(0)
    return [
        rng.standard_normal((B, n, heads, D)).astype(dtype).swapaxes(1, 2) for heads, n in ((H, T), (K, S), (K, S))
    ]  # fmt: skip


def random_intervals(B, T, S):
    rng = np.random.default_rng(1)
    return rng.integers(-1, S + 1, (B, T)), rng.integers(0, S + 3, (B, T))


def check(args, dtype):
    """All that kernel_checks promises."""

    def summed_in_other_orders(q, k, *args):
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(q.shape[-1])
            _, (_, _, *rest) = flash_attention_forward(q[..., order], k[..., order], *args)
            yield q, k, *rest

    check_kernels(flash_attention_forward, flash_attention_backward, args, dtype, KERNELS, other_caches=summed_in_other_orders)


def both(*args, **kwargs):
    """Output, gradients, and the cotangent that they are of."""
    out, cache = flash_attention_forward(*args, **kwargs)
    dout = np.random.default_rng(2).standard_normal(out.shape).astype(out.dtype)
    return out, *flash_attention_backward(dout, cache)


@every_D
@every_dtype
@pytest.mark.parametrize(("T", "S"), [(65, 65), (1, 70), (40, 9), (33, 130)], ids=str)
def test_causal(T, S, D, dtype):
    check(draw(T=T, S=S, D=D), dtype)


@every_D
@every_dtype
def test_one_query_and_one_key(gpu, D, dtype):
    q, k, v = draw(H=2, K=2, T=1, S=1, D=D, dtype=dtype)
    out, cache = flash_attention_forward(q, k, v)
    dout = v[:, ::-1]
    dq, dk, dv = flash_attention_backward(dout, cache)
    assert_same_bits(out, v)
    assert_close(dv.astype("f8"), dout.astype("f8"), rtol=2e-7)
    for zero in (dq, dk):                                              # p = 1, whatever q and k are
        assert np.abs(zero.astype("f8")).max() < 1e-5


@every_dtype
def test_a_length_of_257(dtype):
    check(draw(H=1, T=257, S=257), dtype)


@every_D
@every_dtype
@pytest.mark.parametrize("R", [1, 2, 4])
def test_grouped_queries_and_random_intervals(R, D, dtype):
    T, S = 50, 75
    args = [*draw(B=2, H=4, K=4 // R, T=T, S=S, D=D), *random_intervals(2, T, S), 0.2]
    check(args, dtype)


# ------------------------------------------------------------------------------------------------ intervals

T, t = 150, np.arange(150)
STARTS = np.array([0, 37, 38, 120])
INTERVALS = {
    "a window": (np.maximum(0, t - 20), t + 1),
    "documents": (STARTS[np.searchsorted(STARTS, t, side="right") - 1], t + 1),
    "left padding": (np.full(T, 100), t + 1),
    "everything": (np.zeros(T, int), np.full(T, T)),
    "nothing": (np.full(T, 5), np.full(T, 5)),
    "far apart": (np.where(t % 2, 0, 140), np.where(t % 2, 3, 150)),
}


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", INTERVALS)
def test_intervals(name, dtype):
    check([*draw(T=T, S=T), *INTERVALS[name]], dtype)


@pytest.mark.parametrize("interval", ["int32", "int64"])
@pytest.mark.parametrize(("firsts", "lasts"), [(1, 2), (2, 1), (None, 2), (2, None)], ids=str)
def test_intervals_of_any_shape_and_integer_type(firsts, lasts, interval):
    first, last = random_intervals(2, 33, 33)
    first = None if firsts is None else first[:firsts].astype(interval)
    last = None if lasts is None else last[:lasts].squeeze().astype("int32")
    first = first if firsts != 1 else first[0]
    check([*draw(B=2), first, last], FLOAT32)


@every_dtype
def test_queries_that_see_nothing(gpu, dtype):
    first, last = np.full(40, 3), np.full(40, 3)
    last[17] = 9
    out, dq, dk, dv = both(*draw(T=40, S=40, dtype=dtype), first, last)
    unseen = np.delete(np.arange(40), 17)
    for array in (out, dq):
        assert not array[:, :, unseen].any()
        assert array[:, :, 17].any()
    for array in (dk, dv):
        assert array[:, :, 3:9].any() and not array[:, :, :3].any() and not array[:, :, 9:].any()
    assert gpu.launched == [*KERNELS[0], *KERNELS[1]]


@every_dtype
def test_keys_that_nobody_sees_are_not_read(gpu, dtype):
    """What is not seen may be anything; whole blocks of it are not even loaded."""
    q, k, v = draw(T=150, S=400, dtype=dtype)
    first, last = np.full(150, 200), 200 + np.arange(1, 151)
    expected = both(q, k, v, first, last)
    k[:, :, :200] = v[:, :, :200] = k[:, :, 350:] = v[:, :, 350:] = 1e3
    for actual, same in zip(both(q, k, v, first, last), expected, strict=True):
        assert_same_bits(actual, same)
    step = max(tiling.step for tiling in TILINGS[q.itemsize, 64])
    k[:, :, :200] = v[:, :, :200] = k[:, :, 350 + step :] = v[:, :, 350 + step :] = np.nan
    out, dq, dk, dv = both(q, k, v, first, last)
    for actual, same in zip((out, dq), expected, strict=False):
        assert_same_bits(actual, same)
    assert np.isfinite(dk[:, :, 200:350].astype("f4")).all() and np.isfinite(dv[:, :, 200:350].astype("f4")).all()


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("scale", [1e-3, 3.0], ids=str)
def test_scores_that_are_small_or_large(scale, dtype):
    check([*draw(T=90, S=90), None, None, scale], dtype)


@every_dtype
def test_maxima_that_rise_with_every_key_and_far_below_zero(dtype):
    """What was summed must shrink again and again; scores of which exp alone would overflow or vanish."""
    q, k, v = draw(T=100, S=100)
    q, k[..., 0] = np.abs(q), np.linspace(-100, 100, 100)
    k[..., 1:] /= 100
    check([q, k, v, None, None, 1.0], dtype)


def test_a_query_whose_maximum_rises_by_a_little_at_a_time(gpu):
    """By less than what makes a warp rescale, in each step, but by much in all."""
    S = 480
    k = np.zeros((1, 1, S, 64))
    k[..., 0] = np.linspace(0, 60, S)
    q, v = np.ones((1, 1, S, 64)), draw(H=1, S=S)[2]
    args = [x.astype("float32") for x in (q, k, v)]
    intervals = np.zeros(S, int), np.full(S, S)
    out, _ = flash_attention_forward(*args, *intervals, scale=1.0)
    assert_close(out, flash_attention_forward.reference(q, k, v, *intervals, scale=1.0)[0], rtol=2e-6)


# ------------------------------------------------------------------------------------------------ memory


@every_dtype
def test_heads_are_read_where_they_lie_and_written_so_that_merging_them_is_a_view(gpu, dtype, monkeypatch):
    q, k, v = draw(B=2, H=4, K=2, T=40, S=40, dtype=dtype)
    fused = np.concatenate([x.swapaxes(1, 2).reshape(2, 40, -1) for x in (q, k, v)], -1)      # (B, T, (H + 2 K)·D)
    views = [x.reshape(2, 40, -1, 64).swapaxes(1, 2) for x in np.split(fused, [256, 384], -1)]
    layouts = [(q, k, v), views, [np.ascontiguousarray(x) for x in (q, k, v)], [x[:, :, ::-1][:, :, ::-1] for x in (q, k, v)]]
    expected = both(q, k, v)
    monkeypatch.setattr(np, "ascontiguousarray", lambda a, dtype=None: np.require(a, dtype, "C") if a.ndim < 4 else None)
    for layout in layouts:
        for actual, same in zip(both(*layout), expected, strict=True):
            assert_same_bits(actual, same)
    for array in expected:
        assert np.shares_memory(array.swapaxes(1, 2).reshape(2, 40, -1), array)


@every_dtype
def test_what_cannot_be_read_where_it_lies_is_copied(gpu, dtype):
    q, k, v = draw(K=2, dtype=dtype)
    expected = both(q, k, v)
    spread = [np.stack([x, x], -1)[..., 0] for x in (q, k, v)]                   # gaps between elements
    odd = [np.pad(x, [(0, 0)] * 3 + [(0, 1)])[..., :-1] for x in (q, k, v)]      # rows that begin anywhere
    for args in (spread, odd, [offset_by_one(x) for x in (q, k, v)], (q, k, np.ascontiguousarray(v)), (q, spread[1], v)):
        for actual, same in zip(both(*args), expected, strict=True):
            assert_same_bits(actual, same)
    assert len(gpu.launched) == 6 * 3


def test_what_the_kernels_do_not_take_runs_as_the_op_says(gpu):
    q, k, v = draw(D=64)
    narrow = [x[..., :48].astype("float32") for x in (q, k, v)]
    single = [x.astype("float32") for x in (q, k, v)]
    empty = [x[:0] for x in single]
    odd = [*single, np.zeros(33, "uint8"), np.full(33, 9, "uint8")]
    for args in ([q, k, v], narrow, [*single, None, None, -0.5], empty, odd):
        out, cache = flash_attention_forward(*args)
        expected, expected_cache = flash_attention_forward.reference(*args)
        assert_same_bits(out, expected)
        for actual, same in zip(
            flash_attention_backward(out, cache), flash_attention_backward.reference(out, expected_cache), strict=True
        ):
            assert_same_bits(actual, same)
    assert gpu.launched == []
    with pytest.raises(ValueError, match=r"^q has 3 heads and k has 2, but the first must be a multiple of the second$"):
        flash_attention_forward(*draw(H=3, K=2))
    with pytest.raises(ValueError, match=r"^first has shape \(32,\), but \(33,\) is needed$"):
        flash_attention_forward(*single, np.zeros(32, int))
    _, cache = flash_attention_forward(*single)
    with pytest.raises(ValueError, match=r"^dout has shape \(1, 2, 33, 63\), but \(1, 2, 33, 64\) is needed$"):
        flash_attention_backward(single[0][..., :63], cache)


# ------------------------------------------------------------------------------------------------ would a mistake be found?


def test_the_launcher_and_the_kernels_agree_on_how_work_is_cut(tmp_path, monkeypatch):
    """Less shared memory than the kernels use is an error of the emulator's, and so would be a step or tile of another size."""
    run = launch.launch
    monkeypatch.setattr(launch, "launch", lambda *args, **defines: run(*args[:5], args[5] - 16, **defines))
    for (_, D), dtype in zip(TILINGS, ("float16", "float16", "float32", "float32"), strict=True):
        with emulated(), pytest.raises(EmulatorError, match="outside of shared memory"):
            flash_attention_forward(*draw(T=200, S=200, D=D, dtype=dtype))


MISTAKES = {
    "no barrier before a step is read": ("copy_wait<0>();\n    __syncthreads();", "copy_wait<0>();\n    __syncwarp();"),
    "no wait before a step is read": ("copy_wait<0>();\n    __syncthreads();", "copy_wait<1>();\n    __syncthreads();"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_step_that_is_read_too_early_is_found(mistake, tmp_path, monkeypatch):
    for path in launch.KERNELS.glob("*.cu*"):
        text = path.read_text(encoding="utf-8")
        if path.name == "flash_attention.cu":
            assert text.count(MISTAKES[mistake][0]) == 3
            text = text.replace(*MISTAKES[mistake])
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    args = draw(H=1, T=40, S=300, dtype="float16")
    with emulated():
        expected, _ = flash_attention_forward(*args)
    monkeypatch.setattr(launch, "KERNELS", tmp_path)
    launch.compiled_text.cache_clear()
    wrong = []
    for seed in range(3):
        with emulated(seed=seed):
            wrong.append(not np.array_equal(flash_attention_forward(*args)[0], expected))
    launch.compiled_text.cache_clear()
    assert any(wrong)
