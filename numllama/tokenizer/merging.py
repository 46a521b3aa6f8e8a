"""The inner step of byte-pair encoding: merge the adjacent pair of lowest rank, the leftmost first.

`ranks` maps a pair of ids to its rank, `made` maps a rank to the merged id.                  Sennrich et al. 2016, algorithm 1
"""

from collections.abc import Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Any

Ranks = dict[tuple[int, int], int]
Made = Sequence[int] | Mapping[int, int]  # by rank
NEVER = float("inf")
LONG = 64  # ids: beyond this length a heap is faster than rescanning all pairs


def merge(ids: list[int], ranks: Ranks, made: Made) -> list[int]:
    """Merge until no pair can."""
    if len(ids) > LONG:
        return _merge_long(ids, ranks, made)
    for _ in merge_steps(ids, ranks, made):  # in place
        continue
    return ids


def merge_steps(ids: list[int], ranks: Ranks, made: Made) -> Iterator[tuple[int, list[int]]]:
    """Merge in place; after each merge, yield its position and the list of ids."""
    rank_of = ranks.get
    waiting = [rank_of(pair, NEVER) for pair in pairwise(ids)]
    while waiting and (rank := min(waiting)) is not NEVER:
        i = waiting.index(rank)
        ids[i : i + 2] = [made[rank]]  # pyright: ignore  (an int, because it is not NEVER)
        del waiting[i]
        if i:
            waiting[i - 1] = rank_of((ids[i - 1], ids[i]), NEVER)
        if i < len(waiting):
            waiting[i] = rank_of((ids[i], ids[i + 1]), NEVER)
        yield i, ids


def _merge_long(ids: list[Any], ranks: Ranks, made: Made) -> list[int]:
    """The same in O(n log n): a linked list of ids, and a heap of the pairs that may merge."""
    end = len(ids)
    after, before = list(range(1, end + 1)), list(range(-1, end - 1))
    heap = [(ranks[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in ranks]
    heapify(heap)
    while heap:
        rank, i = heappop(heap)
        right = after[i]
        if right == end or ranks.get((ids[i], ids[right])) != rank:  # one of the two has merged with another since
            continue
        ids[i], ids[right] = made[rank], None
        after[i] = behind = after[right]
        if behind < end:
            before[behind] = i
            if (rank := ranks.get((ids[i], ids[behind]))) is not None:
                heappush(heap, (rank, i))
        if (left := before[i]) >= 0 and (rank := ranks.get((ids[left], ids[i]))) is not None:
            heappush(heap, (rank, left))
    return [i for i in ids if i is not None]
