"""Encoding in several processes gives the ids of one."""

import pytest
from tokenizer.test_bpe import MERGES, SPECIAL, VOCAB
from tokenizer.test_sentencepiece import tokenizer as sentencepiece

from numllama import Tokenizer
from numllama.tokenizer import parallel
from numllama.tokenizer.parallel import ParallelEncoder

TOKENIZERS = {"byte-level": Tokenizer(VOCAB, MERGES, SPECIAL), "sentencepiece": sentencepiece()}
TEXT = "the cat an aa é中 <s> ab,\n" * 300


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_ids_are_those_of_one_process(monkeypatch, tokenizer, workers):
    monkeypatch.setattr(parallel, "PART", 100)
    with ParallelEncoder(tokenizer, workers) as encoder:
        same = encoder.encode(TEXT, "all") == tokenizer.encode(TEXT, "all")
        assert same
        texts = ["the", "", TEXT, "<s>"] * 3
        same = encoder.encode_batch(texts, "all") == tokenizer.encode_batch(texts, "all")
        assert same
        parts = list(encoder.pack_stream([TEXT], "all"))
        assert len(parts) > 10
        assert "".join(text for text, _ in parts) == TEXT


def test_a_batch_may_be_encoded_by_several_workers():
    tokenizer = TOKENIZERS["byte-level"]
    assert tokenizer.encode_batch(["the", "an"], workers=2) == [[257], tokenizer.encode("an")]


def test_a_special_token_that_is_not_allowed_is_the_same_error():
    with ParallelEncoder(TOKENIZERS["byte-level"], 2) as encoder, pytest.raises(ValueError, match="special token '<s>'"):
        encoder.encode("the <s>")


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="workers is 0"):
        ParallelEncoder(TOKENIZERS["byte-level"], 0)
