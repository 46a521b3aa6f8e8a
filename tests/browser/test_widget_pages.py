"""The interactive pictures in the pages of the built book: a mouse, a finger and a keyboard move them; without scripts there is
a picture.

    sphinx-build -q -W docs BOOK && NUMLLAMA_BOOK=BOOK pytest tests/browser/test_widget_pages.py

Without NUMLLAMA_BOOK the file is not collected (conftest.py).
"""

import json
import re

import pytest
from browser.pages import BOOK, watched

import numllama as nl
from numllama.data.synthetic import write_play

WITH = [path for path in sorted(BOOK.rglob("*.html")) if ' data-widget="' in path.read_text(encoding="utf-8")]
PAGES = [path.relative_to(BOOK).as_posix() for path in WITH]
SIZES = {"desktop": dict(width=1280, height=900), "phone": dict(width=390, height=844)}
MOST = 150_000  # bytes of scripts, style and data that a page loads for its widgets

# Everything that a reader sees of the widget, except the controls' own state.
PICTURE = """root => [...root.querySelectorAll(".widget-pictures, .widget-says")]
    .map(part => part.innerHTML.replace(/<input[^>]*>|aria-valuetext="[^"]*"/g, "")).join()"""

# Heights of what else the cell shows, and the size of the smallest letters.
OTHERS = "root => [...root.closest('.cell_output').children].filter(one => !one.contains(root)).map(one => one.offsetHeight)"
SMALLEST = """root => Math.min(...[...root.querySelectorAll("text, td, th, output")]
    .map(one => parseFloat(getComputedStyle(one).fontSize)))"""


@pytest.fixture
def visit(browser, address):
    """visit(page, "phone"): the page, drawn; at the end, nothing may have gone wrong."""
    opened, complaints = [], []

    def visited(page, size="desktop", scripts=True, scheme="light"):
        context = browser.new_context(
            viewport=SIZES[size], has_touch=size == "phone", java_script_enabled=scripts, color_scheme=scheme
        )
        opened.append(context)
        tab = context.new_page()
        watched(tab, address, complaints)
        tab.goto(address + page)
        if scripts:
            for root in tab.locator(".widget").all():
                root.locator("svg[viewBox], table, .bpe-row").first.wait_for()
        return tab

    yield visited
    for context in opened:
        context.close()
    assert complaints == []


def test_every_widget_is_on_a_page():
    widgets = {path.stem for path in (BOOK / "_static" / "widgets").glob("*.js")} - {"main", "shared"}
    shown = [name for path in WITH for name in re.findall(' data-widget="([a-z]+)"', path.read_text(encoding="utf-8"))]
    assert sorted(shown) == sorted(widgets) and len(shown) >= 7


@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_less_than_150_kb_for_its_widgets(page, browser, address):
    tab, answers = browser.new_page(), []
    tab.on("response", lambda answer: answers.append(answer) if "/widgets/" in answer.url else None)
    tab.goto(address + page)
    tab.locator(".widget[data-drawn]").first.wait_for()
    loaded = {answer.url: len(answer.body()) for answer in answers}
    data = [element.text_content() for element in tab.locator(".widget > script").all()]
    tab.close()
    assert len(loaded) == 4, loaded                                    # style, main, shared, and its own
    assert sum(loaded.values()) + sum(len(text.encode()) for text in data) < MOST


def test_other_pages_load_nothing(browser, address):
    tab, loaded = browser.new_page(), []
    tab.on("request", lambda request: loaded.append(request.url))
    tab.goto(address + "ops/linear.html", wait_until="networkidle")
    tab.close()
    assert loaded and [url for url in loaded if "/widgets/" in url] == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("page", PAGES)
