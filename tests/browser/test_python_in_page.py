"""Python in the book's pages, in Chromium: code cells that run, and exercises from a blank to "right".

    sphinx-build -q -W docs BOOK && NUMLLAMA_BOOK=BOOK pytest tests/browser/test_python_in_page.py

Pyodide's core comes from npm, and runs in the page's worker as it does for a reader. Its NumPy comes from another host, so pages
that need NumPy are tested with another engine behind the same protocol: CPython and NumPy in WebAssembly, on the test's server.
"""

import re
import sys
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser.pages import BOOK, at_home
from browser.wasi_engine.server import Pythons, served
from playwright.sync_api import expect

from numllama.learn.exercises import find_exercise

ROOT = Path(__file__).resolve().parents[2]
PAGE = "ops/rmsnorm.html"
PATIENCE = 300_000  # ms: Python starts in seconds, but not on a machine that is busy
BLANK = 'raise NotImplementedError("your turn")'
NEVER = "export async function begin(base, anywhere, packages, say) { say('Loading numpy…'); await new Promise(() => {}); }"
FIRST = "div.cell >> nth=0"
WRONG = """\
    x, weight, rstd = cache
    dx = dout * weight * rstd
    dweight = (dout * x * rstd).reshape(-1, x.shape[-1]).sum(0)
    return dx, dweight
"""
RIGHT = WRONG.replace("dx = dout * weight * rstd", """\
n, dn = x * rstd, dout * weight
    dx = rstd * (dn - n * (dn * n).mean(-1, keepdims=True))""")  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    """The book as it was built: without Python."""
    with served(BOOK) as address:
        yield address


@pytest.fixture(scope="module")
def with_core(tmp_path_factory):
    """With Pyodide's core, and without NumPy."""
    sys.path.insert(0, str(ROOT / "docs"))
    import pyodide

    folder = tmp_path_factory.mktemp("core")
    for name, content in pyodide.core_files(pyodide.checked(pyodide.download(pyodide.CORE), pyodide.CORE_SHA256, "core")).items():
        (folder / name).write_bytes(content)
    with served(BOOK, {"/_static/pyodide/": folder}) as address:
        yield address


@pytest.fixture(scope="module")
def with_numpy(tmp_path_factory):
    """With Python and NumPy."""
    pythons = Pythons(BOOK, tmp_path_factory.mktemp("book"))
    with served(BOOK, {"/_static/python/engine.js": Path(__file__).parent / "wasi_engine" / "engine.js"}, pythons) as address:
        yield address
    pythons.close()


@pytest.fixture
def reader(browser):
    """Opens pages; in the end, the console has no errors and no request has gone to another host."""
    context, found = browser.new_context(), []

    def go(address, page=PAGE, size=(1280, 900), scheme="light", ready=".python-bar"):
        tab = context.new_page()
        tab.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
        tab.emulate_media(color_scheme=scheme)
        tab.set_default_timeout(PATIENCE)
        tab.on("pageerror", lambda error: found.append(f"script: {error}"))
        context.on("request", lambda request: found.append(request.url) if not at_home(request.url, address) else None)
        tab.goto(address + page, wait_until="load")
        tab.wait_for_selector(ready)
        return tab

    yield go
    context.close()
    assert not found, found


def seconds(tab, n):
    tab.evaluate("async n => { (await import(new URL('../_static/python/session.js', location))).session.seconds = n; }", n)


def cell(tab, number=0):
    return tab.locator("div.cell", has=tab.locator(".python-bar")).nth(number)


def run(tab, number=0, text=None, status="Done in"):
    """Run a cell, with another text, until its status line says so."""
    place = cell(tab, number)
    if text is not None:
        if not place.locator("textarea").count():
            place.get_by_role("button", name="Run").click()
            expect(place.get_by_role("button", name="Run")).to_be_enabled(timeout=PATIENCE)
        place.locator("textarea").fill(text)
    place.get_by_role("button", name="Run").click()
    expect(place.locator(".python-status")).to_contain_text(re.compile(status), timeout=PATIENCE)
    return place


# ------------------------------------------------------------------------------------------------ without Python


def test_a_book_without_python_says_so_and_asks_before_it_goes_to_another_host(browser, plain):
    tab, asked = browser.new_page(), []
    tab.on("request", lambda request: asked.append(request.url))
    tab.context.route(lambda url: not at_home(url, plain), lambda route: route.abort())
    tab.goto(plain + PAGE, wait_until="load")
    tab.wait_for_selector(".python-bar")
    assert not [url for url in asked if "engine.js" in url or "pyodide" in url], "nothing is loaded before a button is pressed"
    place = run(tab, status="This copy of the book comes without Python")
    assert all(at_home(url, plain) for url in asked)
    place.get_by_role("button", name="Load it from cdn.jsdelivr.net").click()
    expect(place.locator(".python-status")).to_contain_text(re.compile("Failed|error|import|fetch"), timeout=PATIENCE)
    tab.close()


