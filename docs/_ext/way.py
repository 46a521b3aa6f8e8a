"""The way into the book, for Sphinx: directives for the pictures, and what stands at the top of each page.

    ```{llama-map}         the whole Llama                  llama_map.py, docs/map.toml
    ```{path-map}          the path, with times             reading_path.py, docs/path.toml
    ```{doors}             the doors of the front page
    ```{living-picture}    a sentence through a Llama       living_picture.py
    ```{syllabus}          a course of eight weeks          syllabus.py, docs/syllabus.toml

Every page gets a line below its title from docs/path.toml, and its neighbours on the path at its end. A page about a box of the
picture gets the picture, small.
"""

import json
from html import escape
from typing import Any

import living_picture
import llama_map
import reading_path
import syllabus
from docutils import nodes
from docutils.parsers.rst import Directive

from numllama.learn.tracing import traced_model


class way_node(nodes.General, nodes.Element):
    """The place of a picture: ``what`` it shows, and its ``data``."""


class Picture(Directive):
    """A picture without options, called by the directive's name."""

    def run(self) -> list[nodes.Node]:
        data = ""
        if self.name == "living-picture":
            data = json.dumps(living_picture.picture_data(*traced_model(seed=0, steps=300)))
            self.state.document.settings.env.note_dependency(living_picture.__file__)
        return [way_node(what=self.name, data=data)]


PICTURES = {
    "llama-map": lambda links, data: llama_map.framed(links.address),
    "path-map": lambda links, data: reading_path.path_map(links),
    "doors": lambda links, data: reading_path.doors(links),
    "syllabus": lambda links, data: syllabus.page(links),
    "living-picture": lambda links, data: living_picture.html(json.loads(data), links.address, links.title),
}


SCRIPTS = {"path-map": "path.js", "living-picture": "living.js"}


def links_from(builder: Any, page: str) -> reading_path.Links:
    """Addresses as seen from a page, and titles."""
    return reading_path.Links(
        lambda name: builder.get_relative_uri(page, name),
        lambda name: builder.env.titles[name].astext(),
    )


def visit(translator: Any, node: way_node) -> None:
    links = links_from(translator.builder, translator.builder.current_docname)
    translator.body.append(PICTURES[node["what"]](links, node["data"]))
    raise nodes.SkipNode


def skip(translator: Any, node: nodes.Node) -> None:
    """Other formats than HTML have no pictures."""
    raise nodes.SkipNode


def add_to_page(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Below a title: the line of the path, and where you are for windows without a sidebar. In it: where you are."""
    if doctree is None:
        return
    links = links_from(app.builder, page)
    context["you_are_here"] = llama_map.here(page, links.address, across=False)
    below = reading_path.line(page, links) + llama_map.here(page, links.address, across=True)
    context["body"] = context["body"].replace("</h1>", f"</h1>\n{below}", 1)
    if page in reading_path.entries() and reading_path.entries()[page].track != "find":
        for where, name in zip(("prev", "next"), reading_path.neighbours(page), strict=True):
            context[where] = {"link": links.address(name), "title": escape(links.title(name))}
    for node in doctree.findall(way_node):
        if node["what"] in SCRIPTS:
            app.add_js_file(SCRIPTS[node["what"]], type="module")      # in this event: for this page only


def setup(app: Any) -> dict[str, bool]:
    app.add_node(way_node, html=(visit, None), **dict.fromkeys(("latex", "text", "man", "texinfo"), (skip, None)))
    for name in PICTURES:
        app.add_directive(name, Picture)
    app.connect("html-page-context", add_to_page)
    tables = [llama_map.table(), reading_path.read(), syllabus.read()]
    app.add_config_value("way_tables", json.dumps(tables), "html")     # a changed table is a reason to write all pages again
    app.add_css_file("way.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
