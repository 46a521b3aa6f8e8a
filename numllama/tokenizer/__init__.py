"""Tokenizers: text to ids and back."""

from numllama.tokenizer.bpe import Tokenizer
from numllama.tokenizer.char import CharTokenizer

__all__ = ["CharTokenizer", "Tokenizer"]
