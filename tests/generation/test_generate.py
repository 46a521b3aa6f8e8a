"""generate and stream: against plain forward passes, and the promises about seeds, batches, windows and arguments."""

import numpy as np
import pytest
from generation.models import DTYPES, models, random_model, random_tokens
from hypothesis import given
from hypothesis import strategies as st

from numllama import KVCache, SamplingConfig, generate, generate_batch, stream
from numllama.errors import GenerationError
from numllama.generation.sampling import log_softmax
from numllama.model import ModelConfig, Transformer

VOCAB = 11


@pytest.fixture(scope="module")
def model() -> Transformer:
    """A small model with decided opinions: its initial weights are large."""
    return Transformer(ModelConfig(VOCAB, 16, 2, 2, max_seq_len=64, init_std=0.5), seed=3, dtype="float64")


def last_logits(model, ids):
    return model.forward(np.array([ids]))[0, -1]


def test_temperature_zero_takes_the_likeliest_token_each_time(model):
    ids = [1, 2]
    for _ in range(4):
        ids.append(int(last_logits(model, ids).argmax()))
    assert generate(model, [1, 2], 4, temperature=0) == ids[2:]


ENDS = list(range(VOCAB))


@pytest.mark.parametrize("said", [{"do_sample": False}, {"temperature": 0.01}, {"top_k": 1}, {"eos_token_id": ENDS}])
def test_settings_are_those_given_and_not_the_checkpoints(model, said, monkeypatch):
    ids = generate(model, [1, 2], 12, seed=0)
    assert ids != generate(model, [1, 2], 12, seed=0, temperature=0)
    monkeypatch.setattr(model, "generation_config", said)
    assert generate(model, [1, 2], 12, seed=0) == ids == list(stream(model, [1, 2], 12, seed=0))


def test_only_new_ids_are_returned_as_plain_numbers(model):
    ids = generate(model, np.array([1, 2, 3]), 5, seed=0)
    assert len(ids) == 5
    assert all(type(i) is int and 0 <= i < VOCAB for i in ids)
    assert generate(model, [1, 2, 3], 0) == []


def test_the_prompt_is_not_changed(model):
    prompt = [1, 2]
    generate(model, prompt, 3, seed=0)
    assert prompt == [1, 2]


def test_a_seed_names_the_text(model):
    assert generate(model, [1], 20, seed=5) == generate(model, [1], 20, seed=5)
    assert generate(model, [1], 20, seed=5) != generate(model, [1], 20, seed=6)


def test_the_first_token_follows_the_softmax_of_the_logits(model):
    logits = last_logits(model, [4]) / 0.7
    p = np.exp(logits - logits.max())
    p /= p.sum()
    draws = np.array([generate(model, [4], 1, temperature=0.7, seed=seed)[0] for seed in range(1000)])
    counts = np.bincount(draws, minlength=VOCAB)
    chi_square = ((counts - 1000 * p) ** 2 / (1000 * p)).sum()
    assert chi_square < 35.6  # ten degrees of freedom: chance of more is 0.0001


def test_top_k_draws_from_the_likeliest_tokens_only(model):
    likeliest = set(last_logits(model, [4]).argsort()[-3:].tolist())
    drawn = {generate(model, [4], 1, temperature=5.0, top_k=3, seed=seed)[0] for seed in range(200)}
    assert drawn == likeliest


def test_top_k_of_one_is_greedy(model):
    assert generate(model, [4], 10, temperature=3.0, top_k=1, seed=0) == generate(model, [4], 10, temperature=0)


def test_a_higher_temperature_makes_unlikely_tokens_likelier(model):
    top = int(last_logits(model, [4]).argmax())
    hits = [sum(generate(model, [4], 1, temperature=t, seed=seed)[0] == top for seed in range(200)) for t in (0.2, 1.0, 20.0)]
    assert hits[0] > hits[1] > hits[2]


def test_logits_too_large_for_exp_still_give_a_distribution(model):
    assert generate(model, [4], 3, temperature=1e-4, seed=0) == generate(model, [4], 3, temperature=0)


# ------------------------------------------------------------------------------------------------ batches


