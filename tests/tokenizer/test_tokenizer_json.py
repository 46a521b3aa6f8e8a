"""tokenizer.json: what its fields mean, what is refused by name, and that nothing in it takes much time or memory."""

import json
import random
import time

import pytest

from numllama import Tokenizer
from numllama.errors import DataError
from numllama.tokenizer.decoders import CHARACTER_OF
from numllama.tokenizer.precompiled import Precompiled
from numllama.tokenizer.sentencepiece import SentencePieceTokenizer

ALPHABET = {character: byte for byte, character in CHARACTER_OF.items()}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
PIECES = {"<unk>": 0} | {f"<0x{byte:02X}>": 1 + byte for byte in range(256)} | {"▁": 257, "a": 258, "▁a": 259}


def written(folder, model=(), **values):
    values = {
        "added_tokens": [], "normalizer": None, "pre_tokenizer": BYTES, "post_processor": None, "decoder": BYTES,
        "model": {"type": "BPE", "vocab": ALPHABET, "merges": [], **dict(model)}, **values,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def added(content, i=256, **flags):
    return {"id": i, "content": content, **FLAGS, **flags}


# ------------------------------------------------------------------------------------------------ what it means


@pytest.mark.parametrize(("flags", "text", "expected"), [
    ({"special": False}, "a<x>b", [97, 256, 98]),
    ({"special": False, "lstrip": True}, "a \n<x> b", [97, 256, 32, 98]),
    ({"special": False, "rstrip": True}, "a <x> \tb", [97, 32, 256, 98]),
    ({"special": False, "single_word": True}, "a<x><x> <x>.", [97, 60, 120, 62, 256, 32, 256, 46]),
    ({"special": False, "single_word": True}, "<x>b", [60, 120, 62, 98]),
])  # fmt: skip
def test_flags_of_added_tokens(tmp_path, flags, text, expected):
    tokenizer = Tokenizer.load(written(tmp_path, added_tokens=[added("<x>", **flags)]))
    assert tokenizer.special_tokens == {}
    for how in ({}, {"allowed_special": "all"}, {"disallowed_special": ()}):
        assert tokenizer.encode(text, **how) == expected
    again = json.loads(tokenizer.save(tmp_path / "again").read_text(encoding="utf-8"))
    assert again["added_tokens"] == [added("<x>", **flags)]
    assert again["model"]["vocab"] == ALPHABET  # it is no piece of text


def test_a_token_that_another_has_absorbed_is_not_found(tmp_path):
    tokens = [added("<x>", rstrip=True), added("<y>", 257), added("\n", 258, lstrip=True, special=False)]
    assert Tokenizer.load(written(tmp_path, added_tokens=tokens)).encode("<x> \n<y>\na", "all") == [256, 257, 258, 97]


def test_unknown_characters_that_are_left_out_let_words_meet(tmp_path):
    model = {"vocab": {"▁": 0, "▁▁": 1, "a": 2}, "merges": ["▁ ▁"]}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    assert Tokenizer.load(written(tmp_path, model, normalizer=spaces, pre_tokenizer=None)).encode("a é a") == [2, 1, 2]


def test_a_normalized_token_is_looked_for_in_the_normalized_text(tmp_path):
    token = added("Hello", special=False, normalized=True)
    tokenizer = Tokenizer.load(written(tmp_path, added_tokens=[token], normalizer={"type": "Lowercase"}))
    assert tokenizer.encode("hello HELLO") == [256, 32, 256]
    assert tokenizer.decode([256]) == "hello"
    plain = Tokenizer.load(written(tmp_path, added_tokens=[token | {"normalized": False}], normalizer={"type": "Lowercase"}))
    assert plain.encode("Hello hello") == [256, 32, *b"hello"]
    assert plain.decode([256]) == "Hello"


def test_a_byte_without_a_token_is_left_out_or_unknown(tmp_path):
    vocab = {name: i for name, i in ALPHABET.items() if i not in (0xC3, 4)}
    assert Tokenizer.load(written(tmp_path, {"vocab": vocab})).encode("a\x04bé") == [97, 98, 0xA9]
    unknown = Tokenizer.load(written(tmp_path, {"vocab": vocab | {"<unk>": 300}, "unk_token": "<unk>"}))
    assert unknown.encode("a\x04\x04b") == [97, 300, 300, 98]
    fused = Tokenizer.load(written(tmp_path, {"vocab": vocab | {"<unk>": 300}, "unk_token": "<unk>", "fuse_unk": True}))
    assert fused.encode("a\x04\x04b\x04") == [97, 300, 98, 300]


def test_an_added_token_may_be_an_ordinary_piece_too(tmp_path):
    vocab, merges = ALPHABET | {"ab": 256, "abc": 257}, ["a b", "ab c"]
    tokenizer = Tokenizer.load(written(tmp_path, {"vocab": vocab, "merges": merges}, added_tokens=[added("ab", special=False)]))
    assert tokenizer.encode("xab abc") == [120, 256, 32, 256, 99]
    special = Tokenizer.load(written(tmp_path, {"vocab": vocab, "merges": merges}, added_tokens=[added("ab")]))
    assert special.encode("ab abc", allowed_special="all") == [256, 32, 256, 99]
    assert special.encode("ab abc", disallowed_special=()) == [97, 98, 32, 257]  # no text becomes a special token by merging


def test_a_model_of_characters_falls_back_on_bytes_or_on_the_unknown_token(tmp_path):
    model = {"vocab": PIECES, "merges": ["▁ a"], "unk_token": "<unk>", "fuse_unk": True}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    fallback = Tokenizer.load(written(tmp_path, model | {"byte_fallback": True}, normalizer=spaces, pre_tokenizer=None))
    assert isinstance(fallback, SentencePieceTokenizer)
    assert fallback.encode(" aé") == [259, 1 + 0xC3, 1 + 0xA9]
    unknown = Tokenizer.load(written(tmp_path, model, normalizer=spaces, pre_tokenizer=None))
    assert unknown.encode(" aéüa") == [259, 0, 258]


def test_what_a_decoder_says_is_done(tmp_path):
    model = {"vocab": PIECES, "merges": ["▁ a"], "unk_token": "<unk>", "byte_fallback": True}
    unspaces = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    steps = [unspaces, {"type": "ByteFallback"}, {"type": "Fuse"}]
    for decoder, text in {
        "none": (None, "▁a ▁a <0x20>"),
        "a space at the beginning": ({"type": "Sequence", "decoders": steps}, " a a "),
        "none there": ({"type": "Sequence", "decoders": [*steps, strip]}, "a a "),
        "none anywhere": ({"type": "Sequence", "decoders": [unspaces, strip, {"type": "ByteFallback"}]}, "aa "),
    }.values():
        tokenizer = Tokenizer.load(written(tmp_path, model, pre_tokenizer=None, decoder=decoder))
        assert tokenizer.decode([259, 259, 1 + 0x20]) == "".join(tokenizer.decode_stream([259, 259, 1 + 0x20])) == text
    whole = {"type": "Sequence", "decoders": steps}
    tokenizer = Tokenizer.load(written(tmp_path, model, pre_tokenizer=None, decoder=whole))
    half = [1 + 0xC3, 258, 1 + 0xC3, 1 + 0xA9, 1 + 0xC3]
    assert (
        tokenizer.decode(half) == "".join(tokenizer.decode_stream(half)) == "\ufffda\ufffd\ufffd\ufffd"
    )  # bytes of a run are one text, or none
    assert tokenizer.decode_bytes(half) == b"\xc3a\xc3\xa9\xc3"


WORDS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(("regex", "text", "expected"), [
    ("a{1,3}+", "aaaaa", [258, 97]),                # Oniguruma: one or more times one to three, which is all five
    ("a++a|a", "aaaa", [97] * 4),                   # nothing is left for the second a
    ("^a", "aa\naa", [97, 97, 10, 97, 97]),         # the first a of each line is a piece of its own
    ("(?>aa|a)a|a", "aab", [97, 97, 98]),           # an atomic group gives nothing back either
])  # fmt: skip
def test_a_pattern_is_read_as_oniguruma_reads_it(tmp_path, regex, text, expected):
    vocab, merges = ALPHABET | {"aa": 257, "aaaa": 258}, ["a a", "aa aa"]
    steps = {"type": "Sequence", "pretokenizers": [split(regex), WORDS]}
    tokenizer = Tokenizer.load(written(tmp_path, {"vocab": vocab, "merges": merges}, pre_tokenizer=steps))
    assert tokenizer.encode(text) == expected


def test_an_id_without_a_token_decodes_to_nothing(tmp_path):
    vocab = {name: i if i < 200 else i + 50 for name, i in ALPHABET.items()}  # ids 200 to 249 are a hole
    tokenizer = Tokenizer.load(written(tmp_path, {"vocab": vocab}))
    for ids in ([97, 220, 98], [97, 249, 98, 10**6], [200, 97, 98]):
        assert tokenizer.decode(ids) == "".join(tokenizer.decode_stream(ids)) == "ab"
        assert tokenizer.decode_bytes(ids) == b"ab"


def test_what_belongs_before_a_text_stands_there_once(tmp_path):
    begin = {"id": "<s>", "ids": [256], "tokens": ["<s>"]}
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    processor = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {"<s>": begin}}
    processor = {"type": "Sequence", "processors": [BYTES, processor]}  # as Llama 3's
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true, "bos_token": "<s>"}', encoding="utf-8")
    tokenizer = Tokenizer.load(written(tmp_path, added_tokens=[added("<s>")], post_processor=processor))
    assert tokenizer.encode("a") == [97]
    assert [*tokenizer.before, *tokenizer.encode("a")] == [256, 97]


