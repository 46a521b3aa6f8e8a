"""generate and stream: one token after another, each drawn from the model's distribution for the next."""

import math
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import Array, quiet, to_numpy
from numllama.checks import check_ids
from numllama.cuda import decode as cuda_decode
from numllama.cuda import sample as cuda_sample
from numllama.errors import GenerationError, shown
from numllama.generation.config import is_number
from numllama.generation.decode import Decoder
from numllama.generation.kv_cache import KVCache, check_window
from numllama.generation.prefill import prefill
from numllama.generation.sampling import Sampler, SamplingConfig, widened
from numllama.model import Transformer


def generate(
    model: Transformer,
    prompt_ids: Sequence[int] | Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int | Sequence[int] | None = None,
    stop_ids: Sequence[int] = (),
    *,
    n: int = 1,
    logprobs: bool = False,
    window: int | None = None,
    kv_cache: KVCache | None = None,
    sampling: SamplingConfig | None = None,
) -> Any:
    """Continue a prompt, or a batch of them.

    The settings are those given here: unlike ``model.generate`` of transformers, this ignores the checkpoint's
    generation_config.json, its end tokens too, which :func:`complete` reads.

    Parameters
    ----------
    model : Transformer
    prompt_ids : sequence of int, or a sequence of them
        At least one token each; of a batch each may have another length.
    max_new_tokens : int
    temperature, top_k, top_p, min_p, repetition_penalty, seed, stop_ids
        See :class:`SamplingConfig`.
    n : int
        Continuations of each prompt, which is computed once.
    logprobs : bool
        Return the log-probability of each new token too: the model's own, before any filter.
    window : int, optional
        Each token sees this many, itself among them, and there is no end. Without it, a text longer than the model's
        max_seq_len is a ValueError.
    kv_cache : KVCache, optional
        Of an earlier call: what the prompts have in common with it is not computed again. It then holds the new text as well.
    sampling : SamplingConfig, optional
        In the place of the settings from `temperature` to `stop_ids`.

    Returns
    -------
    ids : list of int
        The new ids only, without the stop id. For a batch a list of such lists; for n > 1 a list of n in the place of each.
    logprobs : list of float
        Only if asked for: of the same nesting.
    """
    config = _settings(sampling, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop_ids)
    prompts, is_batch = _prompts(prompt_ids)
    rows = len(prompts) * (n if isinstance(n, Integral) and n > 0 else 1)
    ids: list[list[int]] = [[] for _ in range(rows)]
    chances: list[list[float]] = [[] for _ in range(rows)]
    for step in begin(model, prompts, max_new_tokens, config, n, logprobs, window, kv_cache):
        for place, row in enumerate(step.rows):
            ids[row].append(int(step.ids[place]))
            if logprobs:
                chances[row].append(float(step.logprobs[place]))

    def nested(values: list) -> list:
        if n > 1:
            values = [values[i : i + n] for i in range(0, rows, n)]
        return values if is_batch else values[0]

    return (nested(ids), nested(chances)) if logprobs else nested(ids)


def stream(
    model: Transformer,
    prompt_ids: Sequence[int] | Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    window: int | None = None,
    kv_cache: KVCache | None = None,
    sampling: SamplingConfig | None = None,
    **settings: Any,
) -> Iterator[Any]:
    """As :func:`generate`, but each new id is yielded as soon as it is there.

    Yields
    ------
    int
        For a batch a list, with an id for each prompt, or None where the text has ended.
    """
    config = _settings(sampling, **settings)
    prompts, is_batch = _prompts(prompt_ids)
    steps = begin(model, prompts, max_new_tokens, config, 1, False, window, kv_cache)
    return _each(steps, len(prompts), is_batch)  # what is wrong is said by now, not with the first token


def _each(steps: Iterator["Step"], rows: int, is_batch: bool) -> Iterator[Any]:
    for step in steps:
        if not is_batch:
            yield int(step.ids[0])
            continue
        ids: list[int | None] = [None] * rows
        for place, row in enumerate(step.rows):
            ids[row] = int(step.ids[place])
        yield ids


# ------------------------------------------------------------------------------------------------ the loop


