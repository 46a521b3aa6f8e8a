"""Checks before every request: access, size, and which of Gradio's routes and values a page may use."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from numllama.errors import shown
from numllama.serve.access import Access, Refusal
from numllama.serve.api import BODY_BYTES, error_response, json_response, read_body
from numllama.serve.requests import BadRequest, parse

# Scripts and styles are Gradio's own, inlined into the page. Nothing is loaded from or sent to another server.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
SESSION = re.compile(r"[\w-]{1,64}", re.ASCII)
JOIN, PREDICT = "/gradio_api/queue/join", "/gradio_api/run/predict"
# The routes that the page uses, of more than a hundred that Gradio has. tests/browser/test_measured_routes.py measures them in a
# browser, and fails if another version of Gradio uses more or fewer.
ROUTES = {
    ("GET", r"/"),
    ("GET", r"/favicon\.ico"),
    ("GET", r"/theme\.css"),
    ("GET", r"/assets/[\w-]{1,100}(\.[\w-]{1,20})?\.(js|css)"),
    ("GET", r"/static/fonts/\w{1,50}/[\w-]{1,50}\.woff2"),
    ("GET", r"/static/js/iframeResizer\.contentWindow\.min\.js"),
    ("GET", rf"/gradio_api/heartbeat/{SESSION.pattern}"),
    ("GET", r"/gradio_api/queue/data"),
    ("POST", JOIN),
    ("POST", PREDICT),
}
OPEN = {method: re.compile("|".join(path for m, path in sorted(ROUTES) if m == method), re.ASCII) for method in ("GET", "POST")}
# The headers that Gradio needs. Others could change the URLs that it writes into the page, or are not meant for it.
PASSED_HEADERS = {b"host", b"accept", b"accept-encoding", b"content-type", b"if-none-match", b"if-modified-since"}
TOKEN_FORM = """<!doctype html><html lang="en"><meta charset="utf-8"><title>numllama</title>
<form style="font:16px system-ui;margin:20vh auto;max-width:28em"><label for="token">Enter the token that
<code>numllama serve</code> printed.</label><p><input id="token" name="token" type="password" autofocus autocomplete="off">
<button>Open</button></form></html>
"""


class Guard:
    """ASGI middleware that checks access and size, and adds security headers.

    Parameters
    ----------
    app : ASGI application
    access : Access, optional
        Who may use it; default: requests to localhost, without a token.
    """

    def __init__(self, app: ASGIApp, access: Access | None = None) -> None:
        self.app, self.access = app, access or Access()
        self.closing = asyncio.Event()  # once set, every client counts as disconnected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer refused requests, pass on the others."""
        if scope["type"] == "websocket":
            await _no_websocket(scope, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        app = self._refused(scope) or self.app
        await app(scope, self._limited(receive), send_with_headers)

    def _limited(self, receive: Receive) -> Receive:
        """`receive`, which reports a disconnect when the server closes or a body of unknown length becomes too long."""
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

    def _refused(self, scope: Scope) -> Response | None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self.access.refusal(scope)
        if refusal is None or refusal.status == 401:
            if cookie := self.access.cookie(scope):
                return RedirectResponse("/", 303, {"Set-Cookie": cookie, "Cache-Control": "no-store"})
            if refusal is not None and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
                return HTMLResponse(TOKEN_FORM, 401)
        length = headers.get("content-length", "0")
        if refusal is None and (not length.isdecimal() or len(length) > 12 or int(length) > BODY_BYTES):
            refusal = Refusal(413, f"the request is longer than {BODY_BYTES // 2**20} MiB")
        if refusal is None:
            return None
        body = {"error": {"message": refusal.message, "type": "invalid_request_error", "param": None, "code": None}}
        return json_response(body, refusal.status, {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None)


# ------------------------------------------------------------------------------------------------ the page


class Kind(NamedTuple):
    """The values that a control can send, in Python and in words."""

    accepts: Callable[[Any], bool]
    words: str


def _is_text(value: Any) -> bool:
    return value is None or type(value) is str


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 2**53


def _has(value: Any, fields: Mapping[str, Callable[[Any], bool]]) -> bool:
    """Whether it is an object with exactly these fields."""
    return type(value) is dict and value.keys() == fields.keys() and all(check(value[name]) for name, check in fields.items())


def _is_saved(value: Any) -> bool:
    message = {"role": _is_text, "content": _is_text}
    if type(value) is list:
        return all(_has(one, message) for one in value)
    return value is None or _has(value, {"prompt": _is_text, "text": _is_text, "status": _is_text})


TEXT = Kind(_is_text, "a text or null")
NUMBER = Kind(_is_number, "a number")
NOTHING = Kind(lambda value: value is None, "null, because its value stays on the server")
SAVED = Kind(_is_saved, "null, a finished text, or a list of {role, content}")
EVENT = {  # what the page sends besides the event's number and data
    "session_hash": Kind(
        lambda value: type(value) is str and bool(SESSION.fullmatch(value)), "a text of 1 to 64 letters and digits"
    ),
    "trigger_id": Kind(lambda value: type(value) is int and _is_number(value), "a whole number"),
    "event_data": Kind(
        lambda value: _is_text(value) or _is_number(value) or _has(value, {"index": _is_number, "value": _is_text}),
        "null, a text, a number, or the opened tab",
    ),
}


class PageGuard:
    """ASGI middleware around Gradio's application that passes on only what the page's controls can send.

    Gradio has routes for files, for proxying other servers and more; and it treats an object with a `path`, in place of any
    value, as a file to read or fetch. It checks such paths itself, but nothing here relies on that: routes that the page does not
    use are closed, and a value of the wrong type never reaches Gradio.

    Parameters
    ----------
    app : ASGI application
    inputs : dict of int to sequence of Kind
        For each event, the kinds of its values.
    """

    def __init__(self, app: ASGIApp, inputs: Mapping[int, Sequence[Kind]]) -> None:
        self.app, self.inputs = app, inputs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer refused requests, pass on the others."""
        if scope["type"] == "websocket":
            await _no_websocket(scope, send)
            return
        if scope["type"] == "http":
            try:
                scope = {**scope, **self._reduced(scope)}
                if scope["method"] == "POST":
                    content = self._checked(await read_body(Request(scope, receive)))
                    scope["headers"] = [*scope["headers"], (b"content-length", str(len(content)).encode())]
                    receive = _replay(content, receive)
            except BadRequest as error:
                await error_response(error)(scope, receive, send)
                return
            except ClientDisconnect:
                return
        await self.app(scope, receive, send)

    def _reduced(self, scope: Scope) -> Scope:
        """The query, path and headers that Gradio needs; BadRequest for routes that the page does not use."""
        path, method = scope["path"], scope["method"]
        if method not in OPEN or not OPEN[method].fullmatch(path):
            raise BadRequest(f"the page has no {method} {shown(path)}", status=404)
        query = b""
        if path == "/gradio_api/queue/data":
            sessions = [value for name, value in parse_qsl(scope["query_string"].decode("latin-1")) if name == "session_hash"]
            if len(sessions) != 1 or not SESSION.fullmatch(sessions[0]):
                raise BadRequest("session_hash must be a text of 1 to 64 letters and digits", "session_hash")
            query = urlencode({"session_hash": sessions[0]}).encode()
        return {
            "query_string": query,
            "raw_path": path.encode("ascii"),
            "headers": [(name, value) for name, value in scope["headers"] if name.lower() in PASSED_HEADERS],
        }

    def _checked(self, content: bytes) -> bytes:
        """A checked event, serialised again so that Gradio parses exactly what was checked."""
        body = parse(content)
        event, data = body.pop("fn_index", None), body.pop("data", None)
        if type(event) is not int or event not in self.inputs:
            raise BadRequest("fn_index must be the number of one of the page's events", "fn_index")
        kinds = self.inputs[event]
        if not isinstance(data, list) or len(data) != len(kinds):
            raise BadRequest(f"data must be a list of {len(kinds)} values", "data")
        if not EVENT["session_hash"].accepts(body.get("session_hash")):
            raise BadRequest(f"session_hash must be {EVENT['session_hash'].words}", "session_hash")
        whole = {"fn_index": event, "data": data, **body}
        try:
            content = json.dumps(whole, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            raise BadRequest("the request holds an unpaired surrogate or a number that is out of range") from None
        for i, (value, kind) in enumerate(zip(data, kinds, strict=True)):
            if not kind.accepts(value):
                raise BadRequest(f"data[{i}] is {shown(value)}, but must be {kind.words}", "data", 422)
        for name, value in body.items():
            if name not in EVENT:
                raise BadRequest(f"the page never sends {shown(name)}", status=422)
            if not EVENT[name].accepts(value):
                raise BadRequest(f"{name} is {shown(value)}, but must be {EVENT[name].words}", name, 422)
        return content


async def _no_websocket(scope: Scope, send: Send) -> None:
    """Refuse a websocket."""
    if "websocket.http.response" in scope.get("extensions", {}):
        await send({"type": "websocket.http.response.start", "status": 404, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b""})
    else:
        await send({"type": "websocket.close", "code": 1008})


def _replay(content: bytes, receive: Receive) -> Receive:
    """`receive` that starts with a body."""
    messages: Iterator[Message] = iter([{"type": "http.request", "body": content, "more_body": False}])

    async def run() -> Message:
        return next(messages, None) or await receive()

    return run
