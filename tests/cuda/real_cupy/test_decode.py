"""A token is one graph, which gives what its launches give one by one, and what the CPU gives."""

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from tiny import CONFIG

import numllama as nl
from numllama import ModelConfig, SamplingConfig, Transformer
from numllama.backend import to_numpy
from numllama.cuda import decode
from numllama.cuda.stream import Stream
from numllama.generation import KVCache
from numllama.model.lora import LoraConfig
from numllama.serve.engine import Engine
from numllama.tokenizer import CharTokenizer

PROMPTS = [[1, 2, 3, 4, 5], [6, 7]]
SMALL = dict(n_layers=1, max_seq_len=64)
GPT2 = dict(norm="layernorm", ffn="gelu", positions="learned", bias=True, tie_embeddings=True)


def models(dtype="float32", **changes):
    config = ModelConfig.from_dict({**CONFIG.to_dict(), **SMALL, "init_std": 0.2, **changes})
    return [Transformer(config, seed=1, device=device, compute_dtype=dtype) for device in ("cpu", "cuda")]


def launched(gpu):
    return gpu.counts()["graph launches"]


SETTINGS = {
    "greedy": dict(temperature=0.0),
    "greedy with a penalty": dict(temperature=0.0, repetition_penalty=1.5),
    "warm": dict(temperature=1.0),
    "cold": dict(temperature=0.5),
    "top-k": dict(top_k=5),
    "top-k of one": dict(top_k=1),
    "top-k of all": dict(top_k=61),
    "top-p": dict(top_p=0.7),
    "top-p of nothing": dict(top_p=0.0),
    "min-p": dict(min_p=0.2),
    "penalty": dict(repetition_penalty=1.3),
    "all filters": dict(temperature=0.8, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.1),
    "seeds of their own": dict(seed=[5, 3]),
    "three of each": dict(n=3, top_k=9),
    "stop ids": dict(stop_ids=list(range(0, 61, 4))),
    "stop ids and a penalty": dict(stop_ids=list(range(0, 61, 5)), repetition_penalty=1.2, n=2),
    "a window": dict(window=3),
    "a window, filters": dict(window=4, top_p=0.8, top_k=10, n=2),
    "log-probabilities": dict(logprobs=True, top_p=0.9),
    "log-probabilities of greed": dict(logprobs=True, temperature=0.0),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_gives_the_tokens_of_the_cpu(gpu, settings):
    cpu, device = models()
    settings = {"seed": 3, **settings}
    expected, actual = (nl.generate(model, PROMPTS, 9, **settings) for model in (cpu, device))
    if settings.get("logprobs"):
        np.testing.assert_allclose(actual[1], expected[1], rtol=1e-4)
        expected, actual = expected[0], actual[0]
    assert actual == expected
    assert actual == (nl.generate(device, PROMPTS, 9, **settings) if "logprobs" not in settings else actual)
    assert launched(gpu) >= (7 if "stop_ids" not in settings else 1)


VARIANTS = {
    "one key head": dict(n_kv_heads=1),
    "a key head for each": dict(n_kv_heads=4),
    "three queries a key head": dict(n_heads=6, n_kv_heads=2, head_dim=10),
    "small heads": dict(head_dim=8),
    "large heads": dict(head_dim=256, n_heads=2, n_kv_heads=1),
    "odd heads": dict(head_dim=5, positions="none", qk_norm="rms"),
    "tied": dict(tie_embeddings=True),
    "interleaved": dict(rope_layout="interleaved"),
    "rms": dict(qk_norm="rms"),
    "l2": dict(qk_norm="l2", rope_layout="interleaved"),
    "stretched": dict(rope_scaling=dict(rope_type="linear", factor=2.0)),
    "two layers": dict(n_layers=2),
    "gpt2": GPT2,
    "gpt2 that turns": dict(norm="layernorm", ffn="gelu", bias=True),
    "no positions": dict(positions="none"),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_relative_of_llama_is_recorded(gpu, variant):
    cpu, device = models(**variant)
    settings = dict(seed=0, top_p=0.9)
    assert nl.generate(device, PROMPTS, 6, **settings) == nl.generate(cpu, PROMPTS, 6, **settings)
    assert (gpu.counts()["graphs"], launched(gpu)) == (1, 4)


def steps(model, tokens, graph=True, **cache):
    """Logits after each column of tokens, behind a prompt of one token."""
    kv_cache = KVCache(model, batch_size=len(tokens), **cache)
    kv_cache.keys[...] = kv_cache.values[...] = 2                      # what is read by mistake counts, as NaN would not
    with np.errstate(all="ignore"):
        model.forward(tokens[:, :1], kv_cache=kv_cache)
    decoder = decode.Decoder(model, kv_cache, graph=graph)
    return np.stack([to_numpy(decoder.step(column)).astype("float32") for column in tokens[:, 1:].T], 1), decoder


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("float64", 1e-12), ("bfloat16", 3e-2), ("float16", 4e-3)])
@pytest.mark.parametrize("variant", [{}, dict(qk_norm="rms", n_kv_heads=1), GPT2], ids=["llama", "qk_norm", "gpt2"])
def test_logits_are_those_of_the_whole_forward_pass(gpu, dtype, rtol, variant):
    _, model = models(dtype, **variant)
    exact, _ = models("float64", **variant)
    tokens = np.random.default_rng(0).integers(0, 61, (2, 8))
    logits, decoder = steps(model, tokens)
    assert_close(logits, exact.forward(tokens)[:, 1:].astype("float32"), rtol=max(rtol, 1e-6))
    assert decoder.launches == 6
    assert_same_bits(logits, steps(model, tokens, graph=False)[0])
    assert_same_bits(logits, steps(model, tokens)[0])


