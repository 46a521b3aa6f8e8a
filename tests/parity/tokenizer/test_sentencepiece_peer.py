"""SentencePiece's own `.model` files, trained by it: the same ids and texts, here and in what is saved for `tokenizers`.

Two kinds of text are left out, where SentencePiece and `tokenizers` differ, and this package does as the latter. With the rules
nmt_nfkc, SentencePiece replaces the longest match at each position, `tokenizers` each grapheme cluster (a line break of two
characters, a letter with two accents). And a text that spells <0x0A> is no byte in SentencePiece's Unigram. Where two ways to cut
a text have the same pieces in another order ("0" "00", "00" "0"), SentencePiece's sums in float32 may find the other one.
"""

import io
import random
from itertools import product

import pytest

from numllama import Tokenizer
from numllama.tokenizer.unigram import UnigramTokenizer

sentencepiece = pytest.importorskip("sentencepiece")
tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.parity

from parity.tokenizer.strings import TEXTS, strings  # noqa: E402
from tokenizer.test_sentencepiece_model import NORMAL, ORDERED, model  # noqa: E402

SETTINGS = list(product(("unigram", "bpe"), ("identity", "nmt_nfkc"), (True, False), (True, False), (True, False)))


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def made(request, tmp_path_factory):
    model_type, rules, prefix, strips, fallback = request.param
    file, folder = io.BytesIO(), tmp_path_factory.mktemp("model")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(TEXTS).split("\n")), model_writer=file, vocab_size=1000 if fallback else 700,
        model_type=model_type, hard_vocab_limit=False, minloglevel=2, normalization_rule_name=rules, add_dummy_prefix=prefix,
        remove_extra_whitespaces=strips, byte_fallback=fallback, character_coverage=0.98,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(file.getvalue())
    mine = Tokenizer.load(folder)
    again = tokenizers.Tokenizer.from_file(str(mine.save(folder)))
    as_it_is = dict.fromkeys(("remove_extra_whitespaces", "escape_whitespaces", "add_dummy_prefix"), False)
    normalize = sentencepiece.SentencePieceNormalizer(rule_name=rules, **as_it_is).normalize
    precompiled = mine.layout.normalizer.steps[0].apply if rules != "identity" else str
    same = {text for text in strings(2000) if "\0" not in text and normalize(text) == precompiled(text)}
    return sentencepiece.SentencePieceProcessor(model_proto=file.getvalue()), mine, again, same


def test_ids_and_texts(made):
    theirs, mine, again, same = made
    assert len(same) > 1000
    ties = 0
    for text in strings(2000):
        ids = mine.encode(text, disallowed_special=())
        if "<s>" not in text:
            assert again.encode(text).ids == ids
        if text in same and "<0x" not in text:
            found = theirs.encode(text)
            assert found == ids or (isinstance(mine, UnigramTokenizer) and sorted(found) == sorted(ids)), text
            ties += found != ids
            if "▁" not in text:  # which begins a text like a space that was put in front of it
                assert mine.decode(ids).replace("<unk>", " ⁇ ") == theirs.decode(ids), text
    assert ties < 60


def test_runs_of_spaces_with_one_score(tmp_path):
    rng = random.Random(0)
    for _ in range(100):
        lengths = rng.sample(range(2, 17), rng.randint(0, 15))
        data = model([*ORDERED, *(("▁" * n, -1e9, NORMAL) for n in lengths)], [(3, 2)], [(3, 0), (4, 0)])
        (tmp_path / "x.model").write_bytes(data)
        mine, theirs = Tokenizer.load(tmp_path / "x.model"), sentencepiece.SentencePieceProcessor(model_proto=data)
        for n in range(60):
            text = " " * n + rng.choice(["", "ab" + " " * rng.randrange(20), "b   a"])
            assert mine.encode(text) == theirs.encode(text), (lengths, text)
