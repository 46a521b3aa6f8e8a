"""2,000 damaged tokenizer files: each is read or refused in one sentence, in little time and memory."""

import json
import random
import time
import tracemalloc

import pytest
from tokenizer.test_sentencepiece_model import BYTES, ORDERED, PIECES, model
from tokenizer.test_tokenizer_json import ALPHABET, added, split
from tokenizer.test_tokenizer_json import BYTES as BYTE_LEVEL

from numllama import Tokenizer
from numllama.errors import DataError

N = 250  # of each kind
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
META = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
SCORES = [["<unk>", 0.0], ["▁", -2.0], ["a", -3.5], ["▁a", -1.25], ["b", -4.0], ["ab", -3.0],
          *([f"w{i}", -9.5] for i in range(200))]  # fmt: skip
CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": "DAAAAAAEAAABAAAAAgAAAGEAYgA="}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}},
}  # fmt: skip
PATTERN = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def bpe():
    steps = {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, split(PATTERN), BYTE_LEVEL | {"use_regex": False}]}  # fmt: skip
    return {
        "added_tokens": [added("<s>"), added("<x>", 257, special=False, lstrip=True)], "normalizer": {"type": "NFC"},
        "pre_tokenizer": steps, "post_processor": TEMPLATE, "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": ALPHABET, "merges": []},
    }  # fmt: skip


def unigram():
    normalizers = [CHARSMAP, SPACES, {"type": "Strip", "strip_left": True, "strip_right": False}]
    return {
        "added_tokens": [added("<unk>", 0)], "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": META, "post_processor": None, "decoder": META,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": SCORES, "byte_fallback": True},
    }  # fmt: skip


def ranks():
    return "".join(f"{base} {i}\n" for i, base in enumerate(("YQ==", "Yg==", "YWI=", "IA=="))).encode()


RULES = bytes([12, 0, 0, 0, 0, 4, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 97, 0])
FILES = {
    "bytes": ("tokenizer.json", json.dumps(bpe(), ensure_ascii=False).encode()),
    "pretty": ("tokenizer.json", json.dumps(bpe(), indent=1).encode()),
    "unigram": ("tokenizer.json", json.dumps(unigram(), ensure_ascii=False).encode()),
    "unigram, pretty": ("tokenizer.json", json.dumps(unigram(), indent=1).encode()),
    "a .model": ("spiece.model", model([*PIECES, *BYTES], [(35, 1)])),
    "a .model of BPE": ("tokenizer.model", model([*ORDERED, *BYTES], [(3, 2), (35, 1)])),
    "a .model with rules": ("spiece.model", model(PIECES, (), [(2, RULES)])),
    "ranks": ("x.tiktoken", ranks()),
}  # fmt: skip
PARTS = [b"0", b"-1", b"99999999999999999999", b"1e999", b"null", b"true", b"[]", b"{}", b'""', b'"a"', b"\xff", b"\x00",
         b"[[[[[[", b"\xff\xff\xff\xff\x0f", b"\x80", b"{9999999}", b"(", b"*", b"\\\\p{L}", b","]  # fmt: skip


def damaged(rng, data):
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice([0, 1, 1, 2, 8, 64, len(data)]))
        kind = rng.random()
        part = bytes([rng.randrange(256)]) if kind < 0.4 else rng.choice(PARTS) if kind < 0.8 else data[at:end] * 2
        data = data[:at] + part + data[end:]
    return data


def peak(folder, name, data):
    """Read a file and use it; the most memory that took, or None if it was refused."""
    (folder / name).write_bytes(data)
    tracemalloc.start()
    try:
        how = {"pattern": "gpt2", "special_tokens": {}} if name.endswith("tiktoken") else {}
        tokenizer = Tokenizer.load(folder / name, **how)
        ids = tokenizer.encode("a<x> bab  123'S é\n", disallowed_special=())
        tokenizer.decode(tokenizer.wrap(ids))
        return True, tracemalloc.get_traced_memory()[1]
    except DataError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 700 + len(str(folder))
        return False, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("name", "data"), FILES.values(), ids=FILES)
def test_a_damaged_file_is_read_or_refused_in_one_sentence(tmp_path, name, data):
    fine, most = peak(tmp_path, name, data)
    assert fine
    rng, found = random.Random(0), {True: 0, False: 0}
    for _ in range(N):
        changed = damaged(rng, data)
        begin = time.perf_counter()
        fine, memory = peak(tmp_path, name, changed)
        assert time.perf_counter() - begin < 5
        assert memory < 4 * (most + len(changed))
        found[fine] += 1
    assert min(found.values()) > 5
