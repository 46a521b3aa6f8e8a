"""GGUF files that are written here, as llama.cpp opens them, and the published one, which llama.cpp quantised."""

import random

import gguf
import numpy as np
import pytest
from interop.checkpoints import random_model
from interop.llamacpp import LlamaCpp
from interop.published import LANGUAGES, PROMPTS, code, published
from interop.test_gguf import memory_of_opening, write
from parity.tokenizer.strings import draw
from realdata import real_data

import numllama as nl
from numllama.interop.load import save

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def model():
    return nl.load(published())


@pytest.fixture(scope="module")
def tokens():
    return nl.Tokenizer.load(published())


@pytest.fixture(scope="module")
def float32(model, tokens, tmp_path_factory):
    """llama.cpp with the model as it is written in float32."""
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    save(model, path, tokens, "float32")
    return LlamaCpp(path)


def test_ids_of_2000_strings(float32, tokens):
    rng = random.Random(1)
    texts = [*LANGUAGES, *(lines := code()), *(draw(rng, list(tokens.special_tokens)) for _ in range(2000))]
    for text in texts[: len(lines) + 1520]:
        assert float32.encode(text) == tokens.encode(text, allowed_special="all"), text


def test_64_greedy_ids_of_20_prompts(float32, model, tokens):
    for text in PROMPTS:
        ids = tokens.encode(text)
        theirs = float32.greedy(ids, 64)
        ours = nl.generate(model, ids, 64, temperature=0, stop_ids=model.stop_ids)
        assert ours == [i for i in theirs if i not in model.stop_ids], text


def test_the_chat_template_is_in_the_file(float32):
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    answer = float32.ask("/v1/chat/completions", messages=chat, temperature=0, max_tokens=32)["choices"][0]
    assert answer["message"]["content"] == "The capital of France is Paris." and answer["finish_reason"] == "stop"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_other_types_open_too(model, tokens, tmp_path, dtype):
    save(model, tmp_path / "x.gguf", tokens, dtype)
    ids = tokens.encode("The capital of France is")
    ours = nl.generate(nl.load(tmp_path / "x.gguf"), ids, 4, temperature=0)
    assert LlamaCpp(tmp_path / "x.gguf").greedy(ids, 4) == ours


def test_opening_takes_little_more_memory_than_the_model(tmp_path):
    write(tmp_path / "small.gguf", kind=gguf.GGMLQuantizationType.Q4_1)
    peak, model = memory_of_opening(tmp_path / "small.gguf", published())
    assert peak < 1.3 * model, f"{peak:,} bytes for a model of {model:,}"


SHAPE = dict(vocab_size=515, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, max_seq_len=256)
LLAMA_3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
LONGROPE = dict(
    rope_type="longrope", factor=4.0, original_max_position_embeddings=64, short_factor=[1.0 + 0.1 * i for i in range(8)],
    long_factor=[1.0 + i for i in range(8)],
)  # fmt: skip
CASES = {
    "grouped": {}, "tied": dict(tie_embeddings=True), "interleaved": dict(rope_layout="interleaved"), "biases": dict(bias=True),
    "wide_heads": dict(head_dim=32), "llama3": dict(rope_scaling=LLAMA_3, rope_theta=500.0),
    "linear": dict(rope_scaling=dict(rope_type="linear", factor=4.0)), "ffn_biases": dict(bias="ffn"),
    "longrope": dict(rope_scaling=LONGROPE), "biased_experts": dict(ffn="moe", n_experts=4, bias="attention"),
}  # fmt: skip


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_random_models_and_a_tokenizer_of_pieces(tmp_path, changes):
    pieces = nl.Tokenizer.load(real_data("tok512.bin"))
    model = nl.Transformer(nl.ModelConfig(**SHAPE | changes), seed=0)
    model.params.flat[:] = np.random.default_rng(0).standard_normal(model.params.flat.shape) * 0.15
    model.save(tmp_path / "x.gguf", pieces)
    there = LlamaCpp(tmp_path / "x.gguf")
    for text in ("Once upon a time", "the 12 cats", "\n\n a  b", *LANGUAGES[:6]):
        assert there.encode(text) == pieces.encode(text), text
    for seed in range(5):
        ids = [1, *np.random.default_rng(seed).integers(3, 512, 90).tolist()]
        assert there.greedy(ids, 24) == nl.generate(model, ids, 24, temperature=0, stop_ids=[2])


def test_a_llama_with_biases_of_queries_keys_and_values(tmp_path):
    """Written by the `gguf` package; saved here, it is a Qwen 2."""
    pieces, shape = nl.Tokenizer.load(real_data("tok512.bin")), dict(vocab_size=515, dim=256, n_layers=1, n_heads=4, n_kv_heads=2)
    random_model(**shape).save(tmp_path / "tokens.gguf", pieces)
    reader = gguf.GGUFReader(tmp_path / "tokens.gguf")
    values = {key: field.contents() for key, field in reader.fields.items() if key.startswith("tokenizer.")}
    biases = {"blk.0.attn_q.bias": (256,), "blk.0.attn_k.bias": (128,), "blk.0.attn_v.bias": (128,)}
    write(tmp_path / "x.gguf", {**shape, "ffn_dim": 64, "max_seq_len": 256}, values=values, tensors=biases)
    model = nl.load(tmp_path / "x.gguf")
    assert model.config.bias == "qkv"
    model.save(tmp_path / "y.gguf", pieces)
    for name, architecture in (("x.gguf", "llama"), ("y.gguf", "qwen2")):
        assert gguf.GGUFReader(tmp_path / name).fields["general.architecture"].contents() == architecture
        there = LlamaCpp(tmp_path / name)
        for seed in range(3):
            ids = [1, *np.random.default_rng(seed).integers(3, 512, 60).tolist()]
            ours = nl.generate(model, ids, 16, temperature=0, stop_ids=[2])
            assert there.greedy(ids, 16)[: len(ours)] == ours