class Step(NamedTuple):
    """New tokens: of the rows that have not ended, their ids and, if asked for, log-probabilities.

    `logits` (B, V) is what they were drawn from, before any filter, of all rows; the next step may overwrite them.
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
    n: int,
    logprobs: bool,
    window: int | None,
    kv_cache: KVCache | None,
) -> Iterator[Step]:
    """Check everything, then return the iterator of steps."""
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
    seen = longest + max(0, max_new_tokens - 1)  # the last new token is not looked at
    if seen > c.max_seq_len and window is None:
        remedy = f" (a sliding window has no end: window {c.max_seq_len})" if c.positions != "learned" else ""
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit: max_seq_len is {c.max_seq_len}{remedy}"
        )
    generators = config.generators(len(prompts) * n)
    return _steps(model, prompts, max_new_tokens, config, generators, n, logprobs, window, kv_cache)


def _steps(model, prompts, max_new_tokens, config, generators, n, logprobs, window, kv_cache) -> Iterator[Step]:
    if max_new_tokens == 0:
        return
    xp, owned = model.xp, kv_cache is None
    tokens, starts = padded(prompts)                                       # (B, T), (B,)
    if owned:
        longest = tokens.shape[1] + max_new_tokens
        capacity = longest if window is None else min(longest, 2 * window)
        kv_cache = KVCache(model, len(prompts), capacity, window, starts)
    known = kv_cache.reuse(tokens, starts)
    with quiet():
        logits = prefill(model, tokens[:, known:], kv_cache)               # (B, V)
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
        yield Step(rows[alive], ids[alive], chances[alive] if logprobs else None, logits)
        if left == 0:
            return
        if owned and alive.mean() <= 0.5:                                  # half of the batch has ended: go on without it
            kept = np.flatnonzero(alive)
            kv_cache.take(kept)
            rows, ids, alive, decoder = rows[kept], ids[kept], alive[kept], None
            sampler = sampler.take(kept, logits[: len(kept)])
        if decoder is None:
            decoder = cuda_decode.decoder(model, kv_cache, sampler) or Decoder(model, kv_cache)
        logits = decoder.step(ids)


def check_logits(model: Transformer, logits: Array) -> None:
    """Raise GenerationError, which says where they come from, unless each row (B, V) has a largest number.

    That of a row with NaN is NaN, and infinity is no number to draw from. A row may hold −inf: such a token is never drawn.
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
        f"the model's logits hold {what}: its parameters are finite, but too large to compute with in {model.dtype} "
        f"(the largest is {float(xp.abs(parts[largest]).max()):.3g}, in {largest})"
    )


def padded(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts that end together, (B, T), and where each begins, (B,)."""
    T = max(map(len, prompts))
    starts = np.array([T - len(prompt) for prompt in prompts])
    tokens = np.zeros((len(prompts), T), dtype=np.int64)
    for row, prompt, start in zip(tokens, prompts, starts, strict=True):
        row[start:] = prompt
    return tokens, starts


def _seen(model: Transformer, prompts: list[np.ndarray]) -> Array:
    """Which tokens each prompt holds: boolean (B, V)."""
    seen = np.zeros((len(prompts), model.config.vocab_size), dtype=bool)
    for row, prompt in zip(seen, prompts, strict=True):
        row[prompt] = True
    return model.xp.asarray(seen)


# ------------------------------------------------------------------------------------------------ arguments


def _settings(sampling: SamplingConfig | None, *values: Any, **named: Any) -> SamplingConfig:
    config = SamplingConfig(*values, **named)
    if sampling is None:
        return config
    if config != SamplingConfig():
        raise ValueError("sampling holds all settings, so none of them can be given beside it")
    return sampling


def _prompts(prompt_ids: Any) -> tuple[list[np.ndarray], bool]:
    """The prompts as arrays, and whether they came as a batch."""
    if isinstance(prompt_ids, str):
        raise TypeError("prompt_ids is a text, but must be token ids: encode it with a tokenizer, or use complete")
    is_batch = len(prompt_ids) > 0 and np.ndim(prompt_ids[0]) > 0
    prompts = [np.asarray(to_numpy(prompt)) for prompt in (prompt_ids if is_batch else [prompt_ids])]
    for i, prompt in enumerate(prompts):
        name = f"prompt_ids[{i}]" if is_batch else "prompt_ids"
        if prompt.size == 0:
            raise ValueError(f"{name} is empty, but at least one token is needed to begin with")
        if prompt.ndim != 1 or prompt.dtype.kind not in "iu":
            raise TypeError(f"{name} must be token ids, whole numbers in one row, not {prompt.dtype} of shape {prompt.shape}")
    return prompts, is_batch
