"""Cells and exercises that run in the page: what the build gives to the scripts, and the installer of Pyodide."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

from numllama.learn.exercises import EXERCISES, FUNCTIONS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="tests without the documents")

PAGE = """\
# A page

```{code-cell} python
:tags: [hide-input]
x = 1

print(x)
```

```{code-cell} python
:tags: [remove-cell]
y = "</script>"
```

```python
not_a_cell = 1
```
"""


@pytest.fixture
def pyodide(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.delitem(sys.modules, "pyodide", raising=False)
    import pyodide

    return pyodide


@pytest.fixture
def files(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    import page_files

    return page_files


def test_all_cells_of_a_page_are_listed_in_order_those_without_a_place_too(files):
    assert files.cells_of(PAGE) == [{"code": "x = 1\n\nprint(x)", "there": True}, {"code": 'y = "</script>"', "there": False}]


def test_each_op_and_each_function_has_its_exercise_on_its_page():
    for name, exercise in (EXERCISES | FUNCTIONS).items():
        page = DOCS / f"{exercise.page}.md"
        assert page.read_text(encoding="utf-8").count(f"## Exercises\n\n```{{exercise}} {name}\n```\n") == 1, page


def test_the_page_of_exercises_begins_with_those_that_need_no_installation():
    page = (DOCS / "exercises.md").read_text(encoding="utf-8")
    assert 0 < page.index("```{exercises}") < page.index("```sh") < page.index("```{code-cell}")


def test_the_wheel_has_all_of_the_package_and_runs_from_there(files, tmp_path):
    path = tmp_path / files.WHEEL
    files.write_wheel(path)
    with ZipFile(path) as wheel:
        names = set(wheel.namelist())
        wheel.extractall(tmp_path / "there")
        recorded = wheel.read(f"numllama-{files.__version__}.dist-info/RECORD").decode().splitlines()
    assert {line.partition(",")[0] for line in recorded} == names
    assert {"numllama/__init__.py", "numllama/ops/rmsnorm.py", "numllama/learn/child.py"} <= names
    assert not any(name.endswith((".cu", ".pyc")) for name in names)
    line = "import numllama, sys; print(numllama.__file__); assert 'numpy' not in sys.modules"
    env = {"PYTHONPATH": str(tmp_path / "there")}
    done = subprocess.run([sys.executable, "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith(str(tmp_path)), done.stderr


def test_the_scripts_and_the_installer_name_one_version_of_pyodide(pyodide):
    assert f'const VERSION = "{pyodide.VERSION}";' in (DOCS / "_static" / "python" / "engine.js").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------ the installer

WHEELS = {f"{name}.whl": name.encode() for name in ("numpy", "matplotlib", "pillow", "regex", "tqdm", "safetensors", "ml_dtypes",
                                                   "threadpoolctl", "unwanted")}  # fmt: skip


def published(pyodide, changed=None):
    """The two hosts, as a function of an address, and the sum of the core's archive."""
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in WHEELS.items()}
    packages = {name.removesuffix(".whl").replace("_", "-"): {
        "file_name": name, "sha256": sums[name], "depends": ["pillow", "numpy"] if name == "matplotlib.whl" else []
    } for name in WHEELS}  # fmt: skip
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name in pyodide.FILES:
            content = json.dumps({"packages": packages}).encode() if name == "pyodide-lock.json" else name.encode()
            about = tarfile.TarInfo(f"package/{name}")
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    answers = {pyodide.CORE: file.getvalue()} | {pyodide.PACKAGES + name: content for name, content in WHEELS.items()}
    core_sha256 = hashlib.sha256(file.getvalue()).hexdigest()
    return (answers | (changed or {})).__getitem__, core_sha256


def test_the_installer_brings_the_core_and_what_the_pages_import(pyodide, tmp_path):
    (tmp_path / "_static" / "python").mkdir(parents=True)
    names = pyodide.install(tmp_path, *published(pyodide))
    assert set(names) == {*pyodide.FILES, *WHEELS} - {"unwanted.whl"}
    place = tmp_path / "_static" / "pyodide"
    assert {path.name for path in place.iterdir()} == set(names)
    assert (place / "pillow.whl").read_bytes() == b"pillow" and (place / "pyodide.mjs").read_bytes() == b"pyodide.mjs"


def test_the_installer_writes_nothing_that_was_not_published(pyodide, tmp_path):
    with pytest.raises(ValueError, match="is not a built book"):
        pyodide.install(tmp_path, *published(pyodide))
    (tmp_path / "_static" / "python").mkdir(parents=True)
    fetch, core_sha256 = published(pyodide, {pyodide.PACKAGES + "numpy.whl": b"another"})
    with pytest.raises(ValueError, match=r"numpy\.whl is not the file that was published"):
        pyodide.install(tmp_path, fetch, core_sha256)
    with pytest.raises(ValueError, match=r"pyodide-.*tgz is not the file that was published"):
        pyodide.install(tmp_path, published(pyodide)[0])
    assert not (tmp_path / "_static" / "pyodide").exists()
