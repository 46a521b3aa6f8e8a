"""The GGUF file of a published model, SmolLM2-135M-Instruct, as transformers opens it and as it opens here."""

import random

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from interop.peer import PARITY, AutoModelForCausalLM, AutoTokenizer, torch
from interop.published import LANGUAGES, PROMPTS, code, published
from parity.tokenizer.strings import draw

import numllama as nl
from numllama.generation.chat import Chat
from numllama.interop.huggingface import huggingface_names

pytestmark = PARITY


@pytest.fixture(scope="module")
def path():
    return published()


@pytest.fixture(scope="module")
def mine(path):
    return nl.Tokenizer.load(path)


@pytest.fixture(scope="module")
def theirs(path):
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture(scope="module")
def with_digits(path):
    """Their tokenizer with the step that SmolLM2's tokenizer.json has, and llama.cpp for the name smollm: digits are split.

    transformers 5.23 does not know that name and splits as GPT-2 does, which differs where a number follows several spaces.
    """
    found = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    steps = [tokenizers.pre_tokenizers.Digits(True), tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    found.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
    return found


def strings(special):
    """2,000: twenty languages, code, and what tokenizers find hard."""
    rng = random.Random(0)
    return [*LANGUAGES, *(made := code()), *(draw(rng, special) for _ in range(2000 - len(LANGUAGES) - len(made)))]


def same(mine, theirs, text):
    ids = theirs.encode(text, add_special_tokens=False)
    assert mine.encode(text, allowed_special="all") == ids, text
    assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False), text


def test_ids_of_2000_strings(mine, theirs, with_digits):
    texts = strings(list(mine.special_tokens))
    assert len(texts) == 2000
    plain = [text for text in texts if not any(character.isnumeric() for character in text)]
    assert len(plain) > 1000
    for text in texts:
        same(mine, with_digits, text)
    for text in plain:
        same(mine, theirs, text)


@settings(max_examples=500)
@given(text=st.text())
def test_ids_of_any_text(mine, with_digits, text):
    same(mine, with_digits, text)


CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": " c\n"}],
]


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("chat", CHATS)
def test_rendered_chats(mine, theirs, chat, prompt):
    ours = mine.apply_chat_template(chat, prompt, tokenize=False)
    assert ours == theirs.apply_chat_template(chat, add_generation_prompt=prompt, tokenize=False)
    ids = theirs.apply_chat_template(chat, add_generation_prompt=prompt, return_dict=False)
    assert mine.apply_chat_template(chat, prompt) == ids


@pytest.fixture(scope="module")
def models(path):
    """The model here, and in transformers, whose expanded weights are those of the same blocks."""
    return nl.load(path), AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


def test_the_expanded_weights_are_the_same_bits(models):
    here, there = models
    state = there.state_dict()
    for ours, name in huggingface_names(here.config).items():
        assert np.array_equal(state[name].numpy(), here.params[ours]), ours


def test_logits_of_50_prompts(mine, models):
    """In float32 two correct programs differ by rounding, so each is held to 2e-4 of the largest logit."""
    here, there = models
    texts = [*PROMPTS, *LANGUAGES, *(f"{prompt} the" for prompt in PROMPTS[:10])]
    assert len(texts) == 50
    for text in texts:
        ids = mine.encode(text)[:24]
        with torch.no_grad():
            logits = there(torch.tensor([ids])).logits.numpy()
        assert np.abs(here.forward(np.array([ids])) - logits).max() < 2e-4 * np.abs(logits).max(), text


def test_64_greedy_ids_of_20_prompts(mine, models):
    """Ids are those that transformers draws if each is its likeliest after those before it: one pass instead of 64."""
    here, there = models
    for text in PROMPTS:
        ids = mine.encode(text)
        found = nl.generate(here, ids, 64, temperature=0, stop_ids=here.stop_ids)
        with torch.no_grad():
            likeliest = there(torch.tensor([ids + found])).logits[0, len(ids) - 1 :].argmax(-1).tolist()
        assert found == likeliest[: len(found)], text
        assert len(found) == 64 or likeliest[-1] in here.stop_ids, text


def test_a_chat_ends_at_its_end_token(mine, models):
    chat = Chat(models[0], mine, temperature=0)
    assert "".join(chat.say("What is the capital of France?")) == "The capital of France is Paris."
    assert chat.last.finish == "stop" and chat.sampling.stop_ids == (mine.special_tokens["<|im_end|>"],)


def test_logits_in_float64(path, mine, models):
    """Last, because it widens the model: without rounding, what is left is transformers' own, in its norms and RoPE."""
    there = models[1].double()
    here = nl.load(path, dtype="float64")
    for text in PROMPTS[:5]:
        ids = mine.encode(text)
        with torch.no_grad():
            assert np.abs(here.forward(np.array([ids])) - there(torch.tensor([ids])).logits.numpy()).max() < 2e-4
