"""The parts of a tokenizer, checked before use: ids, tokens, merges and special tokens."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from numllama.errors import shown


def by_id(vocab: Mapping) -> dict[int, bytes]:
    """The vocabulary as a mapping from ids to bytes, given in either direction."""
    if not isinstance(vocab, Mapping):
        raise TypeError(f"vocab must be a dictionary, not {type(vocab).__name__}")
    turned = {i: token for token, i in vocab.items()} if isinstance(next(iter(vocab), None), bytes) else dict(vocab)
    if len(turned) < len(vocab):
        raise ValueError("vocab gives the same id to two tokens")
    for i, token in turned.items():
        if isinstance(i, bool) or not isinstance(i, int) or not isinstance(token, bytes):
            raise TypeError(f"vocab must map integers to bytes or bytes to integers, but holds {shown(i)} and {shown(token)}")
        if i < 0 or not token:
            raise ValueError(f"vocab holds {shown(i)} and {shown(token)}, but ids are not negative and tokens not empty")
    return turned


def checked_id(i: Any) -> int:
    """A token's id as an int; ValueError if it cannot be one."""
    if not isinstance(i, Integral) or isinstance(i, bool) or i < 0:
        raise ValueError(f"ids hold {shown(i)}, but must be whole numbers that are not negative")
    return int(i)


def checked_pair(pair: Sequence[bytes], rank: int) -> tuple[bytes, bytes]:
    """A merge as a pair of bytes; TypeError if it is not one."""
    if len(pair) != 2 or not all(isinstance(part, bytes) for part in pair):
        raise TypeError(f"merges must be pairs of bytes, but number {rank} is {shown(pair)}")
    left, right = pair
    return left, right


def numbered(special: Mapping[str, int] | Sequence[str], vocab: Mapping[int, bytes]) -> dict[str, int]:
    """Special tokens with their ids."""
    tokens = check_special_tokens(special)
    if not isinstance(special, Mapping):
        ids = {token: i for i, token in vocab.items()}
        fresh = iter(range(max(vocab, default=-1) + 1, 2**31))
        special = {token: ids[token.encode()] if token.encode() in ids else next(fresh) for token in tokens}
    if len(set(special.values())) < len(special):
        raise ValueError("special_tokens gives the same id to two tokens")
    for token, i in special.items():
        if isinstance(i, bool) or not isinstance(i, int) or i < 0:
            raise ValueError(f"special_tokens gives {shown(token)} the id {shown(i)}, but ids are integers that are not negative")
        if vocab.get(i, token.encode()) != token.encode():
            raise ValueError(f"special_tokens gives {shown(token)} the id {i}, but that is {shown(vocab[i])} in vocab")
    return dict(special)


def check_special_tokens(special: Iterable[str]) -> list[str]:
    """The tokens as a list; ValueError unless they are distinct, non-empty strings."""
    if isinstance(special, str):
        raise TypeError("special_tokens must be a dictionary or a sequence of strings, not a single string")
    tokens = list(special)
    known = set()
    for token in tokens:
        if not isinstance(token, str) or not token:
            raise ValueError(f"special_tokens holds {shown(token)}, but each must be a string that is not empty")
        if token in known:
            raise ValueError(f"special_tokens holds {shown(token)} twice")
        known.add(token)
    return tokens
