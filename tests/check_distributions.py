"""Are a built wheel and source archive complete?  python tests/check_distributions.py FOLDER

The wheel holds every file of the package and every kernel, the source archive everything that the tests and the book need. The
long description has no link that works only inside the repository.
"""

import re
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RELATIVE = re.compile(r"\]\((?!https?:|#)[^)]*\)")
IN_SOURCES = ("numllama", "kernels", "tests", "docs", "examples", "benchmarks")
LEFT_OUT = {"__pycache__", "_build", "generated", "jupyter_execute"}


def files(folder: str) -> set[str]:
    """The files of a folder of the checkout, without what is made there."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not LEFT_OUT & set(path.parts) and path.suffix != ".pyc"
    }


def problems(folder: Path) -> list[str]:
    """The problems of the distributions in a folder, one sentence each."""
    wheels, archives = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(archives) != 1:
        return [f"{folder} holds {len(wheels)} wheels and {len(archives)} source archives, but must hold one of each"]
    with zipfile.ZipFile(wheels[0]) as wheel:
        packed = set(wheel.namelist())
        (metadata,) = [name for name in packed if name.endswith(".dist-info/METADATA")]
        description = wheel.read(metadata).decode()
    with tarfile.open(archives[0]) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    wanted = files("numllama") | {f"numllama/cuda/{name}" for name in files("kernels")}
    found = [f"the wheel lacks {name}" for name in sorted(wanted - packed)]
    found += [f"the wheel holds {name}" for name in sorted(packed) if not name.startswith(("numllama/", "numllama-"))]
    found += [f"the source archive lacks {name}" for place in IN_SOURCES for name in sorted(files(place) - sources)]
    found += [f"the long description has a link that PyPI cannot follow: {link}" for link in RELATIVE.findall(description)]
    return found


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]).resolve())
    print("\n".join(wrong) or "the wheel and the source archive are complete")
    sys.exit(bool(wrong))
