"""A text to write, from what is asked for to the pieces that it comes in: all that the engine does for one text.

The listener is a coroutine of the server's loop, the writer the engine's thread; between them are the pieces of :class:`Texts`.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import quiet, to_numpy
from numllama.generation import KVCache, SamplingConfig
from numllama.generation.sampling import log_softmax
from numllama.generation.steps import Step, begin, check_logits
from numllama.generation.text import TextDecoder, special_ids, until_one_by_one, window_for, with_stops
from numllama.model import Transformer

ECHO_TOKENS = 128  # of a prompt whose logits are in memory at a time


@dataclass(frozen=True)
class Request:
    """A text to write.

    Attributes
    ----------
    prompt : str or sequence of int
    max_new_tokens : int
    sampling : SamplingConfig
    stop : tuple of str
    runners_up : int, optional
        Asks for the probabilities of each token and of so many others.
    echo : bool
        Begin with the prompt, and with the probabilities of its tokens if they are asked for.
    special : bool
        Special tokens that the prompt spells are those tokens, not ordinary text.
    skip_special_tokens : bool
        Leave special tokens out of the new text.
    """

    prompt: str | Sequence[int]
    max_new_tokens: int
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    stop: tuple[str, ...] = ()
    runners_up: int | None = None
    echo: bool = False
    special: bool = True
    skip_special_tokens: bool = True


class Token(NamedTuple):
    """A token: its log-probability, the model's own, and the likeliest tokens in its place with theirs.

    The first token of all has none. `offset` is the place in the text where the token begins.
    """

    id: int
    logprob: float | None
    runners_up: list[tuple[int, float]]
    offset: int = 0


class Piece(NamedTuple):
    """More of text `index`, and the tokens that it was made of, if they were asked for. The last one says why it ended."""

    index: int
    text: str
    tokens: list[Token]
    finish: str | None = None


class Texts:
    """Texts that are being written, for one listener: iterate over their pieces, and they come as they are written.

    Attributes
    ----------
    cancelled : bool
        Nobody listens any more.
    parts : list
        Of each text what it took: see :class:`Text`.
    """

    def __init__(self, engine: Any, loop: asyncio.AbstractEventLoop) -> None:
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


class Text:
    """One of them.

    Attributes
    ----------
    prompt_tokens, new_tokens : int
    cache_bytes : int
        Keys and values of its tokens.
    first_token, seconds : float
        From the request to the first token, and to the last.
    """

    def __init__(
        self, texts: Texts, index: int, model: Transformer, tokenizer: Any, own: bool, request: Request, context: list, ids: list
    ) -> None:
        self.texts, self.index, self.model, self.tokenizer, self.own = texts, index, model, tokenizer, own
        self.request, self.context, self.ids = request, context, ids
        self.prompt_tokens, self.new_ids = len(ids), []
        self.pieces: Iterator[str] | None = None
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

    @property
    def computes_prompt(self) -> bool:
        """Whether the logits of the whole prompt are asked for: then none of it can be taken from another text."""
        return self.request.echo and self.request.runners_up is not None

    def begin(self, cache: KVCache | None) -> None:
        """Make ready; the first piece computes the prompt. Each piece is of one token, and may be empty."""
        r = self.request
        self.cache = cache
        window = None if cache is not None else window_for(self.model.config, len(self.ids), r.max_new_tokens)
        sampling = with_stops(r.sampling, self.model, self.tokenizer, r.stop)
        steps = begin(self.model, [np.asarray(self.ids)], r.max_new_tokens, sampling, window=window, kv_cache=cache)
        self.pieces = self._pieces(steps)

    def _pieces(self, steps: Iterator[Step]) -> Iterator[str]:
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

    def _echo(self, decoder: TextDecoder, hidden: frozenset[int]) -> str:
        """The prompt. What opens it is not part of it; special tokens that it spells are, for they are its text."""
        r, opening = self.request, len(self.ids) - len(self.context)
        if isinstance(r.prompt, str):
            hidden = frozenset()
        plain = (Token(i, None, []) for i in self.ids)
        tokens = _prompt_tokens(self.model, self.ids, self.cache, r.runners_up) if self.computes_prompt else plain
        text = ""
        for place, token in enumerate(tokens):
            decoder.hidden = hidden if place >= opening else {token.id}
            text += decoder.push(token.id)
            if r.runners_up is not None:
                self._tokens.append(token._replace(offset=decoder.offset))
        return text

    def _new(self, steps: Iterator[Step], decoder: TextDecoder) -> Iterator[str]:
        for step in steps:
            i = int(step.ids[0])
            if self.texts.cancelled:
                return
            self.new_ids.append(i)
            self.seconds = time.perf_counter() - self._submitted
            self.first_token = self.first_token or self.seconds
            text = decoder.push(i)
            if self.request.runners_up is not None:
                token = _token(i, to_numpy(step.logits[0]), self.request.runners_up)
                self._tokens.append(token._replace(offset=decoder.offset))
            yield text
        self._exhausted = True
        yield decoder.end()

    def push(self, piece: str) -> None:
        c = self.model.config
        self.cache_bytes = (
            2 * c.n_layers * c.n_kv_heads * c.head_dim * self.model.compute_dtype.itemsize * (len(self.ids) + self.new_tokens)
        )
        self.texts.push(Piece(self.index, piece, self._take()))

    def end(self, reason: str, error: Exception | None = None) -> None:
        self.texts.push(Piece(self.index, "", self._take(), reason), error)

    def _take(self) -> list[Token]:
        tokens, self._tokens = self._tokens, []
        return tokens


def _prompt_tokens(model: Transformer, ids: list[int], cache: KVCache | None, runners_up: int) -> Iterator[Token]:
    """The tokens of a prompt, each with its probability after those before it. The cache then holds all but the last of them."""
    cache = KVCache(model, capacity=len(ids)) if cache is None else cache
    yield Token(ids[0], None, [])
    for first in range(0, len(ids) - 1, ECHO_TOKENS):
        seen = ids[first : min(first + ECHO_TOKENS, len(ids) - 1)]
        with quiet():
            logits = model.forward(np.array([seen]), kv_cache=cache)[0]    # (T, V)
        check_logits(model, logits)
        for place, row in enumerate(to_numpy(logits), start=first + 1):
            yield _token(ids[place], row, runners_up)


def _token(i: int, logits: np.ndarray, runners_up: int) -> Token:
    chances = log_softmax(logits)
    n = min(runners_up, len(chances))
    best = np.argpartition(chances, len(chances) - n)[len(chances) - n :] if n else np.empty(0, int)
    best = best[np.argsort(-chances[best], kind="stable")]
    return Token(i, float(chances[i]), [(int(j), float(chances[j])) for j in best])
