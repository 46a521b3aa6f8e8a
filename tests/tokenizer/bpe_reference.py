"""Byte-pair encoding written as plainly as possible, to compare the fast one with."""

from collections import Counter
from itertools import pairwise

import regex

from numllama.tokenizer.patterns import PATTERNS


def naive_train(text, n, pattern="gpt2", special_tokens=()):
    """The first `n` merges; everything is counted anew for each."""
    documents = regex.split("|".join(map(regex.escape, special_tokens)), text) if special_tokens else [text]
    pieces = [piece for document in documents for piece in regex.findall(PATTERNS.get(pattern, pattern), document)]
    words = Counter(tuple(bytes([byte]) for byte in piece.encode()) for piece in pieces)
    merges = []
    for _ in range(n):
        counts = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                counts[pair] += count
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        words = Counter({naive_merge(word, best): count for word, count in words.items()})
    return merges


def naive_merge(word, pair):
    """One pair merged everywhere, from left to right."""
    merged, i = [], 0
    while i < len(word):
        step = 2 if word[i : i + 2] == pair else 1
        merged.append(b"".join(word[i : i + step]))
        i += step
    return tuple(merged)


def naive_encode(text, merges, ids, pattern="gpt2"):
    """The ids of a text: each merge in turn, everywhere."""
    out = []
    for piece in regex.findall(PATTERNS.get(pattern, pattern), text):
        word = tuple(bytes([byte]) for byte in piece.encode())
        for pair in merges:
            word = naive_merge(word, pair)
        out += [ids[token] for token in word]
    return out
