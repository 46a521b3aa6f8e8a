"""KVCache: whatever is read from it, the logits are those of the whole sequence at once."""

import numpy as np
import pytest
from generation.models import LLAMAS, RELATIVES, assert_same_logits, cuts, models, random_model, random_tokens
from helpers import assert_close, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st

import numllama as nl
from numllama import KVCache, ops
from numllama.backend import to_numpy
from numllama.generation.steps import padded
from numllama.model.block import Context, layer_forward

PLACES = st.lists(st.integers(0, 100), max_size=4)


@given(models(), st.integers(1, 4), st.integers(1, 20), PLACES, st.integers(1, 25))
def test_logits_are_those_of_the_full_forward_at_every_position_row_and_split(model, B, T, places, capacity):
    tokens = random_tokens(model, B, T)
    cache = KVCache(model, batch_size=B, capacity=capacity)
    parts = [model.forward(tokens[:, part], kv_cache=cache) for part in cuts(T, places)]
    assert_same_logits(np.concatenate(parts, axis=1), model.forward(tokens))
    assert cache.length == T


@pytest.mark.parametrize("kind", LLAMAS + RELATIVES)
def test_so_it_is_for_every_kind_of_model(kind):
    model = random_model(**kind)
    tokens = random_tokens(model, 2, 15)
    cache = KVCache(model, batch_size=2)
    parts = [model.forward(tokens[:, part], kv_cache=cache) for part in cuts(15, (1, 2, 8))]
    assert_same_logits(np.concatenate(parts, axis=1), model.forward(tokens))


@given(models(), st.lists(st.integers(1, 12), min_size=1, max_size=4), PLACES)
def test_sequences_that_begin_apart_are_each_as_if_alone(model, lengths, places):
    alone = [random_tokens(model, 1, length, seed)[0] for seed, length in enumerate(lengths)]
    tokens, starts = padded(alone)
    cache = KVCache(model, batch_size=len(lengths), starts=starts)
    logits = np.concatenate([model.forward(tokens[:, part], kv_cache=cache) for part in cuts(max(lengths), places)], axis=1)
    for row, start, prompt in zip(logits, starts, alone, strict=True):
        assert_same_logits(row[start:], model.forward(prompt[None])[0])


def windowed(model, tokens, window):
    """The logits of whole sequences in which each token sees `window` of them, itself among them: without any cache."""
    T = tokens.shape[1]
    t = np.arange(T)
    cos, sin = (None, None) if model.rope is None else model.rope.table(t)
    context = Context(model.config, t, cos, sin, first=np.maximum(0, t - window + 1), last=t + 1)
    x, branch = None, model._embed_forward(tokens, context)[0]
    for i, w in enumerate(model.params.blocks):
        (x, branch), _ = layer_forward(x, branch, w, context, i)
    (_, n), _ = model._norm(x, branch, context)
    return ops.linear_forward(n, model._head(model.params))[0]


ENDLESS = [{}, dict(rope_layout="interleaved"), dict(qk_norm="rms"), dict(positions="none")]
MANY_PLACES = st.lists(st.integers(0, 100), min_size=6, max_size=12)


@given(models(kinds=ENDLESS, max_seq_len=8), st.integers(1, 3), st.integers(1, 40), st.integers(1, 8), MANY_PLACES)
def test_a_window_slides_over_more_than_max_seq_len(model, B, T, window, places):
    tokens = random_tokens(model, B, T)
    cache = KVCache(model, batch_size=B, capacity=5, window=window)
    parts = [part for wide in cuts(T, places) for part in cuts_of(wide, 8)]
    logits = np.concatenate([model.forward(tokens[:, part], kv_cache=cache) for part in parts], axis=1)
    assert_same_logits(logits, windowed(model, tokens, window))
    assert cache.capacity <= max(16, 2 * (window + 8))


def cuts_of(part, most):
    """A cut, cut again: no part is longer than `most`."""
    return [slice(i, min(i + most, part.stop)) for i in range(part.start, part.stop, most)]


def test_a_window_of_ragged_sequences_hides_what_stands_before_a_beginning():
    model = random_model(max_seq_len=8)
    alone = [random_tokens(model, 1, length, seed)[0] for seed, length in enumerate((15, 9, 2))]
    tokens, starts = padded(alone)
    cache = KVCache(model, batch_size=3, capacity=4, window=5, starts=starts)
    logits = np.concatenate([model.forward(tokens[:, i : i + 1], kv_cache=cache) for i in range(15)], axis=1)
    for row, start, prompt in zip(logits, starts, alone, strict=True):
        assert_same_logits(row[start:], windowed(model, prompt[None], 5)[0])