def test_a_widget_takes_the_place_of_the_picture_and_fits(page, size, visit):
    tab = visit(page, size)
    for root in tab.locator(".widget").all():
        assert root.is_visible()
        others = root.evaluate(OTHERS)
        assert others and max(others) == 0
        words = root.evaluate("root => root.closest('.cell').nextElementSibling.innerText")
        assert words.startswith("Try it.")
        width = tab.viewport_size["width"]
        for box in (element.bounding_box() for element in root.locator("svg[viewBox], table, input, button").all()):
            assert box is None or (box["x"] >= 0 and box["x"] + box["width"] <= width + 1)
        assert root.evaluate(SMALLEST) >= 10
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("page", PAGES)
def test_without_scripts_there_is_the_picture(page, visit):
    tab = visit(page, scripts=False)
    for root in tab.locator(".widget").all():
        assert not root.is_visible()
        assert root.locator("xpath=ancestor::*[contains(@class, 'cell_output')]").locator("img, svg").first.is_visible()
    assert [words for words in tab.locator(".try-it").all() if words.is_visible()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_control_changes_the_picture_by_keyboard(page, visit):
    root = visit(page).locator(".widget").first
    sliders, radios = (root.locator(kind).all() for kind in ("input[type=range]", "input[type=radio]"))
    assert sliders
    for control in sliders:
        name = control.evaluate("input => input.closest('label').textContent")
        before = root.evaluate(PICTURE)
        start = control.evaluate("input => input.value")
        for _ in range(4):                                             # four steps of any slider make a difference
            control.press("ArrowRight" if float(start) < float(control.get_attribute("max")) else "ArrowLeft")
        assert control.evaluate("input => input.value") != start, name
        assert root.evaluate(PICTURE) != before, name
        assert control.get_attribute("aria-valuetext"), name
    for control in radios:
        if not control.is_checked():
            before = root.evaluate(PICTURE)
            control.check()
            assert root.evaluate(PICTURE) != before
    for name in ("one step forward", "one step back"):                 # where there are steps: from the first, and back to it
        for control in root.get_by_role("button", name=name).all():
            if name == "one step forward":
                root.locator(".widget-stepper input").press("Home")
            before = root.evaluate(PICTURE)
            control.press("Enter")
            assert root.evaluate(PICTURE) != before, name
    for control in root.locator(".widget-pictures button").all():
        before = root.evaluate(PICTURE)
        control.press("Enter")
        assert root.evaluate(PICTURE) != before, control.get_attribute("aria-label")


@pytest.mark.parametrize("page", PAGES)
def test_the_sentence_is_read_aloud_once_it_has_settled(page, visit):
    root = visit(page).locator(".widget").first
    root.locator("input[type=range]").first.press("ArrowLeft")
    said = root.locator(".widget-says").inner_text()
    root.page.wait_for_function("said => document.querySelector('.widget [role=status]').textContent === said", arg=said)
    assert len(said.split()) > 5


def page_of(name):
    """The page that has a widget."""
    (page,) = [page for page in PAGES if f'data-widget="{name}"' in (BOOK / page).read_text(encoding="utf-8")]
    return page


def test_equal_gradients_of_probabilities_vanish(visit):
    root = visit(page_of("softmax"), "phone").locator(".widget")
    for button in root.locator("table button").all():
        while button.inner_text() != "+1":
            button.tap()
    assert {cell.inner_text() for cell in root.locator(".softmax-dx").all()} == {"0.000"}
    assert "vanishes" in root.locator(".widget-says").inner_text()


def test_a_text_that_is_typed_becomes_the_ids_of_the_tokenizer(visit, tmp_path):
    (tmp_path / "play.txt").write_text(write_play(60_000), encoding="utf-8")
    tokenizer = nl.Tokenizer.train(tmp_path / "play.txt", 512, progress=False)
    root = visit(page_of("bpe")).locator(".widget")
    for text in ("our swords", "The King's 2 naïve 🎉"):
        root.locator("input[type=text]").fill(text)
        assert root.locator(".bpe-ids").inner_text() == f"ids: {', '.join(map(str, tokenizer.encode(text)))}"
    root.locator("input[type=range]").first.press("Home")
    shown = root.locator(".bpe-token small").all_inner_texts()
    assert shown == [str(byte) for byte in "The King's 2 naïve 🎉".encode()]


def test_the_walk_plays_by_itself_and_stops_at_its_end(visit):
    root = visit(page_of("cache")).locator(".widget")
    root.get_by_role("button", name="play").click()
    root.page.wait_for_function("() => document.querySelector('.widget output').textContent === '6 of 6'")
    root.get_by_role("button", name="play").wait_for()                 # it was "pause" while it ran
    assert "So far 6 passes" in root.locator(".widget-says").inner_text()


def test_the_marker_of_a_landscape_follows_the_mouse_and_reads_the_loss(visit):
    tab = visit(page_of("landscape"))
    root = tab.locator(".widget")
    data = json.loads(root.locator("script").text_content())
    rung, n = data["rungs"][-1], len(data["at"])
    assert f"{rung['loss'][n // 2][n // 2]:.3f}" in root.locator(".widget-says").inner_text()
    root.locator(".landscape-frame").scroll_into_view_if_needed()
    frame = root.locator(".landscape-frame").first.bounding_box()
    tab.mouse.move(frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(frame["x"] + frame["width"] + 30, frame["y"] - 30)  # beyond the corner
    tab.mouse.up()
    said = root.locator(".widget-says").inner_text()
    assert "a = 1.00, b = 1.00" in said and f"{rung['loss'][-1][-1]:.3f}" in said


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_letters_can_be_told_from_their_background(page, scheme, visit):
    """Also on the colours of heat maps, and after every slider has moved."""
    root = visit(page, scheme=scheme).locator(".widget").first
    for control in root.locator("input[type=range]").all():
        control.press("ArrowRight")
    assert root.evaluate(CONTRAST) == []


# Contrast by WCAG, of text in HTML and in pictures that lies on a colour of its own or on the page's.
CONTRAST = """
root => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgb = colour => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = element => {
        for (let up = element; up; up = up.parentElement) {
            const colour = rgb(getComputedStyle(up).backgroundColor);
            if (colour[3] === 255) return colour;
        }
        return [255, 255, 255, 255];
    };
    const found = [];
    for (const one of root.querySelectorAll("text, td, th, b, small, i, span, output, legend, button, caption, p")) {
        const own = [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
        if (!own || one.closest("[aria-pressed=false]")) continue;
        const style = getComputedStyle(one), letters = rgb(one.tagName === "text" ? style.fill : style.color);
        const [high, low] = [light(letters), light(ground(one))].sort((a, b) => b - a), ratio = (high + 0.05) / (low + 0.05);
        if (ratio < 4.5) found.push(`${one.tagName} ${one.textContent.slice(0, 20)}: ${ratio.toFixed(2)}`);
    }
    return found;
}
"""
