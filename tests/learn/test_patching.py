"""Attribution patching against patching itself: to first order anywhere, exactly where the metric is linear."""

import numpy as np
import pytest
from helpers import assert_close
from learn.families import FAMILIES, a_model

from numllama.learn.intermediates import forward
from numllama.learn.patching import activation_patching, attribution_patching

CLEAN, CORRUPT, ANSWERS = np.array([7, 50, 7, 3, 9]), np.array([7, 12, 7, 3, 9]), (4, 31)


def metric(run):
    return run.logits[:, -1, ANSWERS[0]] - run.logits[:, -1, ANSWERS[1]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_estimate_is_the_derivative_of_patching(family):
    """A small part of the way from the corrupt value to the clean one moves the metric by that part of the effect."""
    model = a_model(**FAMILIES[family])
    found = attribution_patching(model, CLEAN, CORRUPT, ANSWERS)
    clean, step = forward(model, CLEAN[None]).values, 1e-5
    assert_close(found.clean, metric(forward(model, CLEAN[None]))[0])
    assert_close(found.corrupt, metric(forward(model, CORRUPT[None]))[0])
    places = {"layer 0: head_outputs": (0, 2, 3), "layer 0: ffn_out": (0, 1), "layer 1: after_attention": (0, 4)}
    for name, place in places.items():

        def part(value, s, name=name, place=place):
            value[place] += s * step * (clean[name][place] - value[place])
            return value

        up, down = (metric(forward(model, CORRUPT[None], edits={name: lambda v, s=s: part(v, s)}))[0] for s in (1, -1))
        assert (up - down) / (2 * step) == pytest.approx(found.effects[name][place[1:]], rel=1e-4, abs=1e-9), name


@pytest.mark.parametrize("name", ["norm", "logits"])
def test_it_is_exact_where_the_metric_is_linear(name):
    model = a_model(n_kv_heads=2)
    found = attribution_patching(model, CLEAN, CORRUPT, ANSWERS)
    true = activation_patching(model, CLEAN, CORRUPT, [name], ANSWERS)[name]
    assert_close(found.effects[name], true, rtol=1e-10)
    assert_close(true, [0, 0, 0, 0, found.clean - found.corrupt], rtol=1e-10)


def test_heads_share_what_their_block_adds():
    """attn_out is a linear map of all heads' outputs, so their estimates add up to its own."""
    effects = attribution_patching(a_model(**FAMILIES["mistral"]), CLEAN, CORRUPT, ANSWERS).effects
    for layer in range(2):
        assert_close(effects[f"layer {layer}: head_outputs"].sum(0), effects[f"layer {layer}: attn_out"], rtol=1e-10)
        assert effects[f"layer {layer}: attn_out"].any()


def test_the_clean_stream_at_the_changed_token_restores_the_answer():
    """Before the first layer the texts differ in one token only; after the last one only the last token counts."""
    model = a_model(n_layers=3)
    found = attribution_patching(model, CLEAN, CORRUPT, ANSWERS)
    whole = found.clean - found.corrupt
    names = ["embedding", "layer 2: after_ffn"]
    effects = activation_patching(model, CLEAN, CORRUPT, names, ANSWERS)
    assert list(effects) == names
    assert_close(effects["embedding"], [0, whole, 0, 0, 0], rtol=1e-10)
    assert_close(effects["layer 2: after_ffn"], [0, 0, 0, 0, whole], rtol=1e-10)


def test_patching_is_one_run_for_each_head_and_token():
    model = a_model()
    name, clean = "layer 1: head_outputs", forward(model, CLEAN[None]).values
    effects = activation_patching(model, CLEAN, CORRUPT, [name], ANSWERS)[name]                # 20 places: more than one batch
    before = metric(forward(model, CORRUPT[None]))[0]
    assert effects.shape == (4, 5)
    for h, t in np.ndindex(4, 5):

        def put(value, h=h, t=t):
            value[0, h, t] = clean[name][0, h, t]
            return value

        after = metric(forward(model, CORRUPT[None], edits={name: put}))[0]
        assert after - before == pytest.approx(effects[h, t], rel=1e-9, abs=1e-12)


def test_the_answers_are_what_the_model_says_after_each_text():
    model, corrupt = a_model(), np.array([7, 50, 7, 3, 11])
    said = [int(model.forward(text[None])[0, -1].argmax()) for text in (CLEAN, corrupt)]
    assert said[0] != said[1]
    found = attribution_patching(model, CLEAN, corrupt)
    assert list(found.answers) == said and found.clean > 0 > found.corrupt


@pytest.mark.parametrize(
    ("corrupt", "sentence"),
    [
        (CLEAN, r"the model says the same after both texts, token \d+: the corrupt text must change the answer"),
        (CLEAN[:3], "the clean text has 5 tokens and the corrupt one 3, but both must have as many"),
    ],
)
def test_texts_that_cannot_be_compared_are_refused(corrupt, sentence):
    with pytest.raises(ValueError, match=sentence):
        attribution_patching(a_model(), CLEAN, corrupt)


def test_only_a_value_can_be_patched():
    with pytest.raises(ValueError, match=r"'layer 9: q' is no value of this model"):
        activation_patching(a_model(), CLEAN, CORRUPT, ["norm", "layer 9: q"], ANSWERS)
