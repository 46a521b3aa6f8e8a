"""Above each excerpt of a file: its name and lines, a link to the whole file, which is a page of the book."""

from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from sphinx.directives.code import LiteralInclude

ROOT = Path(__file__).resolve().parents[2]


class Excerpt(LiteralInclude):
    """`literalinclude` without the indentation, below a link to the file."""

    def run(self) -> list[nodes.Node]:
        self.options.setdefault("dedent", None)
        self.options["lineno-match"] = None  # it finds the lines in the file, and would also print their numbers
        (block,) = super().run()
        path = Path(self.env.relfn2path(self.arguments[0])[1]).resolve()
        if not isinstance(block, nodes.literal_block) or not path.is_relative_to(ROOT):
            return [block]
        block["linenos"] = False
        block.setdefault("language", "python" if path.suffix == ".py" else "default")
        first = block["highlight_args"].pop("linenostart")
        last = first + block.rawsource.rstrip("\n").count("\n")
        name = path.relative_to(ROOT).as_posix()
        link = nodes.reference("", "", nodes.literal("", name), nodes.Text(f", lines {first} to {last}"))
        link["excerpt"] = (name, first)
        return [nodes.container("", nodes.paragraph("", "", link, classes=["excerpt-source"]), block, classes=["excerpt"])]


def page_name(name: str) -> str:
    """The page that shows a file."""
    return f"source/{name}"


def link_excerpts(app: Any, doctree: nodes.document, docname: str) -> None:
    """Point the links to the pages; in a PDF or on a single page they are plain text."""
    for link in list(doctree.findall(lambda node: isinstance(node, nodes.reference) and "excerpt" in node)):
        name, first = link["excerpt"]
        if app.builder.name != "html":
            link.replace_self(link.children)
            continue
        link["refuri"] = f"{app.builder.get_relative_uri(docname, page_name(name))}#line-{first}"
        link["internal"] = True


def note(app: Any, doctree: nodes.document) -> None:
    """Remember the files that a page shows."""
    links = doctree.findall(lambda node: isinstance(node, nodes.reference) and "excerpt" in node)
    app.env.metadata[app.env.docname]["excerpts"] = sorted({link["excerpt"][0] for link in links})


def source_pages(app: Any) -> Any:
    """A page for each file: its lines, each with an anchor."""
    names = {name for fields in app.env.metadata.values() for name in fields.get("excerpts", ())}
    formatter = HtmlFormatter(nowrap=True)
    for name in sorted(names):
        lexer = get_lexer_for_filename(name, stripnl=False)
        marked = highlight((ROOT / name).read_text(encoding="utf-8"), lexer, formatter).rstrip("\n").split("\n")
        lines = "\n".join(f'<span id="line-{number}">{line}</span>' for number, line in enumerate(marked, 1))
        body = f'<h1>{escape(name)}</h1>\n<div class="highlight whole-file" translate="no"><pre>{lines}\n</pre></div>'
        yield page_name(name), {"title": name, "body": body, "sourcename": "", "parents": []}, "page.html"


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("literalinclude", Excerpt, override=True)
    app.connect("doctree-read", note)
    app.connect("doctree-resolved", link_excerpts)
    app.connect("html-collect-pages", source_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