@pytest.mark.parametrize("modules", [(), ("embed", "head")], ids=["updates", "whole_matrices_too"])
def test_an_adapter_is_recorded_too(gpu, modules):
    cpu, device = models()
    for model in (cpu, device):
        model.add_adapter(LoraConfig(rank=2, targets=("wq", "w_up", "wo"), modules_to_save=modules))
        for name, part in model.adapter.params.items():
            part[...] = model.xp.asarray(np.random.default_rng(len(name)).standard_normal(part.shape).astype("float32"))
        model.adapter.params.sync_low_precision()
    assert nl.generate(device, [1, 2], 6, temperature=0.0) == nl.generate(cpu, [1, 2], 6, temperature=0.0)
    assert launched(gpu) == 4


def test_a_cache_that_grows_is_recorded_again_and_a_text_of_many_parts_is_the_same(gpu):
    cpu, device = models(max_seq_len=160)
    tokens = np.random.default_rng(0).integers(0, 61, (1, 90))
    logits, decoder = steps(device, tokens, capacity=16)
    assert gpu.counts()["graphs"] == 4                                 # 16, 32, 64 and 128 slots
    assert (decoder.parts, decoder.launches) == (2, 88)
    assert_close(logits, cpu.forward(tokens)[:, 1:], rtol=1e-5)


@pytest.mark.parametrize("window", [1, 5, 40])
def test_a_window_moves_beyond_max_seq_len_without_another_recording(gpu, window):
    cpu, device = models(max_seq_len=40)
    settings = dict(window=window, seed=0, top_k=3)
    assert nl.generate(device, PROMPTS, 50, **settings) == nl.generate(cpu, PROMPTS, 50, **settings)
    assert (gpu.counts()["graphs"], launched(gpu)) == (1, 48)


def test_a_token_is_one_launch_and_one_read(gpu, monkeypatch):
    """Nothing is sent to the GPU for a token, but random numbers for 64 of them."""
    _, device = models(max_seq_len=200)
    ids = nl.stream(device, [1, 2, 3], 150, seed=0, top_p=0.9, repetition_penalty=1.2)
    for _ in range(4):
        next(ids)
    uploads = []
    upload = decode.StagingBuffers.upload
    monkeypatch.setattr(decode.StagingBuffers, "upload", lambda self: (uploads.append(self), upload(self)))
    before = gpu.counts()
    for _ in range(100):
        next(ids)
    changed = {name: n - before.get(name, 0) for name, n in gpu.counts().items()}
    assert (changed["graph launches"], changed["launches"], changed["graphs"]) == (100, 0, 0)
    assert len(uploads) == 1