def greedy(model, prompt, n):
    """Without a cache."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(last_logits(model, ids).argmax()))
    return ids[len(prompt) :]


@given(models(max_seq_len=40), st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(1, 12))
def test_a_batch_of_ragged_prompts_is_each_prompt_alone(model, lengths, n):
    prompts = [random_tokens(model, 1, length, seed)[0].tolist() for seed, length in enumerate(lengths)]
    together = generate(model, prompts, n, temperature=0)
    assert together == [generate(model, prompt, n, temperature=0) for prompt in prompts]
    if model.compute_dtype == np.float64:
        assert together == [greedy(model, prompt, n) for prompt in prompts]


def test_a_row_is_drawn_as_it_would_be_alone(model):
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    together = generate(model, prompts, 15, seed=3, top_p=0.9)
    assert together == [generate(model, prompt, 15, seed=3 + row, top_p=0.9) for row, prompt in enumerate(prompts)]


def test_rows_have_seeds_of_their_own(model):
    prompts, seeds = [[1, 2, 3], [4], [5, 6]], [8, 3, 0]
    alone = [generate(model, prompt, 15, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    assert generate(model, prompts, 15, seed=seeds) == alone


def test_a_batch_of_one_is_a_batch(model):
    assert generate(model, [[1, 2]], 3, seed=0) == [generate(model, [1, 2], 3, seed=0)]
    assert generate(model, np.array([[1, 2]]), 3, seed=0) == [generate(model, [1, 2], 3, seed=0)]


def test_generate_batch_takes_prompts_only_and_gives_a_list_for_each(model):
    assert generate_batch(model, [[1, 2]], 3, seed=0) == [generate(model, [1, 2], 3, seed=0)]
    assert generate_batch(model, [[1, 2], [3]], 9, seed=0, n=2) == generate(model, [[1, 2], [3]], 9, seed=0, n=2)
    generated = generate_batch(model, np.array([[1, 2], [3, 4]]), 5, seed=0, logprobs=True)
    assert (generated.ids, generated.logprobs) == generate(model, [[1, 2], [3, 4]], 5, seed=0, logprobs=True)
    with pytest.raises(TypeError, match=r"^prompt_ids is one prompt, but must be a sequence of prompts; generate continues one$"):
        generate_batch(model, [1, 2], 3)


def test_n_samples_of_each_prompt(model):
    prompts = [[1, 2, 3], [4]]
    samples = generate(model, prompts, 12, seed=5, n=3)
    assert samples == [[generate(model, prompt, 12, seed=5 + 3 * i + j) for j in range(3)] for i, prompt in enumerate(prompts)]
    assert generate(model, prompts[0], 12, seed=5, n=3) == samples[0]
    assert len({tuple(ids) for group in samples for ids in group}) == 6


def test_log_probabilities_are_the_models_own_before_any_filter(model):
    prompts = [[1, 2, 3], [4]]
    ids, logprobs = generate(model, prompts, 8, temperature=0.7, top_k=4, repetition_penalty=1.3, seed=2, n=2, logprobs=True)
    for prompt, rows, chances in zip(prompts, ids, logprobs, strict=True):
        for new, row in zip(rows, chances, strict=True):
            logits = model.forward(np.array([prompt + new]))[0, len(prompt) - 1 : -1]
            expected = log_softmax(logits)[np.arange(8), new]
            assert row == pytest.approx(expected.tolist(), rel=1e-10)
            assert all(type(value) is float for value in row)


def test_the_repetition_penalty_knows_the_prompt_and_the_text_so_far(model):
    ids = generate(model, [[1, 2], [3]], VOCAB - 2, temperature=0, repetition_penalty=1e9)
    for prompt, new in zip([[1, 2], [3]], ids, strict=True):
        for length in range(len(new)):                                     # logits near 0 stay, if all new ones are negative
            logits = last_logits(model, prompt + new[:length])
            seen = list({*prompt, *new[:length]})
            logits[seen] = np.where(logits[seen] < 0, logits[seen] * 1e9, logits[seen] / 1e9)
            assert new[length] == logits.argmax()


# ------------------------------------------------------------------------------------------------ the end


def test_a_stop_id_ends_a_text_and_is_not_part_of_it(model):
    whole = generate(model, [1, 2], 20, seed=4)
    stop = whole[7]
    assert generate(model, [1, 2], 20, seed=4, stop_ids=[stop]) == whole[: whole.index(stop)]
    assert generate(model, [1, 2], 20, seed=4, stop_ids=stop) == whole[: whole.index(stop)]


def test_several_stop_ids(model):
    whole = generate(model, [1, 2], 20, seed=4)
    stops = [whole[9], whole[5]]
    first = min(whole.index(stop) for stop in stops)
    assert generate(model, [1, 2], 20, seed=4, stop_ids=stops) == whole[:first]


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 5), min_size=1, max_size=6), DTYPES)
def test_texts_of_a_batch_end_apart(seed, lengths, dtype):
    model = random_model(dtype)
    prompts = [random_tokens(model, 1, length, row)[0].tolist() for row, length in enumerate(lengths)]
    settings = dict(stop_ids=[0, 1, 2], repetition_penalty=1.2)
    ids, logprobs = generate(model, prompts, 20, seed=seed, logprobs=True, **settings)
    for row, prompt in enumerate(prompts):
        alone, chances = generate(model, prompt, 20, seed=seed + row, logprobs=True, **settings)
        assert ids[row] == alone
        assert logprobs[row] == pytest.approx(chances, rel=1e-4)
    assert not {0, 1, 2} & {i for row in ids for i in row}


def test_a_stop_id_at_once_is_an_empty_text(model):
    first = generate(model, [1, 2], 1, temperature=0)
    assert generate(model, [1, 2], 5, temperature=0, stop_ids=first) == []
    assert generate(model, [[1, 2]], 5, temperature=0, stop_ids=first, logprobs=True) == ([[]], [[]])


def test_nothing_new(model):
    assert generate(model, [1, 2, 3], 0) == []
    assert generate(model, [[1], [2]], 0, n=2, logprobs=True) == ([[[], []], [[], []]], [[[], []], [[], []]])
    assert list(stream(model, [1], 0)) == []


# ------------------------------------------------------------------------------------------------ streams


def test_a_stream_is_the_same_ids_one_by_one(model):
    assert list(stream(model, [1, 2], 12, seed=6, top_k=5)) == generate(model, [1, 2], 12, seed=6, top_k=5)


def test_a_stream_comes_as_it_is_made(model, monkeypatch):
    forwards = []
    plain = Transformer.forward
    monkeypatch.setattr(Transformer, "forward", lambda self, *args, **kwargs: forwards.append(1) or plain(self, *args, **kwargs))
    ids = stream(model, [1, 2], 12, seed=6)
    assert not forwards
    next(ids)
    assert len(forwards) == 1


def test_a_stream_of_a_batch_has_none_where_a_text_has_ended(model):
    prompts = [[1, 2], [3], [4, 5]]
    stops = [0, 1, 2]
    columns = list(zip(*stream(model, prompts, 15, seed=1, stop_ids=stops), strict=True))
    expected = generate(model, prompts, 15, seed=1, stop_ids=stops)
    assert [[i for i in column if i is not None] for column in columns] == expected
    for column, ids in zip(columns, expected, strict=True):
        assert set(column[len(ids) :]) <= {None}


def test_a_stream_says_what_is_wrong_before_the_first_token(model):
    with pytest.raises(ValueError, match="prompt_ids is empty"):
        stream(model, [], 5)
    with pytest.raises(ValueError, match="top_p is 2"):
        stream(model, [1], 5, top_p=2)


# ------------------------------------------------------------------------------------------------ windows and caches


def test_a_window_has_no_end(model):
    prompt = np.random.default_rng(0).integers(0, VOCAB, 100).tolist()
    ids = generate(model, prompt, 200, temperature=0, window=8)
    assert len(ids) == 200
    cache = KVCache(model, window=8)
    logits = [model.forward(np.array([[i]]), kv_cache=cache)[0, -1] for i in prompt + ids]
    assert ids == [int(row.argmax()) for row in logits[len(prompt) - 1 : -1]]


def test_a_window_as_wide_as_the_text_changes_nothing(model):
    assert generate(model, [1, 2, 3], 30, seed=0, window=64) == generate(model, [1, 2, 3], 30, seed=0)


def test_a_text_may_fill_max_seq_len_for_the_last_token_is_not_looked_at(model):
    prompt = [1] * 60
    assert len(generate(model, prompt, 5, seed=0)) == 5
    with pytest.raises(ValueError, match=r"a prompt of 60 tokens and 6 new ones do not fit: max_seq_len is 64 \(a sliding wind"):
        generate(model, prompt, 6, seed=0)


def test_a_prompt_that_is_too_long_is_named(model):
    with pytest.raises(ValueError, match=r"a prompt of 65 tokens and 1 new ones do not fit: max_seq_len is 64"):
        generate(model, [1] * 65, 1)


def counted(monkeypatch):
    """How many tokens went through the model's forward."""
    tokens = []
    plain = Transformer.forward

    def forward(self, ids, *args, **kwargs):
        tokens.append(ids.shape[1])
        return plain(self, ids, *args, **kwargs)

    monkeypatch.setattr(Transformer, "forward", forward)
    return tokens


