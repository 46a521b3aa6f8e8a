"""Merges of a vocabulary that lists only ranks: tiktoken's files, llama2.c's and GGUF's."""

from collections.abc import Callable, Mapping

from numllama.tokenizer.merging import merge

Pair = tuple[bytes, bytes]


def merges_of_ranks(ranks: Mapping[bytes, int], symbols: Callable[[bytes], list[bytes]]) -> list[Pair]:
    """Recover the merges, in order, of a vocabulary that lists only ranks.

    Merging a token's own symbols ends with the only pair that ever forms it: surrounding text would either prevent the token
    or change nothing. A token that its own symbols do not form is never formed by merging. A token is formed from shorter
    ones, so tokens are processed by length, with the pairs of all shorter ones known.
    """
    numbers = {token: number for number, token in enumerate(ranks)}
    tokens = list(ranks)
    pairs: dict[tuple[int, int], int] = {}
    made = {rank: numbers[token] for token, rank in ranks.items()}
    for token in sorted(ranks, key=len):
        parts = symbols(token)
        if len(parts) > 1 and all(part in numbers for part in parts):
            ids = merge([numbers[part] for part in parts], pairs, made)
            if len(ids) == 2:
                pairs[ids[0], ids[1]] = ranks[token]
    return [(tokens[left], tokens[right]) for (left, right), _ in sorted(pairs.items(), key=lambda item: item[1])]
