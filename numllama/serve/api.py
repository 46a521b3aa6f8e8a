"""OpenAI's routes: /v1/models, /v1/completions and /v1/chat/completions, as one response or as server-sent events."""

import asyncio
import json
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from numllama.errors import GenerationError, NumllamaError, shown
from numllama.serve import requests
from numllama.serve.chat_threads import in_chat_thread
from numllama.serve.engine import STOPPED, Busy, Chunk, Engine, EngineStopped, Job, Token
from numllama.serve.requests import BadRequest, ParsedRequest

BODY_BYTES = 2 * 2**20
BODY_SECONDS = 30  # within which a body must arrive
PAUSE = 0.04  # seconds between two events of a stream: tokens generated meanwhile are sent together


def routes(engine: Engine, model_name: str) -> list[Route]:
    """The routes, for a Starlette or FastAPI application."""
    api = Api(engine, model_name)
    return [
        Route("/v1/models", _answering(api.models), methods=["GET"]),
        Route("/v1/models/{name:path}", _answering(api.model), methods=["GET"]),
        Route("/v1/completions", _answering(api.completions), methods=["POST"]),
        Route("/v1/chat/completions", _answering(api.chat_completions), methods=["POST"]),
        Route("/health", _answering(api.health), methods=["GET"]),
        Route("/v1/{rest:path}", _answering(api.unknown), methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]),
    ]


class Api:
    """The handlers of the routes."""

    def __init__(self, engine: Engine, model_name: str) -> None:
        self.engine, self.model_name, self.started = engine, model_name, int(time.time())

    async def models(self, http: HttpRequest) -> Response:
        return json_response({"object": "list", "data": [self._description()]})

    async def model(self, http: HttpRequest) -> Response:
        name = http.path_params["name"]
        if name != self.model_name:
            raise BadRequest(f"there is no model {shown(name)}, only {self.model_name!r}", "model", 404, "model_not_found")
        return json_response(self._description())

    async def completions(self, http: HttpRequest) -> Response:
        return await self._generate(http, requests.completion, Completion, asyncio.to_thread)

    async def chat_completions(self, http: HttpRequest) -> Response:
        return await self._generate(http, requests.chat_completion, ChatCompletion, in_chat_thread)

    async def health(self, http: HttpRequest) -> Response:
        if self.engine.failure is not None:
            raise EngineStopped(STOPPED)
        return json_response({"status": "ok"})

    async def unknown(self, http: HttpRequest) -> Response:
        known = "/v1/models, /v1/completions and /v1/chat/completions"
        raise BadRequest(f"there is no {http.method} {http.url.path}, only {known}", status=404)

    async def _generate(
        self, http: HttpRequest, read: Callable[..., ParsedRequest], shape: "type[Completion]", run: Callable[..., Awaitable]
    ) -> Response:
        body = requests.parse(await read_body(http))
        request = await run(read, body, self.engine, self.model_name)  # a long conversation takes a while
        job = await self.engine.submit(request.requests)
        completion = shape(self.engine.tokenizer, self.model_name, job, request)
        if request.stream:
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return StreamingResponse(completion.events(), media_type="text/event-stream", headers=headers)
        whole = asyncio.ensure_future(completion.whole())
        gone = asyncio.ensure_future(_disconnect(http))
        try:
            await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
            return json_response(whole.result()) if whole.done() else Response(status_code=499)
        finally:
            job.cancel()
            gone.cancel()
            whole.cancel()

    def _description(self) -> dict[str, Any]:
        return {"id": self.model_name, "object": "model", "created": self.started, "owned_by": "numllama"}


