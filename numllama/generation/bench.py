"""Measure prompt and decoding speed on this machine."""

import time
from numbers import Integral
from statistics import median
from typing import Any

import numpy as np

from numllama.cuda import decode as cuda_decode
from numllama.generation.config import is_number
from numllama.generation.decode import Decoder
from numllama.generation.kv_cache import KVCache
from numllama.generation.prefill import prefill
from numllama.model import Transformer

TOKENS = 64
TICK = 1e-9  # seconds; some clocks tick more slowly than a short round takes


def bench(
    model: Transformer,
    *,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
    batch_size: int = 1,
    rounds: int = 3,
) -> dict[str, Any]:
    """Medians of several rounds, after one that is not counted.

    Parameters
    ----------
    model : Transformer
    prompt_tokens, new_tokens : int, optional
        Lengths of the (random) prompt and of the text after it, together at most the model's max_seq_len. Default 64 each, or
        as many as fit.
    batch_size : int
        Sequences per batch.
    rounds : int

    Returns
    -------
    dict
        ``prefill_tokens_per_second``, ``decode_tokens_per_second`` (all sequences together), ``ms_per_token``, and the
        arguments.
    """
    most = model.config.max_seq_len
    given = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "batch_size": batch_size, "rounds": rounds}
    for name, value in given.items():
        if value is not None and (not is_number(value, Integral) or value < 1):
            raise ValueError(f"{name} is {value}, but must be a whole number of at least 1")
    if prompt_tokens is None:
        prompt_tokens = max(1, min(TOKENS, most - (most // 2 if new_tokens is None else new_tokens)))
    if new_tokens is None:
        new_tokens = max(1, min(TOKENS, most - prompt_tokens))
    if prompt_tokens + new_tokens > most:
        raise ValueError(f"{prompt_tokens} + {new_tokens} tokens are more than the model's max_seq_len, {most}")
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (batch_size, prompt_tokens + new_tokens))
    times = [_round(model, tokens, prompt_tokens) for _ in range(rounds + 1)][1:]
    first, later = (median(column) for column in zip(*times, strict=True))
    return {
        "prefill_tokens_per_second": batch_size * prompt_tokens / first,
        "decode_tokens_per_second": batch_size * new_tokens / later,
        "ms_per_token": 1e3 * later / new_tokens,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "batch_size": batch_size,
        "rounds": rounds,
    }


def _round(model: Transformer, tokens: np.ndarray, prompt: int) -> tuple[float, float]:
    """Seconds for the prompt, and for the tokens after it."""
    cache = KVCache(model, batch_size=len(tokens), capacity=tokens.shape[1])
    begin = time.perf_counter()
    logits = prefill(model, tokens[:, :prompt], cache)
    float(logits[0, 0])  # waits for a GPU
    middle = time.perf_counter()
    decoder = cuda_decode.decoder(model, cache) or Decoder(model, cache)
    for column in tokens[:, prompt:].T:
        logits = decoder.step(column)
    float(logits[0, 0])
    return max(middle - begin, TICK), max(time.perf_counter() - middle, TICK)