def test_without_scripts_an_exercise_shows_its_file_and_the_command(browser, plain):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(plain + PAGE)
    assert "numllama exercises rmsnorm" in tab.locator(".exercise-in-page").inner_text()
    assert "python -m http.server" in tab.locator(".exercise-in-page").inner_text()
    tab.locator(".exercise-in-page summary").click()
    assert 'raise NotImplementedError("your turn")' in tab.locator(".exercise-in-page pre").inner_text()
    assert not tab.locator(".python-bar").count()
    context.close()


# ------------------------------------------------------------------------------------------------ Pyodide


def test_pyodide_runs_cells_and_says_what_needs_numpy(reader, with_core):
    tab = reader(with_core)
    place = run(tab, status="needs the package numpy, which this copy of the book does not have")
    assert place.get_by_role("button", name="Load it from").is_visible()
    run(tab, text="import numllama, sys\nprint(numllama.__version__, sys.platform)\n6 * 7")
    assert re.search(r"\d+\.\d+\.\d+ emscripten\s+42", place.locator(".cell_output").inner_text())
    run(tab, text="def f():\n    return 1 / 0\nf()", status="raises an error")
    error = place.locator(".python-error").inner_text()
    assert "line 2, in f" in error and error.strip().endswith("ZeroDivisionError: division by zero") and "support" not in error
    run(tab, 1, status="Cell 1 of this page, which comes before, raises an error")


def test_what_never_ends_is_stopped_by_a_button_and_by_itself_and_python_starts_again(reader, with_core):
    tab = reader(with_core)
    place = run(tab, text="kept = 1\nprint('begun')")
    place.locator("textarea").fill("while True: pass")
    place.get_by_role("button", name="Run").click()
    expect(place.locator(".python-status")).to_have_text("Running…", timeout=PATIENCE)
    place.get_by_role("button", name="Stop").click()
    expect(place.locator(".python-status")).to_have_text("Ended.")
    seconds(tab, 3)
    run(tab, text="while True: pass", status="Ended after 3 seconds.")
    seconds(tab, 60)
    run(tab, text="print('kept' in globals())")
    assert place.locator(".cell_output").inner_text().strip() == "False"


# ------------------------------------------------------------------------------------------------ with NumPy


def test_a_student_gets_from_the_front_page_to_a_right_backward(reader, with_numpy):
    tab = reader(with_numpy, "index.html", ready=".doors")
    tab.locator(".bd-header").get_by_role("link", name="Exercises").click()
    row = tab.locator(".exercises-in-page li[data-exercise=rmsnorm]")
    right = row.bounding_box()["width"] - 10                           # all of the row is the link
    row.click(position={"x": right, "y": 10})
    block = tab.locator(".exercise-in-page")
    editor, results, status = block.locator("textarea"), block.locator(".python-results li"), block.get_by_role("status")
    blank = editor.input_value()
    assert 'raise NotImplementedError("your turn")' in blank

    def check(body, said):
        editor.fill(blank.replace('    raise NotImplementedError("your turn")\n', body))
        block.get_by_role("button", name="Check").click()
        expect(status).to_have_text(re.compile(said), timeout=PATIENCE)
        return results.all_inner_texts()

    out, dx, dweight = check(WRONG, "^1 of 3 not right yet.$")
    assert "✓ right" in out and "✓ right" in dweight
    assert dx.startswith("dx ✗ wrong") and "Hint: " in dx
    out, crash = check("    return nothing\n", "^2 of 3 not right yet.$")
    assert re.fullmatch(r"dx, dweight ✗ crashed: line \d+ in rmsnorm_backward: NameError: .*\s+return nothing", crash)
    hints = tab.locator(".exercise-hints > details")
    for n, steps in enumerate(zip(*find_exercise("rmsnorm").hints.values(), strict=True)):
        hints.nth(n).locator("summary").click()
        text = hints.nth(n).inner_text()
        assert text.startswith(f"Hint {n + 1}: ") and all(step in text for step in steps)
    assert hints.nth(3).locator("summary").inner_text() == "Solution"
    assert all("✓ right" in row for row in check(RIGHT, "^Everything is right.$"))
    tab.reload()
    assert "dn - n * (dn * n).mean" in editor.input_value(), "the answer stays in this browser"
    tab.goto(with_numpy + "exercises.html")
    expect(row.locator(".state")).to_have_text("✓ right")
    tab.goto(with_numpy + PAGE)
    block.get_by_role("button", name="Reset").click()
    assert editor.input_value() == blank