def test_what_a_cache_holds_is_not_computed_again(model, monkeypatch):
    tokens = counted(monkeypatch)
    prompt = np.random.default_rng(0).integers(0, VOCAB, 20).tolist()
    cache = KVCache(model)
    new = generate(model, prompt, 5, seed=0, kv_cache=cache)
    assert (new, cache.length) == (generate(model, prompt, 5, seed=0), 24)
    del tokens[:]
    longer = prompt + new + [1, 2, 3]
    assert generate(model, longer, 5, seed=0, kv_cache=cache) == generate(model, longer, 5, seed=0)
    assert tokens == [4, 28]                                               # the last new token and three more; all of them
    other = prompt[:10] + [5] * 6
    assert generate(model, other, 5, temperature=0, kv_cache=cache) == generate(model, other, 5, temperature=0)


LONGROPE = dict(rope_type="longrope", factor=4.0, original_max_position_embeddings=8, short_factor=[1, 1], long_factor=[2, 9])


def greedy_without_a_cache(model, ids, n):
    for _ in range(n):
        ids = [*ids, int(model.forward(np.array([ids]), n_last=1)[0, -1].argmax())]
    return ids[-n:]


def test_keys_are_computed_again_where_longrope_goes_from_one_list_to_the_other():
    model = random_model(rope_scaling=LONGROPE, rope_theta=20.0)
    cache, long = KVCache(model), list(range(12))
    for prompt in (long[:3], long[:6], long, long[:5], long[:7]):  # texts that share a beginning, shorter and longer than 8
        expected = greedy_without_a_cache(model, prompt, 6)
        assert generate(model, prompt, 6, temperature=0, kv_cache=cache) == expected
        assert generate(model, prompt, 6, temperature=0, n=2) == [expected] * 2
    pair = generate_batch(model, [long[:7], long[:9]], 6, temperature=0)  # both have the list of the longer one
    assert pair[1] == greedy_without_a_cache(model, long[:9], 6)


