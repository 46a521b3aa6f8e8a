"""A generation job: what was requested, its texts, and the chunks that carry them to the client.

The client's coroutine reads the chunks of a :class:`Job`; the engine's thread generates each :class:`Text` of it.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import quiet, to_numpy
from numllama.generation.config import SamplingConfig
from numllama.generation.kv_cache import KVCache
from numllama.generation.sampling import log_softmax
from numllama.generation.steps import Step, begin, check_logits
from numllama.generation.text import TextDecoder, special_ids, until_one_by_one, window_for, with_stops
from numllama.model.transformer import Transformer

ECHO_TOKENS = 128  # prompt tokens whose logits are in memory at a time


@dataclass(frozen=True)
class Request:
    """One text to generate.

    Attributes
    ----------
    prompt : str or sequence of int
    max_new_tokens : int
    sampling : SamplingConfig
    stop : tuple of str
    top_logprobs : int, optional
        Record the log-probability of each token, and of the n likeliest tokens in its place.
    echo : bool
        Start with the prompt; with `top_logprobs`, its tokens get their log-probabilities too.
    special : bool
        Parse special tokens in the prompt; False: treat them as ordinary text.
    skip_special_tokens : bool
        Leave special tokens out of the new text.
    """

    prompt: str | Sequence[int]
    max_new_tokens: int
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    echo: bool = False
    special: bool = True
    skip_special_tokens: bool = True


class Prompt(NamedTuple):
    """An encoded prompt: the ids of its text, and the model's whole input (the same behind BOS, for example)."""

    context: list[int]
    ids: list[int]


class TokenLogprob(NamedTuple):
    """A token and its log-probability."""

    id: int
    logprob: float


class Token(NamedTuple):
    """A token of a text.

    Attributes
    ----------
    id : int
    logprob : float or None
        Under the model itself, before any filter. None for the very first token, which nothing predicts.
    top_logprobs : list of TokenLogprob
        The likeliest tokens in its place, best first.
    offset : int
        Where the token begins in the text.
    """

    id: int
    logprob: float | None
    top_logprobs: list[TokenLogprob]
    offset: int = 0


class Chunk(NamedTuple):
    """The next characters of text `index`, their tokens if log-probabilities were requested, and in the last one why it ended."""

    index: int
    text: str
    tokens: list[Token]
    finish: str | None = None


class Event(NamedTuple):
    """A message from the engine's thread: a chunk, or the error that ended its text."""

    chunk: Chunk
    error: Exception | None = None


class Job:
    """Texts that are generated for one client; :meth:`chunks` yields them as they grow.

    Attributes
    ----------
    cancelled : bool
        The client has left: each text ends with its next token.
    texts : list of Text
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.cancelled = False
        self.texts: list[Text] = []
        self._loop, self._arrived = loop, asyncio.Event()
        self._events: deque[Event] = deque()
        self._waiting = False  # only a waiting client has to be woken

    def cancel(self) -> None:
        """End all texts with their next token."""
        self.cancelled = True

    async def chunks(self, pause: float = 0.0) -> AsyncIterator[Chunk]:
        """Yield the chunks of all texts. Those that arrive during a pause (in seconds) are merged, one for each text.

        Raises
        ------
        Exception
            The error that ended one of the texts.
        """
        left = len(self.texts)
        try:
            while left:
                self._arrived.clear()
                self._waiting = True
                if not self._events:
                    await self._arrived.wait()
                self._waiting = False
                for chunk, error in self._merged():
                    if error is not None:
                        raise error
                    left -= chunk.finish is not None
                    yield chunk
                if left and pause:
                    await asyncio.sleep(pause)
        finally:
            self.cancel()

    def push(self, chunk: Chunk, error: Exception | None = None) -> None:
        """Send a chunk to the client; called from the engine's thread."""
        self._events.append(Event(chunk, error))
        if self._waiting:
            self._waiting = False
            try:
                self._loop.call_soon_threadsafe(self._arrived.set)
            except RuntimeError:  # the loop is closed, so the client is gone
                self.cancel()

    def _merged(self) -> Iterator[Event]:
        """Take everything that has arrived, with the chunks of each text merged into one."""
        merged: dict[int, Chunk] = {}
        failed: Exception | None = None
        while self._events and failed is None:
            chunk, failed = self._events.popleft()
            old = merged.get(chunk.index, Chunk(chunk.index, "", []))
            merged[chunk.index] = Chunk(chunk.index, old.text + chunk.text, old.tokens + chunk.tokens, chunk.finish)
        yield from (Event(chunk) for chunk in merged.values() if failed is None or chunk.finish is None)
        if failed is not None:
            yield Event(Chunk(0, "", []), failed)


