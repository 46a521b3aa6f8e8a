"""Commands that install optional parts. The package is not on PyPI, so they name the place it came from."""

import json
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


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
