"""Training and generation on a GPU give what they give on a CPU, for every kind of model and setting."""

import numpy as np
import pytest
from helpers import assert_close
from tiny import CONFIG, TOKENS, trainer

import numllama as nl
from numllama import ModelConfig, Transformer
from numllama.model.lora import LoraConfig
from numllama.ops import IGNORE

SMALL = dict(max_seq_len=12, n_layers=1)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8)
TRAINING = {  # name -> changes of the model, changes of the settings
    "llama": ({}, {}),
    "multi-head": (dict(n_kv_heads=4), {}),
    "multi-query": (dict(n_kv_heads=1), {}),
    "two layers": (dict(n_layers=2), {}),
    "tied": (dict(tie_embeddings=True), {}),
    "interleaved": (dict(rope_layout="interleaved"), {}),
    "qk_norm rms": (dict(qk_norm="rms"), {}),
    "qk_norm l2": (dict(qk_norm="l2"), {}),
    "llama 3.1 scaling": (dict(rope_scaling=LLAMA3), {}),
    "gpt2": (dict(norm="layernorm", ffn="gelu", positions="learned", bias=True), {}),
    "no positions": (dict(positions="none"), {}),
    "biases": (dict(bias=True), {}),
    "no dropout": (dict(dropout=0.0), {}),
    "small heads": (dict(head_dim=16), {}),
    "odd heads": (dict(head_dim=40), {}),
    "wide heads": (dict(head_dim=128, n_heads=2, n_kv_heads=1), {}),
    "an odd width": (dict(dim=36, ffn_dim=50), {}),
    "vocabulary of 64": (dict(vocab_size=64), {}),
    "two shards": ({}, dict(shards=2)),
    "recompute": ({}, dict(recompute=True)),
    "sgd": ({}, dict(optimizer="sgd", lr=0.1)),
    "clipped to nothing": ({}, dict(clip=1e-3)),
    "epochs": ({}, dict(sampling="epochs")),
    "without a graph": ({}, dict(graph=False)),
}


def run(device, dtype, model, settings):
    config = ModelConfig.from_dict({**CONFIG.to_dict(), **SMALL, **model})
    made = trainer(device=device, dtype=dtype, config=config, steps=3, eval_every=3, **settings)
    reports = [(report.loss, report.grad_norm, report.val_loss or 0) for report in made]
    flat = made.model.params.flat
    made.close()
    return reports, flat if device == "cpu" else flat.get()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("variant", TRAINING)
def test_training(gpu, variant, dtype):
    losses, flat = run("cuda", dtype, *TRAINING[variant])
    expected, expected_flat = run("cpu", dtype, *TRAINING[variant])
    np.testing.assert_allclose(losses, expected, rtol=1e-9 if dtype == "float64" else 2e-4)
    assert_close(flat, expected_flat, rtol=1e-7 if dtype == "float64" else 2e-3)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_bits_again_and_however_late_work_is_done(gpu, dtype, lazy):
    first = run("cuda", dtype, {}, {})
    gpu.lazy = lazy
    again = run("cuda", dtype, {}, {})
    assert first[0] == again[0]
    np.testing.assert_array_equal(first[1], again[1])


# ------------------------------------------------------------------------------------------------ gradients of one batch

INPUTS, NEXT = (TOKENS[start : start + 18].reshape(2, 9).astype(int) for start in (0, 1))
BATCHES = {
    "ignored targets": dict(targets=np.where(np.arange(18).reshape(2, 9) % 3 == 0, IGNORE, NEXT)),
    "packed documents": dict(segments=np.array([[0, 0, 0, 1, 1, 1, 2, 2, 2], [0] * 9])),
    "nothing counted": dict(targets=np.full((2, 9), IGNORE)),
    "an adapter": dict(adapter=LoraConfig(rank=2)),
    "an adapter with whole matrices": dict(adapter=LoraConfig(rank=2, modules_to_save=("embed", "head"))),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", BATCHES)
def test_gradients(gpu, case, dtype):
    about = dict(BATCHES[case])
    targets, adapter = about.pop("targets", NEXT), about.pop("adapter", None)
    results = []
    for device in ("cuda", "cpu"):
        model = Transformer(CONFIG, seed=2, device=device, compute_dtype=dtype)
        if adapter:
            model.add_adapter(adapter, seed=1)
        loss, grads = model.loss_and_grads(INPUTS, targets, key=(0, 1), **about)
        results.append((float(loss), grads.flat if device == "cpu" else grads.flat.get()))
    (loss, flat), (expected, expected_flat) = results
    assert loss == pytest.approx(expected, rel=1e-10 if dtype == "float64" else 1e-5)
    assert_close(flat, expected_flat, rtol=1e-9 if dtype == "float64" else 2e-4)


# ------------------------------------------------------------------------------------------------ generation

PROMPTS = [[1, 2, 3, 4, 5], [6], [7, 8]]
GENERATION = {  # name -> changes of the model, settings
    "greedy": ({}, dict(temperature=0.0)),
    "one prompt": ({}, dict(temperature=0.0, prompts=[1, 2, 3])),
    "temperature": ({}, dict(temperature=0.7)),
    "top_k": ({}, dict(top_k=5)),
    "top_p": ({}, dict(top_p=0.7)),
    "min_p": ({}, dict(min_p=0.1)),
    "all filters": ({}, dict(top_k=20, top_p=0.9, min_p=0.02, temperature=1.2)),
    "penalty": ({}, dict(temperature=0.0, repetition_penalty=1.5)),
    "several": ({}, dict(n=3)),
    "a window": ({}, dict(temperature=0.0, window=4)),
    "stop ids": ({}, dict(temperature=0.0, stop_ids=(3, 17, 40))),
    "multi-head": (dict(n_kv_heads=4), dict(temperature=0.0)),
    "multi-query": (dict(n_kv_heads=1), dict(top_k=3)),
    "tied": (dict(tie_embeddings=True), dict(temperature=0.0)),
    "interleaved": (dict(rope_layout="interleaved"), dict(temperature=0.0)),
    "qk_norm": (dict(qk_norm="rms"), dict(temperature=0.0)),
    "gpt2": (dict(norm="layernorm", ffn="gelu", positions="learned", bias=True), dict(temperature=0.0)),
    "small heads": (dict(head_dim=16), dict(top_p=0.8)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("variant", GENERATION)
def test_generation(gpu, variant, dtype):
    changes, settings = GENERATION[variant]
    settings = {"seed": 3, "max_new_tokens": 8, "logprobs": True, **settings}
    prompts, config = settings.pop("prompts", PROMPTS), ModelConfig.from_dict({**CONFIG.to_dict(), "init_std": 0.3, **changes})
    models = [Transformer(config, seed=4, device=device, compute_dtype=dtype) for device in ("cuda", "cpu")]
    results = [nl.generate(model, prompts, **settings) for model in models]
    (ids, chances), (expected_ids, expected) = results
    assert ids == expected_ids
    flat = lambda lists: np.concatenate([np.ravel(row) for row in lists]) if isinstance(lists, list) else lists  # noqa: E731
    np.testing.assert_allclose(flat(chances), flat(expected), rtol=1e-8 if dtype == "float64" else 1e-3, atol=1e-5)