class Completion:
    """The response of /v1/completions, as one object or as events."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, tokenizer: Any, model_name: str, job: Job, request: ParsedRequest) -> None:
        self.tokenizer, self.job, self.request = tokenizer, job, request
        self.head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model_name}

    async def whole(self) -> dict[str, Any]:
        joined = [Chunk(i, "", []) for i in range(len(self.job.texts))]
        async for chunk in self.job.chunks(PAUSE):
            i, old = chunk.index, joined[chunk.index]
            joined[i] = Chunk(i, old.text + chunk.text, old.tokens + chunk.tokens, chunk.finish)
        choices = [self.choice(chunk) for chunk in joined]
        return {**self.head, "object": self.kind, "choices": choices, "usage": self.usage()}

    async def events(self) -> AsyncIterator[bytes]:
        usage = {"usage": None} if self.request.include_usage else {}
        try:
            for delta in self.opening():
                yield self._event(choices=[delta], **usage)
            async for chunk in self.job.chunks(PAUSE):
                yield self._event(choices=[self.delta(chunk)], **usage)
            if usage:
                yield self._event(choices=[], usage=self.usage())
        except Exception as error:
            yield _sse(_error_body(_describe(error)))
        else:
            yield b"data: [DONE]\n\n"
        finally:
            self.job.cancel()

    def _event(self, **values: Any) -> bytes:
        return _sse({**self.head, "object": self.chunk_kind, **values})

    def opening(self) -> list[dict[str, Any]]:
        return []

    def choice(self, chunk: Chunk) -> dict[str, Any]:
        return {"index": chunk.index, "text": chunk.text, "logprobs": self.logprobs(chunk), "finish_reason": chunk.finish}

    delta = choice

    def usage(self) -> dict[str, int]:
        texts = self.job.texts
        prompt, new = sum(text.prompt_tokens for text in texts[:: self.request.n]), sum(text.new_tokens for text in texts)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def logprobs(self, chunk: Chunk) -> dict[str, Any] | None:
        if self.request.logprobs is None:
            return None
        return {
            "tokens": [self.name(token.id) for token in chunk.tokens],
            "token_logprobs": [None if token.logprob is None else _finite(token.logprob) for token in chunk.tokens],
            "top_logprobs": [self._top(token) for token in chunk.tokens],
            "text_offset": [token.offset for token in chunk.tokens],
        }

    def _top(self, token: Token) -> dict[str, float] | None:
        """Log-probabilities by name, best first. Of several tokens with one name, the likeliest counts."""
        top: dict[str, float] = {}
        for i, logprob in token.top_logprobs:
            top.setdefault(self.name(i), _finite(logprob))
        return None if token.logprob is None else top

    def name(self, i: int) -> str:
        return token_bytes(self.tokenizer, i).decode("utf-8", "backslashreplace")


class ChatCompletion(Completion):
    """The response of /v1/chat/completions, as one object or as events."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> list[dict[str, Any]]:
        return [self._delta(i, {"role": "assistant", "content": ""}) for i in range(len(self.job.texts))]

    def choice(self, chunk: Chunk) -> dict[str, Any]:
        message = {"role": "assistant", "content": chunk.text, "refusal": None}
        return {"index": chunk.index, "message": message, "logprobs": self.logprobs(chunk), "finish_reason": chunk.finish}

    def delta(self, chunk: Chunk) -> dict[str, Any]:
        content = {"content": chunk.text} if chunk.text else {}
        return self._delta(chunk.index, content, chunk.finish, self.logprobs(chunk))

    def _delta(self, index: int, delta: dict[str, str], finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def logprobs(self, chunk: Chunk) -> dict[str, Any] | None:
        if self.request.logprobs is None:
            return None
        return {"content": [self._token(token) for token in chunk.tokens], "refusal": None}

    def _token(self, token: Token) -> dict[str, Any]:
        top = [self._named(i, logprob) for i, logprob in token.top_logprobs]
        return {**self._named(token.id, token.logprob), "top_logprobs": top}

    def _named(self, i: int, logprob: float | None) -> dict[str, Any]:
        finite = None if logprob is None else _finite(logprob)
        return {"token": self.name(i), "logprob": finite, "bytes": list(token_bytes(self.tokenizer, i))}


# ------------------------------------------------------------------------------------------------ tokens


def token_bytes(tokenizer: Any, i: int) -> bytes:
    """The bytes of a token in the middle of a text."""
    if not hasattr(tokenizer, "decode_bytes"):
        return tokenizer.decode([i]).encode("utf-8", "backslashreplace")
    return tokenizer.decode_bytes([i, i])[len(tokenizer.decode_bytes([i])) :]  # a leading token may lose its space


def token_text(tokenizer: Any, i: int) -> str:
    """A readable token: bytes outside complete characters are escaped, an id without a token is shown as its number."""
    return token_bytes(tokenizer, i).decode("utf-8", "backslashreplace") or f"<{i}>"


# ------------------------------------------------------------------------------------------------ HTTP


def json_response(value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response in ASCII JSON, which escapes unpaired surrogates; UTF-8 could not encode them."""
    return Response(json.dumps(value), status, headers, media_type="application/json")


def _sse(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode("ascii")


def _answering(handler: Callable) -> Callable:
    """The handler, with errors turned into responses."""

    async def run(http: HttpRequest) -> Response:
        try:
            return await handler(http)
        except Exception as error:
            return error_response(error)

    return run


class Problem(NamedTuple):
    """An error as a client sees it."""

    status: int
    message: str
    field: str | None = None
    code: str | None = None


def error_response(error: Exception) -> Response:
    """An error as a response."""
    problem = _describe(error)
    busy, broken = problem.status in (429, 503), problem.status in (408, 413)
    headers = {"Retry-After": "1"} if busy else {"Connection": "close"} if broken else None
    return json_response(_error_body(problem), problem.status, headers)


def _describe(error: Exception) -> Problem:
    if isinstance(error, BadRequest):
        return Problem(error.status, str(error), error.field, error.code)
    if isinstance(error, Busy):
        return Problem(429, str(error), code="busy")
    if isinstance(error, ValueError):
        return Problem(400, str(error))
    if isinstance(error, GenerationError):  # the model's fault, not the request's
        return Problem(500, str(error), code="model_error")
    if isinstance(error, NumllamaError):
        return Problem(503, str(error))
    return Problem(500, f"{type(error).__name__}: {error}")


def _error_body(problem: Problem) -> dict[str, Any]:
    kind = "invalid_request_error" if problem.status < 429 else "server_error"
    return {"error": {"message": problem.message, "type": kind, "param": problem.field, "code": problem.code}}


async def read_body(http: HttpRequest) -> bytes:
    """The body of a request; BadRequest if it is too long or too slow."""
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
    """Return when the client has disconnected."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else -9999.0  # as OpenAI does: JSON has no infinity
