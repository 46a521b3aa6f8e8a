"""One model, many texts at once: a single thread computes a token of each in turn, and hands it to whoever waits for it.

So no two threads compete for the cores, everybody's text grows at the same pace, and a text that nobody waits for any more ends
with its next token. Of what was written, keys and values are kept for a while: the next message of a conversation finds them.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import out_of_memory, to_numpy
from numllama.errors import NumllamaError
from numllama.generation import KVCache, SamplingConfig
from numllama.generation.generate import Step, begin
from numllama.generation.sampling import log_softmax
from numllama.generation.text import TextStream, opening
from numllama.model import Transformer

KEPT_CACHES = 2  # of finished texts
WORTH_KEEPING = 16  # tokens in common with a new prompt; fewer are computed as fast as they are found


class Busy(NumllamaError):
    """The server has as many texts to write as it takes."""


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
            if not isinstance(value, int) or value < (0 if name == "waiting" else 1):
                raise ValueError(f"{name} is {value!r}, but must be a whole number of at least {0 if name == 'waiting' else 1}")


@dataclass(frozen=True)
class Request:
    """A text to write; `runners_up` asks for the probabilities of each token and of so many others."""

    prompt: str | Sequence[int]
    max_new_tokens: int
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    stop: tuple[str, ...] = ()
    runners_up: int | None = None


class Token(NamedTuple):
    """A new token: its log-probability, the model's own, and the likeliest tokens in its place with theirs."""

    id: int
    logprob: float
    runners_up: list[tuple[int, float]]


class Piece(NamedTuple):
    """More of text `index`, and the tokens that it was made of, if they were asked for. The last one says why it ended."""

    index: int
    text: str
    tokens: list[Token]
    finish: str | None = None


class Engine:
    """Writes texts, all in one thread.

    Parameters
    ----------
    model : Transformer
    tokenizer : Tokenizer or CharTokenizer
    limits : Limits
        A prompt cannot be longer than the model's max_seq_len either.
    """

    def __init__(self, model: Transformer, tokenizer: Any, limits: Limits = Limits()) -> None:
        self.model, self.tokenizer, self.limits = model, tokenizer, limits
        c = model.config
        # Beyond max_seq_len each token sees a window; a table of learned positions has an end.
        self.window = None if c.positions == "learned" else c.max_seq_len
        self.prompt_tokens = min(limits.prompt_tokens, c.max_seq_len)
        self.new_tokens = limits.new_tokens if self.window else min(limits.new_tokens, c.max_seq_len)
        self._waiting: deque[_Text] = deque()
        self._running: list[_Text] = []
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
        """
        texts = Texts(self, asyncio.get_running_loop())
        own = model is None
        model, tokenizer = (self.model, self.tokenizer) if own else (model, tokenizer)
        for i, request in enumerate(requests):
            checked = await asyncio.to_thread(self._checked, request, model, tokenizer)  # a megabyte of text takes its time
            texts.parts.append(_Text(texts, i, model, tokenizer, own, checked))
        with self._changed:
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

    def _checked(self, request: Request, model: Transformer, tokenizer: Any) -> tuple[Request, list[int], list[int]]:
        """The request, what of its prompt is text, and all of its ids."""
        words = request.prompt
        context = list(tokenizer.encode(words) if isinstance(words, str) else words)
        ids = [*opening(model, tokenizer), *context] if isinstance(words, str) else context
        longest = min(self.prompt_tokens, model.config.max_seq_len)
        if not ids:
            raise ValueError("the prompt is empty, but at least one token is needed to begin with")
        if len(ids) > longest:
            raise ValueError(f"the prompt has {len(ids):,} tokens, but {longest:,} are the most that are taken here")
        begin(
            model, [np.asarray(ids)], request.max_new_tokens, request.sampling, 1, False, self._window(model, ids, request), None
        )
        return request, context, ids

    def _window(self, model: Transformer, ids: Sequence[int], request: Request) -> int | None:
        """A text that fits needs none."""
        c = model.config
        fits = len(ids) + request.max_new_tokens - 1 <= c.max_seq_len
        return None if fits or c.positions == "learned" else c.max_seq_len

    # -------------------------------------------------------------------------------------------- in its own thread

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._calls or self._waiting or self._running)
                if self._closing:
                    break
                calls, self._calls = self._calls, deque()
                while self._waiting and len(self._running) < self.limits.running:
                    self._running.append(self._waiting.popleft())
            for future, work in calls:
                _answer(future, work)
            for text in list(self._running):
                self._advance(text)
        for text in (*self._running, *self._waiting):
            text.end("stop", NumllamaError("the server is shutting down"))
        for future, _ in self._calls:
            future.set_exception(NumllamaError("the server is shutting down"))

    def _advance(self, text: "_Text") -> None:
        """One more piece of a text."""
        try:
            if text.texts.cancelled:
                raise StopIteration
            if text.stream is None:
                text.begin(self._cache(text) if text.own else None)
            text.push(next(text.stream))
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
        text.stream = text.cache = None  # buffers go with them
        with self._changed:
            self._running.remove(text)
        text.end(*ended)  # last: whoever hears of it may ask for the next text, and finds its place and its cache

    def _cache(self, text: "_Text") -> KVCache | None:
        """The cache that has most in common with a prompt; a new one if it is not worth it."""
        ids = np.asarray(text.ids)

        def common(cache: KVCache) -> int:
            n = min(cache.length, len(ids) - 1)
            return int(np.append(cache.tokens[0, :n] == ids[:n], False).argmin())

        window = self._window(self.model, text.ids, text.request)
        fitting = [cache for cache in self._caches if cache.window == window]
        best = max(fitting, key=common, default=None)
        if best is None or common(best) < WORTH_KEEPING:
            longest = len(ids) + text.request.max_new_tokens
            return KVCache(self.model, 1, longest if window is None else min(longest, 2 * window), window)
        self._caches = [cache for cache in self._caches if cache is not best]
        return best


class Texts:
    """Texts that are being written, for one listener: iterate over their pieces, and they come as they are written.

    Attributes
    ----------
    cancelled : bool
        Nobody listens any more.
    parts : list
        Of each text what it took: see :class:`_Text`.
    """

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self.engine, self.cancelled, self.parts = engine, False, []
        self._loop, self._pieces, self._there = loop, deque(), asyncio.Event()
        self._awaited = False  # whoever is awake needs no waking

    def cancel(self) -> None:
        """End them with their next token."""
        self.cancelled = True

    async def pieces(self, pause: float = 0.0) -> AsyncIterator[Piece]:
        """Pieces of all texts. What was written in a pause between two of them comes as one.

        Raises
        ------
        Exception
            That one of the texts ended with.
        """
        left = len(self.parts)
        try:
            while left:
                self._there.clear()
                self._awaited = True
                if not self._pieces:
                    await self._there.wait()
                self._awaited = False
                for piece, error in self._joined():
                    if error is not None:
                        raise error
                    left -= piece.finish is not None
                    yield piece
                if left and pause:
                    await asyncio.sleep(pause)
        finally:
            self.cancel()

    def push(self, piece: Piece, error: Exception | None = None) -> None:
        """From the engine's thread: something for the listener."""
        self._pieces.append((piece, error))
        if self._awaited:
            self._awaited = False
            try:
                self._loop.call_soon_threadsafe(self._there.set)
            except RuntimeError:  # the loop has ended, and the listener with it
                self.cancel()

    def _joined(self) -> Iterator[tuple[Piece, Exception | None]]:
        """What is there; all pieces of one text as one."""
        joined: dict[int, Piece] = {}
        failed: Exception | None = None
        while self._pieces and failed is None:
            piece, failed = self._pieces.popleft()
            old = joined.get(piece.index, Piece(piece.index, "", []))
            joined[piece.index] = Piece(piece.index, old.text + piece.text, old.tokens + piece.tokens, piece.finish)
        yield from ((piece, None) for piece in joined.values() if failed is None or piece.finish is None)
        if failed is not None:
            yield Piece(0, "", []), failed


