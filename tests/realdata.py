"""Data that is not part of the project: a test that needs it is skipped where it is missing."""

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def real_data(name: str) -> Path:
    """A file in $NUMLLAMA_TEST_DATA, else in ../shared/data seen from the project's root; skips the test if there is none."""
    folder = Path(os.environ.get("NUMLLAMA_TEST_DATA") or PROJECT.parent / "shared" / "data")
    if not (folder / name).is_file():
        pytest.skip(f"{name} is neither in $NUMLLAMA_TEST_DATA nor in ../shared/data")
    return folder / name
