"""The check of a built book finds what is wrong with one."""

import pytest
from docs.check_book import problems


def book(folder, **changes):
    files = {
        "index.html": '<a href="notebooks/one.html#here">x</a><a href="https://arxiv.org">y</a>'
        '<script src="_static/tex-svg.js"></script>',
        "notebooks/one.html": '<p id="here"></p><a href="../index.html">x</a><a href="#here">y</a>'
        '<img src="data:image/png;base64,AA==">',
        "_static/tex-svg.js": "",
        "_static/template.html": '<script src="{{ pathto(file) }}"></script>',
        "_downloads/abc/one.ipynb": "{}",
    } | changes
    for name, content in files.items():
        if content is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8")
    return folder


def test_a_whole_book_has_no_problems(tmp_path):
    assert problems(book(tmp_path)) == []


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("index.html", '<a href="gone.html">x</a>', "index.html links to gone.html, which is not there"),
        ("index.html", '<a href="notebooks/one.html#no">x</a>', "index.html links to notebooks/one.html#no, but that page has no "
         "such place"),
        ("index.html", '<img src="_images/gone.png">', "index.html links to _images/gone.png, which is not there"),
        ("index.html", '<script src="https://cdn.org/a.js"></script>', "index.html loads https://cdn.org/a.js"),
        ("index.html", '<link href="//fonts.org/a.css">', "index.html loads //fonts.org/a.css"),
        ("index.html", "<pre>&lt;Figure size 960x270 with 4 Axes&gt;</pre>", "index.html shows Figure size 960x270 with 4 Axes"),
        ("index.html", "<pre>RuntimeWarning: overflow</pre>", "index.html shows RuntimeWarning: overflow"),
        ("_static/tex-svg.js", None, "MathJax is not there"),
        ("_downloads/abc/one.ipynb", None, "one.ipynb cannot be downloaded"),
        ("_downloads/abc/one.ipynb", '"[x](../a.md)"', "one.ipynb links to ../a.md, which is nowhere once it is downloaded"),
        ("_downloads/abc/one.ipynb", '"[x](a.html#b)"', "one.ipynb links to a.html#b, which is nowhere once it is downloaded"),
    ],
)
def test_each_thing_that_is_wrong_is_a_sentence(tmp_path, name, content, problem):
    assert problem in problems(book(tmp_path, **{name: content}))


def test_an_empty_folder_is_no_book(tmp_path):
    assert problems(tmp_path)[0].startswith("there are no pages")
