"""The page in Chromium: one server for all tests."""

import os
import shutil
from pathlib import Path

import pytest
from browser.pages import BOOK, folder_served
from browser.visitor import Tab
from playwright.sync_api import sync_playwright
from serve.served import served, small_engine

CHROMIUM = os.environ.get("NUMLLAMA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
# They look at a built book.
OF_THE_BOOK = ["test_book.py", "test_front.py", "test_python_in_page.py", "test_slides.py", "test_widget_pages.py"]
collect_ignore = [] if os.environ.get("NUMLLAMA_BOOK") else OF_THE_BOOK
LETTERS = "abcdefghijklmnop \n"


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def address():
    """Of the built book."""
    with folder_served(BOOK) as address:
        yield address


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("the runs ä")


@pytest.fixture(scope="session")
def engine(runs):
    """An engine that records its requests."""
    engine = small_engine(max_seq_len=128, new_tokens=20_000)
    engine.recorded = []
    submit = engine.submit

    async def recording(requests, *others):
        engine.recorded.extend(requests)
        return await submit(requests, *others)

    engine.submit = recording
    return engine


@pytest.fixture(scope="session")
def url(engine, runs):
    with served(engine, "small", runs) as address:
        yield address


@pytest.fixture
def tab(browser, url):
    """A new visitor. At the end the console must have no errors, and no request may have left the machine."""
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
