"""What stands before every request: who may ask, how much, and what a page may reach."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from numllama.errors import shown
from numllama.serve.access import Access, Refused
from numllama.serve.api import BODY_BYTES, answer, body_of, refusal
from numllama.serve.requests import BadRequest, parse

Message = dict[str, Any]
# Scripts and styles are Gradio's own, which writes them into the page. Nothing is loaded from or sent to anywhere else.
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
# All that the page asks for, of the more than a hundred routes that Gradio has: measured in a browser by
# tests/browser/test_measured_routes.py, which fails when another Gradio's page asks for anything else, or for less.
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
# What Gradio reads of a request; others can change the addresses that it writes into the page, or are none of its business.
READ = {b"host", b"accept", b"accept-encoding", b"content-type", b"if-none-match", b"if-modified-since"}
ASKING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>numllama</title>
<form style="font:16px system-ui;margin:20vh auto;max-width:28em"><label for="token">This server asks for the token that
<code>numllama serve</code> has printed.</label><p><input id="token" name="token" type="password" autofocus autocomplete="off">
<button>Open</button></form></html>
"""


class Guard:
    """An ASGI application around another.

    Parameters
    ----------
    app : ASGI application
    access : Access, optional
        Who may ask; default whoever asks for localhost.
    """

    def __init__(self, app: Callable, access: Access | None = None) -> None:
        self.app, self.access = app, access or Access()
        self.closing = asyncio.Event()  # once it is set, everybody is taken for gone

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable) -> None:
        """Answer what is refused, pass on the rest."""
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
        await app(scope, self._received(receive), send_with_headers)

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

    def _refused(self, scope: Message) -> Response | None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self.access.refused(scope)
        if refused is None or refused.status == 401:
            if cookie := self.access.cookie(scope):
                return RedirectResponse("/", 303, {"Set-Cookie": cookie, "Cache-Control": "no-store"})
            if refused is not None and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
                return HTMLResponse(ASKING, 401)
        length = headers.get("content-length", "0")
        if refused is None and (not length.isdecimal() or len(length) > 12 or int(length) > BODY_BYTES):
            refused = Refused(413, f"the request is longer than {BODY_BYTES // 2**20} MiB")
        if refused is None:
            return None
        body = {"error": {"message": refused.sentence, "type": "invalid_request_error", "param": None, "code": None}}
        return answer(body, refused.status, {"WWW-Authenticate": "Bearer"} if refused.status == 401 else None)


# ------------------------------------------------------------------------------------------------ the page


class Kind(NamedTuple):
    """What a control can send."""

    takes: Callable[[Any], bool]
    words: str


def _is_text(value: Any) -> bool:
    return value is None or type(value) is str


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 2**53


def _has(value: Any, fields: Mapping[str, Callable[[Any], bool]]) -> bool:
    """Whether it is an object of exactly these fields."""
    return type(value) is dict and value.keys() == fields.keys() and all(takes(value[name]) for name, takes in fields.items())


def _is_kept(value: Any) -> bool:
    message = {"role": _is_text, "content": _is_text}
    if type(value) is list:
        return all(_has(one, message) for one in value)
    return value is None or _has(value, {"prompt": _is_text, "text": _is_text, "status": _is_text})


TEXT = Kind(_is_text, "a text or null")
NUMBER = Kind(_is_number, "a number")
NOTHING = Kind(lambda value: value is None, "null: what it holds never leaves the server")
KEPT = Kind(_is_kept, "null, a text that was finished, or a list of {role, content}")
EVENT = {  # what the page sends besides the event's number and its data
    "session_hash": Kind(
        lambda value: type(value) is str and bool(SESSION.fullmatch(value)), "a text of 1 to 64 letters and digits"
    ),
    "trigger_id": Kind(lambda value: type(value) is int and _is_number(value), "a whole number"),
    "event_data": Kind(
        lambda value: _is_text(value) or _is_number(value) or _has(value, {"index": _is_number, "value": _is_text}),
        "null, a text, a number, or the tab that was opened",
    ),
}


class PageGuard:
    """An ASGI application around Gradio's, which lets only through what the page's own controls can send.

    Gradio has routes for files, for other people's servers and for much else. In place of any value it takes an object with a
    `path` for a file, which it reads or fetches. It checks such paths itself, but nothing here relies on that: a route that the
    page does not use is not there, and a value of another type than its control's never arrives.

    Parameters
    ----------
    app : ASGI application
    inputs : dict of int to sequence of Kind
        Of each event, what each of its values may be.
    """

    def __init__(self, app: Callable, inputs: Mapping[int, Sequence[Kind]]) -> None:
        self.app, self.inputs = app, inputs

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable) -> None:
        """Answer what is refused, pass on the rest."""
        if scope["type"] == "websocket":
            await _no_websocket(scope, send)
            return
        if scope["type"] == "http":
            try:
                scope = {**scope, **self._reduced(scope)}
                if scope["method"] == "POST":
                    content = self._checked(await body_of(Request(scope, receive)))
                    scope["headers"] = [*scope["headers"], (b"content-length", str(len(content)).encode())]
                    receive = _again(content, receive)
            except BadRequest as error:
                await refusal(error)(scope, receive, send)
                return
            except ClientDisconnect:
                return
        await self.app(scope, receive, send)

    def _reduced(self, scope: Message) -> Message:
        """Of a request to one of the page's routes, what Gradio has to know."""
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
            "headers": [(name, value) for name, value in scope["headers"] if name.lower() in READ],
        }

    def _checked(self, content: bytes) -> bytes:
        """An event, written anew: Gradio reads what was checked, whatever else the same bytes could have meant."""
        body = parse(content)
        event, data = body.pop("fn_index", None), body.pop("data", None)
        if type(event) is not int or event not in self.inputs:
            raise BadRequest("fn_index must be the number of one of the page's events", "fn_index")
        kinds = self.inputs[event]
        if not isinstance(data, list) or len(data) != len(kinds):
            raise BadRequest(f"data must be a list of {len(kinds)} values", "data")
        if not EVENT["session_hash"].takes(body.get("session_hash")):
            raise BadRequest(f"session_hash must be {EVENT['session_hash'].words}", "session_hash")
        whole = {"fn_index": event, "data": data, **body}
        try:
            content = json.dumps(whole, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError):  # half of a surrogate pair; a number beyond all bounds
            raise BadRequest("the request holds what can be no text and no number") from None
        for i, (value, kind) in enumerate(zip(data, kinds, strict=True)):
            if not kind.takes(value):
                raise BadRequest(f"data[{i}] is {shown(value)}, but its control sends {kind.words}", "data", 422)
        for name, value in body.items():
            if name not in EVENT:
                raise BadRequest(f"the page sends no {shown(name)}", status=422)
            if not EVENT[name].takes(value):
                raise BadRequest(f"{name} is {shown(value)}, but the page sends {EVENT[name].words}", name, 422)
        return content


async def _no_websocket(scope: Message, send: Callable) -> None:
    """There is nothing here for a websocket."""
    if "websocket.http.response" in scope.get("extensions", {}):
        await send({"type": "websocket.http.response.start", "status": 404, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b""})
    else:
        await send({"type": "websocket.close", "code": 1008})


def _again(content: bytes, receive: Callable[[], Awaitable[Message]]) -> Callable[[], Awaitable[Message]]:
    """A body that was read, to be read by the next."""
    messages = iter([{"type": "http.request", "body": content, "more_body": False}])

    async def run() -> Message:
        return next(messages, None) or await receive()

    return run
