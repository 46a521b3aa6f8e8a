"""What stands before the page lets its own controls through, and nothing else."""

import json

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient

from numllama.serve.api import BODY_BYTES
from numllama.serve.guard import PageGuard

JOIN = "/gradio_api/queue/join"
GOOD = dict(fn_index=1, data=["abc", None], session_hash="s1", trigger_id=None)


@pytest.fixture
def http():
    """A page with two events, of none and of two values, that says what arrived."""

    async def echo(scope, receive, send):
        await Response(await Request(scope, receive).body(), 200)(scope, receive, send)

    return TestClient(PageGuard(echo, {0: 0, 1: 2}))


@pytest.mark.parametrize("path", [JOIN, "/gradio_api/run/predict"])
def test_an_event_arrives_as_it_was_sent(http, path):
    content = json.dumps(GOOD).encode()
    assert http.post(path, content=content).content == content


@pytest.mark.parametrize("change, sentence", [
    ({"fn_index": 2}, "fn_index must be"), ({"fn_index": "1"}, "fn_index must be"), ({"fn_index": True}, "fn_index must be"),
    ({"data": []}, "a list of 2 values"), ({"data": {}}, "a list of 2 values"), ({"data": ["\ud800", 1]}, "can be no text"),
    ({"data": [1, [{"a": "\udfff"}]]}, "can be no text"), ({"session_hash": ""}, "1 to 64"), ({"session_hash": "a" * 65}, "64"),
])  # fmt: skip
def test_what_no_control_could_have_sent_is_one_sentence(http, change, sentence):
    response = http.post(JOIN, content=json.dumps(GOOD | change).encode())
    assert response.status_code == 400
    assert sentence in response.json()["error"]["message"]


@pytest.mark.parametrize("content, status", [
    (b"", 400), (b"[1]", 400), (b"[" * 100_000, 400), (b'{"fn_index": NaN}', 400), (b" " * (BODY_BYTES + 1), 413),
    (json.dumps(GOOD).replace("null]", "1e999]").encode(), 400),
])  # fmt: skip
def test_what_is_no_event_is_refused_too(http, content, status):
    response = http.post(JOIN, content=content)
    assert response.status_code == status
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("place", ["upload", "component_server", "vibe-edit", "call/generate", "reset", "queue/join/x"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_routes_that_the_page_does_not_use_are_closed(http, method, place):
    response = http.request(method, f"/gradio_api/{place}", json=GOOD)
    assert response.status_code == 404
    assert "the page has no" in response.json()["error"]["message"]


def test_files_and_openais_routes_are_not_its_business(http):
    assert http.get("/assets/a.js").status_code == 200
    assert http.post("/v1/completions", content=b"{").content == b"{"
