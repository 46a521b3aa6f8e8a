"""How well a model predicts a text: loss, perplexity, and bits for each byte, which models of any vocabulary share."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from numllama.data.batches import all_windows, counted
from numllama.data.dataset import encode_plain, read_text
from numllama.data.token_files import read_tokens
from numllama.errors import DataError
from numllama.generation.text import opening
from numllama.model import Transformer
from numllama.parallel.shards import SHARD_TOKENS, Workers
from numllama.system.machine import training_settings
from numllama.tokenizer import CharTokenizer, Tokenizer

COUNTED_TOKENS = 2**16  # whose bytes are counted at once
SMALL_MODEL = 2**26  # bytes: for a larger one threads are as fast as processes, which would hold its weights twice for a moment


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


def evaluation_bar(rows: int) -> tqdm:
    """A progress bar of an evaluation that takes more than a moment."""
    interval = 0.2 if sys.stderr.isatty() else 10
    return tqdm(total=rows, desc="evaluating", unit="row", delay=1, mininterval=interval, dynamic_ncols=True, leave=False)


def _bytes_of(tokenizer: Tokenizer | CharTokenizer, ids: np.ndarray) -> int:
    """The bytes of some tokens. A piece follows the token before it, for the first of a text may lose its space."""
    count = _decoded_bytes(tokenizer, ids[:1])
    for start in range(1, len(ids), COUNTED_TOKENS):
        piece = ids[start - 1 : start + COUNTED_TOKENS]
        count += _decoded_bytes(tokenizer, piece) - _decoded_bytes(tokenizer, piece[:1])
    return count


def _decoded_bytes(tokenizer: Tokenizer | CharTokenizer, ids: np.ndarray) -> int:
    if isinstance(tokenizer, CharTokenizer):
        return len(tokenizer.decode(ids).encode("utf-8"))
    return len(tokenizer.decode_bytes(ids))
