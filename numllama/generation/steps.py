"""The generation loop: prefill the prompts, then sample and decode one token of each sequence at a time."""

import math
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import NamedTuple

import numpy as np

from numllama.backend import Array, quiet, to_numpy
from numllama.checks import check_ids
from numllama.cuda import decode as cuda_decode
from numllama.cuda import sample as cuda_sample
from numllama.errors import GenerationError, shown
from numllama.generation.config import SamplingConfig, is_number
from numllama.generation.decode import Decoder
from numllama.generation.kv_cache import KVCache, check_window, most_seen
from numllama.generation.prefill import prefill
from numllama.generation.sampling import Sampler, widened
from numllama.model import Transformer


class Step(NamedTuple):
    """New tokens of the rows that have not ended: their ids and, if requested, log-probabilities.

    They were drawn from `logits` (B, V), here before any filter; the next step may overwrite them.
    """

    rows: np.ndarray
    ids: np.ndarray
    logprobs: np.ndarray | None
    logits: Array


def begin(
    model: Transformer,
    prompts: list[np.ndarray],
    max_new_tokens: int,
    config: SamplingConfig,
    *,
    n: int = 1,
    logprobs: bool = False,
    window: int | None = None,
    kv_cache: KVCache | None = None,
) -> Iterator[Step]:
    """Check all arguments, then return the iterator of steps."""
    c = model.config
    if not is_number(max_new_tokens, Integral) or max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {shown(max_new_tokens)}, but must be a whole number that is not negative")
    if not is_number(n, Integral) or n < 1:
        raise ValueError(f"n is {shown(n)}, but must be a whole number of at least 1")
    config.check(c.vocab_size)
    check_window(window, c.max_seq_len)
    for prompt in prompts:
        check_ids("tokens", prompt, c.vocab_size)
    if kv_cache is not None:
        if n > 1:
            raise ValueError(f"n is {n}, but must be 1 with a kv_cache, which has one row for each prompt")
        if kv_cache.batch_size != len(prompts):
            raise ValueError(f"kv_cache holds {kv_cache.batch_size} sequence(s), but prompt_ids has {len(prompts)}")
        window = kv_cache.window
    longest = max(map(len, prompts))
    seen = longest + max(0, max_new_tokens - 1)  # the last new token is not an input
    if seen > c.max_seq_len and window is None:
        remedy = f" (a sliding window has no end: window {c.max_seq_len})" if c.positions != "learned" else ""
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit: max_seq_len is {c.max_seq_len}{remedy}"
        )
    generators = config.generators(len(prompts) * n)
    return _steps(model, prompts, max_new_tokens, config, generators, n, logprobs, window, kv_cache)


def _steps(
    model: Transformer, prompts: list[np.ndarray], max_new_tokens: int, config: SamplingConfig,
    generators: list[np.random.Generator], n: int, logprobs: bool, window: int | None, kv_cache: KVCache | None,
) -> Iterator[Step]:  # fmt: skip
    if max_new_tokens == 0:
        return
    xp, owned = model.xp, kv_cache is None                                 # a caller's cache keeps all rows
    tokens, starts = padded(prompts)                                       # (B, T), (B,)
    if kv_cache is None:
        longest = tokens.shape[1] + max_new_tokens
        seen_slots = most_seen(model.config, window)
        capacity = longest if seen_slots is None else min(longest, 2 * seen_slots)
        kv_cache = KVCache(model, batch_size=len(prompts), capacity=capacity, window=window, starts=starts)
    logits = _prefilled(model, tokens, starts, kv_cache)                   # (B, V)
    if n > 1:
        copies = np.repeat(np.arange(len(prompts)), n)
        kv_cache.take(copies)
        logits = logits[xp.asarray(copies)]
    rows = np.arange(len(prompts) * n)
    seen = _seen(model, [prompts[row // n] for row in rows]) if config.repetition_penalty != 1 else None
    draws = (config, generators, seen, logprobs, lambda logits: check_logits(model, logits))
    sampler = cuda_sample.sampler(logits, *draws) or Sampler(logits, *draws)
    decoder, alive = None, np.ones(len(rows), dtype=bool)
    for left in reversed(range(max_new_tokens)):
        ids, chances = sampler.draw(logits)                                # (B,)
        if config.stop_ids:
            alive &= ~np.isin(ids, config.stop_ids)
        if not alive.any():
            return
        yield Step(rows[alive], ids[alive], chances[alive] if chances is not None and logprobs else None, logits)
        if left == 0:
            return
        if owned and alive.mean() <= 0.5:                                  # half of the batch has ended: drop its rows
            kept = np.flatnonzero(alive)
            kv_cache.take(kept)
            rows, ids, alive, decoder = rows[kept], ids[kept], alive[kept], None
            sampler = sampler.take(kept, logits[: len(kept)])
        if kv_cache.is_stale:
            tokens = np.concatenate([kv_cache.tokens[:, : kv_cache.length], ids[:, None]], 1)
            logits = _prefilled(model, tokens, kv_cache.starts, kv_cache)
            continue
        if decoder is None:
            decoder = cuda_decode.decoder(model, kv_cache, sampler) or Decoder(model, kv_cache)
        logits = decoder.step(ids)


def _prefilled(model: Transformer, tokens: np.ndarray, starts: np.ndarray, kv_cache: KVCache) -> Array:
    """The logits after the last of tokens (B, T), (B, V); what the cache knows already is not computed again."""
    known = kv_cache.reuse(tokens, starts)
    with quiet():
        return prefill(model, tokens[:, known:], kv_cache)


def check_logits(model: Transformer, logits: Array) -> None:
    """Raise GenerationError, which names the cause, unless the maximum of each row of logits (B, V) is finite.

    The maximum of a row with NaN is NaN. A row may hold −inf: such a token is never drawn.
    """
    logits = logits if logits.dtype.kind == "f" else widened(logits)
    largest = logits.max(-1)
    if math.isfinite(largest[0]) if len(largest) == 1 else np.isfinite(to_numpy(largest)).all():
        return
    what = "NaN" if np.isnan(to_numpy(logits)).any() else "infinity"
    xp, adapter = model.xp, model.adapter
    parts = {**model.params, **(adapter.params if adapter else {})}
    damaged = [name for name, part in parts.items() if not bool(xp.isfinite(part).all())]
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise GenerationError(f"the model's logits hold {what}, because its parameter {damaged[0]}{more} is not finite")
    largest = max(parts, key=lambda name: float(xp.abs(parts[name]).max()))
    raise GenerationError(
        f"the model's logits hold {what}: its parameters are finite, but too large to compute with in {model.compute_dtype} "
        f"(the largest is {float(xp.abs(parts[largest]).max()):.3g}, in {largest})"
    )


def padded(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts padded on the left, (B, T), and the place where each begins, (B,)."""
    T = max(map(len, prompts))
    starts = np.array([T - len(prompt) for prompt in prompts])
    tokens = np.zeros((len(prompts), T), dtype=np.int64)
    for row, prompt, start in zip(tokens, prompts, starts, strict=True):
        row[start:] = prompt
    return tokens, starts


def _seen(model: Transformer, prompts: list[np.ndarray]) -> Array:
    """Boolean (B, V): which tokens occur in each prompt."""
    seen = np.zeros((len(prompts), model.config.vocab_size), dtype=bool)
    for row, prompt in zip(seen, prompts, strict=True):
        row[prompt] = True
    return model.xp.asarray(seen)
