"""Packages that may be missing, and the commands that install them.

This package is not on PyPI, so the commands for its extras name the place that it came from.
"""

import json
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

from numllama.errors import NumllamaError

PACKAGE = Path(__file__).resolve().parent


def required(module: str, what: str) -> ModuleType:
    """A module of a package that may be missing, as in a page of the book; NumllamaError says what needs it."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise NumllamaError(f"{what} needs the package {package}: pip install {package}") from error


def install_command(*extras: str) -> str:
    """The command that installs some extras.

    Parameters
    ----------
    extras : str
        Names from pyproject.toml: ``plot``, ``app``, ...
    """
    some = f"[{','.join(extras)}]"
    checkout = PACKAGE.parent
    if _is_checkout(checkout):
        place = "." if checkout == _current() else str(checkout)
        return f'pip install -e "{place}{some}"'
    if url := _installed_from():
        return f'pip install "numllama{some} @ {url}"'
    return f'pip install -e ".{some}" (in the folder of its sources)'


def _is_checkout(folder: Path) -> bool:
    """Whether the folder holds the sources of this package."""
    try:
        return re.search(r'^name = "numllama"$', (folder / "pyproject.toml").read_text(encoding="utf-8"), re.M) is not None
    except (OSError, UnicodeDecodeError):
        return False


def _current() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # the folder has been deleted
        return None


def _installed_from() -> str | None:
    """The folder, archive or repository that pip installed from (PEP 610); None if unknown."""
    from importlib import metadata  # slow to import: as long as a command's help takes

    try:
        origin = json.loads(metadata.distribution("numllama").read_text("direct_url.json") or "{}")
        kind = (origin.get("vcs_info") or {}).get("vcs")
        return f"{kind}+{origin['url']}" if kind else origin["url"]
    except (metadata.PackageNotFoundError, OSError, ValueError, KeyError, AttributeError):
        return None
