"""OpenAI's routes: /v1/models, /v1/completions and /v1/chat/completions, whole or as a stream of server-sent events."""

import asyncio
import json
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from numllama.errors import GenerationError, NumllamaError, shown
from numllama.serve import requests
from numllama.serve.chat_threads import in_chat_thread
from numllama.serve.engine import STOPPED, Busy, Engine, EngineStopped, Piece, Texts, Token
from numllama.serve.requests import Asked, BadRequest

BODY_BYTES = 2 * 2**20
BODY_SECONDS = 30  # for a body to arrive
PAUSE = 0.04  # between two events of a stream: what is written meanwhile comes as one, and writing goes on undisturbed


def routes(engine: Engine, model_name: str) -> list[Route]:
    """For a Starlette or FastAPI application."""
    api = Api(engine, model_name)
    return [
        Route("/v1/models", _guarded(api.models), methods=["GET"]),
        Route("/v1/models/{name:path}", _guarded(api.model), methods=["GET"]),
        Route("/v1/completions", _guarded(api.completions), methods=["POST"]),
        Route("/v1/chat/completions", _guarded(api.chat_completions), methods=["POST"]),
        Route("/health", _guarded(api.health), methods=["GET"]),
        Route("/v1/{rest:path}", _guarded(api.nothing), methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]),
    ]


class Api:
    """The routes' functions."""

    def __init__(self, engine: Engine, model_name: str) -> None:
        self.engine, self.model_name, self.started = engine, model_name, int(time.time())

    async def models(self, http: HttpRequest) -> Response:
        return answer({"object": "list", "data": [self._about()]})

    async def model(self, http: HttpRequest) -> Response:
        name = http.path_params["name"]
        if name != self.model_name:
            raise BadRequest(f"there is no model {shown(name)}, but {self.model_name!r}", "model", 404, "model_not_found")
        return answer(self._about())

    async def completions(self, http: HttpRequest) -> Response:
        return await self._write(http, requests.completion, Completion, asyncio.to_thread)

    async def chat_completions(self, http: HttpRequest) -> Response:
        return await self._write(http, requests.chat_completion, ChatCompletion, in_chat_thread)

    async def health(self, http: HttpRequest) -> Response:
        if self.engine.failure is not None:
            raise EngineStopped(STOPPED)
        return answer({"status": "ok"})

    async def nothing(self, http: HttpRequest) -> Response:
        known = "/v1/models, /v1/completions and /v1/chat/completions"
        raise BadRequest(f"there is no {http.method} {http.url.path}, but {known}", status=404)

    async def _write(
        self, http: HttpRequest, read: Callable[..., Asked], shape: type["Completion"], in_thread: Callable[..., Awaitable]
    ) -> Response:
        body = requests.parse(await body_of(http))
        asked = await in_thread(read, body, self.engine, self.model_name)  # a long conversation takes its time
        texts = await self.engine.submit(asked.requests)
        written = shape(self.engine.tokenizer, self.model_name, texts, asked)
        if asked.stream:
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return StreamingResponse(written.events(), media_type="text/event-stream", headers=headers)
        whole = asyncio.ensure_future(written.whole())
        gone = asyncio.ensure_future(_disconnect(http))
        try:
            await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
            return answer(whole.result()) if whole.done() else Response(status_code=499)
        finally:
            texts.cancel()
            gone.cancel()
            whole.cancel()

    def _about(self) -> dict[str, Any]:
        return {"id": self.model_name, "object": "model", "created": self.started, "owned_by": "numllama"}


