"""Merges of a vocabulary that lists only ranks or scores: tiktoken's files, SentencePiece's, llama2.c's and GGUF's."""

from collections.abc import Callable, Container, Mapping

from numllama.errors import shown
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


def merges_of_scores(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Recover the merges of SentencePiece's BPE, which makes the piece with the best score first, and of equals the leftmost.

    Llama 2 and Mistral give all runs of spaces one score. A run grows from its left end, so the longest piece is made first.

    Raises
    ------
    ValueError
        If other pieces have the same score: which one is made first depends on the text.
    """
    equals: dict[float, str] = {}
    for piece in scores:
        if may_be_merged(piece, scores):
            other = equals.setdefault(scores[piece], piece)
            if other != piece and (len(set(other)) > 1 or len(set(piece)) > 1):
                both = f"{shown(other)} and {shown(piece)}"
                raise ValueError(f"its pieces {both} have the same score, so the order of merging depends on the text")
    ordered = sorted(scores, key=lambda piece: (-scores[piece], -len(piece)))
    ranks = {piece.encode(): rank for rank, piece in enumerate(ordered)}
    merges = merges_of_ranks(ranks, lambda piece: [character.encode() for character in piece.decode()])
    return [(left.decode(), right.decode()) for left, right in merges]


def may_be_merged(piece: str, known: Container[str]) -> bool:
    """Whether a piece is two known ones side by side."""
    return any(piece[:i] in known and piece[i:] in known for i in range(1, len(piece)))
