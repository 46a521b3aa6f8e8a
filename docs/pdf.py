"""The book as one PDF, or each deck of slides, printed by Chromium.

    sphinx-build docs docs/_build && python docs/pdf.py docs/_build/numllama.pdf
    python docs/pdf.py docs/_build/slides              # week-1.pdf and so on, beside the decks
    python docs/pdf.py docs/_build/slides --notes      # with the rest of each section's text after its slide

Uses the pages that were run for the HTML book (its folder's `.doctrees`), so that nothing runs twice. Needs the extras `docs` and
`browser`, and Chromium ($NUMLLAMA_CHROMIUM, or on the PATH).
"""

import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, sync_playwright
from sphinx.cmd.build import main as sphinx_build

DOCS = Path(__file__).resolve().parent
CHROMIUM = os.environ.get("NUMLLAMA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PAPER = """
@page { size: A4; margin: 18mm 16mm; }
.bd-header, .bd-header-announcement, .bd-sidebar-primary, .bd-sidebar-secondary, .bd-footer, .prev-next-footer, #pst-back-to-top,
.header-article, button, .headerlink, .skip-link { display: none !important; }
.bd-main .bd-content .bd-article-container, .bd-article, .bd-page-width { max-width: none !important; padding: 0 !important; }
section > h1 { break-before: page; }
h2, h3 { break-after: avoid; }
div.math, .cell_output img, table, div.highlight { break-inside: avoid; }
div.highlight pre, div.cell_output pre { white-space: pre-wrap; font-size: 0.68rem; }
iframe { display: none; }
"""
FOOTER = '<div style="width: 100%; font-size: 8px; text-align: center"><span class="pageNumber"></span></div>'


def print_page(page: Page, path: Path) -> None:
    """Print the page that is open, with its math typeset and everything unfolded."""
    page.evaluate("MathJax.startup.promise")
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    page.add_style_tag(content=PAPER)
    page.pdf(path=path, prefer_css_page_size=True, outline=True, tagged=True, print_background=True,
             display_header_footer=True, header_template="<span></span>", footer_template=FOOTER)  # fmt: skip


def print_decks(folder: Path, notes: bool) -> None:
    """Print each deck of a folder to a PDF beside it, one slide a page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 720}, color_scheme="light")
        for deck in sorted(folder.glob("*.html")):
            page.goto(deck.as_uri() + "?notes" * notes)
            page.wait_for_selector("html[data-ready]")
            page.pdf(path=deck.with_suffix(".pdf"), prefer_css_page_size=True, outline=True, tagged=True, print_background=True)
            print(deck.with_suffix(".pdf"))
        browser.close()


def main(path: Path) -> int:
    with TemporaryDirectory() as folder:
        code = sphinx_build(["-q", "-W", "-b", "singlehtml", "-d", str(path.parent / ".doctrees"), str(DOCS), folder])
        if code:
            return code
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(color_scheme="light")
            page.set_default_timeout(600_000)
            page.goto((Path(folder) / "index.html").as_uri())
            print_page(page, path)
            browser.close()
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    given, notes = [each for each in sys.argv[1:] if each != "--notes"], "--notes" in sys.argv
    if len(given) != 1 or given[0].startswith("-"):
        sys.exit(__doc__)
    path = Path(given[0]).resolve()
    sys.exit(print_decks(path, notes) if path.is_dir() else main(path))
