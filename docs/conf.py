"""Sphinx's settings for the book:  sphinx-build -W docs docs/_build"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS), str(DOCS / "_ext")]
# Pages run in separate processes, with this checkout, the examples, and the test suite's table of mistakes.
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # several pages run in parallel, and all their matrices are small
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "examples"), str(ROOT / "tests")])

from downloads import rewrite_all  # noqa: E402

from numllama import __version__  # noqa: E402

project, author, release = "numllama", "the numllama authors", __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "sphinx.ext.mathjax"]
templates_path = ["_templates"]
exclude_patterns = ["_build", "paper.md", "jupyter_execute", "**.ipynb_checkpoints"]
extensions += ["sphinx_copybutton"]
extensions += ["excerpts", "way", "widgets", "python_in_page", "slides"]               # in docs/_ext
nitpicky = False

# Pages are notebooks in text form. They run at every build, and contain no output.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_execution_show_tb = True
nb_merge_streams = True
nb_render_markdown_format = "gfm"                                      # tables that cells display
myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_inline"]
myst_heading_anchors = 3

# MathJax is part of the book, as one file without fonts: math works without a network.
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax" / "tex-svg.js"
mathjax_path = MATHJAX.name
mathjax3_config = {
    "tex": {
        "macros": {
            "g": [r"\mathrm{d}#1", 1],                                 # \g{x}: the gradient of the loss with respect to x
            "pd": [r"\frac{\partial #1}{\partial #2}", 2],
            "rows": r"\text{rows}",
        }
    },
    "options": {"enableMenu": False},
    "svg": {"mtextInheritFont": True},
}

autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

html_theme = "pydata_sphinx_theme"
html_title = "numllama"
html_favicon = "_static/favicon.svg"
html_context = {"default_mode": "auto"}                                # light or dark, as the reader's system is
html_static_path = ["_static", str(MATHJAX)]
html_css_files = ["book.css"]
html_js_files = ["book.js"]
copybutton_selector = "div:not(.output) > div.highlight:not(.whole-file) pre"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "show_prev_next": True,
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["you-are-here", "page-toc"],
    "footer_start": [],
    "footer_end": [],
}
SINGLE = ("index", "start", "exercises", "trace", "map", "path", "syllabus", "references")     # they have no subpages
html_sidebars = {page: [] for page in SINGLE}


def setup(app):
    app.connect("build-finished", rewrite_all)
