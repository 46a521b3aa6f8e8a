"""The logit lens is what the model's end makes of the stream after each layer."""

import numpy as np
import pytest
from helpers import assert_close
from learn.families import FAMILIES, a_model

from numllama.learn.intermediates import forward
from numllama.learn.lens import logit_lens, next_token_probs

IDS = np.array([7, 50, 7, 3, 9, 11])


def probs_of(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_level_is_the_model(family):
    model = a_model(**FAMILIES[family])
    lens, p = logit_lens(model, IDS, k=4), probs_of(model.forward(IDS[None]))[0]
    assert lens.levels == ["embedding", "layer 0", "layer 1"]
    assert lens.top.shape == lens.probs.shape == (3, len(IDS), 4) and lens.answer_ranks.shape == (3, len(IDS))
    assert np.array_equal(lens.answer, p.argmax(-1)) and np.array_equal(lens.top[-1, :, 0], lens.answer)
    assert_close(lens.probs[-1], -np.sort(-p, axis=-1)[:, :4], rtol=1e-10)
    assert not lens.answer_ranks[-1].any()


def test_an_earlier_level_is_the_last_one_of_a_model_that_ends_there():
    model = a_model(norm="layernorm", n_layers=2)
    short = a_model(norm="layernorm", n_layers=1)
    for name in short.params:
        short.params[name][...] = model.params[name]
    lens, p = logit_lens(model, IDS), probs_of(short.forward(IDS[None]))[0]
    every = np.arange(len(IDS))
    assert np.array_equal(lens.top[1, :, 0], p.argmax(-1))
    assert_close(lens.answer_probs[1], p[every, lens.answer], rtol=1e-10)
    assert np.array_equal(lens.answer_ranks[1], (p > p[every, lens.answer][:, None]).sum(-1))
    assert lens.answer_ranks[0].any()


def test_a_stream_of_two_texts_is_read_at_once():
    model = a_model(logit_softcap=2.0)
    run = forward(model, np.stack((IDS, IDS[::-1])))
    assert_close(next_token_probs(model, run.values["layer 1: after_ffn"]), probs_of(run.logits), rtol=1e-10)


@pytest.mark.parametrize("k", [0, 61])
def test_as_many_tokens_as_there_are_can_be_listed(k):
    with pytest.raises(ValueError, match=rf"k is {k}, but must lie in 1\.\.60"):
        logit_lens(a_model(), IDS, k)
