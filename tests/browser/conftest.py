"""The page in Chromium: one server for all tests, and what the browser says about it."""

import os
import shutil
from pathlib import Path

import pytest
from browser.visitor import Tab
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
