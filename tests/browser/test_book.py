"""Every page of the built book in Chromium: at 1280 and 390 pixels, light and dark.

    sphinx-build -q -W docs BOOK && NUMLLAMA_BOOK=BOOK pytest tests/browser/test_book.py

Without NUMLLAMA_BOOK the file is not collected (conftest.py): there is no book to look at.
"""

import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser.pages import BOOK, watched

PAGES = sorted(
    path.relative_to(BOOK).as_posix() for path in BOOK.rglob("*.html")
    if not {"_static", "slides"} & set(path.relative_to(BOOK).parts)   # the theme's templates; test_slides.py looks at slides
)
MADE = ("api/generated/", "source/")                                   # many pages, all alike: loaded once each
DESKTOP, PHONE = (1280, 900), (390, 844)
SETTLED = "async () => { await window.MathJax?.startup?.promise; await document.fonts.ready; }"

# Everything folded is opened, and does not fade in: its code and pictures must fit too, and its colours are those at the end.
OPEN = """() => {
  document.querySelectorAll("details").forEach(details => { details.open = true })
  const ends = animation => animation.effect.getComputedTiming().endTime < Infinity
  document.getAnimations().filter(ends).forEach(animation => animation.finish())
}"""
LAYOUT = Path(__file__).with_name("layout.js").read_text(encoding="utf-8").partition("\n")[2]


@pytest.fixture(scope="module")
def context(browser):
    """One browser context for all pages: what one page loads, the next has in its cache."""
    made = browser.new_context()
    yield made
    made.close()


def test_there_are_pages():
    assert {"index.html", "symbols.html", "ops/rmsnorm.html", "source/numllama/ops/rmsnorm.py.html"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_readable_everywhere(page, context, address):
    tab = context.new_page()
    found = watched(tab, address)
    for size, scheme, other in ((DESKTOP, "light", "dark"), (PHONE, "dark", "light")):
        tab.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
        tab.emulate_media(color_scheme=scheme)
        if size == DESKTOP or not page.startswith(MADE):
            tab.goto(address + page, wait_until="load")
            tab.evaluate(SETTLED)
            tab.evaluate(OPEN)
        where = f"{size[0]} px, {scheme}"
        assert tab.evaluate("document.documentElement.dataset.theme") == scheme
        found += [f"{where}: {problem}" for problem in tab.evaluate(LAYOUT) + barriers(tab)]
        tab.emulate_media(color_scheme=other)  # the reader switches, and nothing moves
        tab.wait_for_function("other => document.documentElement.dataset.theme === other", arg=other)
        found += [f"{size[0]} px, {other}: {problem}" for problem in tab.evaluate(LAYOUT)]
    tab.close()
    assert not found, f"{page}\n" + "\n".join(found)


@pytest.fixture
def rmsnorm(browser, address):
    """The page of RMSNorm, read by somebody with a dark system and a clipboard."""
    context = browser.new_context(color_scheme="dark", permissions=["clipboard-read", "clipboard-write"])
    tab = context.new_page()
    tab.goto(address + "ops/rmsnorm.html")
    yield tab
    context.close()


def test_an_excerpt_names_its_file_and_links_to_its_lines(rmsnorm):
    excerpt = rmsnorm.locator(".excerpt").first
    first = excerpt.locator("pre").inner_text().splitlines()[0]
    link = excerpt.locator(".excerpt-source a")
    assert re.fullmatch(r"numllama/ops/rmsnorm\.py, lines \d+ to \d+", link.inner_text())
    link.click()
    rmsnorm.wait_for_selector("h1:has-text('numllama/ops/rmsnorm.py')")
    assert rmsnorm.evaluate("document.querySelector(':target').textContent").strip() == first


def test_a_button_copies_code(rmsnorm):
    cell = rmsnorm.locator("div.highlight", has_text="from numllama.learn.book import").first
    cell.hover()
    cell.locator("button.copybtn").click()
    rmsnorm.wait_for_function("async () => (await navigator.clipboard.readText()).startsWith('from numllama.learn.book import')")
    copied = rmsnorm.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == cell.locator("pre").inner_text().strip()


def test_pictures_are_dark_on_a_dark_page(rmsnorm):
    picture = rmsnorm.locator(".cell_output img").first
    style = picture.evaluate("image => [getComputedStyle(image).filter, getComputedStyle(image).backgroundColor]")
    assert style == ["invert(1) hue-rotate(180deg)", "rgba(0, 0, 0, 0)"]


def barriers(tab) -> list[str]:
    """What axe-core calls serious or critical: text that cannot be told from its background, buttons without a name, ..."""
    axe = Axe()
    for frame in tab.frames:
        frame.evaluate(axe.axe_script)
    context = {"exclude": [["mjx-container > svg"]]}  # thousands of outlines of letters
    options = {"resultTypes": ["violations"], "preload": False}  # it would request the style sheets again, from wrong addresses
    violations = axe.run(tab, context, options).response["violations"]
    return [sentence(violation) for violation in violations if violation["impact"] in ("serious", "critical")]


def sentence(violation: dict) -> str:
    """A rule of axe that is broken, how often, and the first place."""
    nodes = violation["nodes"]
    first = " ".join(f"{nodes[0]['target']}: {nodes[0]['html'][:160]}: {nodes[0]['failureSummary']}".split())
    return f"axe, {violation['impact']}, {violation['id']}, {len(nodes)} times, first {first}"