@pytest.mark.parametrize(("layers", "window", "most"), [(None, None, 8), ((1,), None, 64), (None, 4, 8), ((1,), 4, 8)])
def test_a_model_whose_layers_all_have_a_window_needs_no_more_slots(layers, window, most):
    model = random_model(sliding_window=5, window_layers=layers, max_seq_len=64)
    tokens = random_tokens(model, 2, 60)
    cache = KVCache(model, batch_size=2, capacity=8, window=window)
    logits = np.concatenate([model.forward(tokens[:, i : i + 3], kv_cache=cache) for i in range(0, 60, 3)], axis=1)
    assert cache.capacity == most
    if window is None:
        assert_same_logits(logits, model.forward(tokens))
    elif layers is None:
        assert_same_logits(logits, windowed(random_model(max_seq_len=64), tokens, window))  # the smaller of the two


def test_a_long_text_of_such_a_model_is_that_of_the_whole_forward():
    model = random_model(sliding_window=5, max_seq_len=200)
    ids = random_tokens(model, 1, 30)[0].tolist()
    text = ids + nl.generate(model, ids, 100, temperature=0)
    logits = model.forward(np.array([text]))[0]
    assert text[30:] == logits.argmax(-1)[29:-1].tolist()


def test_it_holds_k_heads_not_h():
    cache = KVCache(random_model(n_heads=6, n_kv_heads=2, head_dim=4, n_layers=3), batch_size=5, capacity=7)
    assert cache.keys.shape == cache.values.shape == (3, 5, 2, 7, 4)


def test_it_grows_by_doubling_and_keeps_what_it_holds():
    model = random_model(max_seq_len=300)
    tokens = random_tokens(model, 2, 300)
    cache = KVCache(model, batch_size=2, capacity=3)
    capacities, logits = set(), []
    for t in range(300):
        logits.append(model.forward(tokens[:, t : t + 1], kv_cache=cache))
        capacities.add(cache.capacity)
    assert sorted(capacities) == [3, 6, 12, 24, 48, 96, 192, 384]  # seven copies for 300 tokens
    assert_close(np.concatenate(logits, axis=1), model.forward(tokens), rtol=1e-12)


def test_its_place_in_memory_stays_while_there_is_room():
    model = random_model()
    cache = KVCache(model, batch_size=1, capacity=32)
    keys = cache.keys
    for t in range(32):
        model.forward(np.array([[t % 19]]), kv_cache=cache)
    assert cache.keys is keys


def test_after_a_rewind_another_text_can_follow():
    model = random_model()
    tokens, other = random_tokens(model, 2, 12), random_tokens(model, 2, 7, seed=5)
    cache = KVCache(model, batch_size=2)
    model.forward(tokens, kv_cache=cache)
    cache.rewind(5)
    expected = model.forward(np.concatenate([tokens[:, :5], other], axis=1))
    assert_same_logits(model.forward(other, kv_cache=cache), expected[:, 5:])


def test_a_window_that_moved_on_cannot_be_rewound_to_where_keys_are_gone():
    model = random_model()
    cache = KVCache(model, batch_size=1, capacity=4, window=4)
    for t in range(20):
        model.forward(np.array([[t % 19]]), kv_cache=cache)
    least = cache.dropped + 3
    assert 10 < least < 20
    with pytest.raises(ValueError, match=f"length is {least - 1}, but this cache can be rewound to {least}..20"):
        cache.rewind(least - 1)
    tokens = np.arange(20)[None] % 19
    cache.rewind(least)
    assert_same_logits(model.forward(tokens[:, least:], kv_cache=cache), windowed(model, tokens, 4)[:, least:])


def test_a_window_that_moved_on_still_knows_what_it_has_seen():
    model = random_model()
    tokens = random_tokens(model, 2, 40)
    cache = KVCache(model, batch_size=2, capacity=4, window=4)
    for t in range(30):
        model.forward(tokens[:, t : t + 1], kv_cache=cache)
    assert cache.dropped > 20
    assert cache.reuse(tokens, np.zeros(2, int)) == 30
    logits = model.forward(tokens[:, 30:], kv_cache=cache)
    assert_same_logits(logits, windowed(model, tokens, 4)[:, 30:])
    tokens[1, 20] += 1                                                     # too far back
    assert cache.reuse(tokens % 19, np.zeros(2, int)) == cache.length == cache.dropped == 0


@pytest.mark.parametrize("length", [-1, 4, 1.5, "1"])
def test_a_rewind_to_nowhere_is_named(length):
    model = random_model()
    cache = KVCache(model)
    model.forward(np.array([[1, 2, 3]]), kv_cache=cache)
    with pytest.raises(ValueError, match=r"length is .*, but this cache can be rewound to 0\.\.3"):
        cache.rewind(length)


def test_what_a_new_text_has_in_common_is_kept():
    model = random_model()
    cache = KVCache(model, batch_size=2)
    old = random_tokens(model, 2, 9)
    model.forward(old, kv_cache=cache)
    new = old[:, :8].copy()
    new[1, 6] += 1
    assert cache.reuse(new % 19, np.zeros(2, int)) == cache.length == 6
    assert cache.reuse(old, np.zeros(2, int)) == 6                         # no more than what is left
    assert KVCache(model, batch_size=2).reuse(old, np.zeros(2, int)) == 0


