"""No file can be read through the page, and the page fetches nothing: 200 names through every input and every route."""

import http.client
import json
import os
import re
import socket
import tempfile
from pathlib import Path
from threading import Thread
from urllib.parse import quote, urlsplit

import pytest
from browser.test_routes import elsewhere, ending, own  # noqa: F401 - a fixture
from serve.served import client, small_engine

from numllama.serve.server import _page

JOIN, PREDICT = "/gradio_api/queue/join", "/gradio_api/run/predict"
SECRET = b"the secret of this test"
CONTENTS = (SECRET, b"root:x:0:0", b"PATH=/")  # of a file of the user, /etc/passwd, /proc/self/environ


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    """A private file, and a link to it."""
    folder = tmp_path_factory.mktemp("private")
    path = folder / "secret.txt"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    (folder / "link").symlink_to(path)
    folder.chmod(0o700)
    return path


@pytest.fixture(scope="module")
def listener():
    """The address of a socket, and the connections to it."""
    visits = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept():
            while True:
                try:
                    connection, address = listening.accept()
                except OSError:
                    return
                visits.append(address)
                connection.close()

        Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}", visits
        listening.shutdown(socket.SHUT_RDWR)


def names(secret: Path, address: str) -> list[str]:
    """200 ways to name a file or an address."""
    files = [str(secret), str(secret.parent / "link"), "/etc/passwd", "/proc/self/environ", os.path.relpath(secret)]
    files += [os.path.relpath("/etc/passwd"), "numllama/serve/pages.py", "pyproject.toml", "gradio", "."]
    spelt = [
        lambda p: p, lambda p: quote(p, safe=""), lambda p: quote(quote(p, safe=""), safe=""), lambda p: f"file://{p}",
        lambda p: f"file={p}", lambda p: f"//{p}", lambda p: f"/.{p}", lambda p: f"../../../../../../..{p}",
        lambda p: f"..%2f..%2f..%2f..%2f..%2f..{p}", lambda p: p.replace("/", "\\"), lambda p: p.replace("/", "%5c"),
        lambda p: f"{p}%00.png", lambda p: f"static/../..{p}", lambda p: f"assets/..%2f..%2f..{p}", lambda p: f"{p}/",
        lambda p: f"{p}?x=1#y", lambda p: f"~root{p}", lambda p: f"/./{p}", lambda p: p.upper(), lambda p: f"\\\\localhost{p}",
    ]  # fmt: skip
    made = [spell(path) for path in files for spell in spelt]
    for scheme in ("http", "https", "ftp", "gopher", "HTTP"):
        for host in (address, address.replace("127.0.0.1", "localhost"), address.replace("127.0.0.1", "[::ffff:127.0.0.1]"),
                     address.replace("127.0.0.1", "2130706433"), f"user@{address}", f"{address}/a.png"):  # fmt: skip
            made.append(f"{scheme}://{host}")
    made = sorted(set(made))
    assert len(made) >= 200
    return made


def objects(name: str) -> list:
    """Objects that Gradio would take for a file with this name, at any depth."""
    file = {"path": name, "meta": {"_type": "gradio.FileData"}}
    return [
        file, [file], {"url": name}, {"path": name}, {"orig_name": name, **file}, {"a": {"b": [file]}}, [[file]],
        [{"role": "user", "content": file}], [{"role": "user", "content": [file]}], {"prompt": "a", "text": file, "status": ""},
        {"__type__": "update", "value": file}, [{"role": "user", "content": {"component": "image", "value": file}}],
        [{"role": "user", "content": "a", "metadata": file}], {"data": name, "is_file": True}, {"video": file},
    ]  # fmt: skip


def good(page_inputs: dict) -> dict[int, list]:
    """Valid values for each event."""
    samples = {"a text or null": "a", "a number": 1}
    return {event: [samples.get(kind.words) for kind in kinds] for event, kinds in page_inputs.items()}


@pytest.fixture(scope="module")
def gradio(tmp_path_factory):
    """Gradio's application, and the kinds of each event's values."""
    engine = small_engine()

    async def made():  # see `own`
        return _page(engine, "small", tmp_path_factory.mktemp("runs"))

    yield elsewhere(made())
    engine.close()


class Raw:
    """A connection that sends paths unchanged."""

    def __init__(self, url):
        self.address = urlsplit(url).netloc
        self.connection = http.client.HTTPConnection(self.address, timeout=30)

    def __call__(self, method, path, content=None, headers=None):
        self.connection.request(method, path, content, headers or {})
        response = self.connection.getresponse()
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            self.connection.close()
            return response.status, b""
        return response.status, response.read()


@pytest.fixture
def ask(own):  # noqa: F811
    raw = Raw(own[0])
    yield raw
    raw.connection.close()


def leaked(content: bytes) -> bool:
    return any(words in content for words in CONTENTS)


