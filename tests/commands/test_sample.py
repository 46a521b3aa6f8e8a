"""The text that a finished training shows."""

from pathlib import Path

import pytest

import numllama as nl
from numllama.commands import run_results

SPECIAL = {f"<|{i}|>": i for i in range(300, 500, 2)}


def sampled(monkeypatch, tokenizer, vocab_size, **changes) -> str:
    """Of an untrained model, whose every token is about as likely as any other."""
    monkeypatch.setattr(run_results.checkpoint, "find_step", lambda *_: None)
    monkeypatch.setattr(run_results.checkpoint, "load_checkpoint", lambda *_: None)
    model = nl.Transformer(nl.ModelConfig(vocab_size, dim=8, n_layers=1, n_heads=2, max_seq_len=40, **changes))
    return run_results.sample(model, tokenizer, Path())


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_special_tokens_and_ids_of_no_token_are_not_in_it(monkeypatch, positions):
    text = sampled(monkeypatch, nl.Tokenizer({i: bytes([i]) for i in range(256)}, [], SPECIAL), 600, positions=positions)
    assert "<|" not in text
    assert len(text) > (100 if positions == "rope" else 5)


def test_characters_beyond_a_padded_vocabulary_are_not_in_it(monkeypatch):
    text = sampled(monkeypatch, nl.CharTokenizer("ab\n"), 64)
    assert set(text) <= set("ab\n")
    assert 0 < len(text) < 100  # most of 400 ids are nobody's