def test_the_last_token_is_computed_again_for_the_model_has_to_say_what_follows():
    model = random_model()
    cache = KVCache(model)
    tokens = random_tokens(model, 1, 6)
    model.forward(tokens, kv_cache=cache)
    assert cache.reuse(tokens, np.zeros(1, int)) == 5
    assert cache.reuse(tokens[:, :1], np.zeros(1, int)) == 0


def test_padding_does_not_have_to_agree_but_beginnings_do():
    model = random_model()
    tokens = random_tokens(model, 2, 8)
    starts = np.array([0, 3])
    cache = KVCache(model, batch_size=2, starts=starts)
    model.forward(tokens, kv_cache=cache)
    other = tokens.copy()
    other[1, :3] = 0
    assert cache.reuse(other, starts) == 7
    assert cache.reuse(other, np.array([0, 2])) == 0
    assert cache.starts.tolist() == [0, 2]


def test_rows_are_taken_in_any_order_and_number():
    model = random_model()
    tokens, starts = random_tokens(model, 3, 6), np.array([0, 2, 4])
    cache = KVCache(model, batch_size=3, starts=starts)
    model.forward(tokens[:, :5], kv_cache=cache)
    rows = [2, 0, 0, 1]
    cache.take(rows)
    after = model.forward(tokens[rows, 5:], kv_cache=cache)
    for row, origin in enumerate(rows):
        assert_same_logits(after[row], model.forward(tokens[origin : origin + 1, starts[origin] :])[0, -1:])


def test_a_failed_pass_counts_nothing():
    model = random_model(max_seq_len=6)
    cache = KVCache(model)
    tokens = random_tokens(model, 1, 6)
    model.forward(tokens[:, :4], kv_cache=cache)
    with pytest.raises(ValueError, match="the sequence would be 7 tokens long, but max_seq_len is 6"):
        model.forward(tokens[:, :3], kv_cache=cache)
    with pytest.raises(ValueError, match="tokens holds 19"):
        model.forward(np.array([[19]]), kv_cache=cache)
    assert cache.length == 4
    assert_same_logits(model.forward(tokens[:, 4:], kv_cache=cache), model.forward(tokens)[:, 4:])


def test_a_shorter_sequence_may_go_on_no_longer_than_the_longest():
    model = random_model(max_seq_len=6)
    cache = KVCache(model, batch_size=2, starts=[0, 3])
    model.forward(random_tokens(model, 2, 6), kv_cache=cache)
    with pytest.raises(ValueError, match="7 tokens long"):
        model.forward(random_tokens(model, 2, 1), kv_cache=cache)


def test_learned_positions_end_with_or_without_a_window():
    model = random_model(positions="learned", max_seq_len=6)
    cache = KVCache(model, window=3)
    model.forward(random_tokens(model, 1, 6), kv_cache=cache)
    with pytest.raises(ValueError, match=r"the sequence would be 7 tokens long, but max_seq_len is 6$"):
        model.forward(np.array([[1]]), kv_cache=cache)


def test_logits_of_the_last_places_alone():
    model = random_model()
    tokens = random_tokens(model, 2, 7)
    for last in (1, 3, 7, 9):
        assert_same_bits(model.forward(tokens, n_last=last)[:, -1], model.forward(tokens)[:, -1])
        assert model.forward(tokens, n_last=last).shape == (2, min(last, 7), 19)


@pytest.mark.parametrize(("arguments", "sentence"), [
    (dict(batch_size=0), "batch_size is 0, but must be a whole number of at least 1"),
    (dict(capacity=0), "capacity is 0"),
    (dict(window=0), r"window is 0, but must be a whole number in 1\.\.32, the model's max_seq_len"),
    (dict(window=33), "window is 33"),
    (dict(window=2.5), "window is 2.5"),
    (dict(batch_size=2, starts=[1]), "starts has shape"),
])  # fmt: skip
def test_an_impossible_cache_is_named(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        KVCache(random_model(), **arguments)


def test_another_number_of_sequences_is_named():
    model = random_model()
    with pytest.raises(ValueError, match=r"kv_cache holds 2 sequence\(s\), but tokens has 3"):
        model.forward(random_tokens(model, 3, 2), kv_cache=KVCache(model, batch_size=2))


def test_on_every_device(device):
    model = random_model()
    there = type(model)(model.config, device=device, dtype="float64")
    there.params.flat[...] = there.xp.asarray(model.params.flat)
    tokens = random_tokens(model, 2, 9)
    cache = KVCache(there, batch_size=2, capacity=4)
    parts = [to_numpy(there.forward(tokens[:, part], kv_cache=cache)) for part in cuts(9, (2, 3, 7))]
    assert_same_logits(np.concatenate(parts, axis=1), model.forward(tokens))
