"""Would a mistake be caught?  Each one of `mistakes.py`, made in a copy of the project, turns its test red."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mistakes import MISTAKES

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    """A copy of the project, to make mistakes in."""
    copy = tmp_path_factory.mktemp("mistakes")
    for name in ("numllama", "kernels", "examples", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what.replace(" ", "_"))
def test_a_mistake_is_caught(copy, mistake):
    path = copy / "numllama" / mistake.file
    source = path.read_text(encoding="utf-8")
    assert source.count(mistake.right) == 1, f"{mistake.file} holds this {source.count(mistake.right)} times: {mistake.right}"
    path.write_text(source.replace(mistake.right, mistake.wrong), encoding="utf-8")
    quiet = ["-x", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist"]  # plain: no minutes of comparing long values
    command = [sys.executable, "-m", "pytest", *quiet, f"tests/{mistake.test}"]
    try:
        run = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=120, env=environment(copy))
    finally:
        path.write_text(source, encoding="utf-8")
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout[-3000:] + run.stderr[-3000:]
    assert "1 failed" in run.stdout


def environment(copy: Path) -> dict[str, str]:
    """The copy comes before an installed numllama; compiled files of the right source must not stand for the wrong one."""
    return {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}


def test_there_are_enough_of_them():
    assert len(MISTAKES) >= 25
    assert len({mistake.right for mistake in MISTAKES}) > 0.9 * len(MISTAKES)
