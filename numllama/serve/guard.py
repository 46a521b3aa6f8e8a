"""What stands before every request: who may ask, how much, and what a page may reach.

Listening on localhost keeps other machines out, but not other people's pages in the browser of this one. Such a page can name its
own host as 127.0.0.1, or post to localhost outright; its host or its origin gives it away.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request

from numllama.serve.api import BODY_BYTES, answer, body_of, refusal
from numllama.serve.requests import BadRequest, parse

Message = dict[str, Any]
# Scripts and styles are Gradio's own, which writes them into the page. Nothing is loaded from or sent to anywhere else.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'"
)
GRADIO = "/gradio_api/"
EVENTS = (f"{GRADIO}queue/join", f"{GRADIO}run/predict")  # all that the page's own controls post to
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class Guard:
    """An ASGI application around another.

    Parameters
    ----------
    app : ASGI application
    hosts : set of str, optional
        The names that this server may be asked for by; default any.
    """

    def __init__(self, app: Callable, hosts: frozenset[str] | None = None) -> None:
        self.app, self.hosts = app, hosts
        self.closing = asyncio.Event()  # once it is set, everybody is taken for gone

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable) -> None:
        """Answer what is refused, pass on the rest."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if refused := self._refused(headers):
            status, sentence = refused
            body = {"error": {"message": sentence, "type": "invalid_request_error", "param": None, "code": None}}
            await answer(body, status)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        await self.app(scope, self._received(receive), send_with_headers)

    def _received(self, receive: Callable[[], Awaitable[Message]]) -> Callable[[], Awaitable[Message]]:
        """What a client sends. A body without a stated length ends, as if the client had gone, where it becomes too long."""
        seen = 0

        async def run() -> Message:
            nonlocal seen
            tasks = [asyncio.ensure_future(receive()), asyncio.ensure_future(self.closing.wait())]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
            if not tasks[0].done():
                return {"type": "http.disconnect"}
            message = tasks[0].result()
            seen += len(message.get("body", b""))
            return message if seen <= 2 * BODY_BYTES else {"type": "http.disconnect"}

        return run

    def _refused(self, headers: dict[str, str]) -> tuple[int, str] | None:
        host = _host(f"//{headers.get('host', '')}")
        if self.hosts is not None and host not in self.hosts:
            return 403, f"this server is asked for as {', '.join(sorted(self.hosts))}, not as {host!r}"
        origin = headers.get("origin")
        if origin and _host(origin) != host and _host(origin) not in (self.hosts or ()):
            return 403, f"a page of {origin!r} may not use this server"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 12 or int(length) > BODY_BYTES:
            return 413, f"the request is longer than {BODY_BYTES // 2**20} MiB"
        return None


class PageGuard:
    """An ASGI application around Gradio's, which lets only through what the page's own controls could have sent.

    Gradio has more routes (for files, for others' servers), which nothing here uses, and it answers some of what it cannot read
    with status 500.

    Parameters
    ----------
    app : ASGI application
    inputs : dict of int to int
        Of each event, how many values it takes.
    """

    def __init__(self, app: Callable, inputs: Mapping[int, int]) -> None:
        self.app, self.inputs = app, inputs

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable) -> None:
        """Answer what is refused, pass on the rest."""
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD") and not scope["path"].startswith("/v1/"):
            try:
                content = await body_of(Request(scope, receive))
                self._check(scope["path"], content)
            except BadRequest as error:
                await refusal(error)(scope, receive, send)
                return
            except ClientDisconnect:
                return
            receive = _again(content, receive)
        await self.app(scope, receive, send)

    def _check(self, path: str, content: bytes) -> None:
        if path not in EVENTS:
            raise BadRequest(f"the page has no {path[:60]!r}", status=404)
        body = parse(content)
        event, data, session = (body.get(name) for name in ("fn_index", "data", "session_hash"))
        if type(event) is not int or event not in self.inputs:
            raise BadRequest("fn_index must be the number of one of the page's events", "fn_index")
        if not isinstance(data, list) or len(data) != self.inputs[event]:
            raise BadRequest(f"data must be a list of {self.inputs[event]} values", "data")
        if not isinstance(session, str) or not 0 < len(session) <= 64:
            raise BadRequest("session_hash must be a text of 1 to 64 characters", "session_hash")
        try:
            json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError):  # half of a surrogate pair; a number beyond all bounds
            raise BadRequest("the request holds what can be no text and no number") from None


def _again(content: bytes, receive: Callable[[], Awaitable[Message]]) -> Callable[[], Awaitable[Message]]:
    """A body that was read, to be read by the next."""
    messages = iter([{"type": "http.request", "body": content, "more_body": False}])

    async def run() -> Message:
        return next(messages, None) or await receive()

    return run


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
