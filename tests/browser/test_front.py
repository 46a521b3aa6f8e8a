"""The way into the built book, in Chromium: the front page's living picture, the whole Llama, "you are here", and the path.

    sphinx-build -q -W docs BOOK && NUMLLAMA_BOOK=BOOK pytest tests/browser/test_front.py

Without NUMLLAMA_BOOK the file is not collected (conftest.py).
"""

import re

import pytest
from browser.pages import BOOK, watched

PIXELS = "canvas => Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)"


@pytest.fixture
def visit(browser, address):
    """Opens a page of the book; at the end the console must have no errors, and no request may have left the machine."""
    contexts, complaints = [], []

    def opened(page, width=1280, height=800, motion="reduce", **options):
        context = browser.new_context(viewport=dict(width=width, height=height), reduced_motion=motion, **options)
        contexts.append(context)
        tab = context.new_page()
        watched(tab, address, complaints)
        tab.goto(address + page)
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def slide(tab, step):
    script = "(slider, step) => { slider.value = step; slider.dispatchEvent(new Event('input')); }"
    tab.locator(".living input").evaluate(script, step)


def heat(tab, which):
    return tab.locator(f".living .{which} canvas").evaluate(PIXELS)


def hues(pixels):
    """The colours that an array is drawn with."""
    return {tuple(pixels[i : i + 3]) for i in range(0, len(pixels), 4) if pixels[i + 3] == 255}


def test_the_first_screen_holds_the_picture_and_the_doors(visit):
    tab = visit("index.html")
    for part in ("h1", ".living input", ".living .rows", ".doors"):
        box = tab.locator(part).first.bounding_box()
        assert box["y"] + box["height"] <= 800, part
    assert tab.locator(".door").count() == 3


def test_no_letter_of_a_bar_is_cut(visit):
    tab = visit("index.html", width=390, height=844)
    slide(tab, 8)
    shown, cut = tab.evaluate("""() => {
      const letters = [...document.querySelectorAll(".living .next i")].filter(bar => bar.textContent).map(bar => {
        const range = document.createRange();
        range.selectNodeContents(bar);
        const letter = range.getBoundingClientRect(), {right, bottom} = bar.getBoundingClientRect();
        return letter.top >= bottom ? "hidden" : letter.right <= right ? "shown" : "cut";
      });
      return ["shown", "cut"].map(state => letters.filter(each => each === state).length);
    }""")
    assert shown > 10 and cut == 0


def test_the_slider_moves_the_picture_forward_and_back(visit):
    tab = visit("index.html")
    slide(tab, 0)
    assert tab.locator(".living .step").inner_text().startswith("Forward: embedding")
    start = heat(tab, "stream")
    assert hues(heat(tab, "shows")) <= {(14, 142, 166), (138, 83, 200)}
    slide(tab, 26)
    assert "Forward, layer 2: addition" in tab.locator(".living .step").inner_text()
    assert heat(tab, "stream") != start
    slide(tab, 31)                                                     # the head's backward: the stream has no gradient yet
    assert not any(heat(tab, "stream")) and any(heat(tab, "shows"))
    slide(tab, 32)
    assert any(heat(tab, "stream"))
    assert "Backward: RMSNorm" in tab.locator(".living .step").inner_text()
    slide(tab, 59)
    assert "Backward: embedding" in tab.locator(".living .step").inner_text()
    assert hues(heat(tab, "shows")) <= {(222, 110, 20), (200, 30, 90)}


def test_the_prediction_grows_with_depth(visit):
    tab = visit("index.html")
    right = "bars => bars.map(bar => parseFloat(bar.style.width)).reduce((a, b) => a + b)"
    sums = []
    for step in (0, 8, 13, 21, 26):                                    # after the embedding and each addition
        slide(tab, step)
        sums.append(tab.locator(".living .next .right").evaluate_all(right))
    assert sums[-1] > 2 * sums[0] and sums[-1] == max(sums)


def test_keys_move_the_slider_and_its_step_is_named(visit):
    tab = visit("index.html")
    slider = tab.locator(".living input")
    slider.focus()
    tab.keyboard.press("Home")
    tab.keyboard.press("ArrowRight")
    assert slider.input_value() == "1"
    assert slider.get_attribute("aria-valuetext") == "2 of 60. Forward, layer 1: RMSNorm. n = x / rms(x) · gain"
    assert tab.locator(".living [data-box].lit").evaluate_all("all => all.map(one => one.dataset.box)") == ["attn_norm"]
    tab.keyboard.press("End")
    assert slider.input_value() == "59"


