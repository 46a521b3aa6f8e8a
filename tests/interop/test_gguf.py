"""GGUF: files that the `gguf` package writes, and those written here."""

import json
import resource
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers import assert_same_bits
from interop.checkpoints import SCALING, random_model
from realdata import real_data
from tokenizer.test_bpe import MERGES, VOCAB
from tokenizer.test_sentencepiece_model import ORDERED

import numllama as nl
from numllama.cli import app
from numllama.errors import CheckpointError, DataError
from numllama.interop.huggingface import to_neighbours
from numllama.interop.load import load_tokenizer, save
from numllama.storage.gguf_file import read_gguf
from numllama.tokenizer.gguf import SPLITTING
from numllama.tokenizer.layout import SPACES, byte_level, piece_decoder
from numllama.tokenizer.patterns import PATTERNS
from numllama.tokenizer.pre_tokenizers import PreTokenizer
from numllama.tokenizer.tokenizer_json import content

SHAPE = dict(vocab_size=64, dim=256, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=256, max_seq_len=32)
TYPES = [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, *sorted(gguf.quants._type_traits)]
SHAPES = [{}, dict(tie_embeddings=True), dict(bias=True), dict(n_kv_heads=4), dict(head_dim=10)]
CHAT = "{% for m in messages %}<s>{{ m.content }}{{ eos_token }}{% endfor %}"
SPECIAL = ["<s>", "<|end|>"]
TEXT = "the cat\nan aaaa é中1234, the  aa 56"


