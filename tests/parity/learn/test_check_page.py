"""docs/check.md and the README tell a true story: the commands run, and print what stands there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.parity

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What the page's four commands print, joined, and the folder in which they ran."""
    folder = tmp_path_factory.mktemp("story")
    (folder / "examples").symlink_to(ROOT / "examples")
    block = next(block for block in PAGE.split("```") if block.strip().startswith("numllama vectors gqa"))
    commands = [line.partition("#")[0].strip() for line in block.strip().splitlines()]
    assert len(commands) == 4
    for command in commands:
        assert command in README
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    ran = [subprocess.run(each.split(), cwd=folder, capture_output=True, text=True, env=environment) for each in commands]
    assert [each.returncode for each in ran] == [0, 0, 1, 1], [each.stderr for each in ran]
    return "".join(each.stdout for each in ran), folder


def numbers_apart(line):
    """A line without the digits that rounding decides."""
    return " ".join(word for word in line.split() if not word[:1].isdigit() or "e" not in word)


def test_what_the_page_shows_is_printed(printed):
    text, _ = printed
    lines = {numbers_apart(line) for line in text.splitlines()}
    shown = [block for block in PAGE.split("```") if block.startswith(("\nforward", "\n1. The key"))]
    assert len(shown) == 2
    for line in "\n".join(shown).splitlines():
        if line.strip() and line.strip() != "...":
            assert numbers_apart(line) in lines, line


def test_the_readme_shows_the_same(printed):
    values = "   It explains layer.0.scores, layer.0.head_outputs, layer.1.scores and 1 more."
    for line in ("1. The key/value heads are tiled", values):
        assert line in README and line in printed[0]


def test_the_gradients_of_the_wrong_line_are_no_mistake(printed):
    assert "2. " not in printed[0].partition("1. The key")[2] and "No known mistake" not in printed[0]


def test_the_python_on_the_page_runs(printed, monkeypatch, capsys):
    _, folder = printed
    monkeypatch.chdir(folder)
    (block,) = [block.removeprefix("python\n") for block in PAGE.split("```") if block.startswith("python\n")]
    exec(block)
    assert "False layer.0.scores is the first that is wrong" in capsys.readouterr().out


def test_the_right_line_makes_it_the_same(printed, tmp_path):
    _, folder = printed
    source = (ROOT / "examples" / "broken_llama.py").read_text(encoding="utf-8")
    wrong = "k, v = k.repeat(1, H // K, 1, 1), v.repeat(1, H // K, 1, 1)"
    assert source.count(wrong) == 1
    right = source.replace(wrong, "k, v = k.repeat_interleave(H // K, 1), v.repeat_interleave(H // K, 1)")
    (tmp_path / "right.py").write_text(right, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, tmp_path / "right.py", folder / "vectors" / "gqa", tmp_path / "mine.safetensors"]
    subprocess.run(arguments, check=True, env=environment)
    command = [sys.executable, "-m", "numllama", "compare", folder / "vectors" / "gqa", tmp_path / "mine.safetensors"]
    assert "The same: " in subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
