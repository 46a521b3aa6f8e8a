"""Chat templates against transformers' apply_chat_template."""

import os
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from interop.test_chat_template import LLAMA_3

import numllama as nl
from numllama.interop.chat_template import read_chat_template, render_chat_template
from numllama.tokenizer.train_bpe import train_on_text

os.environ["HF_HUB_OFFLINE"] = "1"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

# After Llama 2's: turns must alternate, and the system message is part of the first of them.
LLAMA_2 = """\
{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set messages = messages[1:] %}\
{% else %}{% set system = false %}{% endif %}
{% for message in messages %}
  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
  {% endif %}
  {% if loop.index0 == 0 and system %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}
  {% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
  {% else %}
{% generation %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endgeneration %}
  {% endif %}
{% endfor %}
"""
# ChatML with tools, a namespace and loop controls.
CHATML = """\
{%- set ns = namespace(users=0) -%}
{%- if tools %}<|im_start|>system
{{ tools | tojson(indent=2) }}<|im_end|>
{% endif -%}
{%- for message in messages %}
{%- if message.role == 'skip' %}{% continue %}{% endif %}
{%- if message.role == 'user' %}{% set ns.users = ns.users + 1 %}{% endif %}
<|im_start|>{{ message.role }} {{ ns.users }}
{{ message.content }}{{ message | tojson }}<|im_end|>
{% if ns.users > 2 %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}
"""
TEMPLATES = {"llama-2": LLAMA_2, "llama-3": LLAMA_3, "chatml": CHATML}
ROLES = st.sampled_from(["user", "assistant", "system", "skip"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES, "content": st.text()}), min_size=1, max_size=6)
TOOLS = [{"type": "function", "function": {"name": "temperature", "description": "<°C> & more", "parameters": {}}}]


@pytest.fixture(scope="module")
def tokenizer():
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def outcome(render):
    """The text, or that there is none."""
    try:
        return render()
    except Exception as error:
        return "alternate" if "must alternate" in str(error) else "refused"


@pytest.mark.parametrize("name", TEMPLATES)
@given(messages=MESSAGES, prompt=st.booleans(), tools=st.sampled_from([None, TOOLS]))
def test_the_text_is_that_of_transformers(tokenizer, name, messages, prompt, tools):
    def theirs():
        return tokenizer.apply_chat_template(
            messages, chat_template=TEMPLATES[name], tools=tools, tokenize=False, add_generation_prompt=prompt
        )

    def ours():
        return render_chat_template(TEMPLATES[name], messages, prompt, tools=tools, bos_token="<s>", eos_token="</s>")

    assert outcome(ours) == outcome(theirs)


@pytest.mark.parametrize("name", TEMPLATES)
def test_most_conversations_have_a_text(name):
    turns = ("user", "Hello"), ("assistant", "Hi"), ("user", "Go on")
    messages = [{"role": role, "content": content} for role, content in turns]
    assert "Go on" in render_chat_template(TEMPLATES[name], messages, bos_token="<s>", eos_token="</s>")


def test_a_tokenizers_files_hold_the_template_and_its_tokens(tokenizer, tmp_path):
    tokenizer.chat_template = LLAMA_2
    tokenizer.save_pretrained(tmp_path)
    template, tokens = read_chat_template(tmp_path)
    assert template == LLAMA_2
    assert (tokens["bos_token"], tokens["eos_token"]) == ("<s>", "</s>")


@given(
    answers=st.lists(st.text(st.characters(codec="ascii", exclude_characters="<>")).filter(str.strip), min_size=1, max_size=3),
)
def test_the_tokens_that_the_assistant_says_are_those_of_transformers(bytes_tokenizers, answers):
    ours, theirs = bytes_tokenizers
    messages = [m for a in answers for m in ({"role": "user", "content": "Hé?"}, {"role": "assistant", "content": a})]
    expected = theirs.apply_chat_template(messages, chat_template=LLAMA_2, return_assistant_tokens_mask=True, return_dict=True)
    names = dict(bos_token="<s>", eos_token="</s>")
    settings = dict(chat_template=LLAMA_2, return_dict=True, return_assistant_tokens_mask=True)
    assert ours.apply_chat_template(messages, False, **settings, **names) == {
        name: expected[name] for name in ("input_ids", "attention_mask", "assistant_masks")
    }
    assert 0 < sum(expected["assistant_masks"]) < len(expected["input_ids"])


@pytest.fixture(scope="module")
def bytes_tokenizers(tmp_path_factory):
    """A byte-level BPE that was learnt, and the same for transformers."""
    folder = tmp_path_factory.mktemp("tokenizer")
    learnt = train_on_text("[INST] Hello there [/INST] Hi, how are you? I am well. " * 3, 300)
    ours = nl.Tokenizer(learnt.vocab, learnt.merges, ["<s>", "</s>"])
    ours.save(folder)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>")
    return ours, theirs
