"""More tokenizer.json of well-known models, by what is new in each; see `layouts.py`."""

import io
import json
from functools import cache

import sentencepiece
import tokenizers
from parity.tokenizer.layouts import (
    LLAMA2_DECODER,
    LLAMA3,
    PREPEND,
    QWEN2,
    SPACES,
    TEXT,
    UNSPACES,
    added,
    byte_level,
    bytes_model,
    normalizers,
    pieces_model,
    sequence,
    split,
    template,
    tokenizer_json,
)
from tokenizers import models, pre_tokenizers, trainers

from numllama.tokenizer.config import Beside
from numllama.tokenizer.sentencepiece_model import read

TEKKEN = "|".join((
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
))  # fmt: skip
BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"
DIGITS = {"type": "Digits", "individual_digits": True}
WORDS = {"type": "WhitespaceSplit"}
RIGHT = {"type": "Strip", "strip_left": False, "strip_right": True}
ONE_SPACE = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
QUOTES = [{"type": "Replace", "pattern": {"String": sign}, "content": '"'} for sign in ("``", "''")]
ACCENTS = [{"type": "NFKD"}, {"type": "StripAccents"}]


# ------------------------------------------------------------------------------------------------ bytes


def byte_layout(special, steps, normalizer=None, plain=(), before="", **model):
    tokens = [*map(added, special), *(added(token, special=False) for token in plain)]
    return tokenizer_json(
        bytes_model(special, **model), tokens, normalizer, steps, template(before) if before else byte_level(True, False),
        byte_level(True),
    )  # fmt: skip


def roberta():
    tokens = [added(token, normalized=True) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    special = [token["content"] for token in tokens]
    made = tokenizer_json(
        bytes_model([*special, "<mask>"]), [*tokens, added("<mask>", lstrip=True)],
        pre_tokenizer=byte_level(), decoder=byte_level(True),
    )  # fmt: skip
    ends = {"sep": ["</s>", 2], "cls": ["<s>", 0]}
    return made | {"post_processor": {"type": "RobertaProcessing", **ends, "trim_offsets": True, "add_prefix_space": False}}


def nemo():
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "<pad>", "[TOOL_CALLS]", "<SPECIAL_14>"]
    return byte_layout(special, sequence(split(TEKKEN), byte_level(use_regex=False)), before="<s>", ignore_merges=True)


def qwen3():
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"]
    plain = ["<tool_call>", "<tool_response>", "<think>", "</think>", "<|repo_name|>"]
    steps = sequence(split(QWEN2), byte_level(False, False, False))
    return byte_layout(special, steps, {"type": "NFC"}, plain)


def starcoder2():
    return byte_layout(["<|endoftext|>", "<fim_prefix>", "<repo_name>", "<file_sep>"], sequence(DIGITS, byte_level()))


def granite():
    special = ["<|end_of_text|>", "<fim_prefix>", "<filename>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"]
    return byte_layout(special, sequence(DIGITS, byte_level()))


