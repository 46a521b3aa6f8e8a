"""A server in this process for a small random model, and its clients."""

import json
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import httpx
from generation.models import random_model

import numllama as nl
from numllama.serve.access import Access
from numllama.serve.engine import Engine, Limits
from numllama.serve.server import Server, _listen, application

LETTERS = "abcdefghijklmnop \n"


def small_engine(max_seq_len=64, seed=0, **limits) -> Engine:
    """A fast model of letters with random weights."""
    tokenizer = nl.CharTokenizer(LETTERS)
    model = random_model("float32", seed, vocab_size=len(LETTERS), max_seq_len=max_seq_len)
    return Engine(model, tokenizer, Limits(**{"new_tokens": 200, **limits}))


@contextmanager
def served(engine: Engine, name="small", runs: Path | None = None, access: Access | None = None):
    """The address of a server for an engine; both end with the context."""
    with _listen("127.0.0.1", 0) as listener:
        server = Server(application(engine, name, runs, access), engine)
        thread = Thread(target=server.serve_on, args=[listener])
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            engine.close()
            assert not thread.is_alive()


def until(condition, seconds=10):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=30, trust_env=False)


def events(response: httpx.Response) -> list:
    """The messages of a stream of server-sent events; the last is "[DONE]"."""
    lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]
