"""Matrices and activations in two bytes; parameters, gradients, gains, statistics and losses in float32."""

import numpy as np
import pytest
from helpers import assert_same_bits, leaves

from numllama import SGD, AdamW, ModelConfig, TrainConfig, Trainer, Transformer, ops
from numllama.backend import BFLOAT16, to_numpy
from numllama.cpu import products
from numllama.data.dataset import Dataset
from numllama.interop import load_run

DTYPES = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
SHAPE = dict(vocab_size=61, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=64)
VARIANTS = {
    "llama": {},
    "tied": dict(tie_embeddings=True, rope_layout="interleaved"),
    "qk_rms": dict(qk_norm="rms"),
    "qk_l2": dict(qk_norm="l2"),
    "gpt2": dict(norm="layernorm", ffn="gelu", positions="learned", bias=True),
    "windows": dict(sliding_window=8, window_layers=(1,), local_rope_theta=100.0, rotary_dim=8, bias="qkv"),
    "olmo2": dict(norm_placement="after", qk_norm="rms_width", rope_layers=(0,)),
    "gemma2": dict(
        norm="rmsnorm1p", norm_placement="both", ffn="geglu", embed_scale=8.0, attn_scale=0.3, attn_softcap=2.0, logit_softcap=5.0
    ),
}  # fmt: skip


def some_tokens(n=4000):
    """Two of three tokens follow from the one before."""
    rng, tokens = np.random.default_rng(0), [0]
    for follows, other in zip(rng.random(n) < 2 / 3, rng.integers(0, 61, n), strict=True):
        tokens.append(int((tokens[-1] * 7 + 3) % 61 if follows else other))
    return np.array(tokens, "uint16")


TOKENS = some_tokens()


def build(dtype, **changes):
    return Transformer(ModelConfig(**SHAPE | changes), seed=3, compute_dtype=dtype)


def batch(B=4, T=32):
    tokens = np.random.default_rng(0).integers(0, 61, (B, T + 1))
    return tokens[:, :-1], tokens[:, 1:]


def train(dtype, steps=3, out=None, **settings):
    one = dict(workers=1, shards=1, eval_batches=1, eval_every=steps)
    config = TrainConfig(**dict(steps=steps, batch_size=4, seq_len=16, lr=1e-2, warmup_steps=2) | one | settings)
    return Trainer(build(dtype), Dataset(TOKENS[:3000], TOKENS[3000:], 61), config, out)


@DTYPES
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_gradient_points_where_that_in_float64_does(variant, dtype):
    loss, grads = build(dtype, **VARIANTS[variant]).loss_and_grads(*batch())
    exact_loss, exact = build("float64", **VARIANTS[variant]).loss_and_grads(*batch())
    assert loss.dtype == np.float32
    assert float(loss) == pytest.approx(float(exact_loss), rel=1e-3)
    for name, gradient in grads.items():
        assert gradient.dtype == np.float32
        if name.endswith("wk_bias"):  # moves all scores of a query alike: its gradient is zero, and points nowhere
            continue
        cosine = (gradient * exact[name]).sum() / np.linalg.norm(gradient) / np.linalg.norm(exact[name])
        assert cosine >= 0.999, f"{name}: {cosine}"


@DTYPES
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_gradient_of_a_matrix_is_rounded_to_two_bytes(variant, dtype):
    _, grads = build(dtype, **VARIANTS[variant]).loss_and_grads(*batch(B=8))
    for name, gradient in grads.items():
        if gradient.ndim == 1 or (name == "embed" and variant != "tied"):  # a token that occurs once has a row of dx there
            continue
        rounded = gradient == gradient.astype(dtype)
        assert (rounded & (gradient != 0)).mean() < 0.2, name


@DTYPES
def test_what_is_in_two_bytes_and_what_is_not(dtype, monkeypatch):
    seen = {}
    watched = "linear", "linears", "swiglu", "add_rmsnorm", "ropes", "cross_entropy", "flash_attention"
    for name in (f"{op}_forward" for op in watched):
        op = getattr(ops, name)

        def spy(*args, op=op, name=name, **kwargs):
            result = op(*args, **kwargs)
            seen[name] = [leaf.dtype.name for leaf in leaves((args, result)) if leaf.dtype.kind == "f" or leaf.dtype == BFLOAT16]
            return result

        monkeypatch.setattr(ops, name, spy)
    model = build(dtype)
    model.loss_and_grads(*batch())
    half, single = dtype, "float32"
    kept = single if dtype == "bfloat16" else half  # activations: on a CPU only the operands of products are bfloat16
    operand = half if dtype == "float16" or products.multiplies_bfloat16() else single
    assert seen["linear_forward"] == [kept, half, kept, operand, half]  # x, weight; out, and the cache
    sums = [kept, kept, single, kept, kept, kept, single, single]  # x, branch, gain; sum, out; the cache: sum, gain, rstd
    assert seen["add_rmsnorm_forward"] == sums
    assert seen["ropes_forward"] == [kept, kept, single, single] * 2  # queries, keys and the table, before and after
    assert seen["flash_attention_forward"][:4] == [kept, half, half, operand]  # queries, keys, values; out
    assert seen["linears_forward"][-2:] == [operand, half] and seen["linears_forward"][3:5] == [half, half]
    assert seen["swiglu_forward"] == [half] * 5  # gate, up; out, and the cache
    assert seen["cross_entropy_forward"][:2] == [kept, single]  # logits; the loss
    assert model.params.flat.dtype == single
    assert {name: view.dtype.name for name, view in model.weights.items()} == {
        name: half if view.ndim == 2 else single for name, view in model.params.items()
    }


