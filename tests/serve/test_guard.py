"""The guard passes on what the page's own controls send, and nothing else."""

import json
from random import Random

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from numllama.serve.api import BODY_BYTES
from numllama.serve.guard import NOTHING, NUMBER, ROUTES, SAVED, TEXT, Guard, PageGuard

JOIN = "/gradio_api/queue/join"
DATA = ["abc", 1, None, None]
GOOD = dict(fn_index=1, data=DATA, session_hash="s1", trigger_id=None)


async def echo(scope, receive, send):
    """Reply with the request as it arrived."""
    request = Request(scope, receive)
    arrived = dict(
        path=scope["path"],
        query=scope["query_string"].decode(),
        headers=dict(request.headers),
        body=(await request.body()).decode(),
    )
    await JSONResponse(arrived)(scope, receive, send)


@pytest.fixture
def http():
    """A page with two events: one without values, one with four."""
    return TestClient(PageGuard(echo, {0: [], 1: [TEXT, NUMBER, NOTHING, SAVED]}))


@pytest.mark.parametrize("path", [JOIN, "/gradio_api/run/predict"])
def test_an_event_arrives_as_it_was_sent(http, path):
    arrived = http.post(path, content=json.dumps(GOOD).encode()).json()
    assert json.loads(arrived["body"]) == {name: value for name, value in GOOD.items() if value is not None}
    assert int(arrived["headers"]["content-length"]) == len(arrived["body"])


def test_what_arrives_can_be_read_in_one_way_only(http):
    twice = json.dumps(GOOD)[:-1] + ', "data": [{"path": "/a"}, 1, null, null], "data": ["b", 1, null, null]}'
    arrived = http.post(JOIN, content=twice.encode()).json()
    assert "path" not in arrived["body"]
    assert json.loads(arrived["body"])["data"] == ["b", 1, None, None]


@pytest.mark.parametrize("change, sentence", [
    ({"fn_index": 2}, "fn_index must be"), ({"fn_index": "1"}, "fn_index must be"), ({"fn_index": True}, "fn_index must be"),
    ({"data": []}, "a list of 4 values"), ({"data": {}}, "a list of 4 values"),
    ({"data": ["\ud800", *DATA[1:]]}, "unpaired surrogate"), ({"data": [*DATA[:3], [{"a": "\udfff"}]]}, "unpaired surrogate"),
    ({"session_hash": ""}, "1 to 64"), ({"session_hash": "a" * 65}, "64"), ({"session_hash": "../a"}, "1 to 64"),
    ({"session_hash": 7}, "1 to 64"),
])  # fmt: skip
def test_what_no_control_could_have_sent_is_one_sentence(http, change, sentence):
    response = http.post(JOIN, content=json.dumps(GOOD | change).encode())
    assert response.status_code == 400
    assert sentence in response.json()["error"]["message"]


FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
MESSAGE = {"role": "user", "content": "a"}
SAVED_TEXT = {"prompt": "", "text": "a", "status": "b"}
FITTING = {  # valid values, for each of the four
    0: ["", "abc", None, "/etc/passwd", "http://127.0.0.1/"],
    1: [0, -1, 0.5, 2**53],
    2: [None],
    3: [None, [], [MESSAGE], [MESSAGE] * 9, SAVED_TEXT],
}
ODD = [
    True, False, {}, [[]], FILE, [FILE], {"url": "http://127.0.0.1/"}, {"a": [{"b": FILE}]}, [{"role": "user", "content": FILE}],
    [{"role": "user", "content": [FILE]}], [MESSAGE | {"meta": 1}], [MESSAGE, FILE], [{"role": "user"}], [MESSAGE, "a"], [1],
    10**400, 2**53 + 1, 1e300, SAVED_TEXT | {"text": FILE}, SAVED_TEXT | {"path": "/a"},
    {"path": None, "url": None, "meta": None}, [["user", "a"]], {"__type__": "update", "value": FILE}, MESSAGE, [True], [None],
]  # fmt: skip


@pytest.mark.parametrize("place", FITTING)
def test_each_control_takes_its_own_type_and_no_other(http, place):
    def send(value):
        return http.post(JOIN, json=GOOD | {"data": [*DATA[:place], value, *DATA[place + 1 :]]})

    others = [value for i, values in FITTING.items() for value in values if i != place and value is not None]
    for value in FITTING[place]:
        assert send(value).status_code == 200, value
    for value in [*ODD, *others]:
        response = send(value)
        assert response.status_code == 422, value
        sentence = response.json()["error"]["message"]
        assert f"data[{place}] is" in sentence
        assert len(sentence) < 250


def nested(random: Random, depth: int):
    """An object with a path somewhere in it."""
    if depth == 0:
        return {random.choice(["path", "url", "meta"]): "/etc/passwd"}
    inner = nested(random, depth - 1)
    return random.choice([[inner], ["a", inner], {"a": inner}, {"content": inner, "role": "user"}, {"text": inner}])


def test_an_object_with_a_path_is_refused_at_any_depth_and_place(http):
    random = Random(0)
    for _ in range(300):
        value, place = nested(random, random.randrange(6)), random.choice([0, 1, 2, 3, "event_data", "trigger_id", "other"])
        change = {place: value} if isinstance(place, str) else {"data": [*DATA[:place], value, *DATA[place + 1 :]]}
        assert http.post(JOIN, json=GOOD | change).status_code == 422


