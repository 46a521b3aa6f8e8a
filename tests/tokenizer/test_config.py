"""The files beside a vocabulary: added tokens and names, as `transformers` reads them."""

import json

import pytest

from numllama import Tokenizer
from numllama.errors import DataError
from numllama.tokenizer.config import beside
from numllama.tokenizer.decoders import CHARACTER_OF

ALPHABET = {character: byte for byte, character in CHARACTER_OF.items()}
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def folder_of(path, **files):
    path.mkdir(exist_ok=True)
    (path / "vocab.json").write_text(json.dumps(ALPHABET), encoding="utf-8")
    (path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    for name, values in files.items():
        (path / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("files", [
    {"added_tokens": {"<x>": 256, "word": 257}, "special_tokens_map": {"eos_token": "<x>"}},
    {"added_tokens": {"<x>": 256, "word": 257}, "tokenizer_config": {"pad_token": {"content": "<x>"}}},
    {"added_tokens": {"<x>": 256, "word": 257}, "special_tokens_map": {"additional_special_tokens": ["<x>"]}},
    {"added_tokens": {"nobody": 7}, "tokenizer_config": {"added_tokens_decoder": {
        "256": {"content": "<x>", **FLAGS}, "257": {"content": "word", **FLAGS, "special": False, "normalized": True}}}},
])  # fmt: skip
def test_added_tokens_are_read_wherever_they_are_kept(tmp_path, files):
    tokenizer = Tokenizer.load(folder_of(tmp_path, **files))
    assert tokenizer.special_tokens == {"<x>": 256}
    assert [(token.content, token.special, token.normalized) for token in tokenizer.added_tokens] == [
        ("<x>", True, False), ("word", False, True)
    ]  # fmt: skip
    assert tokenizer.encode("a<x>word", "all") == [97, 256, 257]
    assert Tokenizer.load(tokenizer.save(tmp_path / "saved").parent).encode("a<x>word", "all") == [97, 256, 257]


def test_they_are_read_beside_a_tokenizer_json_too(tmp_path):
    Tokenizer({i: bytes([i]) for i in range(256)}, []).save(tmp_path)
    listed = {"256": {"content": "<x>", **FLAGS, "rstrip": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": listed}), encoding="utf-8")
    assert Tokenizer.load(tmp_path).encode("a<x> b", "all") == [97, 256, 98]


def test_names_of_special_tokens(tmp_path):
    folder_of(
        tmp_path, tokenizer_config={"bos_token": "<s>", "add_bos_token": True, "pad_token": None, "image_token": "<image>"},
        special_tokens_map={"bos_token": {"content": "<b>", "lstrip": True}, "eos_token": "</s>"},
    )  # fmt: skip
    assert beside(tmp_path).names == {"bos_token": "<b>", "eos_token": "</s>", "image_token": "<image>"}
    folder_of(tmp_path, tokenizer_config={"bos_token": "<s>", "added_tokens_decoder": {}})
    assert beside(tmp_path).names == {"bos_token": "<s>"}  # then the older files are not looked at


@pytest.mark.parametrize(("config", "around"), [
    ({}, ([], [])), ({"add_bos_token": True, "bos_token": "<x>"}, ([256], [])),
    ({"add_bos_token": True, "add_eos_token": True, "bos_token": "<x>", "eos_token": "<x>"}, ([256], [256])),
    ({"add_bos_token": False, "bos_token": "<x>"}, ([], [])),
])  # fmt: skip
def test_what_belongs_around_a_text(tmp_path, config, around):
    tokenizer = Tokenizer.load(folder_of(tmp_path, added_tokens={"<x>": 256}, tokenizer_config=config))
    assert (tokenizer.before, tokenizer.after) == around
    again = Tokenizer.load(tokenizer.save(tmp_path / "saved").parent)
    assert (again.before, again.after) == around


def test_the_class_says_how_to_split(tmp_path):
    folder_of(tmp_path, tokenizer_config={"tokenizer_class": "Qwen2TokenizerFast"})
    qwen = Tokenizer.load(tmp_path)
    assert qwen.layout.pre_tokenizer.split("12 a'LL") == ["1", "2", " a", "'LL"]
    assert qwen.encode("e\u0301") == [0xC3, 0xA9]
    folder_of(tmp_path, tokenizer_config={"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True})
    assert Tokenizer.load(tmp_path).encode("12") == [32, 49, 50]
    folder_of(tmp_path, tokenizer_config={"tokenizer_class": "RobertaTokenizer"})
    with pytest.raises(
        DataError, match=r'its tokenizer_class is "RobertaTokenizer", but vocab\.json and merges\.txt are read for GPT2Tokenizer'
    ):
        Tokenizer.load(tmp_path)


DAMAGED = {
    "an id that is text": ({"added_tokens": {"<x>": "256"}}, r"added_tokens.json is damaged: it gives '<x>' the id \"256\""),
    "an id below zero": ({"added_tokens": {"<x>": -1}}, "added_tokens.json is damaged"),
    "a list of ids": ({"added_tokens": ["<x>"]}, r"added_tokens.json"),
    "a name that is a number": ({"tokenizer_config": {"eos_token": 7}}, "tokenizer_config.json is damaged: eos_token is 7, but must be a text"),  # noqa: E501
    "a list that is a text": ({"special_tokens_map": {"additional_special_tokens": "<x>"}}, "must be a list"),
    "a decoder that is a list": ({"tokenizer_config": {"added_tokens_decoder": []}}, "in its tokenizer_config.json, added_tokens_decoder is"),  # noqa: E501
    "an id that is no number": ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "<x>"}}}}, "which is no id and token"),  # noqa: E501
    "a token without content": ({"tokenizer_config": {"added_tokens_decoder": {"256": {}}}}, "an added token needs an id and a content"),  # noqa: E501
    "a flag that is text": ({"tokenizer_config": {"added_tokens_decoder": {"256": {"content": "<x>", "lstrip": "no"}}}}, "lstrip is"),  # noqa: E501
    "an id of another": ({"added_tokens": {"<x>": 97}}, "has the id 97, but readers of such files take it for 256"),
    "an id twice": ({"added_tokens": {"<x>": 256, "<y>": 256}}, "two added tokens"),
    "a beginning without an id": ({"tokenizer_config": {"add_bos_token": True, "bos_token": "<q>"}}, "add_bos_token is true, but '<q>'"),  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize(("files", "sentence"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_one_sentence(tmp_path, files, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        Tokenizer.load(folder_of(tmp_path, **files))
    assert "\n" not in str(caught.value)