class Completion:
    """The answer of /v1/completions, whole or in events."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, tokenizer: Any, model_name: str, texts: Texts, asked: Asked) -> None:
        self.tokenizer, self.texts, self.asked = tokenizer, texts, asked
        self.head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model_name}

    async def whole(self) -> dict[str, Any]:
        joined = [Piece(i, "", []) for i in range(len(self.texts.parts))]
        async for piece in self.texts.pieces(PAUSE):
            i, old = piece.index, joined[piece.index]
            joined[i] = Piece(i, old.text + piece.text, old.tokens + piece.tokens, piece.finish)
        choices = [self.choice(piece) for piece in joined]
        return {**self.head, "object": self.kind, "choices": choices, "usage": self.usage()}

    async def events(self) -> AsyncIterator[bytes]:
        usage = {"usage": None} if self.asked.include_usage else {}
        try:
            for delta in self.opening():
                yield self._event(choices=[delta], **usage)
            async for piece in self.texts.pieces(PAUSE):
                yield self._event(choices=[self.delta(piece)], **usage)
            if usage:
                yield self._event(choices=[], usage=self.usage())
        except Exception as error:
            yield _sse(_error_body(*_explained(error)))
        else:
            yield b"data: [DONE]\n\n"
        finally:
            self.texts.cancel()

    def _event(self, **values: Any) -> bytes:
        return _sse({**self.head, "object": self.chunk_kind, **values})

    def opening(self) -> list[dict[str, Any]]:
        return []

    def choice(self, piece: Piece) -> dict[str, Any]:
        return {"index": piece.index, "text": piece.text, "logprobs": self.logprobs(piece), "finish_reason": piece.finish}

    delta = choice

    def usage(self) -> dict[str, int]:
        parts = self.texts.parts
        prompt, new = sum(part.prompt_tokens for part in parts[:: self.asked.n]), sum(part.new_tokens for part in parts)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self.asked.logprobs is None:
            return None
        return {
            "tokens": [self.name(token.id) for token in piece.tokens],
            "token_logprobs": [_finite(token.logprob) for token in piece.tokens],
            "top_logprobs": [self._top(token) for token in piece.tokens],
            "text_offset": [token.offset for token in piece.tokens],
        }

    def _top(self, token: Token) -> dict[str, float] | None:
        """By name, the likeliest first; of tokens of the same name the likeliest."""
        top: dict[str, float] = {}
        for i, chance in token.runners_up:
            top.setdefault(self.name(i), _finite(chance))
        return None if token.logprob is None else top

    def name(self, i: int) -> str:
        return token_bytes(self.tokenizer, i).decode("utf-8", "backslashreplace")


class ChatCompletion(Completion):
    """The answer of /v1/chat/completions."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> list[dict[str, Any]]:
        return [self._delta(i, {"role": "assistant", "content": ""}) for i in range(len(self.texts.parts))]

    def choice(self, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"index": piece.index, "message": message, "logprobs": self.logprobs(piece), "finish_reason": piece.finish}

    def delta(self, piece: Piece) -> dict[str, Any]:
        content = {"content": piece.text} if piece.text else {}
        return self._delta(piece.index, content, piece.finish, self.logprobs(piece))

    def _delta(self, index: int, delta: dict[str, str], finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self.asked.logprobs is None:
            return None
        return {"content": [self._token(token) for token in piece.tokens], "refusal": None}

    def _token(self, token: Token) -> dict[str, Any]:
        top = [self._chance(i, chance) for i, chance in token.runners_up]
        return {**self._chance(token.id, token.logprob), "top_logprobs": top}

    def _chance(self, i: int, chance: float) -> dict[str, Any]:
        return {"token": self.name(i), "logprob": _finite(chance), "bytes": list(token_bytes(self.tokenizer, i))}


# ------------------------------------------------------------------------------------------------ tokens


def token_bytes(tokenizer: Any, i: int) -> bytes:
    """What a token stands for in the middle of a text."""
    if not hasattr(tokenizer, "decode_bytes"):
        return tokenizer.decode([i]).encode("utf-8", "backslashreplace")
    return tokenizer.decode_bytes([i, i])[len(tokenizer.decode_bytes([i])) :]  # the first word may lose its space


def token_text(tokenizer: Any, i: int) -> str:
    """A token for people to read: bytes that are no whole characters as their codes, an id that no token has as a number."""
    return token_bytes(tokenizer, i).decode("utf-8", "backslashreplace") or f"<{i}>"


# ------------------------------------------------------------------------------------------------ HTTP


def answer(value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON in ASCII: half of a surrogate pair, which no encoding has, is written as its code."""
    return Response(json.dumps(value), status, headers, media_type="application/json")


def _sse(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode("ascii")


def _guarded(handler: Callable) -> Callable:
    """A handler whose errors are answers."""

    async def run(http: HttpRequest) -> Response:
        try:
            return await handler(http)
        except Exception as error:
            return refusal(error)

    return run


def refusal(error: Exception) -> Response:
    """An error as an answer."""
    status, sentence, field, code = _explained(error)
    headers = {"Retry-After": "1"} if status in (429, 503) else {"Connection": "close"} if status in (408, 413) else None
    return answer(_error_body(status, sentence, field, code), status, headers)


def _explained(error: Exception) -> tuple[int, str, str | None, str | None]:
    """HTTP status, sentence, field and code of an error."""
    if isinstance(error, BadRequest):
        return error.status, str(error), error.field, error.code
    if isinstance(error, Busy):
        return 429, str(error), None, "busy"
    if isinstance(error, ValueError):
        return 400, str(error), None, None
    if isinstance(error, GenerationError):  # the model's, whatever is asked
        return 500, str(error), None, "model_error"
    if isinstance(error, NumllamaError):
        return 503, str(error), None, None
    return 500, f"{type(error).__name__}: {error}", None, None


def _error_body(status: int, sentence: str, field: str | None, code: str | None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 429 else "server_error"
    return {"error": {"message": sentence, "type": kind, "param": field, "code": code}}


async def body_of(http: HttpRequest) -> bytes:
    """All of a request, unless it is too much or too slow."""
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in http.stream():
                content += part
                if len(content) > BODY_BYTES:
                    raise BadRequest(f"the request is longer than {BODY_BYTES // 2**20} MiB", status=413)
    except TimeoutError:
        raise BadRequest(f"the request did not arrive within {BODY_SECONDS} s", status=408) from None
    return bytes(content)


async def _disconnect(http: HttpRequest) -> None:
    """Return when nobody waits for the answer any more."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _finite(chance: float | None) -> float | None:
    return chance if chance is None or math.isfinite(chance) else -9999.0  # as OpenAI writes it: JSON has no infinity
