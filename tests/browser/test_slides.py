"""The decks of the built book in Chromium: every slide fits on a screen and on a phone, can be read, and prints on its own page.

    sphinx-build -q -W docs BOOK && NUMLLAMA_BOOK=BOOK pytest tests/browser/test_slides.py

Without NUMLLAMA_BOOK the file is not collected (conftest.py): there is no book to look at.
"""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser.pages import BOOK, watched

DECKS = [f"slides/week-{number}.html" for number in range(1, 9)]
SCREEN, PHONE = {"width": 1280, "height": 720}, {"width": 390, "height": 844}

# Problems are told with the number and the title of their slide.
SLIDES = """
    const found = [];
    for (const [index, slide] of document.querySelectorAll(".slide").entries()) {
        const title = `slide ${index + 1} (${slide.querySelector("h1, h2").textContent})`;
        const say = words => found.push(`${title}: ${words}`);
"""

# What does not fit in its slide. On a phone a slide is as high as what it shows, and wide things scroll in it.
OVERFLOWS = f"""phone => {{ {SLIDES}
        const outer = slide.getBoundingClientRect(), footer = slide.querySelector("footer").getBoundingClientRect();
        const scrolls = element => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
        const scrolled = element => element !== slide && (scrolls(element) || scrolled(element.parentElement));
        if (outer.width > innerWidth + 1 || outer.height < innerHeight - 1) say(`is ${{outer.width}} × ${{outer.height}} px`);
        for (const element of slide.querySelectorAll("header *, .body, .body *, footer *")) {{
            const {{left, right, top, bottom, width, height}} = element.getBoundingClientRect();
            if (width <= 1 || height <= 1 || element.closest("mjx-assistive-mml, svg *")) continue;
            const name = `${{element.localName}} (${{element.textContent.trim().slice(0, 40)}})`;
            const outside = left < outer.left - 1 || right > outer.right + 1 || top < outer.top - 1 || bottom > outer.bottom + 1;
            if (outside && !(phone && scrolled(element.parentElement))) say(`${{name}} leaves it`);
            if (element.closest(".body") && !scrolled(element) && bottom > footer.top + 1) say(`${{name}} covers the number`);
            const {{scrollWidth, scrollHeight, clientWidth, clientHeight}} = element;
            if (!phone && element.matches(".body, pre") && (scrollWidth > clientWidth + 1 || scrollHeight > clientHeight + 1))
                say(`${{name}} is cut: ${{scrollWidth}} × ${{scrollHeight}} in ${{clientWidth}} × ${{clientHeight}} px`);
        }}
    }}
    return found;
}}"""

# What the last row of a hall cannot read, on a sheet of 1280 × 720.
TOO_SMALL = f"""() => {{ {SLIDES}
        const size = element => parseFloat(getComputedStyle(element).fontSize), text = size(slide.querySelector(".body"));
        if (text < 19) say(`text of ${{text}} px`);
        for (const pre of slide.querySelectorAll(".body pre")) if (size(pre) < 12.5) say(`code of ${{size(pre)}} px`);
        for (const {{clientHeight}} of slide.querySelectorAll(".body img"))
            if (clientHeight < 150) say(`a picture of ${{clientHeight}} px`);
        for (const svg of slide.querySelectorAll("div.math mjx-container > svg")) {{
            const natural = parseFloat(svg.getAttribute("width")) * size(svg) * 0.431;     // its width is in ex
            if (svg.clientWidth < 0.6 * natural) say(`an equation of ${{natural.toFixed()}} px in ${{svg.clientWidth}} px`);
        }}
    }}
    return found;
}}"""


@pytest.fixture
def opened(browser, address):
    """Opens a deck, with what went wrong in ``tab.found``."""
    contexts = []

    def visit(deck, size=SCREEN, scheme="light", context=None):
        context = context or browser.new_context(viewport=size, color_scheme=scheme)
        contexts.append(context)
        tab = context.new_page()
        tab.found = watched(tab, address)
        tab.goto(address + deck)
        tab.wait_for_selector("html[data-ready]")
        return tab

    yield visit
    for context in contexts:
        context.close()


def barriers(tab):
    """What axe-core calls serious or critical."""
    options = {"resultTypes": ["violations"], "preload": False}
    violations = Axe().run(tab, {"exclude": [["mjx-container > svg"]]}, options).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html'][:160]}" for each in violations if each["impact"] in ("serious", "critical")]


def nothing(found):
    assert not found, "\n" + "\n".join(found)


def at(tab):
    """The number of the slide in the middle of the window, from the page's address."""
    tab.wait_for_timeout(100)                                          # the observer is told after the next frame
    return int(re.search(r"#slide-(\d+)$", tab.url)[1])


def test_there_is_a_deck_for_each_week():
    assert sorted(path.relative_to(BOOK).as_posix() for path in (BOOK / "slides").glob("*.html")) == DECKS


@pytest.mark.parametrize("deck", DECKS)
def test_every_slide_fits_on_a_screen(deck, opened):
    tab = opened(deck)
    assert 20 <= tab.locator(".slide").count() <= 70                   # as many as a lecture can use
    nothing(tab.evaluate(OVERFLOWS, False) + tab.evaluate(TOO_SMALL) + barriers(tab) + tab.found)
    tab.set_viewport_size({"width": 1600, "height": 1200})             # larger, and not of the same shape
    tab.emulate_media(color_scheme="dark")
    tab.keyboard.press("n")
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    nothing(barriers(tab) + tab.found)
    tab.keyboard.press("n")
    nothing(tab.evaluate(OVERFLOWS, False))