def test_a_token_of_60000_bytes_is_read(tmp_path):
    long = "ab" * 30_000
    tokenizer = Tokenizer.load(written(tmp_path, {"vocab": ALPHABET | {long: 256}, "ignore_merges": True}, pre_tokenizer=WORDS))
    assert tokenizer.encode(long) == [256]
    assert tokenizer.decode([256, 97]) == long + "a"
    special = Tokenizer.load(written(tmp_path, added_tokens=[added(long)]))
    assert special.encode("a" + long, allowed_special="all") == [97, 256]


def test_what_readers_do_with_the_ids_is_kept(tmp_path):
    truncation = {"direction": "Right", "max_length": 512, "strategy": "LongestFirst", "stride": 0}
    tokenizer = Tokenizer.load(written(tmp_path, truncation=truncation))
    assert json.loads(tokenizer.save(tmp_path / "again").read_text(encoding="utf-8"))["truncation"] == truncation
    assert len(tokenizer.encode("a" * 1000)) == 1000


# ------------------------------------------------------------------------------------------------ refused by name


def split(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


REFUSED = {
    "another model": ({"type": "WordPiece"}, {}, "its model's type is \"WordPiece\", but must be one of 'BPE', 'Unigram'"),
    "a Unigram model without a list": ({"type": "Unigram"}, {}, "but must be a list"),
    "a suffix": ({"end_of_word_suffix": "</w>"}, {}, "its model's end_of_word_suffix"),
    "an unknown token without an id": ({"unk_token": "<unk>"}, {}, "its unk_token '<unk>' is not in its vocab"),
    "an id that is text": ({"vocab": {"a": "97"}}, {}, "its vocab gives 'a' the id \"97\""),
    "an id twice": ({"vocab": ALPHABET | {"ab": 97}}, {}, "the same id to two tokens"),
    "a pattern of two": ({}, {"decoder": {"type": "Replace", "pattern": {"String": "a", "Regex": "b"}, "content": ""}}, "its pattern is {"),  # noqa: E501
    "a pattern that is a list": ({}, {"normalizer": {"type": "Replace", "pattern": {"String": ["a"]}, "content": ""}}, "its pattern is {"),  # noqa: E501
    "spaces and a pattern": ({}, {"normalizer": {"type": "Replace", "pattern": {"String": " ", "Regex": "b"}, "content": "▁"}}, "its pattern is {"),  # noqa: E501
    "Precompiled": ({}, {"normalizer": {"type": "Precompiled"}}, "its Precompiled lacks precompiled_charsmap"),
    "BertNormalizer": ({}, {"normalizer": {"type": "BertNormalizer"}}, 'its normalizer is "BertNormalizer", but only NFC, NFD'),
    "UnicodeScripts": ({}, {"pre_tokenizer": {"type": "UnicodeScripts"}}, 'its pre_tokenizer is "UnicodeScripts", but only Split, ByteLevel'),  # noqa: E501
    "the first part after stripping": ({}, {
        "normalizer": {"type": "Strip", "strip_left": True, "strip_right": True},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"},
    }, "has the prepend_scheme first, but its normalizer may remove the first character"),
    "a token that is normalized away": ({}, {
        "normalizer": {"type": "Strip", "strip_left": True, "strip_right": True},
        "added_tokens": [added("\n", normalized=True)],
    }, "its normalizer turns the added token '\\n' into an empty text"),
    "bytes that are split": ({}, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES, split("a")]}}, "behind ByteLevel"),  # noqa: E501
    "WordPiece": ({}, {"decoder": {"type": "WordPiece"}}, 'its decoder is "WordPiece", but only ByteLevel'),
    "a replacement behind Fuse": ({}, {"decoder": {"type": "Sequence", "decoders": [
        {"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}]}}, "only Fuse and Strip can follow"),
    "two texts": ({}, {"post_processor": {"type": "TemplateProcessing", "special_tokens": {}, "single": [
        {"Sequence": {"id": "A"}}, {"Sequence": {"id": "A"}}]}}, "puts a text 2 times"),
    "a token without ids": ({}, {"post_processor": {"type": "TemplateProcessing", "special_tokens": {}, "single": [
        {"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}}, 'does not say which ids "<s>" has'),
    "another id than readers count": ({}, {"added_tokens": [added("<x>", 300)]}, "has the id 300, but readers of such files take it for 256"),  # noqa: E501
    "an id of another token": ({}, {"added_tokens": [added("a", 98)]}, "has the id 98, but readers of such files take it for 97"),
    "a recursion": ({}, {"pre_tokenizer": split("(?R)")}, "its pattern '(?R)' is not supported: the flag R"),
    "a look behind with a group": ({}, {"pre_tokenizer": split("(?<!(a))b")}, "a group, other than (?:...), in a lookbehind"),
    "an unknown class": ({}, {"pre_tokenizer": split(r"\p{Foo}")}, "the class 'Foo'"),
    "repetitions of repetitions": ({}, {"pre_tokenizer": split("((a{1000}){1000}){1000}")}, "its repetitions are too many"),
    "a very long pattern": ({}, {"pre_tokenizer": split("a" * 20_000)}, "it has 20,000 characters, but at most 10,000 are read"),
    "brackets without end": ({}, {"pre_tokenizer": split("(" * 5000 + ")" * 5000)}, "its groups are nested too deeply"),
    "a behaviour": ({}, {"pre_tokenizer": split("a") | {"behavior": "Kept"}}, 'its Split: behavior is "Kept", but must be one of'),  # noqa: E501
    "a flag that is a number": ({}, {"added_tokens": [added("<x>", lstrip=1)]}, "of an added token, lstrip is 1, but must be true or false"),  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize(("model", "values", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_would_give_other_ids_is_refused_by_name(tmp_path, model, values, sentence):
    with pytest.raises(DataError) as caught:
        Tokenizer.load(written(tmp_path, model, **values))
    assert str(tmp_path / "tokenizer.json") in str(caught.value)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 450


def test_another_json_file_is_no_tokenizer(tmp_path):
    (tmp_path / "tekken.json").write_text('{"config": {"pattern": "a"}, "vocab": []}', encoding="utf-8")
    with pytest.raises(DataError, match=r"tekken\.json is not a tokenizer that can be read here: it lacks model$"):
        Tokenizer.load(tmp_path / "tekken.json")


WRONG = [
    None,
    True,
    3,
    -1,
    10**400,
    1.5,
    "x",
    [],
    [1],
    {},
    {"type": 3},
    {"type": "Sequence"},
    [[]],
    {"a": None},
    "\ud800",
    "x" * 10_000,
]


def places(values, path=()):
    """Each place in a JSON value."""
    yield path
    for key, value in values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ():
        yield from places(value, (*path, key))


def test_values_of_any_type_are_one_sentence(tmp_path):
    model = {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "unk_token": "a"}
    steps = [split("a"), {"type": "Digits", "individual_digits": True}, {"type": "Metaspace", "replacement": "▁"}, BYTES]
    template = {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],  # noqa: E501
        "special_tokens": {"<x>": {"id": "<x>", "ids": [3], "tokens": ["<x>"]}},
    }  # fmt: skip
    written(
        tmp_path, model, added_tokens=[added("<x>", 3)], pre_tokenizer={"type": "Sequence", "pretokenizers": steps},
        normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "▁"}]},
        post_processor={"type": "Sequence", "processors": [template, {"type": "BertProcessing", "sep": ["a", 0], "cls": ["b", 1]}]},  # noqa: E501
        decoder={"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},  # noqa: E501
    )  # fmt: skip
    whole = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    Tokenizer.load(tmp_path).encode("ab 1", "all")
    rng, read = random.Random(0), 0
    for path in places(json.loads(whole)):
        for wrong in rng.sample(WRONG, 5):
            values = json.loads(whole)
            inner = values
            for key in path[:-1]:
                inner = inner[key]
            if path:
                inner[path[-1]] = wrong
            (tmp_path / "tokenizer.json").write_text(json.dumps(wrong if not path else values), encoding="utf-8")
            try:
                tokenizer = Tokenizer.load(tmp_path)
            except DataError as error:
                assert "\n" not in str(error)
                assert len(str(error)) < 500 + len(str(tmp_path))
                continue
            read += 1
            tokenizer.decode(tokenizer.wrap(tokenizer.encode("ab 1 <x>", "all")))
    assert read > 20


# ------------------------------------------------------------------------------------------------ time and memory


def test_a_hundred_thousand_added_tokens_are_read_and_found(tmp_path):
    n = 100_000
    tokens = [added(f"<extra_{i}>", 256 + i, special=i % 2 == 0) for i in range(n)]
    tokenizer = Tokenizer.load(written(tmp_path, added_tokens=tokens))
    assert tokenizer.encode("a<extra_99999><extra_9999><extra_7", "all") == [97, 256 + 99999, 256 + 9999, *b"<extra_7"]
    assert tokenizer.encode("<extra" * 1000) == list(b"<extra" * 1000)


@pytest.mark.parametrize("pattern", ["(a|aa)+$(?!b)x|(?=(a|aa)+b).", r"(a|a)*[^a]\d", "^(?:a|aa)+[^a.]"])
def test_a_pattern_without_end_is_one_sentence(tmp_path, monkeypatch, pattern):
    monkeypatch.setattr("numllama.tokenizer.patterns.SECONDS", 0.2)
    steps = [split(pattern), BYTES | {"use_regex": False}]
    tokenizer = Tokenizer.load(written(tmp_path, pre_tokenizer={"type": "Sequence", "pretokenizers": steps}))
    with pytest.raises(ValueError, match=r"^the pattern '.*' takes too long for a text of 50 characters$"):
        tokenizer.encode("a" * 49 + ".")


def test_a_long_run_of_flags_is_normalized_in_little_time():
    rules, flags = Precompiled("DAAAAAAEAAABAAAAAgAAAGEAYgA="), "🇫🇷🇩🇪" * 50_000
    begin = time.perf_counter()
    assert rules(flags) == flags
    assert time.perf_counter() - begin < 3  # minutes, if each flag looks at all before it
