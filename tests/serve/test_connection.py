"""Clients that send slowly or not at all: the server waits for a limited time."""

import json
import socket
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from serve.served import served, small_engine

from numllama.serve import api, connection

LIMIT, SOON = 0.4, 5


@pytest.fixture(scope="module")
def url():
    engine = small_engine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "HEADER_SECONDS", LIMIT)
        patch.setattr(api, "BODY_SECONDS", LIMIT)
        with served(engine) as address:
            yield address


@contextmanager
def connected(url):
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=SOON) as made:
        yield made, f"GET /v1/models HTTP/1.1\r\nHost: {address.netloc}\r\n".encode()


def everything(made) -> bytes:
    """All bytes until the server closes the connection."""
    parts = []
    while part := made.recv(10_000):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /v1/models HTTP/1.1\r\nHost: a", b"POST / HTTP/1.1\r\nA: b\r\n"])
def test_headers_that_do_not_arrive_end_the_connection(url, sent):
    with connected(url) as (made, _):
        made.sendall(sent)
        assert b" 408 " in everything(made)


def test_a_byte_now_and_then_is_not_enough(url):
    with connected(url) as (made, head), pytest.raises(OSError):
        for byte in head * 100:
            made.sendall(bytes([byte]))
            time.sleep(LIMIT / 10)


def test_a_body_that_does_not_arrive_is_named(url):
    with connected(url) as (made, head):
        head = head.replace(b"GET /v1/models", b"POST /v1/completions")
        made.sendall(head + b'Content-Length: 30\r\n\r\n{"prompt": ')
        head, _, body = everything(made).partition(b"\r\n\r\n")
        assert b" 408 " in head
        assert "did not arrive within" in json.loads(body)["error"]["message"]


def test_a_second_request_on_the_same_connection_is_bounded_too(url):
    with connected(url) as (made, head):
        made.sendall(head + b"\r\n")
        assert b" 200 " in made.recv(10_000)
        made.sendall(head)
        assert b" 408 " in everything(made)


def test_an_answer_may_take_longer_than_its_request_did(url):
    """A stream may last longer than the time limit for headers."""
    body = json.dumps(dict(prompt="a", max_tokens=200, stream=True, n=8)).encode()
    with connected(url) as (made, head):
        head = head.replace(b"GET /v1/models", b"POST /v1/completions") + b"Connection: close\r\n"
        begin = time.monotonic()
        made.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(LIMIT + 0.1)  # nobody reads
        answer = everything(made)
        assert time.monotonic() - begin > LIMIT
    assert answer.count(b'"finish_reason": "length"') == 8
    assert b"[DONE]" in answer
