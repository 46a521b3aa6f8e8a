"""The examples that print something: what they print is true."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="tests without the examples")


def example(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bpe_steps_shows_each_merge_of_a_word():
    steps = example("bpe_steps")
    tokenizer = steps.learn(steps.CORPUS)
    lines = [line.split() for line in steps.show(tokenizer, "lowest newer")]
    assert lines[0] == ["l|o|w|e|s|t|␣|n|e|w|e|r"]
    assert lines[1:3] == [["0", "s", "+", "t", "l|o|w|e|st|␣|n|e|w|e|r"], ["1", "e", "+", "st", "l|o|w|est|␣|n|e|w|e|r"]]
    assert lines[-2][-1].count("|") + 1 == len(tokenizer.encode("lowest newer"))
    assert lines[-1] == f"ids: {tokenizer.encode('lowest newer')}".split()
