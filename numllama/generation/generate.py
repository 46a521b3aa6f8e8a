"""generate, generate_batch and stream: sample one token at a time from the model's distribution of the next token."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, overload

import numpy as np

from numllama.backend import to_numpy
from numllama.generation.config import SamplingConfig
from numllama.generation.kv_cache import KVCache
from numllama.generation.steps import Step, begin
from numllama.model import Transformer

Ids = Sequence[int] | np.ndarray
Prompts = Sequence[Sequence[int]] | Sequence[np.ndarray]


class Options(TypedDict, total=False):
    """The options that leave the type of the result as it is."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    seed: int | Sequence[int] | None
    stop_ids: Sequence[int]
    window: int | None
    kv_cache: KVCache | None
    sampling: SamplingConfig | None


class Generated(NamedTuple):
    """New ids and their log-probabilities, in lists nested alike."""

    ids: list[Any]
    logprobs: list[Any]


@overload
def generate(model: Transformer, prompt_ids: Ids, max_new_tokens: int, **options: Unpack[Options]) -> list[int]: ...
@overload
def generate(
    model: Transformer, prompt_ids: Ids, max_new_tokens: int, *, n: int, **options: Unpack[Options]
) -> list[list[int]]: ...
@overload
def generate(
    model: Transformer, prompt_ids: Ids | Prompts, max_new_tokens: int, *, n: int = 1, logprobs: Literal[True],
    **options: Unpack[Options],
) -> Generated: ...  # fmt: skip
@overload
def generate(model: Transformer, prompt_ids: Prompts, max_new_tokens: int, **options: Unpack[Options]) -> list[list[int]]: ...
def generate(
    model: Transformer,
    prompt_ids: Ids | Prompts,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int | Sequence[int] | None = None,
    stop_ids: Sequence[int] = (),
    n: int = 1,
    logprobs: bool = False,
    window: int | None = None,
    kv_cache: KVCache | None = None,
    sampling: SamplingConfig | None = None,
) -> Any:
    """Continue a prompt. For several prompts use :func:`generate_batch`.

    Unlike ``model.generate`` of transformers, this ignores the checkpoint's generation_config.json, including its end tokens;
    :func:`complete` reads it.

    Parameters
    ----------
    model : Transformer
    prompt_ids : sequence of int
        At least one token. A sequence of prompts is accepted too, as by :func:`generate_batch`.
    max_new_tokens : int
    temperature, top_k, top_p, min_p, repetition_penalty, seed, stop_ids
        See :class:`SamplingConfig`.
    n : int
        Number of continuations; the prompt is computed once.
    logprobs : bool
        Also return the log-probability of each new token under the model itself, before any filter.
    window : int, optional
        Each token sees this many tokens, itself included, and the text may be of any length. Without a window, a text longer than
        the model's max_seq_len is a ValueError.
    kv_cache : KVCache, optional
        Cache of an earlier call: a common prefix of the texts is not computed again. Afterwards it holds the new text too.
    sampling : SamplingConfig, optional
        Replaces the settings from `temperature` to `stop_ids`.

    Returns
    -------
    ids : list of int
        Only the new ids, without the stop id; for n > 1 a list of n such lists.
    logprobs : list of float
        Only with ``logprobs=True``: nested as the ids.
    """
    config = _settings(sampling, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop_ids)
    prompts, is_batch = _prompts(prompt_ids)
    generated = _generate(model, prompts, max_new_tokens, config, n, logprobs, window, kv_cache)
    ids, chances = generated if is_batch else Generated(generated.ids[0], generated.logprobs[0])
    return Generated(ids, chances) if logprobs else ids


