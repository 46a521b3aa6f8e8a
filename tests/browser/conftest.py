"""The page in Chromium: one server for all tests, and what the browser says about it."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright
from serve.served import served, small_engine

CHROMIUM = os.environ.get("NUMLLAMA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
LETTERS = "abcdefghijklmnop \n"


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("the runs ä")


@pytest.fixture(scope="session")
def engine(runs):
    """With a note of everything that it was asked for."""
    engine = small_engine(max_seq_len=128, new_tokens=20_000)
    engine.asked = []
    submit = engine.submit

    async def noted(requests, *others):
        engine.asked.extend(requests)
        return await submit(requests, *others)

    engine.submit = noted
    return engine


@pytest.fixture(scope="session")
def url(engine, runs):
    with served(engine, "small", runs) as address:
        yield address


class Tab:
    """A page that is open, by itself: as another person's."""

    def __init__(self, browser, url, width=1280, height=900):
        self.url, self.complaints, self.elsewhere, self.requests = url, [], [], Counter()
        self.context = browser.new_context(viewport=dict(width=width, height=height), has_touch=width < 600)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.context.on("request", self._note)
        self.open()

    def _note(self, request):
        self.requests["all"] += 1
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def open(self):
        self.page.goto(self.url)
        self.page.wait_for_selector("#prompt textarea")
        self.page.wait_for_timeout(400)  # what was kept comes back

    def tab(self, name):
        self.page.get_by_role("tab", name=name, exact=True).locator("visible=true").first.click()

    def set(self, name, value):
        """A control of the settings."""
        field = self.page.locator(
            f"#{name} input[type=number], #{name} input[data-testid='number-input'], #{name} textarea, #{name} input"
        )
        field = field.locator("visible=true").first
        field.fill(str(value))
        field.press("Tab")

    def text(self):
        return self.page.locator("#text textarea").input_value()

    def wait(self, selector, words):
        """Until an element says one of some words; what it says."""
        script = "([selector, words]) => new RegExp(words).test(document.querySelector(selector)?.innerText ?? '')"
        self.page.wait_for_function(script, arg=[selector, words])
        return self.page.locator(selector).inner_text()

    def generate(self, prompt, **settings):
        """Ask for a text and wait for its end; what the status line says."""
        for name, value in settings.items():
            self.set(name.replace("_", "-"), value)
        self.page.fill("#prompt textarea", prompt)
        before = self.page.locator("#status .note").inner_text()
        self.page.click("#go")
        script = "before => document.querySelector('#status .note').innerText !== before"
        self.page.wait_for_function(script, arg=before)
        return self.wait("#status", ENDS)

    def close(self):
        self.context.close()
        assert self.requests["all"] > 5
        assert self.complaints == []
        assert self.elsewhere == []


ENDS = "asked for|by itself|stopped|the prompt|is not|must be"


@pytest.fixture
def tab(browser, url):
    """A new visitor. At the end nothing was complained about, and no request has left the machine."""
    made = Tab(browser, url)
    yield made
    made.close()


@pytest.fixture
def another(browser, url):
    made = Tab(browser, url)
    yield made
    made.close()


@pytest.fixture
def phone(browser, url):
    made = Tab(browser, url, 390, 844)
    yield made
    made.close()
