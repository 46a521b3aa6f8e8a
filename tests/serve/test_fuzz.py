"""Random invalid requests: each gets a response, none a 500, and memory does not grow."""

import gc
import json
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from serve.served import client, served, small_engine, until

REQUESTS, AT_ONCE = int(os.environ.get("NUMLLAMA_FUZZ", 200)), 6  # CI runs 2000
ODD = [
    None, True, False, 0, 1, -1, 10**400, -(10**30), 1e308, -0.0, 1e-320, 0.5, "", "a", "abc", "é", "\x00\x1b\u202e", "\ud800",
    "a" * 5000, [], {}, [[]], [None], [1, 2], ["a", 1], [["a"]], {"a": {"b": []}}, [1e9], {"type": "text"}, "NaN", [True], [-1],
    [99999999999999999999],
]  # fmt: skip
FIELDS = [
    "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "seed", "n", "stop", "stream", "stream_options", "logprobs", "top_logprobs", "model", "user", "echo", "logit_bias", "tools",
    "special", "skip_special_tokens", "nonsense", "",
]  # fmt: skip
NO_JSON = [b"[" * 50_000, b'{"a":' * 50_000, bytes(range(256)), b"9" * 10_000, b"NaN", b'{"prompt": Infinity}']
PATHS = ["completions", "chat/completions", "models", "models/a%00b", "", "nothing/..", "completions/"]


def sensible(random: Random, path: str) -> dict:
    """A valid request."""
    body = {"max_tokens": random.randint(1, 8), "seed": random.randint(0, 9), "stream": random.random() < 0.4}
    if "chat" in path:
        return body | {"messages": [{"role": "user", "content": "abc"[: random.randint(1, 3)]}]}
    return body | {"prompt": "abc"[: random.randint(1, 3)]}


def spoilt(random: Random, path: str) -> bytes:
    """A request that is usually invalid."""
    body = sensible(random, path)
    for _ in range(random.randint(0, 3)):
        body[random.choice(FIELDS)] = random.choice(ODD)
    if isinstance(body.get("messages"), list) and body["messages"] and random.random() < 0.4:
        body["messages"] = [{random.choice(["role", "content", "name", "tool_calls"]): random.choice(ODD)}, *body["messages"]]
    return garbled(random, body, inserted=0.1)


def garbled(random: Random, body: dict, inserted: float) -> bytes:
    """The body as JSON, sometimes truncated, with random bytes in it (a share of `inserted`), or not JSON at all."""
    content = json.dumps(body, ensure_ascii=random.random() < 0.7).encode("utf-8", "surrogatepass")
    kind = random.random()
    if kind < 0.1:
        return content[: random.randint(0, len(content))]
    if kind < 0.1 + inserted:
        at = random.randint(0, len(content))
        return content[:at] + random.randbytes(random.randint(1, 20)) + content[at:]
    return random.choice(NO_JSON) if kind < 0.12 + inserted else content


def ask(url: str, seed: int) -> list[int]:
    """Send a few hundred requests one after another; returns the statuses."""
    random, statuses = Random(seed), []
    with client(url) as http:
        for _ in range(REQUESTS // AT_ONCE + 1):
            path = random.choice(PATHS[:2] * 4 + PATHS)
            method = "POST" if random.random() < 0.93 else random.choice(["GET", "PUT", "HEAD", "OPTIONS", "DELETE"])
            response = http.request(method, f"/v1/{path}", content=None if method == "GET" else spoilt(random, path))
            statuses.append(response.status_code)
            if response.status_code >= 400 and method != "HEAD" and response.status_code != 405:
                assert response.json()["error"]["message"], response.text
    return statuses


def memory() -> int:
    """Memory of this process in bytes; 0 if unknown."""
    gc.collect()
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


@pytest.fixture(scope="module")
def engine():
    return small_engine(waiting=1000)


def test_no_request_is_a_500_and_nothing_is_left_behind(engine):
    with served(engine) as url:
        ask(url, 0)  # so that imports and caches are in place
        before = memory()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            statuses = [status for some in pool.map(lambda i: ask(url, i + 1), range(AT_ONCE)) for status in some]
        until(lambda: engine.n_texts == 0)
        left = memory() - before
        with client(url) as http:
            assert http.post("/v1/completions", json=dict(prompt="abc", max_tokens=3)).status_code == 200
    assert len(statuses) >= REQUESTS
    assert not [status for status in statuses if status >= 500]
    assert statuses.count(200) > REQUESTS // 20  # some are valid
    assert statuses.count(400) > REQUESTS // 3
    assert left < 20e6


def test_prompts_of_a_megabyte_are_refused_one_after_another_and_take_no_memory():
    engine = small_engine()
    body = json.dumps(dict(prompt="abc " * 250_000)).encode()
    with served(engine) as url, client(url) as http:
        http.post("/v1/completions", content=body)  # so that one-time allocations are done
        gc.collect()
        tracemalloc.start()
        try:
            for _ in range(6):  # bodies of 1 MB, and ids of 8
                response = http.post("/v1/completions", content=body)
                assert response.status_code == 400
                assert "1,000,000 tokens" in response.json()["error"]["message"]
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] < 2e6  # less than one of them
        finally:
            tracemalloc.stop()