class _Text:
    """One of them.

    Attributes
    ----------
    prompt_tokens, new_tokens : int
    cache_bytes : int
        Keys and values of its tokens.
    first_token, seconds : float
        From the request to the first token, and to the last.
    """

    def __init__(self, texts: Texts, index: int, model: Transformer, tokenizer: Any, own: bool, checked: tuple) -> None:
        self.texts, self.index, self.model, self.tokenizer, self.own = texts, index, model, tokenizer, own
        self.request, self.context, self.ids = checked
        self.prompt_tokens, self.new_ids = len(self.ids), []
        self.stream: TextStream | None = None
        self.cache: KVCache | None = None
        self.cache_bytes, self._exhausted, self._tokens = 0, False, []
        self._submitted, self.first_token, self.seconds = time.perf_counter(), 0.0, 0.0

    @property
    def new_tokens(self) -> int:
        return len(self.new_ids)

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first, as the listener sees them."""
        seconds = self.seconds - self.first_token
        return (self.new_tokens - 1) / seconds if seconds > 0 else 0.0

    @property
    def reason(self) -> str:
        """Why it ended: ``length`` if it could have gone on."""
        full = self._exhausted and self.new_tokens == self.request.max_new_tokens
        return "length" if full else "stop"

    def begin(self, cache: KVCache | None) -> None:
        """Make ready; the first piece computes the prompt."""
        r, engine = self.request, self.texts.engine
        self.cache = cache
        window = None if cache is not None else engine._window(self.model, self.ids, r)
        steps = begin(self.model, [np.asarray(self.ids)], r.max_new_tokens, r.sampling, 1, False, window, cache)
        self.stream = TextStream(self.tokenizer, self.context, self._noted(steps), r.stop, self.prompt_tokens)

    def _noted(self, steps: Iterator[Step]) -> Iterator[int]:
        for step in steps:
            i = int(step.ids[0])
            if self.texts.cancelled:
                return
            if self.request.runners_up is not None:
                self._tokens.append(_token(i, to_numpy(step.logits[0]), self.request.runners_up))
            self.new_ids.append(i)
            self.seconds = time.perf_counter() - self._submitted
            self.first_token = self.first_token or self.seconds
            yield i
        self._exhausted = True

    def push(self, piece: str) -> None:
        c = self.model.config
        self.cache_bytes = (
            2 * c.n_layers * c.n_kv_heads * c.head_dim * self.model.dtype.itemsize * (len(self.ids) + self.new_tokens)
        )
        self.texts.push(Piece(self.index, piece, self._take()))

    def end(self, reason: str, error: Exception | None = None) -> None:
        self.texts.push(Piece(self.index, "", self._take(), reason), error)

    def _take(self) -> list[Token]:
        tokens, self._tokens = self._tokens, []
        return tokens


def _token(i: int, logits: np.ndarray, runners_up: int) -> Token:
    chances = log_softmax(logits)
    n = min(runners_up, len(chances))
    best = np.argpartition(chances, len(chances) - n)[len(chances) - n :] if n else np.empty(0, int)
    best = best[np.argsort(-chances[best], kind="stable")]
    return Token(i, float(chances[i]), [(int(j), float(chances[j])) for j in best])


def _answer(future: Future, work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
