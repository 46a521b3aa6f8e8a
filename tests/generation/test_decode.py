"""Decoder: the model's own logits, by another way."""

import gc
import threading
import time

import numpy as np
import pytest
from generation.models import LLAMAS, RELATIVES, assert_same_logits, models, random_model, random_tokens
from helpers import unmodified
from hypothesis import given
from hypothesis import strategies as st

from numllama import KVCache
from numllama.backend import BFLOAT16, INT8
from numllama.cpu import products
from numllama.generation import decode, gemv
from numllama.generation.decode import Decoder, is_plain
from numllama.generation.steps import padded
from numllama.model import Transformer
from numllama.model.parameters import copied_parameters


def steps(decoder, tokens):
    """Logits (B, T, V), one token after another."""
    return np.stack([decoder.step(tokens[:, t]).copy() for t in range(tokens.shape[1])], axis=1)


@given(models(), st.integers(1, 5), st.integers(1, 10), st.integers(1, 8), st.sampled_from([0, 2**30]))
def test_each_step_is_the_full_forwards_last_place(model, B, T, n, shared_products):
    tokens = random_tokens(model, B, T + n)
    cache = KVCache(model, batch_size=B, capacity=T)
    model.forward(tokens[:, :T], kv_cache=cache)
    expected = model.forward(tokens)
    with shared(shared_products):
        assert_same_logits(steps(Decoder(model, cache), tokens[:, T:]), expected[:, T:])
    assert cache.length == T + n


@given(models(), st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 6))
def test_sequences_that_begin_apart_are_each_as_if_alone(model, lengths, n):
    alone = [random_tokens(model, 1, length + n, seed)[0] for seed, length in enumerate(lengths)]
    tokens, starts = padded(alone)
    cache = KVCache(model, batch_size=len(lengths), starts=starts)
    model.forward(tokens[:, :-n], kv_cache=cache)
    logits = steps(Decoder(model, cache), tokens[:, -n:])
    for row, prompt in zip(logits, alone, strict=True):
        assert_same_logits(row, model.forward(prompt[None])[0, -n:])


@given(models(kinds=LLAMAS, max_seq_len=8), st.integers(1, 3), st.integers(1, 8))
def test_a_window_slides_as_it_does_for_the_model(model, B, window):
    tokens = random_tokens(model, B, 30)
    ours, theirs = (KVCache(model, batch_size=B, capacity=3, window=window) for _ in range(2))
    decoder = Decoder(model, ours)
    expected = np.concatenate([model.forward(tokens[:, t : t + 1], kv_cache=theirs) for t in range(30)], axis=1)
    assert_same_logits(steps(decoder, tokens), expected)


@given(models(kinds=LLAMAS), st.integers(1, 6))
def test_products_by_complex_numbers_are_the_same_products(model, n):
    tokens = random_tokens(model, 1, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemv, "COMPLEX_PRODUCTS", 0)
        patch.setattr(gemv, "openblas_threads", lambda: 2)
        decoder = Decoder(model, KVCache(model))
    assert_same_logits(steps(decoder, tokens), model.forward(tokens))


class shared:
    """Cores share all that is larger than this; with more cores than there are."""

    def __init__(self, n):
        self.values = dict(SHARED_PRODUCTS=n, available_cores=lambda: 3)

    def __enter__(self):
        self.old = {name: getattr(decode, name) for name in self.values}
        self._set(self.values)

    def __exit__(self, *_):
        self._set(self.old)

    def _set(self, values):
        for name, value in values.items():
            setattr(decode, name, value)


@pytest.mark.parametrize("B", [1, 3])
def test_any_number_of_cores_gives_the_same_logits(B):
    model = random_model("float32", dim=32, vocab_size=96, ffn_dim=64, n_heads=6, n_kv_heads=3)
    tokens = random_tokens(model, B, 6)
    results = []
    for shared_products in (0, 2**30):
        with shared(shared_products):
            results.append(steps(Decoder(model, KVCache(model, batch_size=B)), tokens))
    assert_same_logits(*results)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_shard_that_fails_is_an_error_and_not_a_wait_without_end(monkeypatch, failing):
    model = random_model(n_heads=6, n_kv_heads=3)
    tokens, cache = random_tokens(model, 2, 3), KVCache(model, batch_size=2)
    with shared(0):
        decoder = Decoder(model, cache)
    assert len(decoder.shards) == 3
    monkeypatch.setattr(decoder.shards[failing], "_swiglu", lambda: [][1])
    with pytest.raises(IndexError):
        decoder.step(tokens[:, 0])
    assert cache.length == 0
    monkeypatch.undo()
    assert_same_logits(steps(decoder, tokens), model.forward(tokens))


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_shards_wait_for_each_other(monkeypatch, slow):
    model = random_model(n_heads=6, n_kv_heads=3)
    tokens = random_tokens(model, 2, 2)
    with shared(0):
        decoder = Decoder(model, KVCache(model, batch_size=2))
    swiglu = decoder.shards[slow]._swiglu
    monkeypatch.setattr(decoder.shards[slow], "_swiglu", lambda: time.sleep(0.02) or swiglu())
    assert_same_logits(steps(decoder, tokens), model.forward(tokens))


