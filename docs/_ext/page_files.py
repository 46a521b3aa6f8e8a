"""What a page's Python gets of the build: the sources of the page's cells, and the package as a wheel."""

import re
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from numllama import __version__

ROOT = Path(__file__).resolve().parents[2]
WHEEL = f"numllama-{__version__}-py3-none-any.whl"
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTIONS = re.compile(r"\A(?:---\n.*?^---\n|(?::[^\n]*\n)+)", re.MULTILINE | re.DOTALL)


def cells_of(source: str) -> list[dict[str, object]]:
    """The code cells of a page: the code, and whether the page has a place for the cell."""
    cells = []
    for body in CELL.findall(source):
        options = found[0] if (found := OPTIONS.match(body)) else ""
        cells.append({"code": body.removeprefix(options).strip("\n"), "there": "remove-cell" not in options})
    return cells


def write_wheel(path: Path) -> None:
    """The package without its CUDA sources, as a wheel."""
    files = {file.relative_to(ROOT).as_posix(): file.read_bytes() for file in sorted((ROOT / "numllama").rglob("*.py"))}
    about = f"numllama-{__version__}.dist-info"
    metadata = ("Metadata-Version: 2.1", "Name: numllama", f"Version: {__version__}", "Requires-Dist: numpy>=2.0")
    files[f"{about}/METADATA"] = "".join(f"{line}\n" for line in metadata).encode()
    files[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: numllama's book\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{about}/RECORD"]).encode()
    write_zip(path, files)


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    """The same bytes for the same files."""
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content, ZIP_DEFLATED)
