"""Wrong answers to byte-pair encoding."""

from collections import Counter
from itertools import pairwise

from numllama.learn.wrong_answers.table import Rows


def merged(ids, pair, new, most=None):
    """Tokens with a pair replaced, from left to right, `most` times at most."""
    out, i, done = [], 0, 0
    while i < len(ids):
        found = tuple(ids[i : i + 2]) == pair and done != most
        out.append(new if found else ids[i])
        i += 2 if found else 1
        done += found
    return tuple(out)


def last_pair(count, left, right, pair, place):
    return count, left, right


def words_of(text):
    return Counter(tuple(word.encode()) for word in text.split())


def learned(words, n, *, rank=last_pair, overlaps=True, start=256, most=None, recount=True):
    """Merges, with something else in place of a part of it: `rank` is the key of the best pair."""
    spelling, merges = [bytes([byte]) for byte in range(256)], []
    counts: Counter = Counter()
    while len(merges) < n:
        if recount or not merges:
            counts = Counter()
            for ids, times in words.items():
                for pair in pairwise(ids) if overlaps else apart(ids):
                    counts[pair] += times
        if not counts:
            break
        places = {pair: place for place, pair in enumerate(counts)}
        best = max(counts, key=lambda pair: rank(counts[pair], spelling[pair[0]], spelling[pair[1]], pair, places[pair]))
        if not recount:
            del counts[best]
        after: Counter = Counter()
        for ids, times in words.items():
            after[merged(ids, best, 256 + len(merges), most)] += times
        words = after
        merges.append(best)
        spelling.append(spelling[best[0]] + spelling[best[1]])
    return merges if start == 256 else [tuple(id + (start - 256) * (id > 255) for id in pair) for pair in merges]


def best_by(rank):
    """A row in which this is the key of the best pair."""
    return lambda text, n_merges: learned(words_of(text), n_merges, rank=rank)


def apart(ids):
    """Pairs of neighbours that share no token with a pair like them: "aaa" has one."""
    i, before = 0, None
    while i < len(ids) - 1:
        pair = ids[i], ids[i + 1]
        if pair == before:
            before = None
        else:
            yield pair
            before = pair if pair[0] == pair[1] else None
        i += 1


def first_steps(word, merges, choose):
    """Merge one pair at a time: that of the ranks by place which `choose` takes."""
    ranks, ids = {pair: rank for rank, pair in enumerate(merges)}, list(word.encode())
    while can := {i: ranks[pair] for i, pair in enumerate(pairwise(ids)) if pair in ranks}:
        i = choose(can)
        ids[i : i + 2] = [256 + can[i]]
    return ids


def longest_first(word, merges):
    """At each place the longest token of the vocabulary."""
    spelling = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        spelling.append(spelling[left] + spelling[right])
    left, ids = word.encode(), []
    while left:
        ids.append(max((i for i, token in enumerate(spelling) if left.startswith(token)), key=lambda i: len(spelling[i])))
        left = left[len(spelling[ids[-1]]) :]
    return ids


def in_turn(ids, merges, most=None, order=1):
    ids = tuple(ids)
    for new, pair in list(enumerate(merges, 256))[::order]:
        ids = merged(ids, pair, new, most)
    return ids


def from_the_right(word, merges):
    """Overlapping pairs are merged from the right."""
    ids = tuple(word.encode())
    for new, (left, right) in enumerate(merges, 256):
        ids = merged(ids[::-1], (right, left), new)[::-1]
    return ids


