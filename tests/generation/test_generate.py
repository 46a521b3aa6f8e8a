"""generate: against plain forward passes, and the promises about seeds, windows and arguments."""

import numpy as np
import pytest

from numllama import generate
from numllama.model import ModelConfig, Transformer

VOCAB = 11


@pytest.fixture(scope="module")
def model() -> Transformer:
    """A small model with decided opinions: its initial weights are large."""
    return Transformer(ModelConfig(VOCAB, 16, 2, 2, max_seq_len=6, init_std=0.5), seed=3, dtype="float64")


def last_logits(model, ids):
    return model.forward(np.array([ids[-model.config.max_seq_len :]]))[0, -1]


def test_temperature_zero_takes_the_likeliest_token_each_time(model):
    ids = [1, 2]
    for _ in range(4):
        ids.append(int(last_logits(model, ids).argmax()))
    assert generate(model, [1, 2], 4, temperature=0) == ids[2:]


def test_beyond_max_seq_len_the_model_sees_the_last_tokens(model):
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    ids = list(prompt)
    for _ in range(8):
        ids.append(int(last_logits(model, ids).argmax()))
    assert generate(model, prompt, 8, temperature=0) == ids[10:]
    assert generate(model, prompt[-6:], 8, temperature=0) == ids[10:]


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


def test_a_top_k_beyond_the_vocabulary_changes_nothing(model):
    assert generate(model, [4], 10, top_k=10 * VOCAB, seed=1) == generate(model, [4], 10, seed=1)


def test_a_higher_temperature_makes_unlikely_tokens_likelier(model):
    top = int(last_logits(model, [4]).argmax())
    hits = [sum(generate(model, [4], 1, temperature=t, seed=seed)[0] == top for seed in range(200)) for t in (0.2, 1.0, 20.0)]
    assert hits[0] > hits[1] > hits[2]


def test_logits_too_large_for_exp_still_give_a_distribution(model):
    assert generate(model, [4], 3, temperature=1e-4, seed=0) == generate(model, [4], 3, temperature=0)


IMPOSSIBLE = [
    (dict(prompt_ids=[]), "prompt_ids is empty"),
    (dict(temperature=-0.1), "temperature is -0.1"),
    (dict(temperature=float("nan")), "temperature is nan"),
    (dict(top_k=0), "top_k is 0"),
    (dict(top_k=-2), "top_k is -2"),
    (dict(prompt_ids=[VOCAB]), f"tokens holds {VOCAB}"),
    (dict(prompt_ids=[-1]), "tokens holds -1"),
]


@pytest.mark.parametrize(("wrong", "sentence"), IMPOSSIBLE)
def test_an_impossible_argument_is_named(model, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        generate(model, **{"prompt_ids": [1], "max_new_tokens": 2} | wrong)