class Text:
    """One text of a job, and its state while it is generated.

    Attributes
    ----------
    prompt_tokens, new_tokens : int
    cache_bytes : int
        Size of its keys and values.
    first_token, seconds : float
        Seconds from the request to the first token, and to the latest.
    """

    def __init__(
        self, job: Job, index: int, model: Transformer, tokenizer: Any, own: bool, request: Request, prompt: Prompt
    ) -> None:
        self.job, self.index, self.model, self.tokenizer, self.own = job, index, model, tokenizer, own
        self.request, self.context, self.ids = request, prompt.context, prompt.ids
        self.prompt_tokens, self.new_ids = len(prompt.ids), []
        self.deltas: Iterator[str] | None = None
        self.cache: KVCache | None = None
        self.cache_bytes, self._exhausted, self._tokens = 0, False, []
        self._submitted, self.first_token, self.seconds = time.perf_counter(), 0.0, 0.0

    @property
    def new_tokens(self) -> int:
        return len(self.new_ids)

    @property
    def tokens_per_second(self) -> float:
        """Rate after the first token, as the client sees it."""
        seconds = self.seconds - self.first_token
        return (self.new_tokens - 1) / seconds if seconds > 0 else 0.0

    @property
    def reason(self) -> str:
        """Why it ended: ``length`` if only max_new_tokens stopped it, else ``stop``."""
        full = self._exhausted and self.new_tokens == self.request.max_new_tokens
        return "length" if full else "stop"

    @property
    def computes_prompt(self) -> bool:
        """Whether the logits of the whole prompt are needed; a cache of another text lacks them."""
        return self.request.echo and self.request.top_logprobs is not None

    def begin(self, cache: KVCache | None) -> Iterator[str]:
        """Start generating: each item is the text of one token, possibly empty. The first item also computes the prompt."""
        r = self.request
        self.cache = cache
        window = None if cache is not None else window_for(self.model.config, len(self.ids), r.max_new_tokens)
        sampling = with_stops(r.sampling, self.model, self.tokenizer, r.stop)
        steps = begin(self.model, [np.asarray(self.ids)], r.max_new_tokens, sampling, window=window, kv_cache=cache)
        self.deltas = self._generate(steps)
        return self.deltas

    def _generate(self, steps: Iterator[Step]) -> Iterator[str]:
        hidden = special_ids(self.tokenizer) if self.request.skip_special_tokens else frozenset()
        decoder = TextDecoder(self.tokenizer)
        if self.request.echo:
            yield self._echo(decoder, hidden)
        else:
            decoder.hidden = hidden
            for i in self.context:
                decoder.push(i)
            decoder.forget()
        decoder.hidden = hidden
        yield from until_one_by_one(self._new(steps, decoder), self.request.stop)

    def _echo(self, decoder: TextDecoder, hidden: Collection[int]) -> str:
        """The prompt's text. It leaves out what the tokenizer put in front, but keeps special tokens that the prompt spells."""
        r, opening = self.request, len(self.ids) - len(self.context)
        if isinstance(r.prompt, str):
            hidden = frozenset()
        tokens = (Token(i, None, []) for i in self.ids)
        if r.top_logprobs is not None:
            tokens = _prompt_tokens(self.model, self.ids, self.cache, r.top_logprobs)
        text = ""
        for place, token in enumerate(tokens):
            decoder.hidden = hidden if place >= opening else {token.id}
            text += decoder.push(token.id)
            if r.top_logprobs is not None:
                self._tokens.append(token._replace(offset=decoder.offset))
        return text

    def _new(self, steps: Iterator[Step], decoder: TextDecoder) -> Iterator[str]:
        for step in steps:
            i = int(step.ids[0])
            if self.job.cancelled:
                return
            self.new_ids.append(i)
            self.seconds = time.perf_counter() - self._submitted
            self.first_token = self.first_token or self.seconds
            text = decoder.push(i)
            if self.request.top_logprobs is not None:
                token = _token(i, to_numpy(step.logits[0]), self.request.top_logprobs)
                self._tokens.append(token._replace(offset=decoder.offset))
            yield text
        self._exhausted = True
        yield decoder.end()

    def push(self, delta: str) -> None:
        """Send the next characters to the client."""
        c = self.model.config
        assert c.n_kv_heads is not None and c.head_dim is not None  # a ModelConfig fills both in
        self.cache_bytes = (
            2 * c.n_layers * c.n_kv_heads * c.head_dim * self.model.compute_dtype.itemsize * (len(self.ids) + self.new_tokens)
        )
        self.job.push(Chunk(self.index, delta, self._take()))

    def end(self, reason: str, error: Exception | None = None) -> None:
        """Send the last chunk."""
        self.job.push(Chunk(self.index, "", self._take(), reason), error)

    def _take(self) -> list[Token]:
        tokens, self._tokens = self._tokens, []
        return tokens


def _prompt_tokens(model: Transformer, ids: list[int], cache: KVCache | None, top_logprobs: int) -> Iterator[Token]:
    """The prompt's tokens with their log-probabilities. Afterwards the cache holds all of them but the last."""
    cache = KVCache(model, capacity=len(ids)) if cache is None else cache
    yield Token(ids[0], None, [])
    for first in range(0, len(ids) - 1, ECHO_TOKENS):
        seen = ids[first : min(first + ECHO_TOKENS, len(ids) - 1)]
        with quiet():
            logits = model.forward(np.array([seen]), kv_cache=cache)[0]    # (T, V)
        check_logits(model, logits)
        for place, row in enumerate(to_numpy(logits), start=first + 1):
            yield _token(ids[place], row, top_logprobs)


def _token(i: int, logits: np.ndarray, top_logprobs: int) -> Token:
    """Token i with its log-probability and the likeliest alternatives, from logits (V,)."""
    logprobs = log_softmax(logits)
    n = min(top_logprobs, len(logprobs))
    best = np.argpartition(logprobs, len(logprobs) - n)[len(logprobs) - n :] if n else np.empty(0, int)
    best = best[np.argsort(-logprobs[best], kind="stable")]
    return Token(i, float(logprobs[i]), [TokenLogprob(int(j), float(logprobs[j])) for j in best])