ROWS: dict[str, Rows] = {
    "merges": [
        ("merges take the first of several pairs with the same count, in the order of the text: the pair that sorts last wins.",
         best_by(lambda n, left, right, pair, place: (n, -place))),
        ("merges take the last of several pairs with the same count, in the order of the text: the pair that sorts last wins.",
         best_by(lambda n, left, right, pair, place: (n, place))),
        ("merges take the pair that sorts first of several with one count: the pair that sorts last wins.",
         best_by(lambda n, left, right, pair, place: (n, [-byte for byte in left] + [1], [-byte for byte in right] + [1]))),
        ("merges compare the numbers of tokens where counts are equal: compare the bytes that they stand for.",
         best_by(lambda n, left, right, pair, place: (n, pair))),
        ("merges compare the smallest numbers of tokens where counts are equal: the pair whose bytes sort last wins.",
         best_by(lambda n, left, right, pair, place: (n, -pair[0], -pair[1]))),
        ("merges compare the bytes of both tokens joined where counts are equal: compare the left token's first.",
         best_by(lambda n, left, right, pair, place: (n, left + right))),
        ("merges count each word once: multiply by how often it occurs.",
         lambda text, n_merges: learned(Counter(set(words_of(text))), n_merges)),
        ("merges count pairs that reach from one word into the next: split the text into words first.",
         lambda text, n_merges: learned(Counter([tuple(text.encode())]), n_merges)),
        ("merges count pairs across words, whose spaces are left out: count inside of each word.",
         lambda text, n_merges: learned(Counter([tuple("".join(text.split()).encode())]), n_merges)),
        ("merges count no overlapping pairs: in aaa the pair (a, a) occurs twice.",
         lambda text, n_merges: learned(words_of(text), n_merges, overlaps=False)),
        ("merges are the most frequent pairs of the bytes: merge the first one, and count again.",
         lambda text, n_merges: learned(words_of(text), n_merges, recount=False)),
        ("merges are one pair again and again: merge it in the words before the next count.",
         lambda text, n_merges: learned(words_of(text), n_merges, most=0)),
        ("merges replace a pair once in each word: replace it wherever it occurs.",
         lambda text, n_merges: learned(words_of(text), n_merges, most=1)),
        ("merges number new tokens from 257 on: merge 0 makes token 256.",
         lambda text, n_merges: learned(words_of(text), n_merges, start=257)),
        ("merges number new tokens from 0 on: merge 0 makes token 256, behind the bytes.",
         lambda text, n_merges: learned(words_of(text), n_merges, start=0)),
        ("merges take the rarest pair: the most frequent one is next.",
         best_by(lambda n, left, right, pair, place: (-n, left, right))),
        ("merges are made of characters: begin with the bytes of the words, in UTF-8.",
         lambda text, n_merges: learned(Counter(tuple(map(ord, word)) for word in text.split()), n_merges)),
        ("merges lack the last one.", lambda text, n_merges: learned(words_of(text), n_merges - 1)),
    ],
    "ids": [
        ("ids are the bytes: no merge is applied.", lambda word: list(word.encode())),
        ("ids merge the leftmost pair first: the merge that was learned first comes first, wherever it is.",
         lambda word, merges: first_steps(word, merges, min)),
        ("ids apply the merges that were learned last first.",
         lambda word, merges: first_steps(word, merges, lambda can: max(can, key=lambda i: (can[i], -i)))),
        ("ids apply the merges in the reverse order, each once.", lambda word, merges: in_turn(word.encode(), merges, order=-1)),
        ("ids take the longest token at each place: merges apply in the order in which they were learned.", longest_first),
        ("ids replace each pair once: replace it wherever it occurs.",
         lambda word, merges: in_turn(word.encode(), merges, most=1)),
        ("ids merge overlapping pairs from the right: of three equal tokens, the left two merge.", from_the_right),
        ("ids number new tokens from 0 on: merge 0 makes token 256, behind the bytes.",
         lambda word, merges: [id - 256 * (id > 255) for id in in_turn(word.encode(), merges)]),
        ("ids number new tokens from 257 on: merge 0 makes token 256.",
         lambda word, merges: [id + (id > 255) for id in in_turn(word.encode(), merges)]),
        ("ids are those of characters: begin with the bytes of the word, in UTF-8.",
         lambda word, merges: in_turn(map(ord, word), merges)),
    ],
}  # fmt: skip
