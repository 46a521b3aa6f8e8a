"""One model, many texts at once: a single thread computes a token of each in turn, and hands it to whoever waits for it.

So no two threads compete for the cores, everybody's text grows at the same pace, and a text that nobody waits for any more ends
with its next token. Of what was written, keys and values are kept for a while: the next message of a conversation finds them.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any

import numpy as np

from numllama.backend import array_module
from numllama.errors import NumllamaError, out_of_memory
from numllama.generation import KVCache
from numllama.generation.steps import begin
from numllama.generation.text import default_settings, encode_prompt, fewest_tokens, window_for
from numllama.model import Transformer
from numllama.serve.texts import Piece, Request, Text, Texts, Token

__all__ = ["Busy", "Engine", "EngineStopped", "Limits", "Piece", "Request", "Texts", "Token"]

KEPT_CACHES = 2  # of finished texts
WORTH_KEEPING = 16  # tokens in common with a new prompt; fewer are computed as fast as they are found
STOPPED = "the server cannot write any more: its engine has stopped by an error, and it has to be started again"


class Busy(NumllamaError):
    """The server has as many texts to write as it takes."""


class EngineStopped(NumllamaError):
    """The engine's thread has ended by an error: nothing will be written any more."""


@dataclass(frozen=True)
class Limits:
    """What one server takes on.

    Attributes
    ----------
    prompt_tokens : int
        Of one prompt.
    new_tokens : int
        Of one text.
    running : int
        Texts that are written at the same time.
    waiting : int
        Texts that wait for their turn; more are refused.
    """

    prompt_tokens: int = 4096
    new_tokens: int = 1024
    running: int = 8
    waiting: int = 32

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is not int or value < (0 if name == "waiting" else 1):
                raise ValueError(f"{name} is {value!r}, but must be a whole number of at least {0 if name == 'waiting' else 1}")


