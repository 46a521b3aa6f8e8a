"""One model, many texts: a single thread generates one token of each in turn.

So no two threads compete for the cores, all texts grow at the same pace, and a cancelled one ends with its next token. The keys
and values of the latest texts are kept, so that the next message of a conversation computes only its own tokens.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import array_module
from numllama.errors import NumllamaError, out_of_memory
from numllama.generation.kv_cache import KVCache
from numllama.generation.steps import begin
from numllama.generation.text import default_settings, encode_prompt, fewest_tokens, window_for
from numllama.model.transformer import Transformer
from numllama.serve.job import Chunk, Job, Prompt, Request, Text, Token

__all__ = ["Busy", "Chunk", "Engine", "EngineStopped", "Job", "Limits", "Request", "Token"]

KEPT_CACHES = 2  # of finished texts
WORTH_KEEPING = 16  # tokens in common with a new prompt: recomputing fewer takes no longer than looking them up
STOPPED = "the engine has stopped after an error; restart the server"
BUSY = "the server is busy: try again in a moment"


class Busy(NumllamaError):
    """The server has no room for another text."""


class EngineStopped(NumllamaError):
    """The engine's thread has ended with an error and generates nothing more."""


@dataclass(frozen=True)
class Limits:
    """Limits of one server.

    Attributes
    ----------
    prompt_tokens : int
        Longest prompt.
    new_tokens : int
        Most new tokens of one text.
    max_concurrent : int
        Texts generated at the same time.
    waiting : int
        Texts that may wait for their turn; further ones are refused.
    """

    prompt_tokens: int = 4096
    new_tokens: int = 1024
    max_concurrent: int = 8
    waiting: int = 32

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name == "waiting" else 1
            if type(value) is not int or value < least:
                raise ValueError(f"{name} is {value!r}, but must be a whole number of at least {least}")


class Call(NamedTuple):
    """Other work for the engine's thread, and the future of its result."""

    future: Future
    work: Callable[[], Any]