@overload
def generate_batch(
    model: Transformer, prompt_ids: Prompts, max_new_tokens: int, **options: Unpack[Options]
) -> list[list[int]]: ...
@overload
def generate_batch(
    model: Transformer, prompt_ids: Prompts, max_new_tokens: int, *, n: int, **options: Unpack[Options]
) -> list[list[list[int]]]: ...
@overload
def generate_batch(
    model: Transformer, prompt_ids: Prompts, max_new_tokens: int, *, n: int = 1, logprobs: Literal[True],
    **options: Unpack[Options],
) -> Generated: ...  # fmt: skip
def generate_batch(model: Transformer, prompt_ids: Prompts, max_new_tokens: int, **options: Any) -> Any:
    """Continue several prompts together.

    Parameters
    ----------
    model : Transformer
    prompt_ids : sequence of sequences of int
        At least one token each; lengths may differ.
    max_new_tokens : int
        Per prompt.
    **options
        Those of :func:`generate`.

    Returns
    -------
    ids : list of list of int
        The new ids of each prompt; for n > 1 a list of n such lists in place of each.
    logprobs : list of list of float
        Only with ``logprobs=True``: nested as the ids.
    """
    if not _prompts(prompt_ids)[1]:
        raise TypeError("prompt_ids is one prompt, but must be a sequence of prompts; generate continues one")
    return generate(model, prompt_ids, max_new_tokens, **options)


@overload
def stream(model: Transformer, prompt_ids: Ids, max_new_tokens: int, **options: Unpack[Options]) -> Iterator[int]: ...
@overload
def stream(
    model: Transformer, prompt_ids: Prompts, max_new_tokens: int, **options: Unpack[Options]
) -> Iterator[list[int | None]]: ...
def stream(
    model: Transformer,
    prompt_ids: Ids | Prompts,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int | Sequence[int] | None = None,
    stop_ids: Sequence[int] = (),
    window: int | None = None,
    kv_cache: KVCache | None = None,
    sampling: SamplingConfig | None = None,
) -> Iterator[Any]:
    """Continue a prompt like :func:`generate`, and yield each new id as soon as it is drawn.

    Yields
    ------
    int
        For a batch a list with an id for each prompt, None for texts that have ended.
    """
    config = _settings(sampling, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop_ids)
    prompts, is_batch = _prompts(prompt_ids)
    steps = begin(model, prompts, max_new_tokens, config, window=window, kv_cache=kv_cache)
    return _each(steps, len(prompts), is_batch)  # begin has raised any error before the first token is requested


def _each(steps: Iterator[Step], rows: int, is_batch: bool) -> Iterator[Any]:
    for step in steps:
        if not is_batch:
            yield int(step.ids[0])
            continue
        ids: list[int | None] = [None] * rows
        for place, row in enumerate(step.rows):
            ids[row] = int(step.ids[place])
        yield ids


def _generate(
    model: Transformer, prompts: list[np.ndarray], max_new_tokens: int, config: SamplingConfig, n: int, logprobs: bool,
    window: int | None, kv_cache: KVCache | None,
) -> Generated:  # fmt: skip
    """The new ids and log-probabilities of each prompt, or of each prompt's n texts."""
    steps = begin(model, prompts, max_new_tokens, config, n=n, logprobs=logprobs, window=window, kv_cache=kv_cache)
    rows = len(prompts) * n
    ids: list[list[int]] = [[] for _ in range(rows)]
    chances: list[list[float]] = [[] for _ in range(rows)]
    for step in steps:
        for place, row in enumerate(step.rows):
            ids[row].append(int(step.ids[place]))
            if step.logprobs is not None:
                chances[row].append(float(step.logprobs[place]))
    if n == 1:
        return Generated(ids, chances)
    return Generated(*([values[i : i + n] for i in range(0, rows, n)] for values in (ids, chances)))


# ------------------------------------------------------------------------------------------------ arguments


def _settings(
    sampling: SamplingConfig | None, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None,
    repetition_penalty: float, seed: int | Sequence[int] | None, stop_ids: Sequence[int],
) -> SamplingConfig:  # fmt: skip
    config = SamplingConfig(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed,
        stop_ids=stop_ids,
    )  # fmt: skip
    if sampling is None:
        return config
    if config != SamplingConfig():
        raise ValueError("sampling holds all settings, so no other can be given with it")
    return sampling


def _prompts(prompt_ids: Any) -> tuple[list[np.ndarray], bool]:
    """The prompts as arrays, and whether they are a batch."""
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