@DTYPES
@pytest.mark.parametrize("make", [AdamW, lambda params: SGD(params, lr=0.1, momentum=0.9)], ids=["adamw", "sgd"])
def test_an_optimizer_steps_float32_and_brings_the_copy_up_to_date(make, dtype):
    model = build(dtype)
    optimizer = make(model.params)
    before = model.params.flat.copy()
    for _ in range(2):
        _, grads = model.loss_and_grads(*batch())
        optimizer.step(grads)
    assert not np.array_equal(model.params.flat, before)
    for name, view in model.params.items():
        assert_same_bits(model.weights[name], view.astype(dtype) if view.ndim == 2 else view)


def test_steps_too_small_for_bfloat16_add_up():
    model = build("bfloat16")
    optimizer = SGD(model.params, lr=1.0, weight_decay=0.0)
    model.params["embed"][...] = 1.0
    grads = model.params.zeros_like()
    grads["embed"][...] = -1e-3  # less than half of the distance from 1 to the next bfloat16
    for _ in range(16):
        optimizer.step(grads)
    assert to_numpy(model.weights["embed"]).astype("float32")[0, 0] == 1.015625


def test_whoever_writes_to_the_parameters_rounds_them():
    model = build("bfloat16")
    model.params["blocks.0.wq"][...] = 1 / 3
    model.params.sync_low_precision()
    assert (model.weights["blocks.0.wq"] == np.float32(1 / 3).astype(BFLOAT16)).all()


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.thorough)])
def test_a_loss_curve_stays_with_that_of_float32(dtype):
    settings = dict(steps=200, batch_size=8, lr=2e-3)
    curves = [[report.loss for report in train(d, **settings)] for d in ("float32", dtype)]
    assert np.mean(curves[0][-20:]) < 0.6 * curves[0][0]
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.01)


@DTYPES
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(dtype, tmp_path):
    whole = train(dtype, steps=6, out=tmp_path / "whole", eval_every=3)
    losses = [report.loss for report in whole]
    part = train(dtype, steps=6, out=tmp_path / "part", eval_every=3)
    for report in part:
        if report.step == 3:
            break
    again = train(dtype, steps=6, out=tmp_path / "part", eval_every=3)
    again.resume()
    assert [report.loss for report in again] == losses[3:]
    assert again.loss_scale.value == whole.loss_scale.value
    assert_same_bits(again.model.params.flat, whole.model.params.flat)
    assert load_run(tmp_path / "whole").compute_dtype == np.float32  # on a CPU
    assert load_run(tmp_path / "whole", compute_dtype=dtype).compute_dtype == dtype


# ------------------------------------------------------------------------------------------------ float16


def test_a_scale_is_on_all_gradients_and_on_nothing_else():
    model = build("float32")
    loss, grads = model.loss_and_grads(*batch())
    loss_2, grads_2 = model.loss_and_grads(*batch(), scale=1024.0)
    assert loss_2 == loss
    assert_same_bits(grads_2.flat, 1024 * grads.flat)


def test_small_gradients_survive_in_float16_if_they_are_scaled():
    def lost(scale):
        _, grads = build("float16").loss_and_grads(*batch(), count=2**20, scale=scale)
        return sum((view == 0).sum() for name, view in grads.items() if name.endswith("wq"))

    assert lost(1.0) > 100 * max(1, lost(2.0**16))


def test_a_gradient_that_overflows_halves_the_scale_and_skips_the_step():
    trainer = train("float16", steps=4)
    trainer.loss_scale.value = 2.0**40
    weights = trainer.model.params.flat.copy()
    reports = iter(trainer)
    with np.errstate(invalid="ignore"):
        report = next(reports)
    assert report.skipped and np.isfinite(report.loss) and trainer.loss_scale.value == 2.0**39
    assert_same_bits(trainer.model.params.flat, weights)
    trainer.loss_scale.value = 2.0**10
    assert not next(reports).skipped
    assert trainer.skipped == 1
    assert not np.array_equal(trainer.model.params.flat, weights)


def test_what_is_reported_and_clipped_is_the_gradient_without_the_scale():
    norms = [[report.grad_norm for report in train(dtype, lr=1e-3)] for dtype in ("float32", "float16")]
    np.testing.assert_allclose(norms[1], norms[0], rtol=0.01)


def test_a_scale_grows_again_after_many_good_steps(monkeypatch):
    monkeypatch.setattr("numllama.training.loss_scale.STEPS_TO_GROW", 3)
    trainer = train("float16", steps=7)
    trainer.loss_scale.value = 2.0**8
    assert [trainer.loss_scale.value for _ in trainer] == [2.0**n for n in (8, 8, 9, 9, 9, 10, 10)]
    trainer = train("float16", steps=4)
    trainer.loss_scale.value = 1.0  # as low as it gets, and not for good
    assert [trainer.loss_scale.value for _ in trainer] == [1, 1, 2, 2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_dtypes_are_not_scaled(dtype):
    assert train(dtype).loss_scale.value == 1


def test_a_dtype_that_is_none():
    choices = "'float32', 'float64', 'bfloat16', 'float16'"
    with pytest.raises(ValueError, match=rf"^compute_dtype is 'float8', but must be one of {choices}$"):
        TrainConfig(compute_dtype="float8")
