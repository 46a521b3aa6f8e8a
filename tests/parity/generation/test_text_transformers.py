"""Texts against transformers: what a checkpoint's files say about sampling, ends and special tokens means the same here."""

import json

import numpy as np
import pytest
from generation.models import random_model, saying
from interop.peer import PARITY, AutoModelForCausalLM, torch
from serve.test_engine import write
from tokenizers import Tokenizer

import numllama as nl
from numllama.serve.engine import Engine, Request

pytestmark = PARITY

SPECIAL = {"<s>": 256, "</s>": 257, "<|im_end|>": 300}
NOISY = "ignore:.*generation flags.*:UserWarning"


@pytest.fixture(scope="module")
def tokenizer():
    return nl.Tokenizer({i: bytes([i]) for i in range(256)}, [], SPECIAL)


def both(folder, tokenizer, generation, model=None):
    """A model and its tokenizer here and there, by the same files."""
    model = model or random_model("float32", vocab_size=320, max_seq_len=128)
    model.generation_config = generation
    model.save(folder, tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
    return (nl.load(folder), nl.Tokenizer.load(folder)), theirs


def text_of_theirs(theirs, prompt, n, skip=True, **settings):
    model, tokenizer = theirs
    ids = tokenizer.encode(prompt).ids
    with torch.inference_mode():
        out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=n, **settings)[0]
    new = out[len(ids) :].tolist()
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    new = new[: next((i for i, token in enumerate(new) if token in ends), len(new))]  # it gives the end token too
    return tokenizer.decode(new, skip_special_tokens=skip)


@pytest.mark.filterwarnings(NOISY)
@pytest.mark.parametrize("eos", [[257, 128009], 128009, -1, [257, -1], None, 257])
def test_a_text_goes_on_where_no_end_can_come(tmp_path, tokenizer, eos):
    ours, theirs = both(tmp_path, tokenizer, {"eos_token_id": eos, "do_sample": False, "pad_token_id": 0})
    assert nl.complete(*ours, "the king", 40) == text_of_theirs(theirs, "the king", 40)


@pytest.mark.filterwarnings(NOISY)
@pytest.mark.parametrize("values", [
    {"do_sample": False}, {"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"do_sample": True, "top_k": 1},
    {"do_sample": True, "top_k": 1, "temperature": 0.3}, {"do_sample": True, "top_p": 0.0},
    {"do_sample": True, "min_p": 1.0, "top_k": 0}, {"do_sample": False, "repetition_penalty": 1.3},
    {"do_sample": True, "top_k": 1, "repetition_penalty": 1.3},
])  # fmt: skip
def test_a_checkpoints_settings_where_they_leave_one_token(tmp_path, tokenizer, values):
    """With one token left, sampling is no matter of chance: the texts are the same."""
    ours, theirs = both(tmp_path, tokenizer, {"eos_token_id": 257, "pad_token_id": 0, **values})
    assert nl.complete(*ours, "the king", 40) == text_of_theirs(theirs, "the king", 40)


@pytest.mark.filterwarnings(NOISY)
@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_and_ids_that_no_token_has(tmp_path, tokenizer, skip):
    said = saying(65, 310, 256, 0xC3, 300, 0xBC, 66, 319, 67)
    ours, theirs = both(tmp_path, tokenizer, {"do_sample": False, "pad_token_id": 0}, said)
    expected = text_of_theirs(theirs, "<s>hi?", 9, skip)
    assert nl.complete(*ours, "<s>hi?", 9, skip_special_tokens=skip) == expected
    assert expected == ("AüBC" if skip else "A<s>�<|im_end|>�BC")


@pytest.mark.parametrize("ids", [[310], [65, 319, 66], [256, 400, 257], [0xC3, 10**6, 0xBC]])
def test_ids_that_no_token_has_decode_as_in_tokenizers(tmp_path, tokenizer, ids):
    path = tokenizer.save(tmp_path)
    expected = Tokenizer.from_file(str(path)).decode(ids, skip_special_tokens=False)
    assert tokenizer.decode(ids) == "".join(tokenizer.decode_stream(ids)) == expected


@pytest.mark.parametrize("prompt", ["<s>hi<|im_end|>", "a</s>", "<s>", "plain"])
def test_a_prompt_with_special_tokens_has_the_ids_of_tokenizers(tmp_path, tokenizer, prompt):
    ours, theirs = both(tmp_path, tokenizer, {})
    engine = Engine(*ours)
    (written,) = write(engine, Request(prompt, 1))
    engine.close()
    assert written.state.ids == theirs[1].encode(prompt).ids


def test_the_probabilities_of_a_prompt_are_transformers(tmp_path, tokenizer):
    ours, (theirs, _) = both(tmp_path, tokenizer, {})
    ids = np.random.default_rng(0).integers(0, 320, 60).tolist()
    with torch.inference_mode():
        chances = torch.log_softmax(theirs(torch.tensor([ids])).logits[0].double(), -1).numpy()
    engine = Engine(*ours)
    (written,) = write(engine, Request(ids, 0, top_logprobs=3, echo=True))
    engine.close()
    first, *others = written.tokens
    assert first.logprob is None
    assert [token.logprob for token in others] == pytest.approx([chances[i, t] for i, t in enumerate(ids[1:])], abs=1e-4)
    for token, row in zip(others, chances, strict=False):
        best = np.argsort(-row)[:3]
        assert [i for i, _ in token.top_logprobs] == best.tolist()


def test_a_checkpoint_that_says_nothing_adds_nothing(tmp_path, tokenizer):
    both(tmp_path, tokenizer, {})
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {}
    assert nl.load(tmp_path).stop_ids == ()
