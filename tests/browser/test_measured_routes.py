"""The requests that the page makes, measured: all of them are allowed, and no other route is open."""

import re

import pytest
from browser.visitor import Tab
from serve.served import served, small_engine, until

from numllama.serve.guard import ROUTES, PageGuard


@pytest.fixture
def requested(monkeypatch):
    """The requests to the page's routes from now on: method, path and status."""
    requests = set()
    guarded = PageGuard.__call__

    async def recorded(self, scope, receive, send):
        async def recording(message):
            if message["type"] == "http.response.start":
                requests.add((scope.get("method", scope["type"]), scope["path"], message["status"]))
            await send(message)

        await guarded(self, scope, receive, recording)

    monkeypatch.setattr(PageGuard, "__call__", recorded)
    return requests


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A server for this module, with two runs to show."""
    runs, engine = tmp_path_factory.mktemp("runs"), small_engine(new_tokens=20_000)
    for name in ("one", "two"):
        (runs / name).mkdir()
        (runs / name / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    with served(engine, "small", runs) as url:
        yield url, engine


def use_everything(tab, engine):
    """Do everything that a visitor can do."""
    for control in tab.page.locator("input[type=range]:visible").all():
        control.click()  # in its middle
    for button in tab.page.locator("button.reset-button:visible").all():
        button.click()
    tab.generate("abc", max_new_tokens=5, temperature=0.5)
    tab.page.locator("#text button").first.click()  # copy
    tab.page.click("#stop")
    tab.page.locator("#prompt textarea").press("Shift+Enter")
    tab.tab("Chat")
    tab.page.fill("#message textarea", "abc")
    tab.page.click("#send")
    tab.wait("#chat-status", "length limit|finished")
    tab.page.wait_for_timeout(300)  # until the browser has saved it
    tab.open()
    tab.tab("Chat")
    tab.page.wait_for_selector("#talk .message")
    for name in ("Copy message", "Clear"):
        tab.page.locator("#talk").get_by_label(name).first.click()
    tab.page.click("#stop-chat")
    tab.page.click("#clear")
    tab.look("abc", 5)
    tab.set("layer", 1)
    for control in tab.page.locator("#layer input[type=range], #head input[type=range]").all():
        control.click()
    tab.page.wait_for_selector("#attention .head.chosen")
    tab.page.click("#stop-look")
    tab.tab("Training")
    tab.wait("#train-status", "step 1")
    tab.page.click("#run input")
    tab.page.get_by_role("option", name="one").click()
    tab.wait("#train-status", "step 1")
    tab.tab("Generate")
    tab.set("max-new-tokens", 20_000)
    tab.page.click("#go")
    until(lambda: engine.n_texts == 1)
    tab.page.close()  # in the middle of a text
    until(lambda: engine.n_texts == 0, seconds=20)


def test_all_that_the_page_asks_for_is_open_and_all_that_is_open_is_asked_for(browser, own, requested):
    url, engine = own
    for width, height, scheme in ((1280, 900, "light"), (390, 844, "dark")):
        tab = Tab(browser, url, width, height, scheme)
        tab.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
        use_everything(tab, engine)
        tab.close()
    known = {
        request: [route for route in ROUTES if route[0] == request[0] and re.fullmatch(route[1], request[1])]
        for request in requested
    }
    assert [request for request, routes in known.items() if not routes or request[2] != 200] == []
    assert ROUTES - {route for routes in known.values() for route in routes} == set()
