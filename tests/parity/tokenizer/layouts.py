"""tokenizer.json of well-known models, with small vocabularies: what surrounds the merges is as it was published."""

import json
from functools import cache

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from numllama.tokenizer.decoders import CHARACTER_OF

TEXT = (
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, isn't it? We'll see; they've gone 3.14 times.\n\n"
    "def main(argv):\n    return {'key': [1, 2, 3]}\t# comment\r\n  naïve café, Straße über Ångström; señor, coração.\n"
    "中文分词是一个问题，天地玄黄。日本語のテキストです。カタカナ 한국어 텍스트 Россия и Україна مرحبا بالعالم नमस्ते\n"
    "the the and and of of to to in in a a is is that that it it for for was was with with as as on on be be 😀😀👍🏽\n"
) * 3
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CASED = (
    "41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a 38c 38e-3a1 3a3-3f5 "
    "3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a 1e00-1f15 "
    "1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 "
    "1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 212a-212d 212f-2134 2139 "
    "213c-213f 2145-2149 214e 2183 2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3 a640-a66d a680-a69b a722-a76f a771-a787 "
    "a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f 104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 "
    "118a0-118df 1e900-1e943"
)
CASED = "".join("-".join(chr(int(end, 16)) for end in ends.split("-")) for ends in CASED.split())
DEEPSEEK1 = (
    r"[\r\n]", rf"\s?[{CASED}]+", r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
)  # fmt: skip
O200K = "|".join((
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
))  # fmt: skip


# ------------------------------------------------------------------------------------------------ parts


def split(pattern, behavior="Isolated", invert=False):
    pattern = pattern if isinstance(pattern, dict) else {"Regex": pattern}
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def normalizers(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


def byte_level(add_prefix_space=False, trim_offsets=True, use_regex=True):
    return {
        "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": trim_offsets, "use_regex": use_regex
    }  # fmt: skip


def template(before="", after=""):
    """TemplateProcessing: ids are put in later."""
    return {"before": before.split(), "after": after.split()}


SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}
UNSPACES = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
LLAMA2_DECODER = {"type": "Sequence", "decoders": [UNSPACES, {"type": "ByteFallback"}, {"type": "Fuse"}, STRIP]}


def added(content, special=True, normalized=False, **flags):
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized,
            "special": special, **flags}  # fmt: skip


# ------------------------------------------------------------------------------------------------ vocabularies


@cache
def byte_merges():
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=700, show_progress=False))
    return merges_of(made)


@cache
def piece_merges():
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    made.train_from_iterator([TEXT.replace("日", "")], trainers.BpeTrainer(vocab_size=500, show_progress=False))
    return merges_of(made)


def merges_of(made):
    merges = json.loads(made.to_str())["model"]["merges"]
    return [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]


def bytes_model(first=(), lacks=(), **more):
    """A byte-level model; the tokens of `first` come first, those for the bytes in `lacks` are missing."""
    vocab = {}
    lost = {CHARACTER_OF[byte] for byte in lacks}
    merges = [merge for merge in byte_merges() if not lost & set("".join(merge))]
    for token in [*first, *(c for c in CHARACTER_OF.values() if c not in lost), *map("".join, merges)]:
        vocab.setdefault(token, len(vocab))
    return model(vocab, merges, **more)


def pieces_model(first=("<unk>", "<s>", "</s>"), lacks=(), **more):
    vocab = {}
    characters = sorted({c for merge in piece_merges() for c in "".join(merge)} | set("▁0123456789.,!?()'\"-\n"))
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256) if byte not in lacks]
    for token in [*first, *bytes_, *characters, *map("".join, piece_merges()), "▁▁", "▁▁▁▁"]:
        vocab.setdefault(token, len(vocab))
    merges = [*piece_merges(), ("▁", "▁"), ("▁▁", "▁▁")]
    return model(vocab, merges, **{"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, **more})


def model(vocab, merges, **more):
    return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, **more, "vocab": vocab,
            "merges": [list(merge) for merge in merges]}  # fmt: skip


def tokenizer_json(model, added_tokens, normalizer=None, pre_tokenizer=None, post_processor=None, decoder=None):
    """All of it, with the ids that readers give to added tokens."""
    vocab, following = model["vocab"], len(model["vocab"])
    ids = {}
    for token in added_tokens:
        ids[token["content"]] = vocab.get(token["content"], following)
        following += token["content"] not in vocab
    if post_processor and "before" in post_processor:
        tokens = [*post_processor["before"], *post_processor["after"]]
        special = {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in tokens}
        around = [[{"SpecialToken": {"id": t, "type_id": 0}} for t in post_processor[side]] for side in ("before", "after")]
        single = [*around[0], {"Sequence": {"id": "A", "type_id": 0}}, *around[1]]
        pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
        post_processor = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": ids[token["content"]], **token} for token in added_tokens],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": decoder,
        "model": model,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ models


def llama3():
    special = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(3)),
               "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]  # fmt: skip
    made = tokenizer_json(
        bytes_model(ignore_merges=True), [*map(added, special)],
        pre_tokenizer=sequence(split(LLAMA3), byte_level(use_regex=False)),
        post_processor=template("<|begin_of_text|>"), decoder=byte_level(add_prefix_space=True),
    )  # fmt: skip
    made["post_processor"] = {"type": "Sequence", "processors": [byte_level(True, False), made["post_processor"]]}
    return made


