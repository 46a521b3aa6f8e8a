"""How well a model predicts a text: loss, perplexity, and bits for each byte, which models of any vocabulary share."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from numllama.data.token_files import read_tokens
from numllama.errors import DataError
from numllama.generation.text import opening
from numllama.model import Transformer
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.training.data import encode_plain, read_text
from numllama.training.parallel import Workers, training_settings

WINDOWS = 4  # side by side


def evaluate_file(
    model: Transformer, tokenizer: Tokenizer | CharTokenizer | None, path: Path, seq_len: int | None = None
) -> dict[str, Any]:
    """The loss of every token of a file but the first.

    Parameters
    ----------
    model : Transformer
    tokenizer : Tokenizer or CharTokenizer, optional
        What a text is encoded with; of a token file, what bytes are counted with.
    path : path
        A text, or a token file (.bin, .npy).
    seq_len : int, optional
        Tokens in a window; a token sees those before it in its own window. Default the model's max_seq_len.

    Returns
    -------
    dict
        ``loss`` in nats for each token, ``perplexity``, ``bits_per_byte`` (None without a tokenizer), ``tokens`` and ``bytes``.
    """
    most = model.config.max_seq_len
    seq_len = seq_len or most
    if not 1 <= seq_len <= most:
        raise ValueError(f"seq_len is {seq_len}, but must lie in 1..{most}, the model's max_seq_len")
    if path.suffix in (".bin", ".npy"):
        first, ids = [], read_tokens(path)[0]
        n_bytes = None if tokenizer is None else _bytes_of(tokenizer, ids[1:])
    elif tokenizer is None:
        raise DataError(f"{path} is a text, so the model needs a tokenizer: name one with --tokenizer")
    else:
        text = read_text(path)
        first, ids = opening(model, tokenizer), encode_plain(tokenizer, text)
        n_bytes = len(text.encode("utf-8")) if first else _bytes_of(tokenizer, ids[1:])
    ids = np.concatenate([np.asarray(first, dtype=np.int64), ids])
    if len(ids) < 2:
        raise DataError(f"{path} has {len(ids)} token(s), but at least 2 are needed: one is seen, the next is predicted")
    workers = Workers(model)
    try:
        with training_settings(model.device):
            loss = workers.mean_loss(windows(ids, seq_len))
    finally:
        workers.close()
    n = len(ids) - 1
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "bits_per_byte": None if not n_bytes else loss * n / n_bytes / math.log(2),
        "tokens": n,
        "bytes": n_bytes,
    }


def windows(ids: np.ndarray, seq_len: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Neighbouring windows, as (tokens, targets), in which each token but the first is a target once."""
    whole = (len(ids) - 1) // seq_len
    for begin in range(0, whole, WINDOWS):
        rows = range(begin, min(begin + WINDOWS, whole))
        cut = np.stack([ids[i * seq_len : (i + 1) * seq_len + 1] for i in rows]).astype(np.int64)
        yield cut[:, :-1], cut[:, 1:]
    rest = ids[whole * seq_len :].astype(np.int64)[None]
    if rest.shape[1] > 1:
        yield rest[:, :-1], rest[:, 1:]


def _bytes_of(tokenizer: Tokenizer | CharTokenizer, ids: np.ndarray) -> int:
    if isinstance(tokenizer, CharTokenizer):
        return len(tokenizer.decode(ids).encode("utf-8"))
    return len(tokenizer.decode_bytes(ids))