def write(path, config=SHAPE, kind=gguf.GGMLQuantizationType.F32, values=(), leave_out=(), tensors=(), shard=None):
    """A random Llama, written by the `gguf` package; returns its tensors, as numbers, by their names in the file."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    c = nl.ModelConfig(**config)
    known = {
        "llama.block_count": c.n_layers, "llama.context_length": c.max_seq_len, "llama.embedding_length": c.dim,
        "llama.feed_forward_length": c.ffn_dim, "llama.attention.head_count": c.n_heads,
        "llama.attention.head_count_kv": c.n_kv_heads, "llama.rope.dimension_count": c.head_dim,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 500.0,
    } | dict(values)  # fmt: skip
    for name, value in known.items():
        if name not in leave_out and value is not None:
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add.get(type(value), writer.add_array)(name, value)
    Q, KV, C, F = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.dim, c.ffn_dim
    shapes = {"token_embd": (c.vocab_size, C), "output_norm": (C,), "output": (c.vocab_size, C)}
    for i in range(c.n_layers):
        block = {
            "attn_norm": (C,), "attn_q": (Q, C), "attn_k": (KV, C), "attn_v": (KV, C), "attn_output": (C, Q),
            "ffn_norm": (C,), "ffn_gate": (F, C), "ffn_up": (F, C), "ffn_down": (C, F),
        }  # fmt: skip
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    shapes = {f"{name}.weight": shape for name, shape in shapes.items()} | dict(tensors)
    found = {}
    for name, shape in shapes.items():
        if name in leave_out:
            continue
        exact = rng.standard_normal(shape).astype("float32") * 0.1
        if len(shape) == 1 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, exact)
            found[name] = exact
            continue
        data = stored(exact, kind, rng)
        writer.add_tensor(name, data, raw_dtype=kind)
        found[name] = gguf.dequantize(data, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def stored(exact, kind, rng):
    """A matrix in a type: rounded, or random blocks with small scales if the package cannot round to it."""
    try:
        return gguf.quantize(exact, kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        data = rng.integers(0, 256, (len(exact), exact.shape[1] // block, size), np.uint8)
        data[..., 1::2] &= 0x0F  # wherever the float16 scale is, it is small
        return data.reshape(len(exact), -1)


def bytes_tokenizer(**changes):
    """The values of a byte-level tokenizer."""
    tokens = nl.Tokenizer(VOCAB, MERGES, SPECIAL)
    names = [tokens.name(i) for i in range(tokens.vocab_size)]
    ids = set(tokens.special_tokens.values())
    values = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": [3 if i in ids else 1 for i in range(len(names))],
        "tokenizer.ggml.merges": [f"{tokens.written(a)} {tokens.written(b)}" for a, b in MERGES],
        "tokenizer.ggml.eos_token_id": max(ids), "tokenizer.chat_template": CHAT,
    }  # fmt: skip
    return {**values, **{f"tokenizer.{name}": value for name, value in changes.items()}}


# ------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_each_type_of_weights_is_expanded_as_the_package_does(tmp_path, kind):
    path = tmp_path / "x.gguf"
    found = write(path, kind=kind)
    model = nl.load(path)
    assert model.config == nl.ModelConfig(**SHAPE, rope_theta=500.0)
    assert_same_bits(model.params["embed"], found["token_embd.weight"])
    assert_same_bits(model.params["head"], found["output.weight"])
    assert_same_bits(model.params["blocks.0.w_down"], found["blk.0.ffn_down.weight"])
    assert_same_bits(to_neighbours(model.params["blocks.0.wk"], 2), found["blk.0.attn_k.weight"])
    assert_same_bits(to_neighbours(model.params["blocks.0.wq"], 4), found["blk.0.attn_q.weight"])
    assert_same_bits(model.params["norm"], found["output_norm.weight"])


def test_blocks_of_rows_give_what_the_whole_gives(tmp_path, monkeypatch):
    write(tmp_path / "x.gguf", kind=gguf.GGMLQuantizationType.Q4_1)
    whole = nl.load(tmp_path / "x.gguf")
    monkeypatch.setattr("numllama.model.parameters.COPIED", 7 * 256)  # 7 rows cut through heads of 64
    assert_same_bits(nl.load(tmp_path / "x.gguf").params.flat, whole.params.flat)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int8"])
def test_the_dtype_asked_for(tmp_path, dtype):
    write(tmp_path / "x.gguf", kind=gguf.GGMLQuantizationType.Q5_1)
    exact = nl.load(tmp_path / "x.gguf")
    model = nl.load(tmp_path / "x.gguf", **({"store_as": "int8"} if dtype == "int8" else {"dtype": dtype}))
    close = {"float32": 0, "float64": 0, "bfloat16": 2e-2, "int8": 3e-2}[dtype]
    logits = [np.asarray(m.forward(np.arange(8)[None]), "float64") for m in (exact, model)]
    np.testing.assert_allclose(*logits, atol=close or 1e-4)


def test_a_head_that_is_not_there_is_tied(tmp_path):
    write(tmp_path / "x.gguf", leave_out=["output.weight"])
    assert nl.load(tmp_path / "x.gguf").config.tie_embeddings


def test_a_split_model_opens_by_any_of_its_files(tmp_path):
    write(tmp_path / "x.gguf")
    whole = read_gguf(tmp_path / "x.gguf")
    names = list(whole.tensors)
    for i, some in enumerate((names[:4], names[4:])):
        writer = gguf.GGUFWriter(tmp_path / f"x-0000{i + 1}-of-00002.gguf", "llama")
        for name, value in whole.values.items() if i == 0 else ():
            if name != "general.architecture":
                {int: writer.add_uint32, float: writer.add_float32}[type(value)](name, value)
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", 2)
        for name in some:
            place = whole.tensors[name]
            data = np.fromfile(place.path, "<f4", int(np.prod(place.shape)), offset=place.begin)
            writer.add_tensor(name, data.reshape(place.shape))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    model = nl.load(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").unlink()
    for path in (tmp_path, *tmp_path.glob("*.gguf")):
        assert_same_bits(nl.load(path).params.flat, model.params.flat)
    (tmp_path / "x-00002-of-00002.gguf").rename(tmp_path / "y")
    with pytest.raises(CheckpointError, match=r"lacks x-00002-of-00002\.gguf, which the model is split into"):
        nl.load(tmp_path / "x-00001-of-00002.gguf")
    (tmp_path / "x-00001-of-00002.gguf").rename(tmp_path / "z.gguf")
    with pytest.raises(CheckpointError, match="one of several files"):
        nl.load(tmp_path / "z.gguf")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"llama.expert_count": 8}, "the model's description lacks expert_used_count"),
        ({"llama.attention.sliding_window": 16}, "needs llama.attention.sliding_window, which numllama does not compute"),
        ({"llama.rope.scaling.type": "ntk"}, "RoPE is scaled by 'ntk', but only none, linear, yarn, longrope are supported"),
        ({"llama.rope.dimension_count": 32}, "llama.rope.dimension_count is 32, but only the head size, 64"),
        ({"llama.block_count": 2}, r"it lacks blk\.1\.attn_q\.weight"),
        ({"llama.block_count": 2**31}, "12 tensors, which cannot be 2147483648 layers"),
        ({"llama.embedding_length": None}, r"lacks embedding_length"),
        ({"llama.attention.head_count": [4, 2]}, "llama.attention.head_count is "),
        ({"llama.context_length": "long"}, "llama.context_length is \"long\", but must be a whole number"),
        ({"llama.feed_forward_length": 128}, r"blk\.0\.ffn_gate\.weight has shape \(256, 256\), but \(128, 256\) is needed"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path, values, words):
    write(tmp_path / "x.gguf", values=values)
    with pytest.raises(CheckpointError, match=words):
        nl.load(tmp_path / "x.gguf")


def test_another_architecture_tensor_or_type_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"general\.architecture is 'mamba', but must be one of 'llama'"):
        nl.load(tmp_path / "x.gguf")
    write(tmp_path / "y.gguf", tensors={"blk.0.attn_sinks.weight": (4,)})
    with pytest.raises(CheckpointError, match=r"does not have: blk\.0\.attn_sinks\.weight"):
        nl.load(tmp_path / "y.gguf")
    write(tmp_path / "z.gguf", kind=gguf.GGMLQuantizationType.Q4_0)
    content = (tmp_path / "z.gguf").read_bytes()
    at = content.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 2 * 8
    for number, words in ((99, "type 99, which .* does not know"), (9, "Q8_1, which .* cannot expand")):
        (tmp_path / "z.gguf").write_bytes(content[:at] + struct.pack("<I", number) + content[at + 4 :])
        with pytest.raises(CheckpointError, match=words):
            nl.load(tmp_path / "z.gguf")


def test_without_the_package_only_quantised_weights_are_refused(tmp_path, monkeypatch):
    write(tmp_path / "x.gguf")
    write(tmp_path / "y.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    monkeypatch.setitem(sys.modules, "gguf", None)
    from numllama.interop.gguf import quantisers

    quantisers.cache_clear()
    nl.load(tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match=r"quantised weights need the package gguf: pip install .*gguf"):
        nl.load(tmp_path / "y.gguf")


@pytest.mark.parametrize("cut", [0, 3, 10, 100, 700, -1, -9000])
def test_a_file_that_is_cut_short(tmp_path, cut):
    write(tmp_path / "x.gguf", values=bytes_tokenizer())
    (tmp_path / "x.gguf").write_bytes((tmp_path / "x.gguf").read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"cut short|not a GGUF file|damaged"):
        nl.load(tmp_path / "x.gguf")


# ------------------------------------------------------------------------------------------------ RoPE


def test_llama_3_1s_scaling_is_read_from_its_factors_and_written(tmp_path):
    scaling = dict(SCALING, original_max_position_embeddings=8192, factor=32.0)
    model = random_model(rope_scaling=scaling, rope_theta=500000.0, dim=256, max_seq_len=131072)
    model.save(tmp_path / "x.gguf")
    assert nl.load(tmp_path / "x.gguf").config == model.config
    model = random_model(rope_scaling=dict(scaling, low_freq_factor=2.0), dim=256)
    with pytest.raises(ValueError, match=r"cannot hold this model: rope_freqs\.weight scales RoPE in another way"):
        model.save(tmp_path / "y.gguf")


def test_linear_scaling(tmp_path):
    write(tmp_path / "x.gguf", values={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    model = nl.load(tmp_path / "x.gguf")
    assert model.config.rope_scaling == {"rope_type": "linear", "factor": 4.0}
    model.save(tmp_path / "y.gguf")
    assert nl.load(tmp_path / "y.gguf").config == model.config


# ------------------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_a_round_trip_changes_no_bit(tmp_path, changes, layout):
    model = random_model(rope_layout=layout, **changes)
    model.save(tmp_path / "x.gguf")
    again = nl.load(tmp_path / "x.gguf")
    tokens = np.arange(10)[None]
    np.testing.assert_allclose(again.forward(tokens), model.forward(tokens), atol=2e-5)
    if layout == "half":
        assert again.config == model.config
        assert_same_bits(again.params.flat, model.params.flat)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_matrices_are_rounded_and_vectors_are_not(tmp_path, dtype):
    model = nl.Transformer(nl.ModelConfig(**SHAPE), seed=1)
    save(model, tmp_path / "x.gguf", dtype=dtype)
    again = nl.load(tmp_path / "x.gguf")
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    stored_as = {"float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}[dtype]
    assert set(kinds.values()) == {stored_as, "F32"} and kinds["output_norm.weight"] == "F32"
    largest = np.abs(again.params.flat - model.params.flat).max() / np.abs(model.params.flat).max()
    assert 0 < largest < {"float16": 5e-4, "bfloat16": 4e-3, "q8_0": 4e-3}[dtype]
    assert_same_bits(again.params["norm"], model.params["norm"])


def test_what_a_file_cannot_hold_is_refused(tmp_path):
    path = tmp_path / "x.gguf"
    with pytest.raises(ValueError, match="cannot hold this model: norm is 'layernorm', but in llama it is 'rmsnorm'"):
        random_model(norm="layernorm").save(path)
    with pytest.raises(ValueError, match="dtype is 'q4_0', but weights in a GGUF file can be float32, float16, bfloat16, q8_0"):
        save(random_model(), path, dtype="q4_0")
    with pytest.raises(CheckpointError, match="a row of 24 numbers is not a multiple of the 32"):
        save(random_model(), path, dtype="q8_0")
    with pytest.raises(ValueError, match=r"only a \.gguf can store"):
        save(random_model(), tmp_path / "x", dtype="float16")
    with pytest.raises(ValueError, match="cannot hold a tokenizer of characters"):
        random_model().save(path, nl.CharTokenizer("abc"))
    with pytest.raises(ValueError, match=r"the tokenizer has .* tokens, but the model only 23"):
        random_model().save(path, nl.Tokenizer(VOCAB, MERGES))
    with pytest.raises(ValueError, match="no name for the way in which the tokenizer splits a text"):
        random_model(vocab_size=300).save(path, nl.Tokenizer(VOCAB, MERGES, pattern=r"\w+|\W+"))
    assert not path.exists()


# ------------------------------------------------------------------------------------------------ tokenizers


@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "qwen2"])
@pytest.mark.parametrize("ignore", [False, True])
def test_a_byte_level_tokenizer_comes_back(tmp_path, pattern, ignore):
    tokens = nl.Tokenizer(VOCAB, MERGES, SPECIAL, pattern=pattern, ignore_merges=ignore)
    model = random_model(vocab_size=tokens.vocab_size + 3)
    if ignore and pattern != "llama3":
        with pytest.raises(ValueError, match="no name for the way"):
            model.save(tmp_path / "x.gguf", tokens)
        return
    model.save(tmp_path / "x.gguf", tokens)
    again = nl.Tokenizer.load(tmp_path / "x.gguf")
    assert again.encode(TEXT, allowed_special="all") == tokens.encode(TEXT, allowed_special="all")
    assert again.decode(again.encode(TEXT)) == TEXT
    assert again.special_tokens == tokens.special_tokens and again.before == tokens.before == []


def test_a_layout_that_is_written_in_another_way_has_the_same_name(tmp_path):
    tokens = nl.Tokenizer(VOCAB, MERGES, SPECIAL, pattern=PATTERNS["llama3"].replace(r"\r\n", "\r\n"))
    assert tokens.pattern != PATTERNS["llama3"]
    path = tokens.save(tmp_path)
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | {"normalizer": {"type": "Sequence", "normalizers": []}}), encoding="utf-8")
    model, tokens = random_model(vocab_size=tokens.vocab_size), nl.Tokenizer.load(path)  # as in DeepSeek V3's
    model.save(tmp_path / "x.gguf", tokens)
    assert nl.Tokenizer.load(tmp_path / "x.gguf").pattern == PATTERNS["llama3"]
    path.write_text(json.dumps(values | {"normalizer": {"type": "NFC"}}), encoding="utf-8")
    model.save(tmp_path / "z.gguf", nl.Tokenizer.load(path))  # as in Qwen's
    assert nl.Tokenizer.load(tmp_path / "z.gguf").pattern == PATTERNS["llama3"]
    path.write_text(json.dumps(values | {"normalizer": {"type": "Lowercase"}}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"llama\.cpp leaves a text as it is, but the tokenizer normalizes it"):
        model.save(tmp_path / "y.gguf", nl.Tokenizer.load(path))


def test_the_tokenizer_of_a_file_its_template_and_its_end(tmp_path):
    values = bytes_tokenizer(**{"ggml.add_bos_token": True, "ggml.bos_token_id": 65, "ggml.eot_token_id": 66})
    write(tmp_path / "x.gguf", values=values)
    tokens = nl.Tokenizer.load(tmp_path / "x.gguf")
    assert tokens.before == [65]
    end = max(tokens.special_tokens, key=tokens.special_tokens.get)
    assert tokens.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == f"<s>hi{end}"
    ends = [tokens.special_tokens[end], 66]
    assert nl.load(tmp_path / "x.gguf").generation_config == {"bos_token_id": 65, "eos_token_id": ends}
    tokens.save(tmp_path / "folder")
    again = nl.Tokenizer.load(tmp_path / "folder")
    assert again.encode(TEXT) == tokens.encode(TEXT) and again.before == [65]
    assert again.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == f"<s>hi{end}"
    assert load_tokenizer(tmp_path / "x.gguf").encode(TEXT) == tokens.encode(TEXT)


def test_tokens_of_the_user_are_found_in_any_text(tmp_path):
    values = bytes_tokenizer()
    values["tokenizer.ggml.tokens"] = [*values["tokenizer.ggml.tokens"], "<think>", "unused"]
    values["tokenizer.ggml.token_type"] = [*values["tokenizer.ggml.token_type"], 4, 5]
    write(tmp_path / "x.gguf", values=values)
    tokens = nl.Tokenizer.load(tmp_path / "x.gguf")
    think = values["tokenizer.ggml.tokens"].index("<think>")
    assert think in tokens.encode("a<think>b") and "<think>" not in tokens.special_tokens
    assert think + 1 not in tokens.encode("unused")


def test_sentencepiece_comes_back_from_scores(tmp_path):
    tokens = nl.Tokenizer.load(real_data("tok512.bin"))
    model = random_model(vocab_size=tokens.vocab_size)
    model.save(tmp_path / "x.gguf", tokens)
    again = nl.Tokenizer.load(tmp_path / "x.gguf")
    text = real_data("tinyshakespeare.txt").read_text()[:20000] + " é中\n\t  two"
    assert again.encode(text) == tokens.encode(text)
    assert again.before == tokens.before == [1] and again.decode(again.encode(text)) == text


def test_users_tokens_of_spaces_are_merged_as_in_llama_cpp(tmp_path):
    names = [*(text for text, _, _ in ORDERED), *(f"<0x{byte:02X}>" for byte in range(256)), "▁▁"]
    values = {"model": "llama", "tokens": names, "token_type": [2, 3, 3, *[1] * 5, *[6] * 256, 4],
              "scores": [score for _, score, _ in ORDERED] + [0.0] * 257}  # fmt: skip
    write(tmp_path / "x.gguf", values={f"tokenizer.ggml.{name}": value for name, value in values.items()})
    tokens = nl.Tokenizer.load(tmp_path / "x.gguf")
    assert [tokens.name(i) for i in tokens.encode("ab   b")] == ["▁a", "b", "▁▁", "▁", "b"]


@pytest.mark.parametrize(("layout", "changes", "words"), [
    ({}, {}, None),
    ({"normalizer": {"type": "Sequence", "normalizers": [SPACES]}, "decoder": piece_decoder(False)}, {}, None),  # as in Yi's
    ({}, {"byte_fallback": False}, "turns a character that is no piece into its bytes, but the tokenizer does not"),
    ({}, {"merges": slice(1, None)}, "would merge a text into '.*', but the tokenizer does not"),
    ({}, {"type": "Unigram"}, "a tokenizer of the kind Unigram cannot be written to a GGUF file"),
])  # fmt: skip
def test_pieces_are_written_if_llama_cpp_gives_the_same_ids(tmp_path, layout, changes, words):
    values = content(nl.Tokenizer.load(real_data("tok512.bin"))) | layout
    merges = [[left.decode(), right.decode()] for left, right in nl.Tokenizer.load(real_data("tok512.bin")).merges]
    values["model"] |= changes
    if "merges" in changes:
        values["model"]["merges"] = merges[changes["merges"]]
    if "type" in changes:
        values["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [[name, -1.0] for name in values["model"]["vocab"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    tokens = nl.Tokenizer.load(tmp_path)
    model = random_model(vocab_size=tokens.vocab_size)
    if words:
        with pytest.raises(ValueError, match=words):
            model.save(tmp_path / "x.gguf", tokens)
        return
    model.save(tmp_path / "x.gguf", tokens)
    assert nl.Tokenizer.load(tmp_path / "x.gguf").encode(TEXT) == tokens.encode(TEXT)


@pytest.mark.parametrize("name", sorted(set(SPLITTING)))
def test_every_name_of_a_splitting_is_known_to_the_expressions_here(name):
    pieces = PreTokenizer(byte_level(*SPLITTING[name].expressions)["pre_tokenizer"]).split("Hello wörld don't 12345 你好\n\n x")
    assert "".join(pieces) == "Hello wörld don't 12345 你好\n\n x"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ggml.model": "t5"}, "of the kind 't5', but only gpt2, llama are read"),
        ({"ggml.pre": "kimi-k2"}, "pre is 'kimi-k2', but only these are known: a.x-4.0, chatglm-bpe, "),
        ({"ggml.tokens": None}, "holds no tokenizer"),
        ({"ggml.tokens": ["a", "a"], "ggml.token_type": [1, 1]}, "holds 'a' twice"),
        ({"ggml.token_type": [1]}, "token_type must be a list of"),
        ({"ggml.merges": ["abc"]}, "a merge is two tokens"),
        ({"ggml.merges": None}, "its tokenizer lacks merges"),
        ({"ggml.eos_token_id": 10**6}, "eos_token_id is 1000000, but it has"),
        ({"chat_template": 3}, "tokenizer.chat_template, default is 3, but must be a text"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_cannot_be_read(tmp_path, changes, words):
    write(tmp_path / "x.gguf", values=bytes_tokenizer(**changes))
    with pytest.raises(DataError, match=words):
        nl.Tokenizer.load(tmp_path / "x.gguf")


# ------------------------------------------------------------------------------------------------ commands, packages, memory


def test_convert_and_inspect(tmp_path, capsys):
    tokens = nl.Tokenizer(VOCAB, MERGES, SPECIAL)
    model = nl.Transformer(nl.ModelConfig(**SHAPE | dict(vocab_size=tokens.vocab_size)), seed=1)
    model.save(tmp_path / "folder", tokens)
    steps = ("folder", "x.gguf", "q8_0"), ("x.gguf", "again", "float32"), ("again", "y.gguf", "float16")
    for source, target, dtype in steps:
        app(["convert", str(tmp_path / source), str(tmp_path / target), "--dtype", dtype], exit_on_error=False)
    capsys.readouterr()
    app(["inspect", str(tmp_path / "x.gguf")], exit_on_error=False)
    assert "tensors in the file      9 in Q8_0, 3 in F32" in capsys.readouterr().out
    assert nl.Tokenizer.load(tmp_path / "y.gguf").encode(TEXT) == tokens.encode(TEXT)


def package(folder, name, *files):
    """An installed package."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_a_package_that_ships_a_model_is_one(tmp_path, monkeypatch):
    from numllama.interop import packages

    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "some_model").mkdir()
    write(tmp_path / "some_model" / "x.gguf", values=bytes_tokenizer())
    package(tmp_path, "some-model", "some_model/x.gguf", "some_model/__init__.py")
    package(tmp_path, "no-model", "no_model/__init__.py")
    assert nl.load("some-model").config.dim == 256
    assert load_tokenizer(Path("some-model")).encode("the")
    with pytest.raises(CheckpointError, match=r"no-model does not exist, and the installed package of that name ships no \.gguf"):
        nl.load("no-model")
    with pytest.raises(CheckpointError, match="never-heard-of does not exist"):
        nl.load("never-heard-of")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert packages.only_model() == tmp_path / "some_model" / "x.gguf"
    package(tmp_path, "other-model", "some_model/x.gguf")
    with pytest.raises(CheckpointError, match="several installed packages ship a model: choose one of other-model, some-model"):
        packages.only_model()
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(CheckpointError, match="no model is named, and no installed package ships one"):
        packages.only_model()