def test_shards_see_new_weights_too():
    model = random_model(n_heads=6, n_kv_heads=3)
    with shared(0):
        decoder = Decoder(model, KVCache(model, batch_size=2))
    model.params.flat[...] = random_model(seed=9, n_heads=6, n_kv_heads=3).params.flat
    assert_same_logits(decoder.step(np.array([3, 1])), model.forward(np.array([[3], [1]]))[:, -1])


def test_threads_do_not_stay():
    model = random_model()
    before = set(threading.enumerate())
    with shared(0):
        Decoder(model, KVCache(model, batch_size=2)).step(np.array([1, 2]))
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


def test_it_goes_on_when_the_cache_grows_or_goes_back():
    model = random_model()
    tokens = random_tokens(model, 2, 20)
    cache = KVCache(model, batch_size=2, capacity=2)
    decoder = Decoder(model, cache)
    for t in range(20):
        decoder.step(tokens[:, t])
    cache.rewind(7)
    assert_same_logits(decoder.step(tokens[:, 9]), model.forward(np.c_[tokens[:, :7], tokens[:, 9]])[:, -1])


def test_rope_reaches_further_than_one_table():
    model = random_model(max_seq_len=3 * decode.TABLE)
    tokens = random_tokens(model, 1, 2 * decode.TABLE + 3)
    cache = KVCache(model)
    decoder = Decoder(model, cache)
    for t in range(tokens.shape[1]):
        logits = decoder.step(tokens[:, t])
    assert_same_logits(logits, model.forward(tokens)[:, -1])


def test_the_weights_stay_as_they_are():
    model = random_model()
    with unmodified(model.params.flat):
        Decoder(model, KVCache(model, batch_size=2)).step(np.array([1, 2]))


def test_new_weights_are_used_at_once():
    """The decoder looks at the weights, it has no copies of them."""
    model = random_model()
    decoder = Decoder(model, KVCache(model))
    model.params.flat[...] = random_model(seed=9).params.flat
    assert_same_logits(decoder.step(np.array([3])), model.forward(np.array([[3]]))[:, -1])


def test_a_full_cache_is_refused_and_nothing_changes():
    model = random_model(max_seq_len=4)
    cache = KVCache(model)
    decoder = Decoder(model, cache)
    for t in range(4):
        decoder.step(np.array([t]))
    with pytest.raises(ValueError, match="5 tokens long, but max_seq_len is 4"):
        decoder.step(np.array([1]))
    assert cache.length == 4


@pytest.mark.parametrize("kind", LLAMAS)
def test_a_llama_is_decoded_by_its_own_pass(kind):
    assert is_plain(random_model(**kind))


@pytest.mark.parametrize("kind", RELATIVES)
def test_anything_else_by_the_models_forward(kind):
    assert not is_plain(random_model(**kind))


def stored_as(dtype, model):
    return Transformer(model.config, params=copied_parameters(model.config, model.params, dtype))


@pytest.mark.parametrize("dtype", [BFLOAT16, INT8], ids=str)
def test_without_onednn_weights_in_fewer_bytes_are_left_to_the_models_forward(without_onednn, dtype):
    small = stored_as(dtype, random_model("float32"))
    assert not is_plain(small)
    tokens = random_tokens(small, 2, 6)
    assert_same_logits(steps(Decoder(small, KVCache(small, batch_size=2)), tokens), small.forward(tokens))


# In float32 both are the same; a number between two of bfloat16's or int8's may be rounded up here and down there.
STORED = [
    pytest.param(dtype, rtol, marks=pytest.mark.skipif(not has_units, reason=f"needs oneDNN and a CPU that multiplies {dtype}"))
    for dtype, has_units, rtol in ((BFLOAT16, products.multiplies_bfloat16(), 4e-3), (INT8, products.multiplies_int8(), 6e-3))
]


@pytest.mark.parametrize(("dtype", "rtol"), STORED)
@pytest.mark.parametrize("B", [1, 2, 5])
@pytest.mark.parametrize("kind", LLAMAS)
def test_weights_in_fewer_bytes_are_decoded_by_onednn_as_the_model_computes_them(kind, B, dtype, rtol):
    small = stored_as(dtype, random_model("float32", **kind))
    assert is_plain(small)
    tokens = random_tokens(small, B, 6)
    cache = KVCache(small, batch_size=B)
    small.forward(tokens[:, :2], kv_cache=cache)
    logits, expected = steps(Decoder(small, cache), tokens[:, 2:]), small.forward(tokens)[:, 2:]
    assert logits.dtype == np.float32
    assert np.linalg.norm(logits - expected) <= rtol * np.linalg.norm(expected)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 64))
def test_blocks_are_a_weight_cut_along_its_rows(O, I, B):  # noqa: E741
    weight = np.arange(O * I).reshape(O, I)
    cut = gemv.blocks(weight, B)
    assert cut.base is not None
    assert (cut.reshape(O, I) == weight).all()
