"""Layouts put together at random, of every kind of step and token: the ids of `tokenizers`, or refused by name."""

import json
import random
from collections import Counter

import pytest

from numllama import Tokenizer
from numllama.errors import DataError

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("sentencepiece")
pytestmark = pytest.mark.parity

from parity.tokenizer.layouts import added, bytes_model, normalizers, pieces_model, sequence, tokenizer_json  # noqa: E402
from parity.tokenizer.more_layouts import unigram_model  # noqa: E402
from parity.tokenizer.strings import strings  # noqa: E402
from parity.tokenizer.test_steps import DECODED, NORMALIZED, SPLITS  # noqa: E402

LAYOUTS, STRINGS = 400, 60
CONTENTS = ["<s>", "<mask>", "hello", "COVID", "the", " and", "naïve", "▁the", "  ", "\n", "中", "1", "é", "ﬁ", "<|x|>y", "'s"]
BYTE_LEVEL = [step for step in SPLITS if step["type"] == "ByteLevel"]
OTHERS = [step for step in SPLITS if step["type"] not in ("ByteLevel", "Sequence")]


def any_model(rng, kind):
    unknown = {"unk_token": rng.choice([None, "<unk>"]), "fuse_unk": rng.random() < 0.5, "ignore_merges": rng.random() < 0.3}
    if kind == "bytes":
        return bytes_model(["<unk>"], rng.choice([(), (0xC3, 0x04)]), **unknown)
    if kind == "pieces":
        return pieces_model(lacks=rng.choice([(), range(256)]), byte_fallback=rng.random() < 0.5, **unknown)
    return unigram_model(["<unk>", "<pad>"], rng.random() < 0.5)


def any_layout(rng):
    kind = rng.choice(["bytes", "pieces", "unigram"])
    made = any_model(rng, kind)
    flags = {"normalized": 0.5, "lstrip": 0.3, "rstrip": 0.3, "single_word": 0.3}
    tokens = [
        added(content, special=content[0] == "<", **{name: rng.random() < p for name, p in flags.items()})
        for content in rng.sample(CONTENTS, rng.randint(0, 6))
    ]
    steps = [rng.choice(OTHERS) for _ in range(rng.randint(0, 2))] + [rng.choice(BYTE_LEVEL)] * (kind == "bytes")
    normalizer = normalizers(*(rng.choice(NORMALIZED) for _ in range(rng.randint(0, 3)))) if rng.random() < 0.7 else None
    ids = made["vocab"] if kind != "unigram" else {name: i for i, (name, _) in enumerate(made["vocab"])}
    decoder = rng.choice(DECODED)
    return tokenizer_json(made | {"vocab": ids}, tokens, normalizer, sequence(*steps), decoder=decoder) | {"model": made}


def test_any_layout_gives_the_same_ids_or_is_refused(tmp_path):
    rng, found = random.Random(0), Counter()
    path = tmp_path / "tokenizer.json"
    for seed in range(LAYOUTS):
        values = any_layout(rng)
        path.write_text(json.dumps(values), encoding="utf-8")
        theirs = tokenizers.Tokenizer.from_file(str(path))
        try:
            mine = Tokenizer.load(path)
        except DataError as error:
            assert "\n" not in str(error)
            found["refused"] += 1
            continue
        for text in strings(STRINGS, [token["content"] for token in values["added_tokens"]] or ["<s>"], seed):
            try:
                ids = theirs.encode(text).ids
            except BaseException as error:
                assert type(error).__name__ == "PanicException"  # of theirs, where tokens that strip meet
                found["panics"] += 1
                continue
            assert mine.encode(text, "all") == ids, (text, values["normalizer"], values["pre_tokenizer"], values["added_tokens"])
        found["same"] += 1
    assert found["same"] > 0.9 * LAYOUTS
    assert found["panics"] < 300