MEASURED = """
import resource, sys
import numllama as nl
from numllama.interop import gguf, load
gguf.quantisers()
nl.load({small!r}, dtype="bfloat16")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = nl.load({large!r}, dtype="bfloat16")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, model.params.flat.nbytes)
"""


def memory_of_opening(small, large):
    """The bytes by which opening a model raises the most memory that a process has taken, and those of its weights."""
    code = MEASURED.format(small=str(small), large=str(large))
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return map(int, out.split())


@pytest.mark.skipif(not hasattr(resource, "getrusage"), reason="no measure of memory on this system")
def test_opening_takes_little_more_memory_than_the_model(tmp_path):
    write(tmp_path / "small.gguf", kind=gguf.GGMLQuantizationType.Q4_1)
    config = SHAPE | dict(vocab_size=40_000, dim=512, ffn_dim=2048, n_layers=2)
    write(tmp_path / "large.gguf", config, kind=gguf.GGMLQuantizationType.Q4_1)
    peak, model = memory_of_opening(tmp_path / "small.gguf", tmp_path / "large.gguf")
    assert peak < 1.3 * model, f"{peak:,} bytes for a model of {model:,}"


def test_an_adapter_for_a_packages_model_is_used_from_its_run(tmp_path, monkeypatch):
    from numllama.commands.finetune_run import Tuning, finetune_run
    from numllama.model import LoraConfig

    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "some_model").mkdir()
    tokens = nl.Tokenizer(VOCAB, MERGES, SPECIAL)
    config = nl.ModelConfig(**SHAPE | dict(vocab_size=tokens.vocab_size))
    nl.Transformer(config, seed=1).save(tmp_path / "some_model" / "x.gguf", tokens)
    package(tmp_path, "some-model", "some_model/x.gguf")
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "the"}]}
    (tmp_path / "c.jsonl").write_text(f"{json.dumps(chat)}\n" * 20)
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")
    monkeypatch.chdir(tmp_path)
    tuning = Tuning(Path("some-model"), Path("c.jsonl"), chat_template=Path("chat.jinja"), lora=LoraConfig(rank=2))
    finetune_run(tuning, Path("run"), "cpu", None, dict(steps=1, batch_size=1, seq_len=16))
    assert nl.load("run").adapter is not None and nl.load("run/model").config.dim == 256