def gpt2():
    made = tokenizer_json(
        bytes_model(continuing_subword_prefix="", end_of_word_suffix=""), [added("<|endoftext|>", normalized=True)],
        pre_tokenizer=byte_level(), post_processor=byte_level(True, False), decoder=byte_level(True),
    )  # fmt: skip
    for name in ("type", "byte_fallback", "ignore_merges"):
        del made["model"][name]
    for step in ("pre_tokenizer", "post_processor", "decoder"):
        del made[step]["use_regex"]
    return made


def qwen25():
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_pad|>"]
    plain = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|repo_name|>"]
    return tokenizer_json(
        bytes_model(continuing_subword_prefix="", end_of_word_suffix=""),
        [*map(added, special), *(added(token, special=False) for token in plain)],
        normalizer={"type": "NFC"}, pre_tokenizer=sequence(split(QWEN2), byte_level(False, False, False)),
        post_processor=byte_level(False, False, False), decoder=byte_level(False, False, False),
    )  # fmt: skip


SMOLLM2_LACKS = (0x04, 0x06, 0x0E, 0x13, 0x7F, 0xC0, 0xC1, 0xD8, 0xF1, *range(0xF5, 0x100))


def smollm2():
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<gh_stars>"]
    return tokenizer_json(
        bytes_model(special, lacks=SMOLLM2_LACKS), [*map(added, special)],
        pre_tokenizer=sequence({"type": "Digits", "individual_digits": True}, byte_level()),
        decoder=byte_level(True),
    )  # fmt: skip


def mistral03():
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[control_8]"]
    return tokenizer_json(
        pieces_model(special), [*map(added, special)], post_processor=template("<s>"), decoder=LLAMA2_DECODER,
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
    )  # fmt: skip


def deepseek_v3():
    tokens = [added("<｜begin▁of▁sentence｜>"), added("<｜end▁of▁sentence｜>"), added("<｜▁pad▁｜>")]
    more = [added(token, special=False) for token in ("<｜User｜>", "<｜Assistant｜>", "<|EOT|>", "<｜tool▁call▁begin｜>")]
    more += [added(token, special=False, normalized=True) for token in ("<｜fim▁hole｜>", "<｜fim▁begin｜>")]
    splits = [split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK3)]
    return tokenizer_json(
        bytes_model([token["content"] for token in tokens]), [*tokens, *more], normalizer=normalizers(),
        pre_tokenizer=sequence(*splits, byte_level(use_regex=False)), post_processor=template("<｜begin▁of▁sentence｜>"),
        decoder=byte_level(True),
    )  # fmt: skip


def deepseek_llm():
    letters = [added(c, special=False, normalized=True) for c in "õ÷Áýÿøúþüùöû"]
    splits = map(split, DEEPSEEK1)
    lacks = [byte for byte, c in CHARACTER_OF.items() if c in "õ÷Áýÿøúþüùöû"]
    return tokenizer_json(
        bytes_model(lacks=lacks),
        [*letters, added("<｜begin▁of▁sentence｜>", normalized=True), added("<｜end▁of▁sentence｜>", normalized=True)],
        normalizer=normalizers(),
        pre_tokenizer=sequence(*splits, {"type": "Digits", "individual_digits": True}, byte_level(use_regex=False)),
        post_processor=template("<｜begin▁of▁sentence｜>"), decoder=byte_level(True),
    )  # fmt: skip


def phi3():
    special = [added("<|endoftext|>"), added("<|assistant|>", rstrip=True), added("<|placeholder1|>", rstrip=True),
               added("<|system|>", rstrip=True), added("<|end|>", rstrip=True), added("<|user|>", rstrip=True)]  # fmt: skip
    return tokenizer_json(
        pieces_model(), [added("<unk>"), added("<s>"), added("</s>", special=False, rstrip=True), *special],
        normalizer=normalizers(PREPEND, SPACES), post_processor=template("<s>"), decoder=LLAMA2_DECODER,
    )  # fmt: skip


