"""Put Python for the pages into a built book: Pyodide's core from npm, NumPy and the other packages from Pyodide's distribution.

    sphinx-build docs BOOK && python docs/pyodide.py BOOK

Every file is compared with a SHA-256 sum: the core's archive with the one below, the packages with those in the core's own list.
Without this step the pages say that they come without Python, and offer to load it from the distribution's host.
"""

import argparse
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

VERSION = "314.0.7"  # as in docs/_static/python/engine.js
CORE = f"https://registry.npmjs.org/pyodide/-/pyodide-{VERSION}.tgz"
CORE_SHA256 = "66b7949e5a0cba2250b586d7e368bf12fb482800748d182c4618254b685ffaa0"
PACKAGES = f"https://cdn.jsdelivr.net/pyodide/v{VERSION}/full/"
FILES = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json")
WANTED = ("numpy", "matplotlib", "regex", "tqdm", "safetensors", "ml_dtypes", "threadpoolctl")  # and what they depend on


def download(url: str) -> bytes:
    with urlopen(url, timeout=60) as answer:
        return answer.read()


def checked(content: bytes, sha256: str, name: str) -> bytes:
    """The content; ValueError if it is not what was published."""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{name} is not the file that was published: its SHA-256 sum is another one")
    return content


def core_files(archive: bytes) -> dict[str, bytes]:
    """The files that a page loads, from npm's archive."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {name: tar.extractfile(f"package/{name}").read() for name in FILES}


def wheels(lock: dict, wanted: tuple[str, ...] = WANTED) -> dict[str, str]:
    """File names and SHA-256 sums of the packages that are wanted and of those that they depend on."""
    packages = {name.replace("_", "-"): package for name, package in lock["packages"].items()}
    found, todo = {}, list(wanted)
    while todo:
        package = packages[todo.pop().replace("_", "-")]
        if package["file_name"] not in found:
            found[package["file_name"]] = package["sha256"]
            todo += package["depends"]
    return found


def install(folder: Path, fetch: Callable[[str], bytes] = download, core_sha256: str = CORE_SHA256) -> list[str]:
    """Write all files into the folder `_static/pyodide` of a book; returns their names."""
    if not (folder / "_static" / "python").is_dir():
        raise ValueError(f"{folder} is not a built book: it has no _static/python")
    files = core_files(checked(fetch(CORE), core_sha256, CORE))
    for name, sha256 in wheels(json.loads(files["pyodide-lock.json"])).items():
        files[name] = checked(fetch(PACKAGES + name), sha256, name)
    place = folder / "_static" / "pyodide"
    place.mkdir(exist_ok=True)
    for name in sorted(files, key=lambda name: name == "pyodide-lock.json"):  # the last one says that all are there
        (place / name).write_bytes(files[name])
    return sorted(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("book", type=Path, help="the folder of the built book")
    try:
        names = install(parser.parse_args().book)
    except (URLError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(names)} files in _static/pyodide: {', '.join(names)}")


if __name__ == "__main__":
    main()