def test_a_batch_has_a_cache_too(model):
    prompts = [[1, 2, 3, 4], [5, 6]]
    cache = KVCache(model, batch_size=2)
    first = generate(model, prompts, 6, seed=0, kv_cache=cache)
    longer = [prompt + new + [7] for prompt, new in zip(prompts, first, strict=True)]
    assert generate(model, longer, 6, seed=1, kv_cache=cache) == generate(model, longer, 6, seed=1)


def test_settings_in_one(model):
    config = SamplingConfig(temperature=0.5, top_k=3, seed=9, stop_ids=(4,))
    assert generate(model, [1], 12, sampling=config) == generate(model, [1], 12, temperature=0.5, top_k=3, seed=9, stop_ids=(4,))
    with pytest.raises(ValueError, match="sampling holds all settings"):
        generate(model, [1], 12, sampling=config, top_p=0.5)


def test_on_every_device(device):
    model = Transformer(ModelConfig(VOCAB, 16, 2, 2, max_seq_len=64, init_std=0.5), seed=3, dtype="float64", device=device)
    here = Transformer(model.config, seed=3, dtype="float64")
    settings = dict(seed=2, top_p=0.9, repetition_penalty=1.1, stop_ids=[0], n=2, logprobs=True)
    ids, logprobs = generate(model, [[1, 2, 3], [4]], 20, **settings)
    expected_ids, expected = generate(here, [[1, 2, 3], [4]], 20, **settings)
    assert ids == expected_ids
    assert [sum(row) for rows in logprobs for row in rows] == pytest.approx([sum(row) for rows in expected for row in rows])


# ------------------------------------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(("name", "value", "what"), [
    ("norm", np.nan, "NaN"), ("embed", np.inf, "NaN"), ("blocks.1.w_down", -np.inf, "NaN"), ("blocks.0.wq", np.nan, "NaN"),
])  # fmt: skip
@pytest.mark.parametrize("settings", [dict(temperature=0), dict(), dict(top_k=3), dict(top_p=0.9), dict(min_p=0.1), dict(n=3)])
def test_a_parameter_that_is_not_finite_is_named(name, value, what, settings):
    broken = random_model("float32", vocab_size=VOCAB)
    broken.params[name][0] = value
    with pytest.raises(GenerationError, match=f"logits hold {what}, because its parameter {name} is not finite"):
        generate(broken, [[1, 2], [0]], 4, seed=0, **settings)