def yi():
    special = ["<unk>", "<|startoftext|>", "<|endoftext|>", "<|Human|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"]
    return tokenizer_json(
        pieces_model(special), [*map(added, special)], normalizer=normalizers(SPACES),
        decoder={"type": "Sequence", "decoders": [UNSPACES, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        post_processor=template(),
    )  # fmt: skip


def olmo2():
    tokens = [added("<|endoftext|>"), *(added(f"<|{n}|>") for n in ("fim_prefix", "fim_middle", "fim_suffix", "im_start", "pad"))]
    tokens += [added(f"|||{n}|||", special=False) for n in ("PHONE_NUMBER", "EMAIL_ADDRESS", "IP_ADDRESS")]
    return tokenizer_json(
        bytes_model(), tokens, pre_tokenizer=sequence(split(LLAMA3), byte_level(use_regex=False)), decoder=byte_level(True)
    )


def minimind():
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return tokenizer_json(bytes_model(special), [*map(added, special)], pre_tokenizer=byte_level(), decoder=byte_level(True))


def open_llama():
    return tokenizer_json(
        pieces_model(), [added(token, normalized=True) for token in ("<unk>", "<s>", "</s>")],
        normalizer=normalizers(PREPEND, SPACES), post_processor=template("<s>"), decoder=LLAMA2_DECODER,
    )  # fmt: skip


def tinyllama():
    return tokenizer_json(
        pieces_model(), [*map(added, ("<unk>", "<s>", "</s>"))], normalizer=normalizers(PREPEND, SPACES),
        post_processor=template("<s>"), decoder=LLAMA2_DECODER,
    )  # fmt: skip


def gpt_neox():
    """Pythia and OLMo 1: runs of spaces are words of the vocabulary, and nothing is special about them."""
    spaces = [added(" " * n, special=False, normalized=True) for n in range(8, 1, -1)]
    return tokenizer_json(
        bytes_model(["<|endoftext|>", "<|padding|>"]), [added("<|endoftext|>"), added("<|padding|>"), *spaces],
        normalizer={"type": "NFC"}, pre_tokenizer=byte_level(), post_processor=byte_level(True), decoder=byte_level(),
    )  # fmt: skip


def llama_of_today():
    """As transformers writes a LlamaTokenizer that is not "legacy"; words are added."""
    more = [added("COVID", special=False, normalized=True), added("hello", special=False, single_word=True),
            added("<mask>", lstrip=True), added("naïve", special=False)]  # fmt: skip
    return tokenizer_json(
        pieces_model(), [*map(added, ("<unk>", "<s>", "</s>")), *more], post_processor=template("<s>", "</s>"),
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        decoder={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    )  # fmt: skip


def gpt4o():
    return tokenizer_json(
        bytes_model(ignore_merges=True), [added("<|endoftext|>"), added("<|endofprompt|>", single_word=True)],
        pre_tokenizer=sequence(split(O200K), byte_level(use_regex=False)), decoder=byte_level(),
    )  # fmt: skip


def midm():
    """Matches are kept and the rest is removed."""
    return tokenizer_json(
        bytes_model(), [added("<|endoftext|>")], decoder=byte_level(),
        pre_tokenizer=sequence(split(LLAMA3, "Removed", invert=True), byte_level(True, use_regex=False)),
    )  # fmt: skip


def unknown_characters():
    """No bytes to fall back on: what is not in the vocabulary is <unk>."""
    return tokenizer_json(
        pieces_model(lacks=range(256), byte_fallback=False), [*map(added, ("<unk>", "<s>", "</s>"))],
        normalizer=normalizers({"type": "NFKC"}, {"type": "Lowercase"}, SPACES),
        decoder={"type": "Sequence", "decoders": [UNSPACES, {"type": "Fuse"}]},
    )  # fmt: skip


LAYOUTS = {
    "Llama 3": llama3, "GPT-2": gpt2, "Qwen 2.5": qwen25, "SmolLM2": smollm2, "Mistral v0.3": mistral03,
    "DeepSeek V3": deepseek_v3, "DeepSeek LLM": deepseek_llm, "Phi-3": phi3, "Yi": yi, "OLMo 2": olmo2,
    "minimind": minimind, "OpenLLaMA": open_llama, "TinyLlama": tinyllama, "GPT-NeoX": gpt_neox,
    "Llama of today": llama_of_today, "GPT-4o": gpt4o, "Midm": midm, "unknown characters": unknown_characters,
}  # fmt: skip
