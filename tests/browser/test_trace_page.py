"""A trace's page in Chromium: each number can be pointed at, by mouse, by touch and by keys; nothing else is requested."""

import json
import re

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe

import numllama as nl
from numllama.learn import compare_report
from numllama.learn.trace_report import as_html
from numllama.learn.trace_views import Views, view_reports
from numllama.learn.tracing import trace, traced_model
from numllama.learn.vectors import standard_vectors

PIXEL = """image => {
  const canvas = document.createElement("canvas"), drawn = canvas.getContext("2d")
  drawn.drawImage(image, 0, 0)
  return [...drawn.getImageData(1, 0, 1, 1).data]
}"""
MODEL, TOKENIZER = traced_model(steps=5)
TRACE = trace(MODEL, TOKENIZER, "the king")
VALUES = {t.name: t for t in TRACE.values}


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page; at the end its console must be empty, and it must have requested nothing but itself."""
    context, problems = browser.new_context(viewport={"width": 1280, "height": 900}), []

    def open_page(html):
        (tmp_path / "page.html").write_text(html, encoding="utf-8")
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url) if not request.url.endswith("page.html")
                and not request.url.startswith("data:") else None)  # fmt: skip
        page.goto((tmp_path / "page.html").as_uri())
        return page

    yield open_page
    context.close()
    assert problems == []


def line(page):
    return page.locator("output.line").inner_text()


def point(page, picture, row, column, rows, columns):
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    page.mouse.move(box["x"] + (column + 0.5) * box["width"] / columns, box["y"] + (row + 0.5) * box["height"] / rows)


def assert_reads(text, name, place):
    t = VALUES[name]
    value, gradient = (float(re.search(rf"{kind} (\S+)", text)[1]) for kind in ("value", "gradient"))
    assert text.startswith(f"{name} · ")
    assert value == pytest.approx(t.value[(0, *place)], rel=1e-3, abs=1e-12)
    assert gradient == pytest.approx(t.gradient[(0, *place)], rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("kind", ["value", "gradient"])
def test_the_number_under_the_pointer_is_read(opened, kind):
    page = opened(as_html(TRACE))
    shape = VALUES["layer 1: gate"].value.shape[1:]
    point(page, page.locator(f"tr[data-name='layer 1: gate'] img[data-kind={kind}]"), 3, 21, *shape)
    assert "token 3 ' ', component 21" in line(page)
    assert_reads(line(page), "layer 1: gate", (3, 21))
    point(page, page.locator(f"tr[data-name='layer 0: q_rotated'] img[data-kind={kind}]").nth(2), 6, 5, 7, 8)
    assert "head 2, token 6 'n', component 5" in line(page)
    assert_reads(line(page), "layer 0: q_rotated", (2, 6, 5))


def test_the_large_maps_are_read_too(opened):
    page = opened(as_html(TRACE))
    point(page, page.locator("figure img").nth(5), 4, 2, 7, 7)
    assert "head 1, query 4 'k', key 2 'e'" in line(page)
    assert_reads(line(page), "layer 1: attention", (1, 4, 2))


def test_arrow_keys_move_through_an_array_and_into_its_next_picture(opened):
    page = opened(as_html(TRACE))
    first = page.locator("tr[data-name='layer 0: k_rotated'] img[data-kind=value]").first
    page.locator("tr[data-name='layer 0: q_rotated'] img[data-kind=gradient]").first.focus()
    page.keyboard.press("Tab")
    assert first.evaluate("image => image === document.activeElement")
    assert_reads(line(page), "layer 0: k_rotated", (0, 0, 0))
    scrolled = page.evaluate("scrollY")
    for key in ["ArrowDown"] * 2 + ["ArrowRight"] * 3 + ["ArrowUp"]:
        page.keyboard.press(key)
    assert_reads(line(page), "layer 0: k_rotated", (0, 1, 3))
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert "key head 1, token 1" in line(page)
    assert_reads(line(page), "layer 0: k_rotated", (1, 1, 0))
    page.keyboard.press("ArrowLeft")
    assert_reads(line(page), "layer 0: k_rotated", (0, 1, 7))
    assert abs(page.evaluate("scrollY") - scrolled) < 200              # arrow keys move the mark, not the page


def test_cells_of_the_views_are_read_by_pointer_and_keys(opened):
    ids = TOKENIZER.encode("the king shall s")
    reports = view_reports(MODEL, TOKENIZER, ids, Views(lens=True, heads=True))
    page, content = opened(reports.html()), json.loads(reports.json())
    cells = page.locator("table.grid").first.locator("td[data-tip]")
    cells.nth(16 + 2).hover()
    answer = content["lens"]["top_tokens"][1][2][0]
    assert line(page).startswith(f"layer 0, after token 2 'e': {answer!r} {content['lens']['probs'][1][2][0]:.1%}")
    cells.first.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    assert line(page).startswith("layer 0, after token 0 't'")
    point(page, page.locator("figure img").first, 9, 3, 16, 16)
    head = map(int, re.findall(r"\d+", page.locator("figcaption").first.inner_text())[:2])
    attention = np.array(content["heads"]["attention"])[*head, 9, 3]
    assert "query 9 's', key 3 ' '" in line(page) and "gradient" not in line(page)
    assert float(re.search(r"value (\S+)", line(page))[1]) == pytest.approx(attention, rel=1e-3)


def compared():
    """The page of `numllama compare`, with a value that is wrong and many that are the same."""
    vectors = standard_vectors("mha")
    q = "values/layer.0.q"
    return compare_report.as_html(nl.compare(vectors, {**vectors.tensors, q: -vectors.tensors[q]}))


@pytest.mark.parametrize("scheme, dark", [("light", False), ("dark", True)])
def test_the_page_has_the_colours_of_the_readers_system(browser, tmp_path, scheme, dark):
    reports = view_reports(MODEL, TOKENIZER, TOKENIZER.encode("the king"), Views(lens=True, heads=True))
    for name, html in (("views", reports.html()), ("trace", as_html(TRACE)), ("compare", compared())):
        (tmp_path / f"{name}.html").write_text(html, encoding="utf-8")
        page = browser.new_page(color_scheme=scheme)
        page.goto((tmp_path / f"{name}.html").as_uri())
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 150) == dark
        options = {"runOnly": ["color-contrast"], "preload": False}
        found = Axe().run(page, None, options).response["violations"]
        assert not [each["nodes"][0]["html"][:200] for each in found]
        for map_ in page.locator("figure img").all()[:1]:
            assert map_.evaluate(PIXEL)[3] == 0, "zero has the colour of the page: no token sees the one after it"
        page.close()


def test_a_phone_shows_all_pictures_and_reads_what_is_tapped(browser, tmp_path):
    (tmp_path / "page.html").write_text(as_html(TRACE), encoding="utf-8")
    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True)
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.locator("tr[data-name='norm'] img").first.tap()
    assert line(page).startswith("norm · token ")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_without_scripts_the_pictures_and_tables_are_there(browser, tmp_path):
    (tmp_path / "page.html").write_text(as_html(TRACE), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    assert page.locator("output.line").count() == 0 and page.locator("img").count() > 100
    context.close()
