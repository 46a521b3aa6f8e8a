"""Conversations as ids, and what may be asked for beside them, against transformers' apply_chat_template."""

import json
import os
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from interop.test_chat_template import LLAMA_3
from tokenizer.templates import CHATML, JSON, LLAMA_2, PARTS, QWEN_3, VICUNA

import numllama as nl

os.environ["HF_HUB_OFFLINE"] = "1"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TEMPLATES = {"chatml": CHATML, "json": JSON, "llama-2": LLAMA_2, "llama-3": LLAMA_3, "qwen-3": QWEN_3, "vicuna": VICUNA}
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
WORDS = st.sampled_from([*SPECIAL, "<", "|>", "im_end|>", "hi", " ", "\n", "é", "<think>", "</think>", "[/INST]"])
CONTENTS = st.lists(WORDS, max_size=6).map("".join)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A tokenizer of bytes, and the same for transformers."""
    folder = tmp_path_factory.mktemp("tokenizer")
    ours = nl.Tokenizer({i: bytes([i]) for i in range(256)}, [], SPECIAL)
    ours.save(folder)
    return ours, PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **NAMES)


def outcome(function, *arguments, **settings):
    """The result, or that there is none."""
    try:
        return function(*arguments, **settings)
    except Exception:
        return "refused"


def talk(*contents):
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


@pytest.mark.parametrize("name", TEMPLATES)
@given(contents=st.lists(CONTENTS, min_size=1, max_size=4), prompt=st.booleans())
def test_what_a_message_spells_is_text(pair, name, contents, prompt):
    ours, theirs = pair
    settings = dict(chat_template=TEMPLATES[name], add_generation_prompt=prompt)
    expected = outcome(theirs.apply_chat_template, talk(*contents), sanitize_control_tokens=True, return_dict=False, **settings)
    assert outcome(ours.apply_chat_template, talk(*contents), **settings, **NAMES) == expected


@pytest.mark.parametrize("name", TEMPLATES)
@given(contents=st.lists(CONTENTS, min_size=1, max_size=4), prompt=st.booleans())
def test_unless_it_is_asked_for_otherwise(pair, name, contents, prompt):
    ours, theirs = pair
    settings = dict(chat_template=TEMPLATES[name], add_generation_prompt=prompt)
    expected = outcome(theirs.apply_chat_template, talk(*contents), return_dict=False, **settings)
    assert outcome(ours.apply_chat_template, talk(*contents), sanitize_control_tokens=False, **settings, **NAMES) == expected


@pytest.mark.parametrize("name", TEMPLATES)
@given(contents=st.lists(CONTENTS | st.just(" Sure, the "), min_size=1, max_size=4))
def test_a_message_that_is_continued(pair, name, contents):
    ours, theirs = pair
    settings = dict(chat_template=TEMPLATES[name], continue_final_message=True, tokenize=False)
    expected = outcome(theirs.apply_chat_template, talk(*contents), **settings)
    assert outcome(ours.apply_chat_template, talk(*contents), **settings, **NAMES) == expected


@pytest.mark.parametrize(
    ("last", "field"),
    [
        ({"content": [{"type": "text", "text": "One, "}, {"type": "image"}]}, True),
        ({"content": [{"type": "image"}]}, True),
        ({"content": "c", "reasoning_content": "Let me "}, "reasoning_content"),
        ({"content": "c", "thinking": "Let me "}, "thinking"),
        ({"content": "c", "reasoning": "Let me "}, "reasoning_content"),
        ({"content": "c"}, "reasoning_content"),
        ({"content": "c", "other": "x"}, "other"),
        ({"content": None}, True),
    ],
)
def test_fields_that_are_continued(pair, last, field):
    ours, theirs = pair
    messages = [*talk("q"), {"role": "assistant", **last}]
    for template in (PARTS, QWEN_3):
        settings = dict(chat_template=template, continue_final_message=field, tokenize=False)
        assert outcome(ours.apply_chat_template, messages, **settings, **NAMES) == outcome(
            theirs.apply_chat_template, messages, **settings
        )


FIELDS = st.sampled_from(["name", "tool_calls", "reasoning_content", "thinking", "reasoning", "function_call"])


@given(more=st.lists(st.dictionaries(FIELDS, st.sampled_from([None, "x", "y"]), max_size=3), min_size=1, max_size=3))
def test_null_fields_and_thoughts_of_other_names(pair, more):
    ours, theirs = pair
    messages = [{"role": "user", "content": "q", **fields} for fields in more]
    settings = dict(chat_template=JSON, tokenize=False)
    assert ours.apply_chat_template(messages, False, **settings, **NAMES) == theirs.apply_chat_template(messages, **settings)


@pytest.mark.parametrize("files", [True, False], ids=["files", "config"])
@pytest.mark.parametrize("names", [("default",), ("default", "tool_use"), ("default", "rag"), ("tool_use", "rag")])
@pytest.mark.parametrize("tools", [None, [], [{"type": "function"}]])
@pytest.mark.parametrize("asked", [None, "rag", "tool_use", "{{ 'own' }}"])
def test_named_templates_are_chosen_as_there(pair, tmp_path, files, names, tools, asked):
    _, theirs = pair
    theirs.chat_template = {name: f"{name} {{{{ tools is none }}}}" for name in names}
    theirs.save_pretrained(tmp_path, save_jinja_files=files)
    theirs.chat_template = None
    settings = dict(tokenize=False, tools=tools, chat_template=asked)
    expected = outcome(PreTrainedTokenizerFast.from_pretrained(tmp_path).apply_chat_template, talk("q"), **settings)
    assert outcome(nl.Tokenizer.load(tmp_path).apply_chat_template, talk("q"), **settings) == expected


@pytest.mark.parametrize("decoder", [True, False])
def test_special_tokens_of_an_older_folder(pair, tmp_path, decoder):
    pair[0].save(tmp_path)
    config = {"chat_template": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}", "bos_token": "<|im_start|>"}
    config |= {"added_tokens_decoder": {"256": {"content": "<s>", "special": True}}} if decoder else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}))
    names = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "pad_token": None}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({k: v for k, v in names.items() if v}))
    expected = PreTrainedTokenizerFast.from_pretrained(tmp_path).apply_chat_template(talk("q"), tokenize=False)
    assert nl.Tokenizer.load(tmp_path).apply_chat_template(talk("q"), tokenize=False) == expected


def test_a_dictionary_is_what_it_is_there(pair):
    ours, theirs = pair
    expected = theirs.apply_chat_template(talk("q", "a"), chat_template=LLAMA_3)
    assert ours.apply_chat_template(talk("q", "a"), False, chat_template=LLAMA_3, return_dict=True, **NAMES) == {**expected}