@pytest.mark.parametrize("size", [(1280, 900), (390, 664)])
def test_the_editor_opens_at_the_function_to_write_before_and_after_it_is_written(size, reader, plain):
    for text in (BLANK, "return 'my answer'"):
        editor = reader(plain, f"{PAGE}#exercises", size=size).locator(".exercise-in-page textarea")
        place = editor.evaluate("""(area, text) => {
          const line = area.value.slice(0, area.value.indexOf(text)).split("\\n").length - 0.5;
          const inside = line * parseFloat(getComputedStyle(area).lineHeight) - area.scrollTop;
          return [inside / area.clientHeight, inside + area.getBoundingClientRect().top, innerHeight];
        }""", text)  # fmt: skip
        assert 0.2 < place[0] < 0.8 and 0 < place[1] < place[2], (text, place)
        editor.fill(editor.input_value().replace(BLANK, "return 'my answer'"))


def test_a_python_that_does_not_come_is_given_up_and_asked_for_again(reader, plain):
    tab = reader(plain)
    tab.context.route("**/python/engine.js", lambda route: route.fulfill(content_type="text/javascript", body=NEVER))
    session = "new URL('../_static/python/session.js', location)"
    tab.evaluate(f"async () => {{ (await import({session})).session.patience = 2; }}")
    block = tab.locator(".exercise-in-page")
    for _ in range(2):
        block.get_by_role("button", name="Check").click()
        expect(block.get_by_role("status")).to_have_text("Loading numpy…")
        said = "Loading numpy… It takes longer than 2 seconds: is there a connection? Try again."
        expect(block.get_by_role("status")).to_have_text(said, timeout=PATIENCE)


def test_a_cell_runs_after_those_before_it_and_gives_what_the_build_gave(reader, with_numpy):
    tab = reader(with_numpy)
    second = cell(tab, 1)
    built = second.locator(".cell_output").inner_text().split()
    run(tab, 1)
    assert second.locator(".cell_output").inner_text().split() == built and len(built) > 10
    second.locator("textarea").fill("print(np.arange(3) + x.sum())")
    run(tab, 1)
    assert second.locator(".cell_output").inner_text().split() == ["[4.", "5.", "6.]"]
    second.get_by_role("button", name="Reset").click()
    assert second.locator(".cell_output").inner_text().split() == built
    assert not second.locator("textarea").count() and second.get_by_role("button", name="Run").is_enabled()


def test_a_picture_and_a_difference_are_drawn(reader, with_numpy):
    tab = reader(with_numpy)
    cells = tab.locator("div.cell", has=tab.locator(".python-bar"))
    codes = [cells.nth(i).text_content() for i in range(cells.count())]
    wrong, drawn = (next(i for i, code in enumerate(codes) if part in code) for part in ("mistake(", "quiver("))
    run(tab, wrong)
    output = cell(tab, wrong).locator(".cell_output").inner_text()
    assert "- rstd * (dn - n" in output.replace("\xa0", " ") and "dx · x, wrong:" in output
    tab.locator("details summary", has_text="code").first.click()
    run(tab, drawn)
    picture = cell(tab, drawn).locator(".cell_output img")
    assert picture.get_attribute("src").startswith("data:image/svg+xml")
    assert picture.evaluate("img => img.decode().then(() => img.naturalWidth)") > 100


def test_the_keyboard_is_enough(reader, with_numpy):
    tab = reader(with_numpy)
    editor = tab.locator(".exercise-in-page textarea")
    editor.fill("")
    editor.press_sequentially("def f():")
    editor.press("Enter")
    editor.press_sequentially("if 1:")
    editor.press("Enter")
    editor.press_sequentially("pass")
    editor.press("Enter")
    editor.press("Shift+Tab")
    editor.press("Tab")
    editor.press_sequentially("pass")
    assert editor.input_value() == "def f():\n    if 1:\n        pass\n        pass"
    editor.press("Control+Enter")
    expect(tab.locator(".exercise-in-page .python-results li").first).to_contain_text("does not define", timeout=PATIENCE)
    editor.focus()
    editor.press("Escape")
    editor.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Check"


@pytest.mark.parametrize("size, scheme", [((1280, 900), "light"), ((390, 844), "dark")])
def test_buttons_editors_and_results_are_accessible(size, scheme, reader, with_numpy):
    tab = reader(with_numpy, size=size, scheme=scheme)
    run(tab, 0)
    tab.locator(".exercise-in-page").get_by_role("button", name="Check").click()
    expect(tab.locator(".exercise-in-page .python-results li").nth(1)).to_be_visible(timeout=PATIENCE)
    for box in (".cell .python-editor", ".exercise-in-page"):
        assert tab.locator(box).first.evaluate("box => box.getBoundingClientRect().right <= innerWidth")
    axe = Axe()
    context = {"include": [[".python-bar"], [".exercise-in-page"], [".python-editor"]]}
    found = axe.run(tab, context, {"resultTypes": ["violations"], "preload": False}).response["violations"]
    assert not [(each["id"], each["nodes"][0]["html"]) for each in found]
