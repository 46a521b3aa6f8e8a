"""Chat: the checkpoint's template, what is remembered, what is not computed again."""

import json

import pytest
from generation.models import random_model
from interop.test_chat_template import LLAMA_3

import numllama as nl
from numllama.generation.chat import Chat, has_chat_template
from numllama.model import Transformer

NAMES = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"]
BEGIN, START, END, EOT, EOM = range(256, 261)


@pytest.fixture
def folder(tmp_path):
    """A tokenizer of bytes with Llama 3's template."""
    nl.Tokenizer({i: bytes([i]) for i in range(256)}, [], NAMES).save(tmp_path)
    config = {"bos_token": {"content": NAMES[0]}, "eos_token": NAMES[3], "chat_template": LLAMA_3}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def model():
    model = random_model("float32", vocab_size=261, max_seq_len=1000)
    model.generation_config = {"bos_token_id": BEGIN, "eos_token_id": [EOT, EOM]}
    return model


def header(role):
    return [START, *role.encode(), END, *b"\n\n"]


def test_a_conversation_as_ids(folder):
    tokenizer = nl.Tokenizer.load(folder)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Ü?"}]
    expected = [BEGIN, *header("system"), *b"Be brief.", EOT, *header("user"), *"Ü?".encode(), EOT]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=False) == expected
    assert tokenizer.apply_chat_template(messages) == expected + header("assistant")
    assert tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False), "all") == expected + header("assistant")


def test_a_template_of_ones_own(folder):
    tokenizer = nl.Tokenizer.load(folder)
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ mark }}{% endfor %}"
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, chat_template=template, mark="!")
    assert text == "<|begin_of_text|>a!"


def test_a_tokenizer_without_a_template_says_so(tmp_path):
    nl.Tokenizer({i: bytes([i]) for i in range(256)}, []).save(tmp_path)
    for tokenizer in (nl.Tokenizer.load(tmp_path), nl.Tokenizer({i: bytes([i]) for i in range(256)}, [])):
        with pytest.raises(ValueError, match="this tokenizer came without a chat template: give one as chat_template"):
            tokenizer.apply_chat_template([{"role": "user", "content": "a"}])
        assert not has_chat_template(tokenizer)


def test_either_of_two_stop_ids_ends_an_answer(folder, model):
    tokenizer = nl.Tokenizer.load(folder)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])
    ends = set()
    for seed in range(40):
        whole = nl.generate(model, prompt, 200, seed=seed)
        chat = Chat(model, tokenizer, max_new_tokens=200, seed=seed)
        answer = "".join(chat.say("Hello"))
        cut = min([whole.index(stop) for stop in (EOT, EOM) if stop in whole], default=200)
        assert answer == tokenizer.decode([i for i in whole[:cut] if i < BEGIN])  # special tokens are not shown
        ends.add(whole[cut] if cut < 200 else None)
    assert {EOT, EOM} <= ends


def test_an_answer_follows_from_all_that_was_said(folder, model):
    tokenizer = nl.Tokenizer.load(folder)
    chat = Chat(model, tokenizer, system="Be brief.", max_new_tokens=20, temperature=0)
    for line in ("Hello", "And then?", "Why?"):
        before = [*chat.messages, {"role": "user", "content": line}]
        ids = nl.generate(model, tokenizer.apply_chat_template(before), 20, temperature=0, stop_ids=model.stop_ids)
        assert "".join(chat.say(line)) == tokenizer.decode(ids)
        assert chat.messages == [*before, {"role": "assistant", "content": tokenizer.decode(ids)}]
    assert [message["role"] for message in chat.messages] == ["system", *["user", "assistant"] * 3]


def test_what_was_said_is_not_computed_again(folder, model, monkeypatch):
    tokenizer = nl.Tokenizer.load(folder)
    chat = Chat(model, tokenizer, max_new_tokens=12, seed=1, stop_ids=[EOT, EOM, *range(128, 256)])
    assert "".join(chat.say("Hello, who are you, and what do you think about the weather?")).isascii()
    held = chat.kv_cache.length
    tokens, plain = [], Transformer.forward
    counting = lambda self, ids, **settings: tokens.append(ids.shape[1]) or plain(self, ids, **settings)  # noqa: E731
    monkeypatch.setattr(Transformer, "forward", counting)
    "".join(chat.say("Why?"))
    assert tokens
    assert tokens[0] == chat.last.prompt_tokens - held


def test_without_a_template_messages_are_paragraphs():
    tokenizer = nl.CharTokenizer("abc\n")
    model = random_model("float32", vocab_size=4, max_seq_len=500)
    chat = Chat(model, tokenizer, max_new_tokens=40, seed=3)
    first = "".join(chat.say("abc"))
    whole = tokenizer.decode(nl.generate(model, tokenizer.encode("abc\n\n"), 40, seed=3))
    assert first == whole.partition("\n\n")[0]
    "".join(chat.say("cab"))
    prompt = tokenizer.encode(f"abc\n\n{first}\n\ncab\n\n")
    assert chat.last.prompt_tokens == len(prompt)


def test_an_answer_that_was_cut_short_is_remembered_as_far_as_it_came(folder, model):
    chat = Chat(model, nl.Tokenizer.load(folder), max_new_tokens=50, seed=2, stop_ids=())
    answer = chat.say("Hello")
    said = next(answer) + next(answer)
    answer.close()
    assert chat.messages[-1] == {"role": "assistant", "content": said}


def test_a_message_that_cannot_be_said_is_not_remembered():
    chat = Chat(random_model("float32", vocab_size=4, max_seq_len=20), nl.CharTokenizer("abc\n"))
    with pytest.raises(ValueError, match="character 'x' at position 1 is not among the 4"):
        chat.say("ax")
    with pytest.raises(ValueError, match="a prompt of 32 tokens and 1 new ones do not fit"):
        chat.say("a" * 30)
    assert chat.messages == []


@pytest.mark.parametrize(("settings", "sentence"), [
    (dict(top_p=2), "top_p is 2"), (dict(top_k=-2), "top_k is -2"), (dict(window=0), "window is 0"),
])  # fmt: skip
def test_an_impossible_setting_is_named_before_anything_is_said(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Chat(random_model(vocab_size=4), nl.CharTokenizer("abc\n"), **settings)
