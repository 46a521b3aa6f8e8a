"""The page's routes under random invalid requests, which no browser would send."""

import asyncio
import gc
import json
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from random import Random

import pytest
from serve.served import client, served, small_engine, until
from serve.test_fuzz import AT_ONCE, ODD, REQUESTS, garbled, memory

from numllama.serve.controls import Settings
from numllama.serve.pages import Page

JOIN, PREDICT = "/gradio_api/queue/join", "/gradio_api/run/predict"
JSON = {"Content-Type": "application/json"}
GENERATE, CHAT = 0, 1
SETTINGS = [0.8, 0, 1, 0, 1, 5, "", ""]
PLACES = [
    "queue/data", "heartbeat/a", "file=/etc/passwd", "proxy=http://a.b", "info", "call/a/b", "upload", "reset", "cancel", "",
    "component_server", "stream/a/b/c/d", "startup-events", "deep_link", "queue/status", "vibe-edit", "login", "%00", "proxy=%00",
    "heartbeat/%00", "queue/data?session_hash=%00", "../assets/" + "a" * 300, "deep_link?session_hash=s1",
]  # fmt: skip


def elsewhere(coroutine):
    """Run a coroutine in a thread, because a browser may have a loop running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A server with a long queue."""
    engine = small_engine(waiting=1000)
    with ExitStack() as stack:

        async def opened():  # without a running loop, Gradio creates loops and leaves them open
            return stack.enter_context(served(engine, "small", tmp_path_factory.mktemp("runs")))

        yield elsewhere(opened()), engine


def event(random: Random, session: str) -> dict:
    """An event that a control could have sent."""
    if random.random() < 0.3:
        return dict(fn_index=CHAT, data=["abc", [], *SETTINGS], session_hash=session)
    return dict(fn_index=GENERATE, data=["abc", *SETTINGS], session_hash=session)


def spoilt(random: Random, session: str) -> bytes:
    """An event that is usually invalid."""
    body = event(random, session)
    for _ in range(random.randint(0, 2)):
        body["data"][random.randrange(len(body["data"]))] = random.choice(ODD)
    if random.random() < 0.3:
        body[random.choice(["fn_index", "data", "trigger_id", "event_data", "batched"])] = random.choice(ODD)
    return garbled(random, body, inserted=0.05)


def ending(http, session: str) -> dict:
    """The second-to-last message to a page, which says how its event ended."""
    messages, begin = [], time.monotonic()
    with http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as response:
        for line in response.iter_lines():
            messages += [json.loads(line[6:])] if line.startswith("data: ") else []
            assert time.monotonic() < begin + 120, messages  # Gradio sends a heartbeat every 15 s
    return messages[-2]


def ask(url: str, seed: int) -> list[int]:
    """Send some hundred requests one after another; returns the statuses. Each accepted event ends."""
    random, statuses = Random(seed), []
    with client(url) as http:
        for i in range(REQUESTS // AT_ONCE + 1):
            session = f"s{seed}x{i}"
            if random.random() < 0.15:
                place = f"/gradio_api/{random.choice(PLACES)}"
                method = random.choice(["GET", "POST", "PUT", "DELETE", "HEAD"])
                content = None if method == "GET" else spoilt(random, session)
                with http.stream(method, place, content=content, headers=JSON) as response:
                    statuses.append(response.status_code)
                continue
            response = http.post(random.choice([JOIN, JOIN, PREDICT]), content=spoilt(random, session), headers=JSON)
            statuses.append(response.status_code)
            if response.status_code == 200 and "event_id" in response.text:
                assert ending(http, session)["msg"] in ("process_completed", "unexpected_error")
            elif response.status_code in (400, 422):
                assert response.json()["error"]["message"]
    return statuses


def test_no_request_of_the_page_is_a_500_and_nothing_is_left_behind(own):
    url, engine = own
    ask(url, 0)
    before = memory()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        statuses = [status for some in pool.map(lambda i: ask(url, i + 1), range(AT_ONCE)) for status in some]
    until(lambda: engine.n_texts == 0)
    left = memory() - before
    with client(url) as http:
        assert http.post(JOIN, json=dict(fn_index=GENERATE, data=["abc", *SETTINGS], session_hash="last")).status_code == 200
        assert ending(http, "last")["output"]["data"][0].startswith("abc")
    assert not [status for status in statuses if status >= 500]
    assert statuses.count(200) > REQUESTS // 20
    assert statuses.count(400) > REQUESTS // 20
    assert statuses.count(422) > REQUESTS // 20
    assert left < 20e6


def test_prompts_of_a_megabyte_are_refused_and_take_no_memory(own):
    def refused(http):
        event = dict(fn_index=GENERATE, data=["abc " * 250_000, *SETTINGS], session_hash="page")
        assert http.post(JOIN, json=event).status_code == 200
        assert "1,000,000 tokens" in ending(http, "page")["output"]["data"][1]

    with client(own[0]) as http:
        tracemalloc.start()
        try:
            held = []
            for _ in range(9):  # bodies of 1 MB, and ids of 8
                refused(http)
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
            assert max(held) < 12e6, held  # the last two or three stay until the next request; all of them would be 27e6
        finally:
            tracemalloc.stop()


def test_a_control_without_a_value_is_named():
    engine = small_engine()
    with pytest.raises(ValueError, match="max new tokens is empty, but must be a number"):
        Settings(0.8, 0, 1, 0, 1, None, "", "").request(engine, "abc")
    engine.close()


def test_an_empty_seed_is_no_seed_and_another_text_each_time():
    engine = small_engine()
    assert Settings(0.8, 0, 1, 0, 1, 5, " ", "").request(engine, "abc").sampling.seed is None
    assert Settings(0.8, 0, 1, 0, 1, 5, " 07 ", "").request(engine, "abc").sampling.seed == 7
    with pytest.raises(ValueError, match="seed is '-1', but must be a whole number"):
        Settings(0.8, 0, 1, 0, 1, 5, "-1", "").request(engine, "abc")
    engine.close()


@pytest.mark.parametrize("saved", [7, "abc", [7], [["role"]], {"a": 1}, [{"role": "robot", "content": "a"}], [{"role": "user"}]])
def test_what_a_browser_kept_that_is_no_conversation_is_forgotten(saved):
    assert Page(None, None).restore({"text": 5, "status": "<b>"}, saved) == ("", "5", '<p class="note">&lt;b&gt;</p>', [])
    page = Page(small_engine(), None)

    async def chat():
        return [step async for step in page.chat(None, " ", saved, *SETTINGS)]

    assert "Type a message" in elsewhere(chat())[0][2]
    page.engine.close()


def test_a_conversation_that_must_be_too_long_is_not_rendered(monkeypatch):
    engine = small_engine()
    monkeypatch.setattr("numllama.serve.pages.chat_prompt", lambda *_: pytest.fail("it was rendered"))
    page, saved = Page(engine, None), [{"role": "user", "content": "abc " * 1000}, {"role": "assistant", "content": "a"}]

    async def chat():
        return [step async for step in page.chat(None, "abc", saved, *SETTINGS)]

    assert "the prompt has 4,004 tokens, but this server accepts at most 64" in elsewhere(chat())[-1][2]
    engine.close()
