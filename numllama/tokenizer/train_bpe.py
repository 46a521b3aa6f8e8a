"""Training BPE: count the pre-tokens once, then repeatedly merge the most frequent adjacent pair.

A corpus of any size is reduced to a table of its distinct pre-tokens ("words") and their counts; merging uses only that table.
A merge changes only the words that contain the pair, and only the counts of neighbouring pairs, so nothing is ever
recounted:

    counts[pair]    how often the pair occurs                       heap    the pairs by count, the most frequent first
    where[pair]     the words in which it occurs, or once did

A count in the heap may be out of date: counts only fall, except those of pairs with the newest token, which are all pushed
again. So when a pair comes up with an outdated count, it is pushed back with the current one.
                                                                                        Sennrich et al. 2016, algorithm 1
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from heapq import heapify, heappop, heappush, heapreplace
from itertools import pairwise
from pathlib import Path

from numllama.system.processes import Processes, available_cores
from numllama.system.progress import ProgressBar, progress_bar
from numllama.tokenizer.bpe import Tokenizer
from numllama.tokenizer.cutting import SpecialTokens
from numllama.tokenizer.patterns import Splitter, as_oniguruma
from numllama.tokenizer.rewriting import from_oniguruma
from numllama.tokenizer.text_files import as_paths, not_empty, read_parts
from numllama.tokenizer.vocabulary import check_special_tokens

PART = 2**21            # characters counted at a time
WORTH_A_WORKER = 2**24  # bytes: counting these takes as long as starting a process
DISTINCT = 2**20        # words: beyond this number the rarest are dropped

# Reverses the sort order: ties go to the pair that sorts last, but a heap returns the smallest. 0xff occurs in no UTF-8 text,
# so it can end each string, and after the reversal sorts after every other byte.
_BACKWARDS = bytes(max(254 - byte, 0) for byte in range(256))

Words = dict[str, int]


def train(
    files: str | Path | Sequence[str | Path],
    vocab_size: int,
    special_tokens: Sequence[str] = (),
    pattern: str = "gpt2",
    workers: int | None = None,
    progress: bool = True,
    errors: str = "strict",
) -> Tokenizer:
    """See :meth:`numllama.tokenizer.Tokenizer.train`."""
    special_tokens = check_special_tokens(special_tokens)
    check_vocab_size(vocab_size, len(special_tokens))
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise ValueError(f"workers is {workers!r}, but must be a whole number of at least 1")
    pattern = as_oniguruma(pattern)  # refuse a bad pattern before reading anything
    Splitter(pattern)
    paths = as_paths(files)
    not_empty(paths)
    words = count_words(paths, pattern, special_tokens, workers, progress, errors)
    return _learn(words, vocab_size, special_tokens, pattern, progress)


def check_vocab_size(vocab_size: int, special: int = 0) -> None:
    """ValueError unless the vocabulary has room for all bytes and the special tokens."""
    least = 256 + special
    if not isinstance(vocab_size, int) or vocab_size < least:
        raise ValueError(f"vocab_size is {vocab_size!r}, but 256 bytes and {special} special tokens need {least}")


def train_on_text(text: str, vocab_size: int, pattern: str = "gpt2") -> Tokenizer:
    """Like :func:`train`, from a text in memory, without special tokens."""
    check_vocab_size(vocab_size)
    pattern = as_oniguruma(pattern)
    return _learn(_Count(pattern, ())(text), vocab_size, (), pattern, progress=False)


def _learn(words: Words, vocab_size: int, special_tokens: Sequence[str], pattern: str, progress: bool) -> Tokenizer:
    merges = find_merges(words, vocab_size - 256 - len(special_tokens), progress)
    vocab = [*(bytes([byte]) for byte in range(256)), *(left + right for left, right in merges)]
    special = {token: len(vocab) + i for i, token in enumerate(special_tokens)}
    return Tokenizer(dict(enumerate(vocab)), merges, special, pattern=from_oniguruma(pattern))


# ------------------------------------------------------------------------------------------------ counting


def count_words(
    paths: Sequence[Path], pattern: str, special_tokens: Sequence[str], workers: int | None, progress: bool, errors: str
) -> Words:
    """Count how often each pre-token occurs.

    The text is read once, in parts. To bound memory, the rarest words are dropped whenever there are more than DISTINCT, at
    the same points for any number of workers.
    """
    size = sum(path.stat().st_size for path in paths)
    if workers is None:
        workers = max(1, min(available_cores(), size // WORTH_A_WORKER))
    counts: Words = {}
    count = _Count(pattern, special_tokens)
    with progress_bar(progress, total=size, unit="B", unit_scale=True, desc="counting", mininterval=0.5) as bar:
        parts = _parts(paths, count, errors, bar)
        if workers == 1:
            _add_all(counts, map(count, parts))
        else:
            with Processes(count, workers) as processes:
                _add_all(counts, processes.map(parts))
    return counts


def _parts(paths: Sequence[Path], count: "_Count", errors: str, bar: ProgressBar) -> Iterator[str]:
    for path in paths:
        yield from count.splitter.chunks(_shown(read_parts(path, errors), bar), count.special, PART)


def _shown(texts: Iterable[str], bar: ProgressBar) -> Iterator[str]:
    for text in texts:
        yield text
        bar.update(len(text) if text.isascii() else len(text.encode()))


class _Count:
    """Counts the words in a part of a text."""

    def __init__(self, pattern: str, special_tokens: Sequence[str]) -> None:
        self.pattern, self.special_tokens = pattern, special_tokens
        self.splitter = Splitter(pattern)
        self.special = SpecialTokens(special_tokens) if special_tokens else None

    def __call__(self, text: str) -> Words:
        counts: Counter[str] = Counter()
        end = 0
        for start, stop in self.special.spans(text) if self.special else ():
            counts.update(self.splitter.split(text[end:start]))
            end = stop
        counts.update(self.splitter.split(text[end:]))
        return dict(counts)

    def __reduce__(self) -> tuple:
        return _Count, (self.pattern, self.special_tokens)


def _add_all(counts: Words, parts: Iterable[Words]) -> None:
    for part in parts:
        for word, n in part.items():
            counts[word] = counts.get(word, 0) + n
        rare = 1
        while len(counts) > DISTINCT:
            for word in [word for word, n in counts.items() if n <= rare]:
                del counts[word]
            rare *= 2


# ------------------------------------------------------------------------------------------------ merging


def find_merges(words: Words, n: int, progress: bool = False) -> list[tuple[bytes, bytes]]:
    """The first `n` merges, or fewer if nothing is left to merge."""
    tokens = [bytes([byte]) for byte in range(256)]
    spelled = [(list(word.encode()), count) for word, count in words.items()]
    spelled = [(ids, count) for ids, count in spelled if len(ids) > 1]
    counts, where = _count_pairs(spelled)
    keys = [_key(token) for token in tokens]  # each token's sort key, in reverse order
    heap = [(-count, keys[a] + keys[b], (a, b)) for (a, b), count in counts.items()]
    heapify(heap)
    merges = []
    with progress_bar(progress, total=n, unit=" merges", desc="merging", mininterval=0.5) as bar:
        while heap and len(merges) < n:
            count, key, pair = heap[0]
            now = counts[pair]
            if now != -count:
                heapreplace(heap, (-now, key, pair)) if now else heappop(heap)
                continue
            heappop(heap)
            merges.append((tokens[pair[0]], tokens[pair[1]]))
            new = len(tokens)
            tokens.append(tokens[pair[0]] + tokens[pair[1]])
            keys.append(_key(tokens[-1]))
            for a, b in _apply(pair, new, spelled, counts, where):
                heappush(heap, (-counts[a, b], keys[a] + keys[b], (a, b)))
            bar.update()
    return merges


def _count_pairs(spelled: Sequence[tuple[list[int], int]]) -> tuple[dict, dict]:
    counts, where = defaultdict(int), defaultdict(list)
    for i, (ids, count) in enumerate(spelled):
        for pair in pairwise(ids):
            counts[pair] += count
        for pair in set(pairwise(ids)):
            where[pair].append(i)
    return counts, where


def _apply(pair: tuple[int, int], new: int, spelled: list[tuple[list[int], int]], counts: dict, where: dict) -> set:
    """Merge a pair in every word that contains it; returns the new pairs."""
    first, second = pair
    fresh = set()
    for i in where.pop(pair):
        ids, count = spelled[i]
        out, copied = [], 0
        born = set()
        for at in _places(ids, first, second):
            out += ids[copied:at]
            copied = at + 2
            if out:
                counts[out[-1], first] -= count
                counts[out[-1], new] += count
                born.add((out[-1], new))
            if copied < len(ids):
                counts[second, ids[copied]] -= count
                counts[new, ids[copied]] += count
                born.add((new, ids[copied]))
            out.append(new)
        spelled[i] = out + ids[copied:], count
        for other in born:
            where[other].append(i)
        fresh |= born
    del counts[pair]
    return {other for other in fresh if counts[other]}


def _places(ids: list[int], first: int, second: int) -> Iterator[int]:
    """The positions of a pair, from left to right, without overlaps."""
    at = -1
    with suppress(ValueError):
        while True:
            at = ids.index(first, at + 1)
            if ids[at + 1 : at + 2] == [second]:
                yield at
                at += 1


def _key(token: bytes) -> bytes:
    return token.translate(_BACKWARDS) + b"\xff"