@pytest.mark.parametrize("kind", [{}, dict(norm="layernorm", ffn="gelu", positions="learned", bias=True)])
@pytest.mark.parametrize("long", [False, True])
def test_numbers_that_overflow_on_the_way_are_told_from_damaged_ones(kind, long):
    """Without a warning of NumPy's, in the threads that share a long prompt too."""
    large = random_model("float32", vocab_size=VOCAB, max_seq_len=1024, **kind)
    large.params["blocks.0.w_down"][...] = 3e38
    with pytest.raises(GenerationError, match=r"finite, but too large to compute with in float32 .*3e\+38, in blocks.0.w_down"):
        generate(large, [1, 2] * (400 if long else 1), 4, temperature=0)


def test_logits_that_become_infinite_later_end_the_text_there():
    """The head's row of a token is infinite: only once that token's opposite has come, its logit is."""
    model = Transformer(ModelConfig(vocab_size=4, dim=4, n_layers=1, n_heads=1, max_seq_len=16))
    for name, view in model.params.items():
        view[...] = 1 if "norm" in name else np.eye(4) if name == "embed" else 0
    model.params["head"][2, 1], model.params["head"][3, 2] = 9, 3e38
    ids = stream(model, [1], 4, temperature=0)
    assert next(ids) == 2
    with pytest.raises(GenerationError, match="logits hold infinity: its parameters are finite, but too large"):
        next(ids)


def test_a_token_that_cannot_be_drawn_is_no_error():
    """A logit of -inf is a probability of zero."""
    model = Transformer(ModelConfig(vocab_size=4, dim=4, n_layers=1, n_heads=1, max_seq_len=16))
    for name, view in model.params.items():
        view[...] = 1 if "norm" in name or name == "embed" else 0
    model.params["head"][2], model.params["head"][3] = -3e38, 1
    assert set(generate(model, [1], 8, seed=0)) <= {0, 1, 3}


IMPOSSIBLE = [
    (dict(prompt_ids=[]), "prompt_ids is empty, but at least one token is needed to begin with"),
    (dict(prompt_ids=[[1], []]), r"prompt_ids\[1\] is empty"),
    (dict(max_new_tokens=-1), "max_new_tokens is -1, but must be a whole number that is not negative"),
    (dict(max_new_tokens=2.5), "max_new_tokens is 2.5"),
    (dict(n=0), "n is 0, but must be a whole number of at least 1"),
    (dict(top_p=-0.1), r"top_p is -0.1, but must be a number in \[0, 1\]"),
    (dict(top_p=2), "top_p is 2"),
    (dict(stop_ids=[VOCAB]), f"stop_ids holds {VOCAB}, but must lie in 0..{VOCAB - 1}"),
    (dict(window=0), r"window is 0, but must be a whole number in 1..64"),
    (dict(window=65), r"window is 65"),
    (dict(seed=[1, 2]), "seed has 2 numbers, but there are 1 rows to draw"),
    (dict(temperature=-0.1), "temperature is -0.1"),
    (dict(temperature=float("nan")), "temperature is nan"),
    *[({name: True}, f"{name} is True, but must be") for name in (
        "max_new_tokens", "n", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop_ids", "window",
    )],
    (dict(top_k=-2), "top_k is -2"),
    (dict(prompt_ids=[VOCAB]), f"tokens holds {VOCAB}"),
    (dict(prompt_ids=[-1]), "tokens holds -1"),
]


@pytest.mark.parametrize(("wrong", "sentence"), IMPOSSIBLE)
def test_an_impossible_argument_is_named(model, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        generate(model, **{"prompt_ids": [1], "max_new_tokens": 2} | wrong)


def test_a_text_is_no_prompt_of_ids(model):
    with pytest.raises(TypeError, match="prompt_ids is a text, but must be token ids: encode it with a tokenizer, or use c"):
        generate(model, "ROMEO", 5)
    with pytest.raises(TypeError, match="prompt_ids must be token ids, whole numbers in one row, not float64"):
        generate(model, [1.5], 5)


def test_a_cache_of_another_size_is_named(model):
    with pytest.raises(ValueError, match=r"kv_cache holds 2 sequence\(s\), but prompt_ids has 1"):
        generate(model, [1], 2, kv_cache=KVCache(model, batch_size=2))
    with pytest.raises(ValueError, match="n is 2, but must be 1 with a kv_cache"):
        generate(model, [1], 2, n=2, kv_cache=KVCache(model))
