"""How well a model predicts a text: loss, perplexity, and bits per byte, comparable across vocabularies."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from numllama.data.batches import all_windows, counted
from numllama.data.dataset import encode_plain, read_text
from numllama.data.token_files import read_tokens
from numllama.errors import DataError
from numllama.generation.text import opening
from numllama.model import Transformer
from numllama.parallel.shards import SHARD_TOKENS, Workers
from numllama.system.machine import training_settings
from numllama.system.progress import ProgressBar, progress_bar
from numllama.tokenizer import CharTokenizer, Tokenizer

COUNTED_TOKENS = 2**16  # decoded at once to count their bytes
SMALL_MODEL = 2**26  # bytes: for larger ones threads are as fast, and processes would briefly hold the weights twice


def evaluate_file(
    model: Transformer, tokenizer: Tokenizer | CharTokenizer | None, path: Path, seq_len: int | None = None
) -> dict[str, Any]:
    """Evaluate a model on every token of a file but the first.

    Parameters
    ----------
    model : Transformer
    tokenizer : Tokenizer or CharTokenizer, optional
        Encodes a text, or counts the bytes of a token file.
    path : path
        A text, or a token file (.bin, .npy).
    seq_len : int, optional
        Tokens per window; a token sees only earlier ones in its window. Default: the model's max_seq_len.

    Returns
    -------
    dict
        ``loss`` in nats per token, ``perplexity``, ``bits_per_byte`` (None without a tokenizer), ``tokens`` and ``bytes``.
    """
    most = model.config.max_seq_len
    seq_len = seq_len or most
    if not 1 <= seq_len <= most:
        raise ValueError(f"seq_len is {seq_len}, but must lie in 1..{most}, the model's max_seq_len")
    if path.suffix in (".bin", ".npy"):
        first, ids = (), read_tokens(path)[0]
        n_bytes = None if tokenizer is None else _bytes_of(tokenizer, ids[1:])
    elif tokenizer is None:
        raise DataError(f"{path} is a text, so the model needs a tokenizer: name one with --tokenizer")
    else:
        text = read_text(path)
        first, ids = opening(model, tokenizer), encode_plain(tokenizer, text)
        n_bytes = len(text.encode("utf-8")) if first else _bytes_of(tokenizer, ids[1:])
    if len(first):  # token files may be larger than memory
        ids = np.concatenate([np.asarray(first, dtype=ids.dtype), ids])
    if len(ids) < 2:
        raise DataError(f"{path} has {len(ids)} token(s), but at least 2 are needed: one is seen, the next is predicted")
    workers, rows = Workers(model, processes=model.params.flat.nbytes <= SMALL_MODEL), max(1, SHARD_TOKENS // seq_len)
    try:
        with training_settings(model.device), evaluation_bar(-(-(len(ids) - 1) // seq_len)) as bar:
            windows = (counted(*window) for window in all_windows(ids, rows, seq_len))
            loss = workers.mean_loss(windows, progress=bar.update)
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


def evaluation_bar(rows: int) -> ProgressBar:
    """A progress bar, shown for evaluations longer than a second."""
    interval = 0.2 if sys.stderr.isatty() else 10
    return progress_bar(total=rows, desc="evaluating", unit="row", delay=1, mininterval=interval, dynamic_ncols=True, leave=False)


def _bytes_of(tokenizer: Tokenizer | CharTokenizer, ids: np.ndarray) -> int:
    """Number of bytes of some tokens. Each piece is decoded after its previous token, as a text's first may lose its space."""
    count = _decoded_bytes(tokenizer, ids[:1])
    for start in range(1, len(ids), COUNTED_TOKENS):
        piece = ids[start - 1 : start + COUNTED_TOKENS]
        count += _decoded_bytes(tokenizer, piece) - _decoded_bytes(tokenizer, piece[:1])
    return count


def _decoded_bytes(tokenizer: Tokenizer | CharTokenizer, ids: np.ndarray) -> int:
    if isinstance(tokenizer, CharTokenizer):
        return len(tokenizer.decode(ids).encode("utf-8"))
    return len(tokenizer.decode_bytes(ids))