def test_what_cannot_be_recorded_runs_launch_by_launch(gpu, monkeypatch):
    _, device = models()
    replayed = nl.generate(device, PROMPTS, 6, seed=0)
    monkeypatch.setattr(Stream, "record", lambda self, run: 1 / 0)
    with pytest.warns(UserWarning, match=r"^decoding could not be recorded as a CUDA graph, and runs launch by launch: division"):
        plain = nl.generate(device, PROMPTS, 6, seed=0)
    assert plain == replayed
    assert launched(gpu) == 4


def test_heads_that_no_kernel_takes_are_left_to_the_model(gpu):
    cpu, device = models(head_dim=258, n_heads=2, n_kv_heads=1)
    assert nl.generate(device, PROMPTS, 4, seed=0) == nl.generate(cpu, PROMPTS, 4, seed=0)
    assert launched(gpu) == 0


def test_two_texts_in_turn_do_not_disturb_each_other(gpu):
    _, device = models()
    alone = [nl.generate(device, prompt, 8, seed=0) for prompt in PROMPTS]
    texts = [nl.stream(device, prompt, 8, seed=0) for prompt in PROMPTS]
    in_turn = list(zip(*texts, strict=True))
    assert [list(ids) for ids in zip(*in_turn, strict=True)] == alone


def test_a_conversation_goes_on_with_its_cache(gpu):
    cpu, device = models()
    answers = []
    for model in (cpu, device):
        cache = KVCache(model)
        first = nl.generate(model, [1, 2, 3], 5, temperature=0.0, kv_cache=cache)
        answers.append((first, nl.generate(model, [1, 2, 3, *first, 9], 5, temperature=0.0, kv_cache=cache)))
    assert answers[0] == answers[1]


def test_the_engine_of_a_server_writes_on_the_models_own_gpu(gpu):
    """Which GPU is the current one is a matter of each thread; a new one has the first."""
    import cupy

    with cupy.cuda.Device(1):
        model = Transformer(CONFIG, device="cuda:1")
        engine = Engine(model, CharTokenizer("".join(map(chr, range(97, 97 + CONFIG.vocab_size)))))
        try:
            assert engine.call(lambda: cupy.cuda.runtime.getDevice()).result(timeout=60) == 1
            text = engine.call(lambda: nl.generate(model, [1, 2], 5, temperature=0.0)).result(timeout=60)
        finally:
            engine.close()
        assert text == nl.generate(model, [1, 2], 5, temperature=0.0)
    assert launched(gpu) == 6


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_named_as_on_the_cpu(gpu, temperature):
    _, device = models()
    ids = nl.stream(device, [1, 2], 8, temperature=temperature, seed=0)
    for _ in range(4):
        next(ids)
    device.params["blocks.0.w_down"][0, 0] = np.nan
    with pytest.raises(nl.errors.GenerationError, match=r"^the model's logits hold NaN, because its parameter blocks\.0\.w_down"):
        list(ids)


def test_generators_end_as_if_each_had_given_a_number_for_each_token(gpu):
    import cupy

    from numllama.cuda.sample import Sampler

    for temperature, n in ((1.0, 5), (0.0, 0)):
        generators = [np.random.default_rng(row) for row in range(2)]
        logits = cupy.asarray(np.zeros((2, 7), "float32"))
        sampler = Sampler(logits, SamplingConfig(temperature=temperature), generators, None, False, print)
        for _ in range(5):
            sampler.draw(logits)
        for row, generator in enumerate(generators):
            assert generator.random() == np.random.default_rng(row).random(n + 1)[-1]


@pytest.mark.parametrize("kind", ["keys", "values"])
def test_a_key_or_value_that_is_no_number_is_seen_in_the_logits(gpu, kind):
    """Its sequence's are no numbers either, and those of the other stay as they are; one that nobody sees does no harm."""
    _, model = models()
    tokens = np.random.default_rng(0).integers(0, 61, (2, 4))
    logits = []
    for slot in (None, 0, 3):                                          # slot 3 is not filled yet
        kv_cache = KVCache(model, batch_size=2)
        model.forward(tokens[:, :2], kv_cache=kv_cache)
        if slot is not None:
            getattr(kv_cache, kind)[:, 1, :, slot] = np.nan
        logits.append(to_numpy(decode.Decoder(model, kv_cache).step(tokens[:, 2])))
    plain, seen, unseen = logits
    assert np.isnan(seen[1]).all()
    assert_same_bits(seen[0], plain[0])
    assert_same_bits(unseen, plain)