@pytest.mark.parametrize("deck", DECKS)
def test_every_slide_fits_on_a_phone(deck, opened):
    tab = opened(deck, PHONE, "dark")
    nothing(tab.evaluate(OVERFLOWS, True) + barriers(tab) + tab.found)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390


def test_keys_turn_the_slides(opened):
    tab = opened(DECKS[2])
    last = tab.locator(".slide").count()
    presses = [("ArrowRight", 2), (" ", 3), ("ArrowDown", 4), ("PageDown", 5), ("ArrowLeft", 4), ("Shift+ ", 3), ("ArrowUp", 2),
               ("PageUp", 1), ("PageUp", 1), ("End", last), ("ArrowRight", last), ("Home", 1)]  # fmt: skip
    for key, number in presses:
        tab.keyboard.press(key)
        assert at(tab) == number, key
        assert tab.evaluate("scrollY") == pytest.approx((number - 1) * 720, abs=1)


def test_a_deck_opens_at_the_slide_of_its_address_and_a_wheel_goes_on(opened):
    tab = opened(f"{DECKS[2]}#slide-7")
    assert at(tab) == 7
    tab.mouse.move(600, 300)
    tab.mouse.wheel(0, 700)
    tab.wait_for_function("location.hash === '#slide-8'")


def test_f_fills_the_screen(opened):
    tab = opened(DECKS[0])
    tab.keyboard.press("f")
    tab.wait_for_function("document.fullscreenElement === document.documentElement")
    tab.keyboard.press("f")
    tab.wait_for_function("document.fullscreenElement === null")


def test_n_shows_the_rest_of_the_text_and_keeps_the_slide(opened):
    tab = opened(f"{DECKS[2]}#slide-3")
    notes = tab.locator("#slide-3 .notes")
    assert not notes.is_visible()
    tab.keyboard.press("n")
    assert notes.is_visible() and len(notes.inner_text()) > 200
    assert at(tab) == 3
    assert opened(f"{DECKS[2]}?notes").locator(".notes").first.is_visible()


def test_two_windows_of_a_deck_follow_each_other(opened):
    first = opened(DECKS[2])
    second = opened(DECKS[2], context=first.context)
    first.keyboard.press("ArrowRight")
    second.wait_for_function("location.hash === '#slide-2'")
    second.keyboard.press("End")
    first.wait_for_function("location.hash === `#slide-${document.querySelectorAll('.slide').length}`")


def test_a_window_that_follows_does_not_hold_back_fast_keys(opened):
    first = opened(DECKS[2])
    second = opened(DECKS[2], context=first.context)
    for _ in range(3):
        before = at(first) if "#" in first.url else 1
        for _ in range(4):
            first.keyboard.press("ArrowRight")
        for tab in (first, second):
            tab.wait_for_function(f"location.hash === '#slide-{before + 4}'")
        first.wait_for_timeout(300)                                    # a late answer would turn it back
        assert at(first) == at(second) == before + 4


def test_each_slide_of_a_page_leads_to_its_section(opened):
    tab = opened(DECKS[2])
    for link in tab.locator(".slide footer a").evaluate_all("links => links.map(link => link.getAttribute('href'))"):
        assert link.startswith("../")
    tab.locator("footer a[href$='rmsnorm.html#backward']").first.evaluate("link => link.click()")
    tab.wait_for_selector("section#backward h2:has-text('Backward')")


def test_an_interactive_picture_is_its_static_one_with_a_link(opened):
    tab = opened(DECKS[3])
    slide = tab.locator(".slide:has(.interactive)").first
    assert slide.locator("img").evaluate("image => image.naturalWidth") > 100
    slide.locator(".interactive a").evaluate("link => link.click()")
    tab.wait_for_selector(".widget[data-drawn]")


@pytest.mark.parametrize("notes, paper", [(False, (960, 540)), (True, (595, 842))])     # 1280 × 720 px, and A4, in points
def test_a_deck_prints_one_slide_a_page_or_notes_on_a4(notes, paper, opened):
    tab = opened(DECKS[2] + "?notes" * notes, scheme="dark")
    count = tab.locator(".slide").count()
    printed = tab.pdf(prefer_css_page_size=True, print_background=True)
    boxes = [tuple(round(float(side)) for side in box) for box in re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", printed)]
    assert set(boxes) == {paper}
    assert len(boxes) < count if notes else len(boxes) == count


def test_a_dark_deck_is_light_on_paper(opened):
    tab = opened(DECKS[2], scheme="dark")
    for event, theme in (("beforeprint", "light"), ("afterprint", "dark")):
        tab.evaluate(f"window.dispatchEvent(new Event('{event}'))")
        assert tab.evaluate("document.documentElement.dataset.theme") == theme


def test_text_has_the_same_size_wherever_a_deck_was_opened(opened):
    sizes = "[...document.querySelectorAll('.body')].map(body => body.style.getPropertyValue('--fit'))"
    expected = opened(DECKS[2]).evaluate(sizes)
    assert len(set(expected)) > 2
    assert opened(DECKS[2] + "?notes").evaluate(sizes) == expected
    assert opened(DECKS[2], PHONE).evaluate(sizes) == expected
