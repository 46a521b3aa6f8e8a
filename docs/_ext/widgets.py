"""Interactive pictures: a page that contains one loads the script and the style that draw it; other pages load neither.

A cell of the page ends with `Widget("softmax", data)` (numllama/learn/book.py), and docs/_static/widgets/softmax.js draws it.
"""

from typing import Any


def add_scripts(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Sphinx calls this for each page, and files that are added here are added to this page alone."""
    if ' data-widget="' in context.get("body", ""):
        app.add_css_file("widgets/widgets.css")
        app.add_js_file("widgets/main.js", type="module")


def setup(app: Any) -> dict[str, bool]:
    app.connect("html-page-context", add_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
