"""What the page asks its server for, measured: all of it is let through, and nothing is open that no page asks for."""

import re

import pytest
from browser.visitor import Tab
from serve.served import until

from numllama.serve.guard import ROUTES, PageGuard


@pytest.fixture
def asked(monkeypatch):
    """What arrives at the page's own routes from now on: method, path and status."""
    requests = set()
    guarded = PageGuard.__call__

    async def recorded(self, scope, receive, send):
        async def noted(message):
            if message["type"] == "http.response.start":
                requests.add((scope.get("method", scope["type"]), scope["path"], message["status"]))
            await send(message)

        await guarded(self, scope, receive, noted)

    monkeypatch.setattr(PageGuard, "__call__", recorded)
    return requests


def use_everything(tab, engine):
    """All that a visitor can do."""
    tab.generate("abc", max_new_tokens=5, temperature=0.5)
    tab.page.locator("#text button").first.click()  # copy
    tab.page.click("#stop")
    tab.tab("Chat")
    tab.page.fill("#message textarea", "abc")
    tab.page.click("#send")
    tab.wait("#chat-status", "asked for|by itself")
    tab.page.wait_for_timeout(300)  # what is kept in the browser is there
    tab.open()
    tab.tab("Chat")
    tab.page.wait_for_selector("#talk .message")
    tab.page.locator("#talk button").first.click()
    tab.page.click("#stop-chat")
    tab.page.click("#clear")
    tab.look("abc", 5)
    tab.set("layer", 1)
    tab.page.click("#stop-look")
    tab.tab("Training")
    tab.wait("#train-status", "no training run|step|logged")
    tab.tab("Generate")
    tab.set("max-new-tokens", 20_000)
    tab.page.click("#go")
    until(lambda: engine.texts == 1)
    tab.page.close()  # in the middle of a text
    until(lambda: engine.texts == 0, seconds=20)


def test_all_that_the_page_asks_for_is_open_and_all_that_is_open_is_asked_for(browser, url, engine, asked):
    for width, height, scheme in ((1280, 900, "light"), (390, 844, "dark")):
        tab = Tab(browser, url, width, height, scheme)
        use_everything(tab, engine)
        tab.close()
    known = {
        request: [route for route in ROUTES if route[0] == request[0] and re.fullmatch(route[1], request[1])] for request in asked
    }
    assert [request for request, routes in known.items() if not routes or request[2] != 200] == []
    assert ROUTES - {route for routes in known.values() for route in routes} == set()