def test_a_cell_says_its_number(visit):
    tab = visit("index.html")
    slide(tab, 2)
    canvas, caption = tab.locator(".living .shows canvas"), tab.locator(".living .shows figcaption")
    size = canvas.bounding_box()
    canvas.hover(position=dict(x=1, y=1))
    assert re.fullmatch(r"t: q\[0\] [=≥≤] -?\d.*", caption.inner_text())
    canvas.hover(position=dict(x=size["width"] - 1, y=size["height"] - 1))
    assert re.fullmatch(r"n: v\[15\] [=≥≤] -?\d.*", caption.inner_text())
    tab.mouse.move(0, 0)
    assert caption.inner_text() == "this step"
    slide(tab, 59 - 2)
    canvas.hover(position=dict(x=1, y=1))
    assert caption.inner_text().startswith("t: dattn_norm[0] ")


def test_it_plays_until_it_is_paused_and_not_at_all_with_reduced_motion(visit):
    still = visit("index.html")
    before = still.locator(".living input").input_value()
    tab = visit("index.html", motion="no-preference")
    tab.wait_for_function("() => Number(document.querySelector('.living input').value) >= 2")
    button = tab.locator(".living .play")
    assert button.inner_text() == "Pause"
    button.click()
    at = tab.locator(".living input").input_value()
    tab.wait_for_timeout(1500)
    assert button.inner_text() == "Play" and tab.locator(".living input").input_value() == at
    assert still.locator(".living input").input_value() == before
    still.locator(".living .play").click()                             # on demand it plays there too
    still.wait_for_function("before => document.querySelector('.living input').value !== before", arg=before)


def test_without_scripts_there_is_a_picture(visit):
    tab = visit("index.html", java_script_enabled=False)
    assert tab.locator(".living img.heat:visible").count() == 2
    assert tab.locator(".living .controls:visible").count() == 0
    assert "layer 2: softmax" in tab.locator(".living .step").inner_text()


@pytest.mark.parametrize("page", ["index.html", "map.html", "path.html", "ops/rmsnorm.html"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_on_a_phone(page, scheme, visit):
    tab = visit(page, width=390, height=844, color_scheme=scheme)
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= 390


LINKS = {"map.html": "svg.llama-map a", "path.html": ".path-map a", "index.html": ".bd-article a"}


@pytest.mark.parametrize("page, links", LINKS.items())
def test_links_lead_to_pages(page, links, visit):
    tab = visit(page)
    found = tab.locator(links).evaluate_all("all => all.map(one => one.href?.baseVal ?? one.getAttribute('href'))")
    assert len(found) >= 9
    for link in found:
        target, _, place = link.partition("#")
        text = (BOOK / (target or page)).read_text(encoding="utf-8")
        assert not place or f'id="{place}"' in text, link


def test_a_box_shows_its_gradients_under_the_pointer_with_the_focus_and_on_demand(visit):
    tab = visit("map.html")
    opacity = "one => getComputedStyle(one.closest('.part').querySelector('.back')).opacity"
    box, other = tab.locator('a[aria-label^="SwiGLU"]'), tab.locator('a[aria-label^="head"]')
    assert box.evaluate(opacity) == "0"
    box.focus()
    tab.wait_for_timeout(300)
    assert (box.evaluate(opacity), other.evaluate(opacity)) == ("1", "0")
    tab.get_by_label("Show the way back").check()
    tab.wait_for_timeout(300)
    assert other.evaluate(opacity) == "1"
    box.click()
    tab.wait_for_url("**/ops/swiglu.html")


def test_you_are_here_beside_a_page_and_below_its_title_on_a_phone(visit):
    wide, phone = visit("ops/rmsnorm.html"), visit("ops/rmsnorm.html", width=390)
    for tab, place in ((wide, ".bd-sidebar-secondary"), (phone, ".bd-article")):
        (link,) = tab.locator(".you-are-here:visible").all()
        assert tab.locator(f"{place} .you-are-here:visible").count() == 1
        assert link.locator(".lit").count() == 3
    wide.locator(".you-are-here:visible").click()
    wide.wait_for_url("**/map.html")


def test_every_page_says_its_time_and_what_you_can_do(visit):
    tab = visit("ops/attention.html")
    line = tab.locator(".on-the-path").inner_text()
    assert "30 min · after Softmax and RoPE" in line and "After this page you can write" in line
    others = {"_static", "generated", "slides", "source"}
    without = [
        page.relative_to(BOOK).as_posix()
        for page in BOOK.rglob("*.html")
        if not others & set(page.parts) and "on-the-path" not in page.read_text(encoding="utf-8")
    ]
    assert sorted(without) == ["genindex.html", "index.html", "path.html", "search.html"]


def test_a_station_lights_all_that_comes_before(visit):
    tab = visit("path.html")
    tab.locator('[data-page="ops/attention"] > div > a').focus()
    before = tab.locator(".path-map .before").evaluate_all("all => all.map(one => one.dataset.page)")
    assert before == ["start", "ops/linear", "ops/softmax", "ops/rope"]
    assert "5 pages, 1 h 48 min in all" in tab.locator(".path-map .chosen .route:visible").inner_text()
