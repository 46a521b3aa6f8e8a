"""A tiny model trains through every launcher and every kernel, on the emulator."""

import numpy as np
import pytest
from emulator import BACKWARD, FORWARD, SHUFFLED, emulated
from helpers import assert_close, assert_same_bits

from numllama import ModelConfig, TrainConfig, Trainer, Transformer
from numllama.checks import check_ids
from numllama.cuda import sources
from numllama.data.dataset import Dataset

CONFIG = ModelConfig(vocab_size=61, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=64, max_seq_len=24, dropout=0.1)
TOKENS = (np.arange(4000) ** 2 // 7 % 61).astype("uint16")


def train(steps=10, dtype="float32"):
    model = Transformer(CONFIG, seed=0, compute_dtype=dtype)
    one = dict(workers=1, shards=1, eval_batches=1)
    settings = TrainConfig(steps=steps, batch_size=3, lr=1e-2, warmup_steps=2, eval_every=steps, **one)
    trainer = Trainer(model, Dataset(TOKENS[:3000], TOKENS[3000:], CONFIG.vocab_size), settings)
    try:
        return [(report.loss, report.grad_norm) for report in trainer], model.params.flat
    finally:
        trainer.close()


def kernels_of(*names):
    return {kernel for name in names for kernel in sources.compiled_text(name, ()).kernels}


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 2e-4), ("bfloat16", 1e-2), ("float16", 1e-2)])
def test_ten_steps_through_every_kernel_give_the_losses_of_the_ops(dtype, rtol):
    with emulated() as emulator:
        losses, flat = train(dtype=dtype)
    expected, expected_flat = train(dtype=dtype)
    for value, expected_value, tolerance in zip(np.transpose(losses), np.transpose(expected), (rtol / 5, 5 * rtol), strict=True):
        np.testing.assert_allclose(value, expected_value, rtol=tolerance)  # losses; norms of gradients move much more
    assert losses[-1][0] < losses[0][0] - 0.1
    assert_close(flat, expected_flat, rtol=5 * rtol)
    others = "softmax", "layernorm", "gelu", "dropout", "attention_products", "decode", "sample"  # GPT-2, Qwen3, generation
    not_here = kernels_of(*others) | {"rmsnorm_backward"}
    everything = kernels_of(*(path.stem for path in sources.KERNELS.glob("*.cu"))) | {"gemm"}
    assert set(emulator.launched) == everything - not_here


def test_the_same_bits_in_whatever_order_threads_run():
    runs = []
    for order in (FORWARD, BACKWARD, SHUFFLED):
        with emulated(order):
            runs.append(train(steps=3))
    for losses, flat in runs[1:]:
        assert losses == runs[0][0]
        assert_same_bits(flat, runs[0][1])


VARIANTS = {
    "llama": {},
    "tied": dict(tie_embeddings=True, rope_layout="interleaved"),
    "qk_norm": dict(qk_norm="rms", n_kv_heads=4),
    "gpt2": dict(norm="layernorm", ffn="gelu", positions="learned"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_of_a_whole_model(variant):
    config = ModelConfig.from_dict({**CONFIG.to_dict(), "n_layers": 1, **VARIANTS[variant]})
    model = Transformer(config, seed=1, dtype="float64")
    tokens = np.random.default_rng(0).integers(0, 61, (2, 18))
    batch = tokens[:, :-1], tokens[:, 1:]
    with emulated() as emulator:
        loss, grads = model.loss_and_grads(*batch, key=(0, 1))
    expected_loss, expected = model.loss_and_grads(*batch, key=(0, 1))
    assert len(emulator.launched) > 10
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-12)
    for name in expected:
        assert_close(grads[name], expected[name], rtol=1e-10)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_gradient_of_two_byte_kernels_points_where_that_in_float64_does(variant, dtype):
    config = ModelConfig.from_dict({**CONFIG.to_dict(), "dropout": 0.0, **VARIANTS[variant]})
    tokens = np.random.default_rng(0).integers(0, 61, (2, 18))
    batch = tokens[:, :-1], tokens[:, 1:]
    with emulated():
        loss, grads = Transformer(config, seed=1, compute_dtype=dtype).loss_and_grads(*batch)
    exact_loss, exact = Transformer(config, seed=1, dtype="float64").loss_and_grads(*batch)
    assert float(loss) == pytest.approx(float(exact_loss), rel=1e-3)
    for name, gradient in grads.items():
        cosine = (gradient * exact[name]).sum() / np.linalg.norm(gradient) / np.linalg.norm(exact[name])
        assert cosine >= 0.999, f"{name}: {cosine}"


def test_ids_are_looked_at_once_and_not_again_where_that_would_wait_for_the_gpu(gpu, monkeypatch):
    looked_at = []
    check = "numllama.model.transformer.check_ids"
    monkeypatch.setattr(check, lambda name, *args: (looked_at.append(name), check_ids(name, *args)))
    model = Transformer(CONFIG)
    model.loss_and_grads(TOKENS[None, :9].astype(int), TOKENS[None, 1:10].astype(int))
    assert looked_at == ["tokens", "targets"]
    with pytest.raises(ValueError, match=r"^tokens holds 61, but must lie in 0\.\.60$"):
        model.loss_and_grads(np.full((1, 3), 61), np.ones((1, 3), int))