def phi4():
    """cl100k as it was converted: matches are kept, and the rest, which is nothing, is removed."""
    tokens = [added(token, rstrip=True) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|dummy_0|>")]
    steps = sequence(split(LLAMA3, "Removed", invert=True), byte_level(use_regex=False))
    return tokenizer_json(bytes_model(), tokens, None, steps, byte_level(True, False), byte_level(True))


def phi2():
    """CodeGen's: runs of spaces and tabs are words that are added to GPT-2's vocabulary."""
    runs = [added(sign * n, special=False, normalized=True) for sign in " \t" for n in range(9, 1, -1)]
    return tokenizer_json(
        bytes_model(), [added("<|endoftext|>"), *runs], None, byte_level(), byte_level(True, False), byte_level(True)
    )


def command_r():
    special = ["<PAD>", "<UNK>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"]
    return byte_layout(special, sequence(DIGITS, byte_level()), {"type": "NFC"}, before="<BOS_TOKEN>")


def bloom():
    return byte_layout(["<unk>", "<s>", "</s>", "<pad>"], sequence(split(BLOOM), byte_level(use_regex=False)))


def falcon():
    steps = sequence(
        {"type": "Punctuation", "behavior": "Contiguous"}, byte_level(),
        {"type": "Digits", "individual_digits": False}, split("[0-9][0-9][0-9]"),
    )  # fmt: skip
    return byte_layout([">>TITLE<<", ">>ABSTRACT<<", ">>INTRODUCTION<<", "<|endoftext|>"], steps)


# ------------------------------------------------------------------------------------------------ pieces


def gemma(splitting):
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    plain = ["[multimodal]", "<unused0>", "<start_of_turn>", "<end_of_turn>", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "<table>", "</h1>"]
    decoder = {"type": "Sequence", "decoders": [UNSPACES, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    return tokenizer_json(
        pieces_model([*special, *plain]), [*map(added, special), *(added(token, special=False) for token in plain)],
        SPACES, splitting, template("<bos>"), decoder,
    )  # fmt: skip


def gemma1():
    return gemma(None)


def gemma3():
    return gemma(split({"String": " "}, "MergedWithPrevious"))


def code_llama():
    special = ["<unk>", "<s>", "</s>", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]
    return tokenizer_json(
        pieces_model(), [*map(added, special)], normalizers(PREPEND, SPACES), None, template("<s>"), LLAMA2_DECODER
    )


# ------------------------------------------------------------------------------------------------ Unigram


@cache
def precompiled():
    """The normalizer of T5 and XLM-R, nmt_nfkc: SentencePiece writes it into each model that it trains."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n")), model_writer=file, vocab_size=300, hard_vocab_limit=False, minloglevel=2
    )
    made = read(file.getvalue(), Beside({}, {}, {}, {}))
    return made.layout.values["normalizer"]["normalizers"][0]


@cache
def unigram_vocab():
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(TEXT.split("\n"), trainers.UnigramTrainer(vocab_size=400, show_progress=False, unk_token="<unk>"))
    return json.loads(made.to_str())["model"]["vocab"]


def unigram_model(special, fallback=False):
    vocab = [pair for pair in unigram_vocab() if pair[0] not in special]
    bytes_ = [[f"<0x{byte:02X}>", 0.0] for byte in range(256)] if fallback else []
    vocab = [*([token, 0.0] for token in special), *bytes_, *vocab]
    return {"type": "Unigram", "unk_id": special.index("<unk>"), "vocab": vocab, "byte_fallback": fallback}


def unigram_layout(special, normalizer, steps, around, decoder=None, fallback=False, plain=()):
    model = unigram_model(special, fallback)
    named = {name: i for i, (name, _) in enumerate(model["vocab"])}
    tokens = [added(token, lstrip=token == "<mask>") for token in special]
    tokens += [added(token, special=False) for token in plain]
    made = tokenizer_json(model | {"vocab": named}, tokens, normalizer, steps, around, decoder or meta())
    return made | {"model": model}


def meta(**more):
    return {"type": "Metaspace", "replacement": "▁", **(more or {"add_prefix_space": True})}


EXTRA = [f"<extra_id_{i}>" for i in range(5)]


def t5():
    special = ["<pad>", "</s>", "<unk>", *EXTRA]
    return unigram_layout(special, precompiled(), sequence(WORDS, meta()), template(after="</s>"))


def mt5():
    steps = meta(prepend_scheme="always", split=True)
    special = ["<pad>", "</s>", "<unk>", *EXTRA]
    return unigram_layout(special, normalizers(precompiled(), RIGHT, ONE_SPACE), steps, template(after="</s>"), steps)


def xlm_roberta():
    return unigram_layout(
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], precompiled(), sequence(WORDS, meta()), template("<s>", "</s>")
    )


def albert():
    steps = normalizers(*QUOTES, *ACCENTS, {"type": "Lowercase"}, precompiled())
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "<mask>"]
    return unigram_layout(special, steps, sequence(WORDS, meta()), template("[CLS]", "[SEP]"))


def xlnet():
    steps = normalizers(*QUOTES, *ACCENTS, precompiled())
    special = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]
    splitting = sequence(WORDS, meta(prepend_scheme="always", split=True))
    return unigram_layout(special, steps, splitting, template("", "<sep> <cls>"))


def unigram_with_bytes():
    """As transformers converts a Llama derivative whose SentencePiece model is of type unigram."""
    return unigram_layout(
        ["<unk>", "<s>", "</s>"], normalizers(PREPEND, SPACES), None, template("<s>"), LLAMA2_DECODER, True, ["<|im_end|>"]
    )


# ------------------------------------------------------------------------------------------------ refused by name


def bert():
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    bert = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    return tokenizer_json(
        model | {"vocab": {"[UNK]": 0, "a": 1, "##b": 2}}, [added("[UNK]")], bert, {"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )  # fmt: skip


def clip():
    steps = sequence(split("'s|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+", "Removed", invert=True), byte_level())
    tokens = [added("<|startoftext|>", normalized=True), added("<|endoftext|>")]
    ends = {"sep": ["<|endoftext|>", 1], "cls": ["<|startoftext|>", 0]}
    return tokenizer_json(
        bytes_model([token["content"] for token in tokens], end_of_word_suffix="</w>"), tokens,
        normalizers({"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}, {"type": "Lowercase"}),
        steps, {"type": "RobertaProcessing", **ends, "trim_offsets": False, "add_prefix_space": False}, byte_level(),
    )  # fmt: skip


MORE_LAYOUTS = {
    "RoBERTa": roberta, "Mistral Nemo": nemo, "Qwen 3": qwen3, "StarCoder 2": starcoder2, "Granite 3": granite, "Phi-4": phi4,
    "Phi-2": phi2, "Command R": command_r, "BLOOM": bloom, "Gemma 1": gemma1, "Gemma 3": gemma3,
    "Code Llama": code_llama, "T5": t5, "mT5": mt5, "XLM-R": xlm_roberta, "ALBERT": albert, "XLNet": xlnet,
    "Unigram with bytes": unigram_with_bytes,
}  # fmt: skip
REFUSED = {
    "Falcon": (falcon, "its pre_tokenizer has a step behind ByteLevel"),
    "BERT": (bert, "its model's type is \"WordPiece\", but must be one of 'BPE', 'Unigram'"),
    "CLIP": (clip, 'its model\'s end_of_word_suffix is "</w>"'),
}