def test_no_value_of_any_control_is_taken_for_a_file(ask, gradio, secret, listener):
    values = good(gradio[1])
    places = [(event, i) for event, data in values.items() for i in range(len(data))]
    assert len(places) > 30
    statuses = []
    for n, name in enumerate(names(secret, listener[0])):
        files = objects(name)
        for m, (event, i) in enumerate(places):
            data = list(values[event])
            data[i] = files[(n + m) % len(files)]
            body = json.dumps({"fn_index": event, "data": data, "session_hash": f"f{n}"})
            status, content = ask("POST", (JOIN, PREDICT)[(n + m) % 2], body, {"Content-Type": "application/json"})
            statuses.append(status)
            assert not leaked(content)
    assert set(statuses) == {422}
    assert listener[1] == []


def test_beside_the_values_nothing_is_taken_for_a_file_either(ask, gradio, secret, listener):
    values = good(gradio[1])
    for n, name in enumerate(names(secret, listener[0])):
        for m, field in enumerate(("event_data", "trigger_id", "request", "batched", "event_id", "simple_format", name)):
            body = {"fn_index": 0, "data": values[0], "session_hash": "s", field: objects(name)[(n + m) % 15]}
            status, content = ask("POST", JOIN, json.dumps(body), {"Content-Type": "application/json"})
            assert status == 422
            assert not leaked(content)
    assert listener[1] == []


def test_a_name_that_is_given_as_a_text_stays_a_text(own, gradio, secret, listener):  # noqa: F811
    values = good(gradio[1])
    texts = [(event, i) for event, data in values.items() for i, value in enumerate(data) if value == "a"]
    with client(own[0]) as http:
        for n, name in enumerate(names(secret, listener[0])):
            event, i = texts[n % len(texts)]
            data = list(values[event])
            data[i] = name
            session = f"t{n}"
            assert http.post(JOIN, json=dict(fn_index=event, data=data, session_hash=session)).status_code == 200
            assert not leaked(json.dumps(ending(http, session)).encode())
    assert listener[1] == []


def test_no_route_answers_with_a_file_or_fetches_one(ask, gradio, secret, listener):
    found = {(method, route.path) for route in flat(gradio[0].routes) for method in getattr(route, "methods", None) or ("GET",)}
    templates = sorted(found | {(method, f"/gradio_api{path}") for method, path in found})  # included under that, too
    assert len(templates) > 60
    assert any("file" in path for _, path in templates)
    filled = re.compile(r"\{[^}]*\}")
    closed = 0
    for n, name in enumerate(names(secret, listener[0])):
        safe = quote(name, safe="/%?#=:@[]\\~&.!*'(),;$+")
        for m, (method, template) in enumerate(templates):
            takes_a_name = "{" in template
            if not takes_a_name and (n + m) % 20:  # routes without a place for a name get it as a query, in turn
                continue
            path = (
                filled.sub(lambda _, safe=safe: safe, template)
                if takes_a_name
                else f"{template}?path={safe}&url={safe}&src={safe}"
            )
            status, content = ask(
                method, path.replace("#", "%23").replace("\\", "%5c"), b"{}" if method in ("POST", "PUT") else None
            )
            assert not leaked(content), path
            closed += status in (400, 404)
            assert status < 500, path
    assert closed > 2000
    assert listener[1] == []


def flat(routes):
    """All routes, mounted and included ones too."""
    for route in routes:
        if hasattr(route, "path"):
            yield route
        yield from flat(getattr(getattr(route, "original_router", route), "routes", None) or ())


def test_no_copy_of_a_file_was_left_behind(secret):
    left = Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio")
    found = [path for path in left.rglob("*") if path.is_file() and path.stat().st_size == len(SECRET)] if left.exists() else []
    assert not [path for path in found if path.read_bytes() == SECRET]


@pytest.mark.parametrize("path", [
    "/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/gradio_api/proxy=%00", "/gradio_api/proxy=http://127.0.0.1:1/",
    "/gradio_api/deep_link?session_hash=s1", "/gradio_api/stream/a/b/c/playlist.m3u8", "/gradio_api/upload_progress?upload_id=1",
    "/gradio_api/info", "/gradio_api/startup-events", "/config", "/monitoring", "/assets/" + "a" * 300, "/static/img/logo.svg",
    "/assets/../api.py", "/login_check", "/token", "/docs", "/openapi.json", "/pwa_icon", "/manifest.json", "/robots.txt",
    "/gradio_api/mcp/sse", "/.well-known/a", "/svelte/a.js", "/node/a", "/custom_component/a/b/c/d.js",
])  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "POST"])
def test_whatever_the_page_does_not_use_is_not_there(ask, method, path):
    assert ask(method, path)[0] == 404


def test_there_are_no_websockets(ask):
    headers = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }  # fmt: skip
    assert ask("GET", "/gradio_api/queue/join", None, headers)[0] in (403, 404)
