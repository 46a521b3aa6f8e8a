"""Is a built book complete?  python tests/docs/check_book.py FOLDER

Every internal link has a target, nothing is loaded from a network, no cell shows a warning or a figure's name instead of the
figure, and MathJax and the downloadable notebooks exist, without links to neighbouring files.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

NEIGHBOUR = re.compile(r"\]\((\.\.?/[^)]*|[^):]+\.(?:md|html)[^)]*)\)")
FAILED_OUTPUT = re.compile(r"Figure size .* Axes|\S*site-packages\S*|\w+Warning:.*")


class Page(HTMLParser):
    """The links of a page, the files it loads, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list) -> None:
        given = dict(attributes)
        self.places |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag in ("script", "img", "link", "iframe", "source"):
            self.loads += [given[name] for name in ("src", "href") if given.get(name)]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def problems(folder: Path) -> list[str]:
    """The problems of the book, one sentence each."""
    paths = (path for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts)  # the theme's templates are there
    pages = {path: Page(path) for path in paths}
    found = [] if pages else [f"there are no pages in {folder}"]
    for path, page in pages.items():
        where = path.relative_to(folder).as_posix()
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loads and parts.scheme != "data":
                    found.append(f"{where} loads {link}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{where} links to {link}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                found.append(f"{where} links to {link}, but that page has no such place")
        found += [f"{where} shows {what}" for what in FAILED_OUTPUT.findall("".join(page.text))]
    if not (folder / "_static" / "tex-svg.js").exists():
        found.append("MathJax is not there")
    downloads = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("_downloads/*/*.ipynb")}
    notebooks = {f"{path.stem}.ipynb" for path in (folder / "notebooks").glob("*.html")} - {"index.ipynb"}
    found += [f"{name} cannot be downloaded" for name in sorted(notebooks - set(downloads))]
    for name, text in sorted(downloads.items()):
        found += [f"{name} links to {link}, which is nowhere once it is downloaded" for link in NEIGHBOUR.findall(text)]
    return found


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]).resolve())
    print("\n".join(wrong) or "every link resolves, and nothing comes from a network")
    sys.exit(bool(wrong))
