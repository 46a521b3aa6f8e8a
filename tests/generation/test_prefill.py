"""Prefill: a prompt in slices on several cores gives the same as on one core."""

import platform
import subprocess
import sys
import threading

import numpy as np
import pytest
from generation.models import assert_same_logits, models, random_model, random_tokens
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from numllama import KVCache
from numllama.cpu import products
from numllama.generation import prefill as module
from numllama.generation.steps import padded
from numllama.model import Transformer


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Pieces of three tokens at least, on up to four cores, in rounds of forty."""
    monkeypatch.setattr(module, "SLICE_TOKENS", 3)
    monkeypatch.setattr(module, "CHUNK_TOKENS", 40)
    monkeypatch.setattr(module, "available_cores", lambda: 4)


@given(models(max_seq_len=64), st.lists(st.integers(1, 64), min_size=1, max_size=3), st.integers(1, 4))
def test_logits_and_cache_are_those_of_the_full_forward(model, lengths, new):
    prompts = [random_tokens(model, 1, length, seed)[0] for seed, length in enumerate(lengths)]
    tokens, starts = padded(prompts)
    cache = KVCache(model, batch_size=len(lengths), capacity=4, starts=starts)
    logits = module.prefill(model, tokens, cache)
    for row, prompt in zip(logits, prompts, strict=True):
        assert_same_logits(row, model.forward(prompt[None])[0, -1])
    whole = KVCache(model, batch_size=len(lengths), capacity=64, starts=starts)
    model.forward(tokens, kv_cache=whole)
    assert cache.length == whole.length == tokens.shape[1]
    for row, start in enumerate(starts):
        first = max(start, cache.dropped)  # a model whose layers all have a window keeps no more
        for ours, theirs in ((cache.keys, whole.keys), (cache.values, whole.values)):
            assert_same_logits(ours[:, row, :, first - cache.dropped : cache.used], theirs[:, row, :, first : cache.length])


@given(st.integers(0, 30), st.integers(1, 60))
def test_behind_what_a_cache_holds(before, length):
    model = random_model(max_seq_len=90)
    tokens = random_tokens(model, 2, before + length)
    cache = KVCache(model, batch_size=2)
    if before:
        model.forward(tokens[:, :before], kv_cache=cache)
    assert_same_logits(module.prefill(model, tokens[:, before:], cache), model.forward(tokens)[:, -1])


@given(models(), st.integers(1, 3), st.integers(1, 12), st.integers(0, 15))
def test_only_the_last_tokens_logits_where_no_more_are_asked_for(model, B, T, last):
    tokens = random_tokens(model, B, T)
    logits = model.forward(tokens, n_last=last)
    assert logits.shape == (B, min(T, last), model.config.vocab_size)
    if last:
        assert_same_logits(logits, model.forward(tokens)[:, max(0, T - last) :])


def test_a_prompt_longer_than_the_model_slides_through_its_window():
    model = random_model(max_seq_len=16)
    tokens = random_tokens(model, 2, 100)
    ours, slow = KVCache(model, batch_size=2, window=10), KVCache(model, batch_size=2, window=10)
    for t in range(100):
        expected = model.forward(tokens[:, t : t + 1], kv_cache=slow)[:, -1]
    assert_same_logits(module.prefill(model, tokens, ours), expected)
    assert ours.capacity < 80


def test_the_memory_for_activations_does_not_grow_with_the_prompt(monkeypatch):
    model = random_model(max_seq_len=500)
    sizes = []
    plain = Transformer.forward
    monkeypatch.setattr(Transformer, "forward", lambda self, tokens, **kw: sizes.append(tokens.size) or plain(self, tokens, **kw))
    for B in (1, 3):
        module.prefill(model, random_tokens(model, B, 300), KVCache(model, batch_size=B))
    assert max(sizes) <= 40


def test_each_core_has_its_part(monkeypatch):
    model = random_model(max_seq_len=64)
    threads = set()
    plain = Transformer.forward
    monkeypatch.setattr(
        Transformer, "forward", lambda self, tokens, **kw: threads.add(threading.get_ident()) or plain(self, tokens, **kw)
    )
    module.prefill(model, random_tokens(model, 1, 40), KVCache(model))
    assert len(threads) > 1


@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_a_slice_that_fails_is_an_error_and_not_a_wait_without_end(monkeypatch, failing):
    model = random_model(max_seq_len=64)
    cache = KVCache(model)
    append = module.PromptSlice.append

    def broken(part, layer, k, v):
        if part.i == failing and layer == 1:
            raise MemoryError("no more")
        return append(part, layer, k, v)

    monkeypatch.setattr(module.PromptSlice, "append", broken)
    with pytest.raises(MemoryError, match="no more"):
        module.prefill(model, random_tokens(model, 1, 40), cache)
    assert cache.length == 0
    monkeypatch.undo()
    tokens = random_tokens(model, 1, 40)
    assert_same_logits(module.prefill(model, tokens, cache), model.forward(tokens)[:, -1])


@given(st.integers(1, 3000), st.integers(1, 64), st.integers(0, 5000), st.integers(1, 64))
def test_slices_are_cut_so_that_all_take_equally_long(T, n, before, ffn_dim):
    config = random_model(ffn_dim=8 * ffn_dim, dim=256, n_heads=4, head_dim=32).config
    n = min(n, T)
    bounds = module.balanced_cuts(T, n, before, config)
    assert (bounds[0], bounds[-1]) == (0, T)
    lengths = np.diff(bounds)
    assert lengths.min() >= 1
    assert (np.diff(lengths) <= 1).all()                                   # the further back, the fewer tokens
    if n == 2 and before == 0 and T > 2000:
        assert bounds[1] > 0.55 * T


def test_threads_do_not_stay():
    model = random_model(max_seq_len=64)
    before = threading.active_count()
    module.prefill(model, random_tokens(model, 1, 40), KVCache(model))
    assert threading.active_count() == before


def test_the_settings_of_the_process_are_put_back():
    model = random_model(max_seq_len=64)
    before = sys.getswitchinterval(), [pool["num_threads"] for pool in threadpool_info()]
    module.prefill(model, random_tokens(model, 1, 40), KVCache(model))
    assert (sys.getswitchinterval(), [pool["num_threads"] for pool in threadpool_info()]) == before


FAULTS = """
import resource
import numpy as np
import numllama as nl

model = nl.Transformer(nl.ModelConfig(vocab_size=300, dim=288, n_layers=6, n_heads=6, ffn_dim=768, max_seq_len=256))

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    nl.generate(model, np.arange(256), 1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print([faults() for _ in range(4)][-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another")
def test_the_memory_of_one_prompt_is_there_for_the_next():
    faults = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    assert int(faults) < 500  # pages; 2,500 of them where each is faulted in again


@pytest.mark.skipif(not products.multiplies_bfloat16(), reason="needs oneDNN and a CPU that multiplies bfloat16")
def test_with_weights_in_bfloat16_the_cores_share_each_product(monkeypatch):
    model = Transformer(random_model(max_seq_len=64).config, dtype="bfloat16")
    tokens = random_tokens(model, 2, 40)
    expected = model.forward(tokens)[:, -1]
    monkeypatch.setattr(module, "PromptSlice", None)
    np.testing.assert_allclose(module.prefill(model, tokens, KVCache(model, batch_size=2)), expected, atol=0.05)
