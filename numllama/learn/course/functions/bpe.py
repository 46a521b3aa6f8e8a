"""Byte-pair encoding: learn merges, and encode a word with them.

The rules are on the page docs/chapters/bpe. A token is a number: 0 to 255 are the bytes, and merge i makes token 256 + i.
"""

from collections import Counter
from itertools import pairwise


def merged(ids, pair, new):
    """A tuple of tokens with a pair replaced by a new token, from left to right."""
    out, i = [], 0
    while i < len(ids):
        found = tuple(ids[i : i + 2]) == pair
        out.append(new if found else ids[i])
        i += 2 if found else 1
    return tuple(out)


def learn_merges(text, n_merges):
    """The first merges of a text.

    Parameters
    ----------
    text : str
        Its words are text.split(); each is a sequence of bytes, in UTF-8. No pair reaches from one word into the next.
    n_merges : int

    Returns
    -------
    merges : list of (int, int)
        The most frequent pair of neighbours, then the most frequent one once that is merged, and so on. Of several, the pair
        whose bytes sort last: those of its left token are compared, then those of its right one. The list is shorter than
        n_merges if no pair is left.
    """
    words = Counter(tuple(word.encode()) for word in text.split())
    spelling = [bytes([byte]) for byte in range(256)]                  # the bytes of each token
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for ids, n in words.items():
            for pair in pairwise(ids):
                counts[pair] += n
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], spelling[pair[0]], spelling[pair[1]]))
        words = {merged(ids, best, 256 + len(merges)): n for ids, n in words.items()}
        merges.append(best)
        spelling.append(spelling[best[0]] + spelling[best[1]])
    return merges


def encode_word(word, merges):
    """The tokens of a word.

    Parameters
    ----------
    word : str
    merges : sequence of (int, int)
        From learn_merges; the earlier a merge was learned, the earlier it applies.

    Returns
    -------
    ids : list of int
    """
    ids = tuple(word.encode())
    for new, pair in enumerate(merges, 256):
        ids = merged(ids, pair, new)
    return list(ids)


# ---------------------------------------------------------------------------------------------- the test:  pytest bpe.py


TEXT = 5 * "low " + 2 * "lower " + 6 * "newest " + 3 * "widest "


def spell(ids, merges):
    """The bytes of tokens."""
    spelling = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        spelling.append(spelling[left] + spelling[right])
    return [spelling[token] for token in ids]


def test_the_first_merges_by_hand():
    merges = learn_merges(TEXT, 3)
    # "es" and "st" occur 9 times, and "st" sorts last; then "e" + "st"; then "lo" and "ow" occur 7 times
    assert [spell(pair, merges) for pair in merges] == [[b"s", b"t"], [b"e", b"st"], [b"o", b"w"]]


def test_the_tokens_spell_the_word():
    merges = learn_merges(TEXT, 8)
    for word in ("low", "lowest", "newer", "über", "x", ""):
        assert b"".join(spell(encode_word(word, merges), merges)) == word.encode()


def test_no_pair_is_left_that_could_merge():
    merges = learn_merges(TEXT, 8)
    for word in ("lowest", "newestnewest", "wideststst"):
        assert not set(pairwise(encode_word(word, merges))) & set(merges)


def test_with_all_merges_each_word_of_the_text_is_one_token():
    merges = learn_merges(TEXT, 1000)
    assert [len(encode_word(word, merges)) for word in ("low", "lower", "newest", "widest")] == [1, 1, 1, 1]
    assert len(merges) < 20


def test_bytes_are_compared_and_not_the_numbers_of_tokens():
    assert learn_merges("aac aac bd bd aa", 2) == [(97, 97), (98, 100)]  # "aa" + "c" and "b" + "d" occur twice


def test_merges_are_made_of_bytes():
    assert learn_merges("é é", 5) == [tuple("é".encode())]


def test_what_was_learned_first_merges_first():
    assert encode_word("abc", [(98, 99), (97, 98)]) == [97, 256]