@pytest.mark.parametrize("change", [
    {"batched": True}, {"simple_format": True}, {"event_id": "a"}, {"oauth_token": "a"}, {"request": {}}, {"trigger_id": "1"},
    {"trigger_id": 0.5}, {"event_data": ["a"]}, {"event_data": {"index": 1, "value": "a", "path": "b"}},
    {"event_data": {"index": [1, 2], "value": "a"}}, {"event_data": {"value": {"path": "a"}, "index": 0}}, {"a" * 10_000: 1},
])  # fmt: skip
def test_fields_that_the_page_does_not_send_are_refused(http, change):
    response = http.post(JOIN, json=GOOD | change)
    assert response.status_code == 422
    assert len(response.json()["error"]["message"]) < 250


@pytest.mark.parametrize("data", [None, 1, 0.5, "a", {"index": 3, "value": "Training"}])
def test_a_tab_that_is_opened_may_say_which_and_a_slider_where_it_is(http, data):
    assert http.post(JOIN, json=GOOD | {"event_data": data, "trigger_id": 7}).status_code == 200


@pytest.mark.parametrize("content, status", [
    (b"", 400), (b"[1]", 400), (b"[" * 100_000, 400), (b'{"fn_index": NaN}', 400), (b" " * (BODY_BYTES + 1), 413),
    (json.dumps(GOOD).replace("1, null, null]", "1e999, null, null]").encode(), 400),
])  # fmt: skip
def test_what_is_no_event_is_refused_too(http, content, status):
    response = http.post(JOIN, content=content)
    assert response.status_code == status
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("place", [
    "gradio_api/upload", "gradio_api/component_server", "gradio_api/vibe-edit", "gradio_api/call/generate", "gradio_api/reset",
    "gradio_api/queue/join/x", "gradio_api/queue/join/", "gradio_api/file=/etc/passwd", "gradio_api/proxy=%00",
    "gradio_api/proxy=", "gradio_api/deep_link", "gradio_api/stream/a/b/c/d", "gradio_api/upload_progress", "gradio_api/info",
    "config", "a", "assets/", "gradio_api/heartbeat/", "gradio_api/heartbeat/a.b", "gradio_api/heartbeat/" + "a" * 65,
    "assets/" + "a" * 300 + ".js", "assets/..%2fapi.py", "assets/a.py", "assets/%00.js", "assets/a.js%0a",
    "static/img/logo.svg", "static/fonts/..%2f..%2fa.woff2", "static/js/other.js", "monitoring", "GRADIO_API/queue/join",
    "%2fgradio_api/queue/join", "é", "robots.txt",
])  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "get"])
def test_routes_that_the_page_does_not_use_are_closed(http, method, place):
    response = http.request(method, f"/{place}", json=GOOD)
    assert response.status_code == 404
    if method != "HEAD":
        assert "the page has no" in response.json()["error"]["message"]
        assert len(response.json()["error"]["message"]) < 120


EXAMPLES = {
    "/": "GET", "/favicon.ico": "GET", "/theme.css": "GET", "/assets/index-B2_9x.js": "GET", "/assets/a.svelte-C1.css": "GET",
    "/static/fonts/IBMPlexMono/IBMPlexMono-Regular.woff2": "GET", "/static/js/iframeResizer.contentWindow.min.js": "GET",
    "/gradio_api/heartbeat/0abc9": "GET", "/gradio_api/queue/data?session_hash=0abc9": "GET", JOIN: "POST",
    "/gradio_api/run/predict": "POST",
}  # fmt: skip


@pytest.mark.parametrize("path", EXAMPLES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE"])
def test_routes_that_the_page_uses_are_open_for_their_own_method(http, method, path):
    response = http.request(method, path, json=GOOD)
    assert response.status_code == (200 if method == EXAMPLES[path] else 404)
    assert len(EXAMPLES) == len(ROUTES) + 1  # two examples of assets


def test_of_a_request_gradio_gets_what_it_has_to_know(http):
    headers = {
        "X-Forwarded-Host": "evil.com",
        "X-Gradio-Server": "http://evil.com",
        "Cookie": "a=b",
        "Range": "bytes=0-",
        "Accept": "a/b",
    }
    arrived = http.get("/?deep_link=abc&__theme=dark", headers=headers).json()
    assert arrived["query"] == ""
    assert arrived["headers"] == {"host": "testserver", "accept": "a/b", "accept-encoding": arrived["headers"]["accept-encoding"]}
    arrived = http.get("/gradio_api/queue/data?session_hash=abc&path=/etc/passwd").json()
    assert arrived["query"] == "session_hash=abc"


@pytest.mark.parametrize(
    "query", ["", "session_hash=", "session_hash=a/b", "session_hash=a&session_hash=b", "session_hash=%00", "a=b"]
)
def test_messages_are_those_of_one_session(http, query):
    assert http.get(f"/gradio_api/queue/data?{query}").status_code == 400


@pytest.mark.parametrize("path", ["/", JOIN, "/v1/completions", "/gradio_api/file=/etc/passwd"])
def test_there_are_no_websockets(path):
    for app in (PageGuard(echo, {}), Guard(echo)):
        http = TestClient(app, base_url="http://localhost")
        with pytest.raises(WebSocketDisconnect) as caught, http.websocket_connect(path):
            pass
        assert getattr(caught.value, "status_code", 404) == 404
