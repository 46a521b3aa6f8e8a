"""Which chat template a folder has, and the special tokens that it names; damaged files in one sentence."""

import json

import pytest

import numllama as nl
from numllama.errors import CheckpointError
from numllama.generation.chat import has_chat_template
from numllama.tokenizer.chat_files import read_chat_templates

LISTED = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]


def write(folder, config=None, tokens=None, **files):
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if tokens is not None:
        (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    for name, content in files.items():
        path = folder / ("chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    return folder


@pytest.mark.parametrize(
    ("config", "files", "templates"),
    [
        ({"chat_template": "x"}, {}, {"default": "x"}),
        ({"chat_template": LISTED}, {}, {"default": "d", "tool_use": "t"}),
        ({"chat_template": {"default": "d", "rag": "r"}}, {}, {"default": "d", "rag": "r"}),
        ({"chat_template": "x"}, {"default": "f"}, {"default": "f"}),
        ({"chat_template": LISTED}, {"default": "f", "rag": "r"}, {"default": "f", "rag": "r"}),
        ({"chat_template": "x"}, {"rag": "r"}, {"rag": "r"}),
        ({"chat_template": None}, {}, {}),
        ({}, {}, {}),
        (None, {}, {}),
    ],
)
def test_templates_in_both_layouts(tmp_path, config, files, templates):
    assert read_chat_templates(write(tmp_path, config, **files)).templates == templates


@pytest.mark.parametrize(
    ("templates", "asked", "tools", "chosen"),
    [
        ({"default": "d", "tool_use": "t"}, None, None, "d"),
        ({"default": "d", "tool_use": "t"}, None, [], "t"),
        ({"default": "d", "tool_use": "t"}, "tool_use", None, "t"),
        ({"default": "d", "tool_use": "t"}, "own", [{}], "own"),
        ({"default": "d"}, None, [{}], "d"),
        ({"default": "d"}, "default", None, "default"),
        ({}, None, None, None),
        ({}, "own", None, "own"),
    ],
)
def test_which_of_several_is_used(tmp_path, templates, asked, tools, chosen):
    assert read_chat_templates(write(tmp_path, **templates)).choose(asked, tools) == chosen


def test_several_without_a_default_are_named(tmp_path):
    tokenizer = nl.Tokenizer({i: bytes([i]) for i in range(256)}, [])
    tokenizer.folder = write(tmp_path, rag="r", tool_use="t")
    assert has_chat_template(tokenizer)
    with pytest.raises(ValueError, match=r"several chat templates and none is the default: choose one of rag, tool_use$"):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}])
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, tools=[]) == "t"


@pytest.mark.parametrize(
    ("config", "tokens", "expected"),
    [
        ({"bos_token": "a"}, {"bos_token": "b", "eos_token": {"content": "c"}}, {"bos_token": "b", "eos_token": "c"}),
        ({"bos_token": "a", "added_tokens_decoder": {}}, {"bos_token": "b", "eos_token": "c"}, {"bos_token": "a"}),
        (None, {"bos_token": "b", "additional_special_tokens": ["x"]}, {"bos_token": "b"}),
        ({"image_token": "<i>", "add_bos_token": True, "pad_token": None}, None, {"image_token": "<i>"}),
    ],
)
def test_special_tokens_have_names(tmp_path, config, tokens, expected):
    assert read_chat_templates(write(tmp_path, config, tokens)).tokens == expected


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"chat_template": 5}, "chat_template is 5, but must be a text"),
        ({"chat_template": True}, "chat_template is True, but must be a text"),
        ({"chat_template": [1, 2]}, r"chat_template is \[1, 2\], but must be a text or a list"),
        ({"chat_template": ["x"]}, r"chat_template is \['x'\], but must be a text or a list"),
        ({"chat_template": [{"template": "x"}]}, "but must be a text or a list"),
        ({"chat_template": [{"name": "default", "template": 7}]}, "chat_template 'default' is 7, but must be a text"),
        ({"chat_template": {"rag": None}}, "chat_template 'rag' is None, but must be a text"),
        ({"chat_template": 10**400}, "chat_template is 1000.*"),
        ({"bos_token": 5}, "bos_token is 5, but must be a text"),
        ({"eos_token": {"lstrip": True}}, "eos_token is .*lstrip.*, but must be a text"),
        ({"eos_token": ["</s>"]}, r"eos_token is \['</s>'\], but must be a text"),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_file(tmp_path, config, sentence):
    with pytest.raises(CheckpointError, match=sentence) as caught:
        read_chat_templates(write(tmp_path, config))
    assert str(caught.value).startswith(str(tmp_path / "tokenizer_config.json")) and len(str(caught.value)) < 400


def test_a_template_that_is_no_text_file_is_named(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is damaged: byte 0 is not UTF-8"):
        read_chat_templates(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.jinja").mkdir()
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is a folder"):
        read_chat_templates(tmp_path)