class Engine:
    """Writes texts, all in one thread.

    Parameters
    ----------
    model : Transformer
    tokenizer : Tokenizer or CharTokenizer
    limits : Limits
        A prompt cannot be longer than the model's max_seq_len either.

    Attributes
    ----------
    defaults : dict
        The checkpoint's own settings for sampling and its end tokens: see :func:`numllama.generation.text.default_settings`.
    failure : BaseException or None
        What the thread ended with, if it ended before :meth:`close`.
    """

    def __init__(self, model: Transformer, tokenizer: Any, limits: Limits = Limits()) -> None:
        self.model, self.tokenizer, self.limits = model, tokenizer, limits
        c = model.config
        # Beyond max_seq_len each token sees a window; a table of learned positions has an end.
        self.window = None if c.positions == "learned" else c.max_seq_len
        self.prompt_tokens = min(limits.prompt_tokens, c.max_seq_len)
        self.new_tokens = limits.new_tokens if self.window else min(limits.new_tokens, c.max_seq_len)
        self.defaults = default_settings(model, tokenizer)
        self.failure: BaseException | None = None
        self._waiting: deque[Text] = deque()
        self._running: list[Text] = []
        self._calls: deque[tuple[Future, Callable[[], Any]]] = deque()
        self._caches: list[KVCache] = []
        self._changed, self._closing = Condition(), False
        self._thread = Thread(target=self._work, name="numllama engine", daemon=True)
        self._thread.start()

    # -------------------------------------------------------------------------------------------- for its users

    async def submit(self, requests: Sequence[Request], model: Transformer | None = None, tokenizer: Any = None) -> "Texts":
        """Have texts written, by another model than the engine's own if one is named.

        Raises
        ------
        ValueError
            For a request that cannot be fulfilled.
        Busy
            If there is no place for it now.
        EngineStopped
            If the engine's thread has ended.
        """
        texts = Texts(self, asyncio.get_running_loop())
        own = model is None
        model, tokenizer = (self.model, self.tokenizer) if own else (model, tokenizer)
        encoded: dict[tuple, tuple[list[int], list[int]]] = {}  # each prompt once, however many texts it is to have
        for i, request in enumerate(requests):
            name = request.special, request.prompt if isinstance(request.prompt, str) else id(request.prompt)
            if name not in encoded:  # a long text takes its time
                encoded[name] = await asyncio.to_thread(self._encoded, request, model, tokenizer)
            self._check(request, encoded[name][1], model)
            texts.parts.append(Text(texts, i, model, tokenizer, own, request, *encoded[name]))
        with self._changed:
            if self.failure is not None:
                raise EngineStopped(STOPPED)
            self._waiting = deque(text for text in self._waiting if not text.texts.cancelled)
            free = self.limits.running - len(self._running) + self.limits.waiting - len(self._waiting)
            if self._closing or len(requests) > free:
                reason = "the server is shutting down" if self._closing else "the server is busy: try again in a moment"
                raise Busy(reason)
            self._waiting.extend(texts.parts)
            self._changed.notify_all()
        return texts

    def call(self, work: Callable[[], Any]) -> Future:
        """Have something else computed between two tokens."""
        future: Future = Future()
        with self._changed:
            if self.failure is not None:
                raise EngineStopped(STOPPED)
            if self._closing or len(self._calls) >= self.limits.waiting:
                raise Busy("the server is busy: try again in a moment")
            self._calls.append((future, work))
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """End all texts, and the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def texts(self) -> int:
        """How many are being written or wait."""
        return len(self._running) + len(self._waiting)

    def check_length(self, *texts: str, tokenizer: Any = None) -> None:
        """Raise ValueError for texts that are longer than any prompt may be, before anybody reads through them."""
        tokenizer = tokenizer or self.tokenizer
        fewest = fewest_tokens(tokenizer, texts, self.prompt_tokens)
        if fewest > self.prompt_tokens:
            words = f"{fewest:,}" if hasattr(tokenizer, "characters") else f"at least {fewest:,}"
            raise ValueError(_too_long(words, self.prompt_tokens))

    def _encoded(self, request: Request, model: Transformer, tokenizer: Any) -> tuple[list[int], list[int]]:
        """The ids that a prompt spells, and all that the model sees."""
        longest = min(self.prompt_tokens, model.config.max_seq_len)
        if isinstance(request.prompt, str):
            self.check_length(request.prompt, tokenizer=tokenizer)
        context, ids = encode_prompt(model, tokenizer, request.prompt, request.special)
        if len(ids) > longest:
            raise ValueError(_too_long(f"{len(ids):,}", longest))
        return context, ids

    def _check(self, request: Request, ids: list[int], model: Transformer) -> None:
        """Raise ValueError for what the model cannot do."""
        window = window_for(model.config, len(ids), request.max_new_tokens)
        begin(model, [np.asarray(ids)], request.max_new_tokens, request.sampling, window=window)

    # -------------------------------------------------------------------------------------------- in its own thread

    def _work(self) -> None:
        """All that the thread does. Whatever else than a text's own error ends it is told to everybody who waits."""
        error: BaseException = NumllamaError("the server is shutting down")
        try:
            array_module(self.model.device)  # which GPU is the current one is a matter of each thread
            while self._round():
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
        for future, _ in calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _round(self) -> bool:
        """What is to be done now: calls, and a token of each text; False once it is closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._calls or self._waiting or self._running)
            if self._closing:
                return False
            calls, self._calls = self._calls, deque()
            while self._waiting and len(self._running) < self.limits.running:
                self._running.append(self._waiting.popleft())
        for future, work in calls:
            _answer(future, work)
        for text in list(self._running):
            self._advance(text)
        return True

    def _advance(self, text: Text) -> None:
        """One more piece of a text."""
        try:
            if text.texts.cancelled:
                raise StopIteration
            if text.pieces is None:
                text.begin(self._cache(text) if text.own else None)
            text.push(next(text.pieces))
            return
        except StopIteration:
            ended = text.reason, None
            if text.own and text.cache is not None:
                self._caches = [*self._caches, text.cache][-KEPT_CACHES:]
        except MemoryError as error:
            ended = "stop", NumllamaError(out_of_memory(error))
            self._caches = []
        except Exception as error:  # of this text alone: the others go on
            ended = "stop", error
        text.pieces = text.cache = None  # buffers go with them
        with self._changed:
            self._running.remove(text)
        text.end(*ended)  # last: whoever hears of it may ask for the next text, and finds its place and its cache

    def _cache(self, text: Text) -> KVCache | None:
        """The cache that has most in common with a prompt; a new one if it is not worth it."""
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


def _answer(future: Future, work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


def _too_long(tokens: str, longest: int) -> str:
    return f"the prompt has {tokens} tokens, but {longest:,} are the most that are taken here"