class Engine:
    """Generates texts, all in one thread.

    Parameters
    ----------
    model : Transformer
    tokenizer : Tokenizer or CharTokenizer
    limits : Limits
        The model's max_seq_len bounds prompts too.

    Attributes
    ----------
    defaults : dict
        The checkpoint's sampling settings and end tokens: see :func:`numllama.generation.text.default_settings`.
    failure : BaseException or None
        The error that ended the thread before :meth:`close`.
    """

    def __init__(self, model: Transformer, tokenizer: Any, limits: Limits = Limits()) -> None:
        self.model, self.tokenizer, self.limits = model, tokenizer, limits
        c = model.config
        # Beyond max_seq_len each token attends to a window; learned positions end with their table.
        self.window = None if c.positions == "learned" else c.max_seq_len
        self.prompt_tokens = min(limits.prompt_tokens, c.max_seq_len)
        self.new_tokens = limits.new_tokens if self.window else min(limits.new_tokens, c.max_seq_len)
        self.defaults = default_settings(model, tokenizer)
        self.failure: BaseException | None = None
        self._waiting: deque[Text] = deque()
        self._running: list[Text] = []
        self._calls: deque[Call] = deque()
        self._caches: list[KVCache] = []
        self._changed, self._closing = Condition(), False
        self._thread = Thread(target=self._work, name="numllama engine", daemon=True)
        self._thread.start()

    # -------------------------------------------------------------------------------------------- for clients

    async def submit(self, requests: Sequence[Request], model: Transformer | None = None, tokenizer: Any = None) -> Job:
        """Queue texts for generation, by the engine's own model or by another.

        Raises
        ------
        ValueError
            For an invalid request.
        Busy
            If the queue is full.
        EngineStopped
            If the engine's thread has ended.
        """
        job = Job(asyncio.get_running_loop())
        own = model is None
        if model is None:
            model, tokenizer = self.model, self.tokenizer
        encoded: dict[tuple, Prompt] = {}  # a prompt with several texts is encoded once
        for i, request in enumerate(requests):
            name = request.special, request.prompt if isinstance(request.prompt, str) else id(request.prompt)
            if name not in encoded:  # in a thread, because a long prompt takes a while
                encoded[name] = await asyncio.to_thread(self._encode, request, model, tokenizer)
            self._check(request, encoded[name].ids, model)
            job.texts.append(Text(job, i, model, tokenizer, own, request, encoded[name]))
        with self._changed:
            if self.failure is not None:
                raise EngineStopped(STOPPED)
            self._waiting = deque(text for text in self._waiting if not text.job.cancelled)
            free = self.limits.max_concurrent - len(self._running) + self.limits.waiting - len(self._waiting)
            if self._closing or len(requests) > free:
                raise Busy("the server is shutting down" if self._closing else BUSY)
            self._waiting.extend(job.texts)
            self._changed.notify_all()
        return job

    def call(self, work: Callable[[], Any]) -> Future:
        """Run other work in the engine's thread, between two tokens."""
        future: Future = Future()
        with self._changed:
            if self.failure is not None:
                raise EngineStopped(STOPPED)
            if self._closing or len(self._calls) >= self.limits.waiting:
                raise Busy(BUSY)
            self._calls.append(Call(future, work))
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """End all texts and the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def n_texts(self) -> int:
        """Number of texts that are running or waiting."""
        return len(self._running) + len(self._waiting)

    def check_length(self, *texts: str, tokenizer: Any = None) -> None:
        """Raise ValueError for texts that exceed every prompt limit, without encoding them."""
        tokenizer = tokenizer or self.tokenizer
        fewest = fewest_tokens(tokenizer, texts, self.prompt_tokens)
        if fewest > self.prompt_tokens:
            words = f"{fewest:,}" if hasattr(tokenizer, "characters") else f"at least {fewest:,}"
            raise ValueError(_too_long(words, self.prompt_tokens))

    def _encode(self, request: Request, model: Transformer, tokenizer: Any) -> Prompt:
        """Encode a prompt; ValueError if it is too long."""
        longest = min(self.prompt_tokens, model.config.max_seq_len)
        if isinstance(request.prompt, str):
            self.check_length(request.prompt, tokenizer=tokenizer)
        context, ids = encode_prompt(model, tokenizer, request.prompt, request.special)
        if len(ids) > longest:
            raise ValueError(_too_long(f"{len(ids):,}", longest))
        return Prompt(context, ids)

    def _check(self, request: Request, ids: list[int], model: Transformer) -> None:
        """Raise ValueError if the model cannot generate this."""
        window = window_for(model.config, len(ids), request.max_new_tokens)
        begin(model, [np.asarray(ids)], request.max_new_tokens, request.sampling, window=window)

    # -------------------------------------------------------------------------------------------- in the engine's thread

    def _work(self) -> None:
        """The thread's main loop. An error that ends it reaches every waiting client; a text's own error does not end it."""
        error: BaseException = NumllamaError("the server is shutting down")
        try:
            array_module(self.model.device)  # the current GPU is set per thread
            while self._step():
                pass
        except BaseException as failure:
            error = EngineStopped(STOPPED)
            error.__cause__ = failure
            with self._changed:
                self.failure = failure
        with self._changed:
            texts, calls = [*self._running, *self._waiting], list(self._calls)
            self._running, self._waiting, self._calls = [], deque(), deque()
        for text in texts:
            text.end("stop", error)
        for call in calls:
            if call.future.set_running_or_notify_cancel():
                call.future.set_exception(error)

    def _step(self) -> bool:
        """Run the waiting calls and generate one token of each text; False once the engine is closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._calls or self._waiting or self._running)
            if self._closing:
                return False
            calls, self._calls = self._calls, deque()
            while self._waiting and len(self._running) < self.limits.max_concurrent:
                self._running.append(self._waiting.popleft())
        for call in calls:
            _run(call)
        for text in list(self._running):
            self._advance(text)
        return True

    def _advance(self, text: Text) -> None:
        """Generate one more token of a text."""
        try:
            if text.job.cancelled:
                raise StopIteration
            text.push(next(text.deltas or text.begin(self._cache(text) if text.own else None)))
            return
        except StopIteration:
            ended = text.reason, None
            if text.own and text.cache is not None:
                self._caches = [*self._caches, text.cache][-KEPT_CACHES:]
        except MemoryError as error:
            ended = "stop", NumllamaError(out_of_memory(error))
            self._caches = []
        except Exception as error:  # ends this text only
            ended = "stop", error
        text.deltas = text.cache = None  # frees their buffers
        with self._changed:
            self._running.remove(text)
        text.end(*ended)  # last, so that a client that reacts finds a free slot and the cache

    def _cache(self, text: Text) -> KVCache | None:
        """The kept cache with the longest common prefix, or a new one if that prefix is short."""
        ids = np.asarray(text.ids)

        def common(cache: KVCache) -> int:
            n = min(cache.length, len(ids) - 1)
            return int(np.append(cache.tokens[0, :n] == ids[:n], False).argmin())

        window = window_for(self.model.config, len(ids), text.request.max_new_tokens)
        fitting = [cache for cache in self._caches if cache.window == window]
        best = max(fitting, key=common, default=None)
        if text.computes_prompt or best is None or common(best) < WORTH_KEEPING:
            longest = len(ids) + text.request.max_new_tokens
            return KVCache(self.model, capacity=longest if window is None else min(longest, 2 * window), window=window)
        self._caches = [cache for cache in self._caches if cache is not best]
        return best


def _run(call: Call) -> None:
    if not call.future.set_running_or_notify_cancel():
        return
    try:
        call.future.set_result(call.work())
    except BaseException as error:
        call.future.set_exception(error)


def _too_long(tokens: str, longest: int) -> str:
    return f"the prompt has {tokens} tokens, but this server accepts at most {longest:,}"
